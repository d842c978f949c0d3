"""Few-shot: episodes, the benchmark's classifier against its plain loop, statistics, errors."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import refused
from torch import nn

from tinyvit_zoo.common.counter_rng import child_key, permutations, uniform
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.downstream import few_shot
from tinyvit_zoo.downstream.classifiers import cdfsl, cdfsl_kernel
from tinyvit_zoo.downstream.few_shot import Episodes, FewShotResult, paired, run, sample_episodes

IMAGES, CLASSES = 40, 8
LABELS = np.arange(CLASSES).repeat(IMAGES)
PINNED = '51589522725e87e1549d5eeaf914214c44d8b79710d2543e744e4ed05c8330c2'


def clusters(D: int = 24, spread: float = 0.3) -> torch.Tensor:
    """Features (N, D) around a center of each class, with some overlap."""
    return torch.randn(len(LABELS), D) + spread * torch.randn(CLASSES, D)[LABELS]


@pytest.fixture(params=['compiled', 'PyTorch'])
def steps(request, monkeypatch) -> None:
    """The classifier's steps in compiled code, where there is a compiler, and in PyTorch."""
    if request.param == 'PyTorch':
        monkeypatch.setattr(cdfsl_kernel, 'load', lambda: None)


def plain_loop(features: torch.Tensor, episodes: Episodes, e: int) -> torch.Tensor:
    """The benchmark's loop for one episode, with the draws of ours: logits (ways * queries, ways)."""
    ways, shots = episodes.support.shape[1:]
    start, orders = cdfsl.draw(episodes.seeds[e : e + 1], ways, shots, features.shape[1])
    start = torch.from_numpy(start[0]).to(features)
    x, y = features[episodes.support[e].reshape(-1)], torch.arange(ways).repeat_interleave(shots)
    net = nn.Linear(features.shape[1], ways, dtype=features.dtype)
    net.load_state_dict(dict(weight=start[:, :-1], bias=start[:, -1]))
    sgd = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, dampening=0.9, weight_decay=0.001)
    for order in torch.from_numpy(orders[0]):
        for batch in order.split(4):
            sgd.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            sgd.step()
    with torch.no_grad():
        return net(features[episodes.query[e].reshape(-1)])


# episodes


def test_episodes_have_distinct_classes_and_distinct_images_of_these():
    episodes = sample_episodes(LABELS, ways=5, shots=3, queries=4, episodes=50)
    assert episodes.classes.shape == (50, 5)
    assert episodes.support.shape == (50, 5, 3)
    assert episodes.query.shape == (50, 5, 4)
    for array in (episodes.classes, episodes.support, episodes.query):
        assert array.dtype == np.int64
    images = np.concatenate([episodes.support, episodes.query], axis=2)
    assert (LABELS[images] == episodes.classes[..., None]).all()
    assert all(len(set(classes)) == 5 for classes in episodes.classes.tolist())
    assert all(len(set(row)) == 35 for row in images.reshape(50, -1).tolist())


def test_every_class_and_image_is_drawn_about_as_often():
    episodes = sample_episodes(LABELS, ways=5, shots=5, queries=15, episodes=2000)
    for drawn, things in ((episodes.classes, CLASSES), (episodes.support, len(LABELS)), (episodes.query, len(LABELS))):
        counts = np.bincount(drawn.reshape(-1), minlength=things)
        expected = drawn.size / things
        assert abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_episodes_depend_on_their_arguments_alone_and_never_change():
    episodes = sample_episodes(LABELS, episodes=20)
    assert episodes.sha256 == PINNED
    np.random.seed(5)
    torch.manual_seed(5)
    assert sample_episodes(LABELS.tolist(), episodes=20).sha256 == PINNED
    assert sample_episodes(LABELS, episodes=20, seed=1).sha256 != PINNED
    assert sample_episodes(LABELS, episodes=20, seed=-1).sha256 != PINNED


def test_another_process_with_other_threads_draws_the_same_episodes():
    code = (
        'import numpy as np; from tinyvit_zoo.downstream.few_shot import sample_episodes;'
        f'print(sample_episodes(np.arange({CLASSES}).repeat({IMAGES}), episodes=20).sha256)'
    )
    environment = dict(OMP_NUM_THREADS='2', PYTHONHASHSEED='7', PYTHONPATH=':'.join(sys.path))
    done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == PINNED


def test_an_episode_does_not_depend_on_their_number_nor_its_queries_on_the_shots():
    few, many = (sample_episodes(LABELS, episodes=n, shots=2) for n in (3, 10))
    assert np.array_equal(few.support, many.support[:3])
    assert np.array_equal(few.seeds, many.seeds[:3])
    more = sample_episodes(LABELS, episodes=3, shots=9)
    assert np.array_equal(few.query, more.query)
    assert np.array_equal(few.support, more.support[..., :2])


def test_the_hash_depends_on_every_array():
    one = sample_episodes(LABELS, episodes=4)
    arrays = dict(classes=one.classes, support=one.support, query=one.query)
    assert Episodes(**arrays, seeds=one.seeds + np.uint64(1)).sha256 == one.sha256  # the same images
    for name in arrays:
        assert Episodes(**{**arrays, name: arrays[name][::-1]}, seeds=one.seeds).sha256 != one.sha256


def test_draws_are_uniform_and_independent_for_every_path():
    assert permutations(child_key(0), 1).tolist() == [0]
    keys = child_key(3, np.arange(6000))
    orders = permutations(keys, 4)
    _, counts = np.unique(orders @ [1, 4, 16, 64], return_counts=True)
    assert len(counts) == 24
    assert abs(counts - 250).max() < 5 * np.sqrt(250)
    numbers = uniform(keys, 3)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(np.corrcoef(numbers.T) - np.eye(3)).max() < 0.07
    places = {int(child_key(seed, a, b)) for seed in (0, 1) for a in range(20) for b in range(20)}
    assert len(places) == 800
    assert int(child_key(0, 2, 1)) == int(child_key(0, np.arange(4), 1)[2])


# the benchmark's classifier


@pytest.mark.parametrize(('shots', 'ways', 'D'), [(1, 5, 24), (3, 2, 24), (5, 5, 24), (3, 7, 1)])
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 1e-3), (torch.float64, 1e-9)])
def test_all_episodes_at_once_give_the_logits_of_the_plain_loop(shots, ways, D, dtype, tolerance, steps):
    features = clusters(D).to(dtype)
    episodes = sample_episodes(LABELS, ways=ways, shots=shots, queries=4, episodes=5)
    ours = cdfsl.logits(features, episodes.support, episodes.query, episodes.seeds).flatten(1, 2)
    result = run(features, LABELS, episodes, dtype=dtype)
    for e in (0, 4):
        theirs = plain_loop(features, episodes, e)
        assert (ours[e] - theirs).abs().max() < tolerance / 10
        assert np.array_equal(result.predictions[e].reshape(-1), theirs.argmax(dim=1).numpy())


@pytest.mark.parametrize('shots', [5, 20])
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 1e-3), (torch.float64, 1e-9)])
def test_wide_features_and_more_shots_give_the_logits_of_the_plain_loop(shots, dtype, tolerance, steps):
    features = clusters(576, 0.15).to(dtype)
    episodes = sample_episodes(LABELS, shots=shots, episodes=18)
    ours = cdfsl.logits(features, episodes.support, episodes.query, episodes.seeds).flatten(1, 2)
    for e in (0, 17):
        theirs = plain_loop(features, episodes, e)
        assert (ours[e] - theirs).abs().max() < tolerance
        assert torch.equal(ours[e].argmax(dim=1), theirs.argmax(dim=1))


def test_without_a_compiler_pytorch_gives_the_same_result_after_one_log_line(monkeypatch, caplog, tmp_path):
    features, episodes = clusters().double(), sample_episodes(LABELS, shots=3, queries=3, episodes=20)
    arguments = (features, episodes.support, episodes.query, episodes.seeds)
    compiled = cdfsl.logits(*arguments)
    monkeypatch.setenv('TINYVIT_ZOO_HOME', str(tmp_path))
    for compiler in ('no-such-compiler', 'false', 'c++ "'):
        caplog.clear()
        monkeypatch.setenv('CXX', compiler)
        cdfsl_kernel.load.cache_clear()
        without = cdfsl.logits(*arguments)
        assert torch.equal(cdfsl.logits(*arguments), without)
        assert len(caplog.records) == 1
        assert '\n' not in caplog.records[0].getMessage()
        assert (without - compiled).abs().max() < 1e-9
        assert not list(tmp_path.rglob('*.so'))
    cdfsl_kernel.load.cache_clear()


@pytest.fixture
def built(monkeypatch, tmp_path) -> Path:
    """The compiled steps in a cache of the test's own."""
    if not any(shutil.which(name) for name in cdfsl_kernel.COMPILERS):
        pytest.skip('no C++ compiler')
    monkeypatch.setattr(cdfsl_kernel, 'FLAGS', tuple('-O0' if f == '-O3' else f for f in cdfsl_kernel.FLAGS))
    monkeypatch.setenv('TINYVIT_ZOO_HOME', str(tmp_path))
    monkeypatch.delenv('CXX', raising=False)
    cdfsl_kernel._load()
    yield next(tmp_path.rglob('*.so'))
    cdfsl_kernel.load.cache_clear()


def builds(monkeypatch) -> list[list[str]]:
    """The calls of the compiler from now on, which still happen."""
    calls, run = [], subprocess.run
    monkeypatch.setattr(subprocess, 'run', lambda command, **kw: calls.append(command) or run(command, **kw))
    return calls


def test_compiled_steps_are_the_users_alone_and_built_once(built, monkeypatch):
    calls = builds(monkeypatch)
    cdfsl_kernel._load()
    assert not calls
    modes = [p.stat().st_mode & 0o777 for p in (built.parent, built, built.with_suffix('.sha256'))]
    assert modes == [0o700, 0o600, 0o600]


@pytest.mark.parametrize('change', ['empty', 'cut', 'other bytes', 'no note', 'open to others', 'a link'])
def test_compiled_steps_that_are_not_as_built_are_built_again_and_never_run(change, built, monkeypatch, tmp_path):
    whole = built.read_bytes()
    if change == 'no note':
        built.with_suffix('.sha256').unlink()
    elif change == 'open to others':
        built.chmod(0o666)
    elif change == 'a link':
        built.rename(tmp_path / 'planted.so')
        built.symlink_to(tmp_path / 'planted.so')
    else:
        built.unlink()  # this process has it mapped: in a file cut short under it, code that is called would be gone
        built.write_bytes({'empty': b'', 'cut': whole[:-100], 'other bytes': whole[:-1] + b'\x07'}[change])
    calls = builds(monkeypatch)
    assert cdfsl_kernel._load()
    assert len(calls) == 1
    assert built.read_bytes() == whole
    assert not built.is_symlink()
    assert not built.stat().st_mode & 0o022


def test_compiled_steps_that_are_built_again_are_those_that_run(built):
    """The loader knows what it has loaded by its name, and descriptors that are closed are given again."""
    before = cdfsl_kernel._load()
    built.unlink()
    after = cdfsl_kernel._load()
    assert after._handle != before._handle
    assert cdfsl_kernel._load()._handle == after._handle  # the same file


def test_a_folder_of_compiled_steps_is_closed_to_others(built, monkeypatch):
    built.parent.chmod(0o777)
    assert cdfsl_kernel._load()
    assert built.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize('folder', ['a link', "another user's"])
def test_compiled_steps_of_another_user_are_not_run(folder, built, monkeypatch, tmp_path, caplog):
    if folder == 'a link':
        built.parent.rename(tmp_path / 'theirs')
        built.parent.symlink_to(tmp_path / 'theirs')
    else:
        monkeypatch.setattr(os, 'geteuid', lambda: os.getuid() + 1)
    calls = builds(monkeypatch)
    cdfsl_kernel.load.cache_clear()
    assert cdfsl_kernel.load() is None
    assert not calls
    assert str(built.parent) in caplog.text


def test_the_compiler_may_have_arguments(built, monkeypatch):
    compiler = next(name for name in cdfsl_kernel.COMPILERS if shutil.which(name))
    monkeypatch.setenv('CXX', f'{compiler} -DNOTE="a note"')
    calls = builds(monkeypatch)
    assert cdfsl_kernel._load()
    assert calls[0][:2] == [compiler, '-DNOTE=a note']
    assert len(list(built.parent.glob('*.so'))) == 2


@pytest.mark.parametrize(('ways', 'shots', 'threads'), [(5, 5, 1), (2, 1, 2), (3, 7, 3), (8, 3, 1)])
def test_compiled_steps_equal_those_of_pytorch(ways, shots, threads, monkeypatch):
    N, E = ways * shots, 5
    x = torch.randn(E, N, 20, dtype=torch.float64)
    products = torch.cat([x @ x.mT + 1, torch.randn(E, N, ways, dtype=torch.float64)], dim=2)
    products = F.pad(products, (0, -products.shape[2] % cdfsl.LANES))
    orders = torch.from_numpy(permutations(child_key(0, np.arange(E)[:, None], np.arange(cdfsl.EPOCHS)), N))
    monkeypatch.setattr(torch, 'get_num_threads', lambda: threads)
    compiled = cdfsl._train(products, orders, ways)
    monkeypatch.setattr(cdfsl_kernel, 'load', lambda: None)
    assert (compiled - cdfsl._train(products, orders, ways)).abs().max() < 1e-12


def test_initial_weights_follow_the_rule_of_nn_linear():
    start, orders = cdfsl.draw(child_key(0, np.arange(40)), 5, 2, 100)
    default = nn.Linear(100, 5)
    assert abs(start).max() <= 0.1
    assert start.shape == (40, 5, 101)
    assert start.std() == pytest.approx(default.weight.std().item(), rel=0.1)
    assert np.array_equal(np.sort(orders, axis=2), np.broadcast_to(np.arange(10), orders.shape))
    assert len({tuple(row) for row in orders[0].tolist()}) == cdfsl.EPOCHS


@pytest.mark.parametrize('solver', few_shot.SOLVERS)
def test_chunks_do_not_change_a_bit(solver, steps):
    features, episodes = clusters(), sample_episodes(LABELS, shots=3, queries=3, episodes=37)
    whole = run(features, LABELS, episodes, solver)
    for chunk in (1, 20, 1000):
        part = run(features, LABELS, episodes, solver, chunk=chunk)
        assert np.array_equal(part.accuracy, whole.accuracy)
        assert np.array_equal(part.predictions, whole.predictions)


def test_logits_of_whole_groups_are_equal_bit_by_bit(steps):
    features, episodes = clusters(), sample_episodes(LABELS, shots=3, queries=3, episodes=37)

    def logits(part):
        return cdfsl.logits(features, episodes.support[part], episodes.query[part], episodes.seeds[part])

    parts = [logits(slice(i, i + cdfsl.GROUP)) for i in range(0, 37, cdfsl.GROUP)]
    assert torch.equal(torch.cat(parts), logits(slice(None)))


@pytest.mark.parametrize('solver', few_shot.SOLVERS)
@pytest.mark.parametrize('ways', [2, 5])
def test_every_solver_learns_easy_classes_and_guesses_on_noise(solver, ways):
    episodes = sample_episodes(LABELS, ways=ways, shots=5, queries=5, episodes=20)
    assert run(clusters(spread=3), LABELS, episodes, solver).mean > 95
    assert abs(run(clusters(spread=0), LABELS, episodes, solver).mean - 100 / ways) < 10


def test_class_means_are_distinguished_far_from_the_origin():
    features, episodes = clusters(spread=1), sample_episodes(LABELS, queries=3, episodes=10)
    near, far = (run(features + offset, LABELS, episodes, 'prototype').mean for offset in (0, 1e4))
    assert far == pytest.approx(near, abs=1)


def test_features_of_any_array_type_and_precision_are_accepted():
    features, episodes = clusters(), sample_episodes(LABELS, queries=3, episodes=4)
    expected = run(features, LABELS, episodes).accuracy
    assert np.array_equal(run(features.numpy(), LABELS, episodes).accuracy, expected)
    assert np.array_equal(run(features.double(), LABELS, episodes).accuracy, expected)


# statistics


def test_mean_and_interval_are_the_benchmarks():
    result = run(clusters(), LABELS, sample_episodes(LABELS, episodes=30), 'prototype')
    assert result.accuracy.shape == (30,)
    right = (result.predictions == np.arange(5)[:, None]).sum(axis=(1, 2))
    assert np.array_equal(result.accuracy, 100 * right / 75)
    assert abs(result.mean - np.mean(result.accuracy)) < 1e-12
    assert abs(result.ci95 - 1.96 * np.std(result.accuracy) / np.sqrt(30)) < 1e-12


def test_a_paired_interval_is_that_of_the_differences():
    episodes = sample_episodes(LABELS, episodes=40)
    features = clusters()
    a = run(features, LABELS, episodes, 'prototype')
    b = run(features + 0.3 * torch.randn_like(features), LABELS, episodes, 'prototype')
    difference = paired(a, b)
    assert difference.mean == pytest.approx(a.mean - b.mean)
    assert difference.ci95 == pytest.approx(1.96 * np.std(a.accuracy - b.accuracy) / np.sqrt(40), abs=1e-12)
    assert difference.ci95 < np.hypot(a.ci95, b.ci95)


def test_results_of_different_episodes_are_not_compared():
    a, b = (
        FewShotResult(np.ones(2), 1.0, 0.0, np.zeros((2, 5, 1), dtype=np.int64), 'ridge', sha256) for sha256 in 'ab'
    )
    refused(lambda: paired(a, b), 'same', kind=EvaluationError)


# errors


@pytest.mark.parametrize(
    ('labels', 'words'),
    [
        (LABELS[: 2 * IMAGES], ['2 classes', '5']),
        (LABELS[:IMAGES], ['one class only']),
        (np.append(LABELS, 9), ['Class 9', '1 image, but', '20']),
        (np.append(np.arange(5).repeat(20), [0, 5]), ['Class 5']),
        ([], ['0 classes']),
    ],
)
def test_data_without_enough_classes_or_images_are_refused(labels, words):
    refused(lambda: sample_episodes(labels), *words, kind=EvaluationError)


def test_a_class_with_too_few_images_is_named():
    names = [*'abcdefgh', 'fox']
    refused(lambda: sample_episodes(np.append(LABELS, 8), names=names), 'fox', kind=EvaluationError)


@pytest.mark.parametrize('settings', [dict(shots=0), dict(queries=0), dict(episodes=0), dict(ways=1)])
def test_empty_episodes_are_refused(settings):
    refused(lambda: sample_episodes(LABELS, **settings), 'at least', kind=EvaluationError)


def test_features_that_do_not_fit_are_refused():
    features, episodes = clusters(), sample_episodes(LABELS, episodes=3)
    broken = features.clone()
    broken[[77, 80], 3] = torch.tensor([torch.nan, torch.inf])
    for bad, labels, words in (
        (broken, LABELS, ['Row 77', '2 of 320']),
        (features * 1e25, LABELS, ['Row 0', 'squares']),
        (features[:-1], LABELS, ['319', '320']),
        (features[None], LABELS, ['(1, 320, 24)']),
        (features, LABELS[::-1], ['other labels']),
        (features[:100], LABELS[:100], ['other labels']),
    ):
        refused(lambda b=bad, y=labels: run(b, y, episodes), *words, kind=EvaluationError)
    refused(lambda: run(features, LABELS, episodes, 'svm'), 'svm', 'cdfsl, ridge', kind=EvaluationError)
