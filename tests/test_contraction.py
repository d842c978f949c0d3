"""Contraction: factors, neighbors within limits, ranking, the known path, state on disk, and processes that share."""

import dataclasses
import importlib.util
import math
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import refused
from filelock import FileLock

from tinyvit_zoo.common.determinism import one_thread
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.hashes import state_hash
from tinyvit_zoo.common.processes import on_its_own
from tinyvit_zoo.training import contraction, contraction_outcomes
from tinyvit_zoo.training.contraction import Limits, limits_of, search
from tinyvit_zoo.training.contraction_factors import Candidate, Factors, candidates, count_parameters, factors_of
from tinyvit_zoo.training.contraction_outcomes import Outcome, outcome_of, rank
from tinyvit_zoo.training.short_training import ShortTraining

NAME = 'tinyvit_21m_224'
OFFICIAL = dict(
    tinyvit_5m_224=((64, 128, 160, 320), 5_392_764),
    tinyvit_11m_224=((64, 128, 256, 448), 10_996_972),
    tinyvit_21m_224=((96, 192, 384, 576), 21_198_568),
)
"""Widths (paper, Sec. 3.2) and parameters of the released models, which share all other factors."""
PAPER = dict(N=(2, 2, 6, 2), W=((7, 7), (14, 14), (7, 7)), R=4.0, M=4.0, E=32)
IMAGES = 400


def count(f: Factors, classes: int = 1000) -> int:
    """Parameters by the paper's Table 1, layer by layer: a norm has two for each channel."""
    total = 27 * (f.D[0] // 2) + f.D[0] + 9 * (f.D[0] // 2) * f.D[0] + 2 * f.D[0]  # the stem
    mid = int(f.D[0] * f.R)
    total += f.N[0] * (2 * f.D[0] * mid + (9 + 2 + 2) * mid + 2 * f.D[0])
    for before, width, blocks, (h, w) in zip(f.D, f.D[1:], f.N[1:], f.W, strict=False):
        total += before * width + 9 * width + width * width + 6 * width  # the downsampling
        hidden = int(width * f.M)
        attention = 2 * width + 4 * width * width + 4 * width + width // f.E * h * w
        mlp = 2 * width + 2 * width * hidden + hidden + width
        total += blocks * (attention + (9 + 2) * width + mlp)
    return total + 2 * f.D[-1] + (f.D[-1] + 1) * classes


START = Factors(D=(96, 192, 384, 576), N=(2, 2, 6, 2), W=((7, 7), (14, 14), (7, 7)), R=4.0, M=4.0, E=32)
"""Of tinyvit_21m_224."""


def built(factors: Factors) -> torch.nn.Module:
    """The model, on the meta device."""
    return timm.create_model(NAME, device='meta', **factors.arguments(START))


def around(limit: int, current: Factors | None = None) -> dict[str, Candidate]:
    return {c.name: c for c in candidates(current or START, limit, (224, 224), count)}


class Table:
    """A trainer that knows accuracies beforehand: right about the first so many of all images."""

    def __init__(self, accuracies, throughputs=None):
        self.accuracies, self.throughputs = accuracies, throughputs or {}
        self.asked, self.measured = [], []

    def throughput(self, candidate):
        self.measured.append(candidate.name)
        return self.throughputs.get(candidate.name, 2.0)

    def right(self, candidate, folder):
        self.asked.append((folder.parent.name, candidate.name))
        return np.arange(IMAGES) < IMAGES * self.accuracies.get((folder.parent.name, candidate.name), 0.5)


def found(table, tmp_path, limits=None, say=lambda text: None):
    limits = limits or limits_of(count(START), NAME, 11_000_000, 1.4)
    return search(START, limits, (224, 224), count, table, tmp_path, say)


# Factors


@pytest.mark.parametrize('name', OFFICIAL)
def test_factors_and_parameters_of_the_released_models_are_those_of_the_paper(name):
    widths, parameters = OFFICIAL[name]
    model = timm.create_model(name, device='meta')
    assert factors_of(model, name) == Factors(D=widths, **PAPER)
    assert count_parameters(model) == count(Factors(D=widths, **PAPER)) == parameters


def test_the_arguments_of_factors_make_the_model_that_has_them():
    changed = Factors(D=(48, 96, 144, 240), N=(1, 2, 4, 1), W=((6, 6), (7, 7), (4, 4)), R=3.0, M=2.0, E=24)
    assert factors_of(built(changed), NAME) == changed


def test_windows_that_are_not_contracted_still_follow_the_image_size():
    assert 'window_sizes' not in around(15_000_000)['D'].factors.arguments(START)
    assert around(15_000_000)['W3'].factors.arguments(START)['window_sizes'] == ((7, 7), (7, 7), (7, 7))


def test_a_model_that_is_no_tinyvit_is_named():
    model = timm.create_model('resnet10t', device='meta')
    refused(lambda: factors_of(model, 'resnet10t'), 'resnet10t is not a TinyViT', kind=EvaluationError)


def test_heads_of_different_widths_have_no_factor():
    model = timm.create_model(NAME, device='meta', num_heads=(3, 6, 12, 9))
    refused(lambda: factors_of(model, NAME), 'heads of 32, 64 channels', kind=EvaluationError)


# Candidates


def test_every_factor_of_the_paper_has_a_candidate():
    names = set(around(15_000_000))
    assert names == {'D', *(f'{k}{i}' for k in 'DN' for i in (1, 2, 3, 4)), 'W2', 'W3', 'W4', 'R', 'M', 'E', 'N3+2'}


def test_candidates_meet_the_limit_and_could_not_be_a_head_wider_where_all_stages_are_narrowed():
    found = around(15_000_000)
    assert {name: count_parameters(built(c.factors)) for name, c in found.items()} == {
        name: c.parameters for name, c in found.items()
    }
    assert max(c.parameters for c in found.values()) <= 15_000_000
    narrow = found['D'].factors
    wider = [dataclasses.replace(narrow, D=(*narrow.D[:i], narrow.D[i] + 32, *narrow.D[i + 1 :])) for i in range(4)]
    assert [i for i in range(4) if wider[i].D[i] <= START.D[i] and count(wider[i]) <= 15_000_000] == []


@pytest.mark.parametrize(
    ('name', 'changes'),
    [
        ('D4', dict(D=(96, 192, 384, 320))),  # alone, as it is enough
        ('N3', dict(N=(2, 2, 5, 2))),
        ('N3+2', dict(N=(2, 2, 8, 2))),
        ('W3', dict(W=((7, 7), (7, 7), (7, 7)))),  # two windows a side instead of one
        ('W4', dict(W=((7, 7), (14, 14), (4, 4)))),
        ('R', dict(R=3.0)),
        ('M', dict(M=3.0)),
        ('E', dict(E=24)),
    ],
)
def test_a_candidate_has_its_factor_contracted_by_one_step_and_no_other_but_widths(name, changes):
    factors = around(15_270_372)[name].factors
    assert factors == dataclasses.replace(START, **{'D': factors.D, **changes})
    assert all(width % factors.E == 0 for width in factors.D)


def test_a_deeper_candidate_is_narrower():
    deeper, as_deep = around(15_270_372)['N3+2'].factors, around(15_270_372)['D'].factors
    assert sum(deeper.D) < sum(as_deep.D)


def test_the_same_model_is_one_candidate():
    smallest = Factors(D=(32, 32, 32, 32), N=(1, 1, 2, 1), W=((2, 2), (2, 2), (2, 2)), R=1.0, M=1.0, E=8)
    found = candidates(smallest, count(smallest) * 9 // 10, (64, 64), count)
    assert len({c.factors for c in found}) == len(found)
    assert 'R' not in {c.name for c in found}


def test_a_limit_that_nothing_around_meets_names_the_nearest():
    refused(lambda: around(1000), 'at most 1,000 parameters', 'the nearest (', '--params', kind=EvaluationError)


# Limits


def test_limits_go_down_by_one_factor_to_what_is_asked_for():
    limits = limits_of(21_198_568, NAME, 11_000_000, 1.4)
    assert limits == (Limits(15_270_372, pytest.approx(math.sqrt(1.4))), Limits(11_000_000, 1.4))
    assert len(limits_of(21_198_568, NAME, 5_400_000)) == 4
    assert limits_of(21_198_568, NAME, 11_000_000, 1.4, steps=1) == (Limits(11_000_000, 1.4),)


def test_the_throughput_may_ask_for_more_steps_than_the_parameters():
    assert len(limits_of(100, NAME, 90, 4.0)) == 4


@pytest.mark.parametrize(
    ('asked', 'words'),
    [
        (dict(parameters=30_000_000), '--params 30,000,000 is not below the 21,198,568 parameters'),
        (dict(parameters=21_198_568), 'is not below'),
        (dict(parameters=11_000_000, throughput=0.8), '--throughput 0.8x is slower'),
    ],
)
def test_limits_that_the_start_model_meets_are_refused(asked, words):
    refused(lambda: limits_of(21_198_568, NAME, **asked), words, kind=EvaluationError)


# Ranking


def outcomes(*rows):
    """Of (name, images of 400 that are right, throughput)."""
    return [Outcome(Candidate(n, START, 10), speed, np.arange(IMAGES) < right) for n, right, speed in rows]


def test_the_most_accurate_goes_first_where_the_interval_tells_it_apart():
    ranked = rank(outcomes(('a', 200, 9.0), ('b', 300, 1.0), ('c', 250, 2.0)))
    assert [r.outcome.candidate.name for r in ranked] == ['b', 'c', 'a']
    assert [r.tied for r in ranked] == [True, False, False]
    assert ranked[1].difference == -12.5
    low, high = ranked[1].interval
    assert low < -12.5 < high < 0


def test_of_those_that_cannot_be_told_apart_the_fastest_goes_first():
    ranked = rank(outcomes(('a', 300, 1.0), ('b', 298, 1.5), ('c', 299, 1.2), ('d', 200, 3.0)))
    assert [r.outcome.candidate.name for r in ranked] == ['b', 'c', 'a', 'd']


# Search


def test_the_search_finds_the_known_path(tmp_path):
    table = Table({('step-1', 'N3+2'): 0.9, ('step-1', 'M'): 0.7, ('step-2', 'D1'): 0.8, ('step-2', 'R'): 0.9})
    one, two = found(table, tmp_path)
    assert [step.winner.name for step in (one, two)] == ['N3+2', 'R']
    assert one.winner == around(15_270_372)['N3+2']
    assert two.winner == around(11_000_000, one.winner.factors)['R']
    assert [r.outcome.candidate.name for r in two.ranking[:2]] == ['R', 'D1']
    for step in (one, two):
        assert all(r.outcome.candidate.parameters <= step.limits.parameters for r in step.ranking)
        assert all(r.outcome.throughput >= step.limits.throughput for r in step.ranking)


def test_a_candidate_that_is_too_slow_is_not_trained(tmp_path):
    table = Table({('step-1', 'N3+2'): 0.9}, {'N3+2': 1.1})  # the first step asks for 1.18x
    one, _ = found(table, tmp_path)
    assert [outcome.candidate.name for outcome in one.too_slow] == ['N3+2']
    assert ('step-1', 'N3+2') not in table.asked
    assert one.winner.name != 'N3+2'


def test_a_throughput_that_no_candidate_has_names_the_nearest(tmp_path):
    speeds = dict.fromkeys(around(15_270_372), 1.01) | dict(D2=1.1)
    message = refused(lambda: found(Table({}, speeds), tmp_path), 'step 1', '1.18x', '(D2, ', kind=EvaluationError)
    assert 'has 1.10x: give a lower --throughput or fewer --params' in message


def test_the_ranking_is_reported_with_intervals(tmp_path):
    said = []
    found(Table({('step-1', 'R'): 0.9}), tmp_path, [Limits(15_270_372)], said.append)
    ranking = [line for line in said if line.startswith('  ')]
    assert ranking[0].startswith('  1. R: ')
    assert ranking[0].endswith('(the most accurate)')
    assert '90.00 % of held-out images' in ranking[0]
    assert '(-40.00 points, 95 % interval -44.' in ranking[1]
    assert said[-1] == 'Step 1 goes to R: the most accurate.'


def test_a_search_that_dies_measures_nothing_twice(tmp_path):
    accuracies = {('step-1', 'D3'): 0.9, ('step-2', 'E'): 0.9}
    whole = found(Table(accuracies), tmp_path / 'whole')
    first, died = Table(accuracies), 5

    class Dying(Table):
        def right(self, candidate, folder):
            if len(first.asked) == died:
                raise KeyboardInterrupt
            first.asked.append((folder.parent.name, candidate.name))
            return super().right(candidate, folder)

    with pytest.raises(KeyboardInterrupt):
        found(Dying(accuracies), tmp_path / 'cut')
    rest = Table(accuracies)
    resumed = found(rest, tmp_path / 'cut')
    assert set(first.asked).isdisjoint(rest.asked)
    assert len(rest.asked) == len(whole[0].ranking) + len(whole[1].ranking) - died
    assert len(rest.measured) == len(rest.asked) - 1  # that of the one that died was on the disk
    names = [[r.outcome.candidate for r in step.ranking] for steps in (whole, resumed) for step in steps]
    assert names[:2] == names[2:]


def test_only_the_weights_of_winners_stay(tmp_path):
    class Writing(Table):
        def right(self, candidate, folder):
            for name in ('state.pt', 'best.pt'):
                (folder / name).write_bytes(b'')
            return super().right(candidate, folder)

    found(Writing({('step-1', 'R'): 0.9, ('step-2', 'M'): 0.9}), tmp_path)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*.pt'))
    assert left == ['step-1/R/best.pt', 'step-2/M/best.pt']


def test_a_damaged_result_is_named(tmp_path):
    found(Table({}), tmp_path, [Limits(15_270_372)])
    (tmp_path / 'step-1' / 'R' / 'result.json').write_text('{"right": 1')
    refused(
        lambda: found(Table({}), tmp_path, [Limits(15_270_372)]), 'R/result.json is damaged: remove it',
        kind=EvaluationError,
    )  # fmt: skip


# Processes


def test_a_candidate_that_another_process_holds_is_left_to_it(tmp_path):
    candidate, table = around(15_270_372)['R'], Table({})
    (tmp_path / 'R').mkdir()
    with FileLock(tmp_path / 'R' / contraction_outcomes.CLAIM):
        assert outcome_of(candidate, None, table, tmp_path / 'R') is None
        assert (table.asked, table.measured) == ([], [])
    assert outcome_of(candidate, None, table, tmp_path / 'R').throughput == 2.0


def test_two_searches_in_one_folder_share_the_candidates_and_agree(tmp_path, monkeypatch):
    monkeypatch.setattr(contraction, 'WAIT', 0.01)
    both, results = threading.Barrier(2), {}

    class Meeting(Table):
        """Holds its first candidate until the other search holds one, too."""

        def right(self, candidate, folder):
            if not self.asked:
                both.wait(300)
            return super().right(candidate, folder)

    tables = tuple(Meeting({('step-1', 'M'): 0.9}) for _ in range(2))
    limits = [Limits(15_270_372)]

    def work(i):
        results[i] = found(tables[i], tmp_path, limits)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    asked = [name for table in tables for name in table.asked]
    assert len(asked) == len(set(asked)) == len(around(15_270_372))
    assert all(table.asked for table in tables)
    names = [[r.outcome.candidate.name for r in results[i][0].ranking] for i in range(2)]
    assert names[0] == names[1]


def test_a_process_of_a_launcher_trains_on_its_own(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setenv('RANK', '1')
    with on_its_own():
        assert 'WORLD_SIZE' not in os.environ
        assert 'RANK' not in os.environ
    assert (os.environ['WORLD_SIZE'], os.environ['RANK']) == ('2', '1')


# Training


@pytest.fixture(scope='module')
def benchmark():
    path = Path(__file__).parent.parent / 'benchmarks' / 'contraction.py'
    spec = importlib.util.spec_from_file_location('contraction_benchmark', path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def killed_once_it_has(benchmark, folder: Path, result: str) -> None:
    """The small search, killed by the system when the result of a candidate is on the disk."""
    process = benchmark.started(folder, folder.parent / 'ranking.json', steps=1)
    try:
        while not (folder / result).exists() and process.poll() is None:
            time.sleep(0.01)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL, 'it ended before it was killed'


def test_a_killed_search_goes_on_with_the_same_ranking(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(ShortTraining, 'throughput', ShortTraining.throughput)  # the benchmark makes it up
    killed_once_it_has(benchmark, tmp_path / 'killed', 'step-1/D1/result.json')
    assert {'D', 'D1'} <= {path.parent.name for path in tmp_path.rglob('result.json')}
    with one_thread():
        resumed, whole = benchmark.search(tmp_path / 'killed', steps=1), benchmark.search(tmp_path / 'whole', steps=1)
    assert benchmark.ranking(resumed) == benchmark.ranking(whole)
    assert state_hash(resumed.model) == state_hash(whole.model)
    assert count_parameters(resumed.model) <= resumed.steps[-1].limits.parameters
    with pytest.raises(EvaluationError, match='holds another search, which differs in: limits'):
        benchmark.search(tmp_path / 'whole', steps=2)
