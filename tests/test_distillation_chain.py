"""The benchmark of the whole distillation: its links in small, and that it reports the result, whatever it is."""

import json
import multiprocessing
import os
import signal

import pytest
import torch
from conftest import imported_benchmark
from PIL import Image

from tinyvit_zoo.data import load_dataset
from tinyvit_zoo.soft_labels import Teacher
from tinyvit_zoo.training.loop import TrainingLoop


@pytest.fixture(scope='module')
def benchmark():
    with imported_benchmark('distillation_chain') as module:
        yield module


@pytest.fixture
def tiny(benchmark):
    return benchmark.Settings(
        teacher_images=40, student_images=20, test_images=20, teacher_epochs=1, student_epochs=2, batch=20,
        architecture='test_vit',
    )  # fmt: skip


def made_up(benchmark, *seeds: tuple[float, ...], same_bytes: bool = True) -> dict[int, dict]:
    """Results of seeds with these accuracies, in the order of `ORDER`."""
    saving = dict(killed_at=3, shards=20, same_bytes=same_bytes)
    return {
        seed: {
            'accuracy': dict(zip(benchmark.ORDER, values, strict=True)),
            'losses': dict(store=[1.0], live=[1.001]),
            'saving': saving,
            'wrong saving': saving,
            'agreement': dict(largest=1e-4),
            'test_images': 100,
        }
        for seed, values in enumerate(seeds)
    }


def test_a_small_chain_writes_everything_and_resumes_with_the_next_seed(benchmark, tiny, tmp_path, monkeypatch):
    run_seed, asked = benchmark.run_seed, []

    def killed_in_the_second(seed, *args):
        asked.append(seed)
        if asked == [0, 1]:
            raise KeyboardInterrupt
        return run_seed(seed, *args)

    monkeypatch.setattr(benchmark, 'run_seed', killed_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        benchmark.run(2, tiny, tmp_path)
    first = json.loads((tmp_path / 'seeds' / '0.json').read_text())
    said = []
    report = benchmark.run(2, tiny, tmp_path, said.append)
    assert asked == [0, 1, 1]
    assert report['seeds'][0] == first
    assert json.loads((tmp_path / 'results.json').read_text()) == json.loads(json.dumps(report))
    assert list(report['rows']) == list(benchmark.ORDER)
    with Image.open(tmp_path / 'results.png') as image:
        assert min(image.size) > 300
    for result in report['seeds']:
        assert 0 < result['saving']['killed_at']
        assert result['saving']['same_bytes']
        assert result['losses']['live'] == pytest.approx(result['losses']['store'], abs=1e-3)
        assert result['losses']['labels'] != result['losses']['wrong labels']


def test_wrong_labels_are_a_share_and_all_wrong(benchmark):
    digits = load_dataset('digits', 'train')
    wrong = benchmark.with_wrong_labels(digits, 0.2, seed=3)
    assert 0.17 < (wrong.labels != digits.labels).mean() < 0.23
    assert set(wrong.labels.tolist()) == set(range(10))
    assert (benchmark.with_wrong_labels(digits, 0.2, seed=3).labels == wrong.labels).all()
    assert (benchmark.with_wrong_labels(digits, 1.0, seed=3).labels != digits.labels).all()


def test_a_gain_is_reported_with_its_certainty(benchmark):
    results = made_up(
        benchmark, (98, 90, 94.0, 94, 97, 85, 84.9), (97, 89, 92.8, 93, 96, 83, 84.0), (98, 91, 95.1, 95, 97, 84, 84.5)
    )
    summary = benchmark.summarise(results)
    verdicts = {(p['better'], p['worse']): p['verdict'] for p in summary['pairs']}
    assert verdicts['store', 'labels'] == verdicts['store', 'wrong labels'] == 'it helps'
    assert verdicts['wrong store', 'wrong labels'] == 'undecided'
    text = benchmark.table(summary, results)
    assert 'better than the student of labels, holds.' in text
    assert 'killed at 3, 3, 3 of 20 shards and resumed; the bytes of one process' in text


def test_no_gain_is_reported_as_it_is(benchmark):
    results = made_up(benchmark, (88, 92, 90.0, 90, 97, 85, 84.9), (97, 93, 90.8, 90, 96, 83, 84.0), same_bytes=False)
    summary = benchmark.summarise(results)
    assert summary['pairs'][1]['verdict'] == 'IT HARMS'
    text = benchmark.table(summary, results)
    assert 'better than the student of labels, FAILS.' in text
    assert 'NOT the bytes of one process' in text


@pytest.mark.slow
def test_a_student_that_is_killed_ends_with_the_same_losses_and_weights(benchmark, tmp_path):
    settings = benchmark.Settings(student_epochs=4)
    chain = benchmark.Chain(settings, load_dataset('digits', 'train').subset(range(80)), tmp_path, seed=0)
    with benchmark.one_thread():
        store, _ = chain.stored(Teacher.of_timm(chain._new(), 'random weights'), 'labels')

        def killed() -> None:
            step = TrainingLoop._step

            def dying(loop, *args):
                if (tmp_path / 'killed' / 'state.pt').exists():  # after an epoch
                    os.kill(os.getpid(), signal.SIGKILL)
                return step(loop, *args)

            TrainingLoop._step = dying
            chain.from_store(store, 'killed')

        # Forked before anything is trained here: a process with threads of autograd has no use of it after a fork.
        process = multiprocessing.get_context('fork').Process(target=killed)
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        resumed, again = chain.from_store(store, 'killed')
        student, losses = chain.from_store(store, 'whole')
    assert again == losses
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), resumed.parameters(), strict=True))


@pytest.mark.slow
def test_the_chain_with_tinyvit(benchmark):
    """Teacher to student: nothing is lost by kills, store and live teacher say the same, the teacher has learned."""
    settings = benchmark.Settings(
        teacher_images=400, student_images=80, test_images=100, teacher_epochs=12, student_epochs=4
    )
    with benchmark.one_thread():
        result = benchmark.run_seed(0, settings)
    assert result['saving']['same_bytes']
    assert 0 < result['saving']['killed_at']
    assert result['agreement']['largest'] < 5e-4
    assert result['losses']['live'][0] == pytest.approx(result['losses']['store'][0], abs=1e-3)
    assert result['accuracy']['teacher'] > 30  # chance is 10
