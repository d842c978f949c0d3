"""The benchmark of an update: trainer and plain loop take turns and do the same work; the interval of a median."""

from functools import partial

import pytest
from conftest import imported_benchmark

from tinyvit_zoo.common.paired_timing import median_interval


@pytest.fixture
def benchmark(monkeypatch):
    with imported_benchmark('plain_loops') as module:
        for name, value in dict(BATCH=8, PER_EPOCH=3, EPOCHS=2).items():
            monkeypatch.setattr(module, name, value)
        yield module


@pytest.mark.parametrize('name', ['mae', 'tinymim'])
def test_a_trainer_and_a_plain_loop_in_turn_end_with_the_same_weights(name, benchmark, monkeypatch):
    made = getattr(benchmark, f'{name}_training')
    monkeypatch.setitem(benchmark.TRAINERS, name, partial(made, img_size=32, patch_size=16, depth=2))
    timed = benchmark.compare(name)
    assert timed.apart < 1e-6
    assert len(timed.ours) == len(timed.plain) == 2  # the second of three updates in each of two epochs
    assert timed.interval[0] <= timed.ratio <= timed.interval[1]


@pytest.mark.parametrize(('number', 'ends'), [(1, (1, 1)), (5, (1, 5)), (9, (2, 8)), (20, (6, 15)), (100, (40, 61))])
def test_the_interval_of_a_median_is_that_of_the_tables_of_the_sign_test(number, ends):
    assert median_interval(range(number, 0, -1)) == ends
