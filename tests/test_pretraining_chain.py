"""The benchmark of pre-trainings: its pieces in small, kept and resumed, and what it says of the papers' order."""

import csv
import json
from dataclasses import replace

import pytest
import torch
from conftest import imported_benchmark
from PIL import Image

WITHOUT_SEARCH = ('mae', 'teachers', 'chain')


@pytest.fixture(scope='module')
def benchmark():
    with imported_benchmark('pretraining_chain') as module:
        yield module


@pytest.fixture(scope='module')
def claims():
    with imported_benchmark('pretraining_claims') as module:
        yield module


@pytest.fixture
def tiny(benchmark):
    return benchmark.Settings(
        size=8, patch=4, flip=False, images=16, test_images=10, widths=(16, 16, 16), depth=1, heads=2, batch=8,
        pretraining_epochs=1, finetuning_epochs=1, search_epochs=1,
    )  # fmt: skip


def made_up(claims, *seeds: tuple[float, ...], parts: tuple[str, ...] = WITHOUT_SEARCH) -> dict:
    """Results of the digits with these accuracies, in the order of the arms of these parts."""
    arms = [arm for arm in claims.ARMS if any(arm in claims.PARTS[part] for part in parts)]
    return dict(
        digits={
            seed: {arm: dict(accuracy=value, parameters=1000) for arm, value in zip(arms, values, strict=True)}
            for seed, values in enumerate(seeds)
        }
    )


def test_after_a_kill_only_the_missing_pieces_are_made(benchmark, claims, tiny, tmp_path, monkeypatch):
    pretrained, asked = benchmark.Case._pretrained, []

    def killed_once(case, name, run):
        asked.append((case.seed, name))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return pretrained(case, name, run)

    monkeypatch.setattr(benchmark.Case, '_pretrained', killed_once)
    state = torch.random.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        benchmark.run(WITHOUT_SEARCH, dict(digits=tiny), 2, tmp_path)
    kept = {path: path.read_bytes() for path in (tmp_path / 'pieces').rglob('*.json')}
    said = []
    report = benchmark.run(WITHOUT_SEARCH, dict(digits=tiny), 2, tmp_path, said.append)
    first = [claims.MAE, claims.BIG, claims.D_MAE, claims.TINYMIM, claims.MIDDLE, claims.CHAIN]
    assert asked == [(0, name) for name in first[:4] + first[3:]] + [(1, name) for name in first]
    assert kept
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert json.loads((tmp_path / 'results.json').read_text()) == report
    with (tmp_path / 'results.csv').open(newline='') as file:
        lines = list(csv.DictReader(file))
    assert [line['arm'] for line in lines] == 2 * list(report['data']['digits']['rows'])
    with Image.open(tmp_path / 'results.png') as image:
        assert min(image.size) > 300
    assert str(tmp_path) in said[-1]
    assert benchmark.run(WITHOUT_SEARCH, dict(digits=tiny), 2, tmp_path)['seeds'] == report['seeds']
    assert len(asked) == 13


def test_every_small_model_starts_from_the_same_weights(benchmark, claims, tiny, tmp_path, monkeypatch):
    begun = {}

    class Untrained:
        history = ()

    def note(method):
        def plan(form, *args, **kwargs):
            encoder = form.student.encoder.vit if method == 'tinymim' else form.model if method == 'd_mae' else form
            begun[method, encoder.embed_dim] = benchmark.encoder_of(encoder)
            plan.train = lambda run: Untrained
            return plan

        return plan

    for method in ('mae', 'd_mae', 'tinymim'):
        monkeypatch.setattr(benchmark.pretraining, method, note(method))
    settings = replace(tiny, widths=(16, 24, 32))
    case = benchmark.Case('digits', settings, 0, tmp_path, print)
    for name in (claims.MAE, claims.D_MAE, claims.TINYMIM):
        case.encoder(name)
    scratch = case._plain(claims.SCRATCH).state_dict()
    for method in ('mae', 'd_mae', 'tinymim'):
        own = begun[method, 16]
        shared = own.keys() & scratch.keys()
        assert len(shared) == len(own) - 2  # the final norm, which fine-tuning does not take
        assert all(torch.equal(own[key], scratch[key]) for key in shared)
    assert {width for _, width in begun} == {16, 32}


def test_results_of_other_settings_are_refused(benchmark, tiny, tmp_path):
    benchmark.write_json(tmp_path / 'pieces' / 'digits' / '0' / 'fine-tuned-scratch.json', dict(settings={}))
    with pytest.raises(SystemExit, match='other settings'):
        benchmark.run(('mae',), dict(digits=tiny), 2, tmp_path)


def test_a_claim_is_reported_with_its_certainty_also_where_papers_disagree(claims):
    results = made_up(
        claims, (80, 88, 89, 92, 92.5, 95), (81, 90, 90, 93, 92.4, 95), (79, 87, 89, 91, 91.6, 94)
    )  # fmt: skip
    summary = claims.summarise(results, WITHOUT_SEARCH)
    verdicts = {(claim['better'], claim['worse']): claim['verdict'] for claim in summary['digits']['claims']}
    assert verdicts[claims.MAE, claims.SCRATCH] == 'holds'
    assert verdicts[claims.SCRATCH, claims.MAE] == 'REVERSED'
    assert verdicts[claims.CHAIN, claims.TINYMIM] == 'undecided'
    text = claims.table(summary, results)
    assert 'MAE > scratch' in text
    assert '+2.2  +8.33 ±  1.43   holds      (MAE-Lite, Table 1' in text
    assert '+0.6  -8.33 ±  1.43   REVERSED   (TinyMIM, Table 2' in text


def test_parts_that_were_not_measured_make_no_claims(claims):
    summary = claims.summarise(made_up(claims, (80, 88), (81, 90), parts=('mae',)), ('mae',))
    assert {claim['part'] for claim in summary['digits']['claims']} == {'mae'}


def test_every_claim_compares_what_its_part_measures(claims):
    for claim in claims.CLAIMS:
        assert {claim.better, claim.worse} <= set(claims.PARTS[claim.part])


@pytest.mark.slow
def test_a_contraction_stands_beside_a_model_that_is_narrowed_alike(benchmark, claims, tiny, tmp_path):
    report = benchmark.run(('contraction',), dict(digits=tiny), 2, tmp_path)
    rows = report['data']['digits']['rows']
    large, contracted, narrowed = (
        rows[arm]['parameters'] for arm in (claims.LARGE, claims.CONTRACTED, claims.NARROWED)
    )
    assert max(contracted + narrowed) <= large[0] / 2
    search = json.loads((tmp_path / 'pieces' / 'digits' / '0' / 'contraction.json').read_text())
    assert len(search['winners']) == 2
    assert {'D', 'N3+2'} <= search['first step'].keys()
