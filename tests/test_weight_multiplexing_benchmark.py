"""The benchmark of weight multiplexing: it runs, resumes after a kill, and reports the result, whatever it is."""

import json

import pytest
import torch
from conftest import imported_benchmark
from PIL import Image


@pytest.fixture(scope='module')
def benchmark():
    with imported_benchmark('weight_multiplexing') as module:
        yield module


@pytest.fixture
def tiny(benchmark):
    return benchmark.Settings(
        teacher_images=40, student_images=20, teacher_epochs=1, student_epochs=1, batch=20, embed_dim=16, depth=4,
        num_heads=2, share_every=2,
    )  # fmt: skip


def made_up(benchmark, *seeds: tuple[float, ...]) -> dict[int, dict]:
    """Results of seeds with these accuracies of teacher, WS, WS+WT, WS+WD and WS+WT+WD."""
    names = (benchmark.TEACHER, *benchmark.ORDER)
    return {
        seed: dict(
            accuracy=dict(zip(names, values, strict=True)),
            before=dict.fromkeys(benchmark.ORDER, 10.0),
            parameters=dict.fromkeys(names, 1000),
            held_out=100,
        )
        for seed, values in enumerate(seeds)
    }


def test_a_small_run_trains_everything_and_writes_everything(benchmark, tiny, tmp_path):
    said = []
    state = torch.random.get_rng_state()
    report = benchmark.run(2, tiny, tmp_path, said.append)
    assert json.loads((tmp_path / 'results.json').read_text()) == json.loads(json.dumps(report))
    assert list(report['rows']) == [benchmark.TEACHER, *benchmark.ORDER]
    for result in report['seeds']:
        assert all(0 <= value <= 100 for value in result['accuracy'].values())
        assert result['held_out'] == 1797 - 40
        sizes = result['parameters']
        assert sizes['WS'] < sizes['WS+WT'] < sizes[benchmark.TEACHER]
        assert (sizes['WS'], sizes['WS+WT']) == (sizes['WS+WD'], sizes['WS+WT+WD'])
        assert result['before']['WS'] == result['before']['WS+WT+WD']  # the transformations start at identity
    with Image.open(tmp_path / 'results.png') as image:
        assert min(image.size) > 300
    assert str(tmp_path) in said[-1]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_after_a_kill_it_resumes_with_the_next_seed(benchmark, tiny, tmp_path, monkeypatch):
    run_seed, asked = benchmark.run_seed, []

    def killed_in_the_second(seed, *args):
        asked.append(seed)
        if asked == [0, 1]:
            raise KeyboardInterrupt
        return run_seed(seed, *args)

    monkeypatch.setattr(benchmark, 'run_seed', killed_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        benchmark.run(2, tiny, tmp_path, print)
    first = json.loads((tmp_path / 'seeds' / '0.json').read_text())
    assert [p.name for p in (tmp_path / 'seeds').iterdir()] == ['0.json']
    report = benchmark.run(2, tiny, tmp_path, print)
    assert asked == [0, 1, 1]
    assert report['seeds'][0] == first
    with benchmark.one_thread():
        again = benchmark.run_seed(0, tiny)
    assert again['accuracy'] == first['accuracy']  # nothing depends on what ran before


def test_results_of_other_settings_are_refused(benchmark, tiny, tmp_path):
    path = tmp_path / 'seeds' / '0.json'
    benchmark.write_json(path, dict(settings=dict(batch=1)))
    with pytest.raises(SystemExit, match='other settings'):
        benchmark.run(2, tiny, tmp_path)


def test_an_order_that_holds_is_reported_with_its_certainty(benchmark):
    results = made_up(benchmark, (98, 90, 91.0, 93, 93.1), (98, 91, 92.1, 94, 93.9), (98, 92, 92.9, 95, 95.6))
    summary = benchmark.summarise(results)
    assert summary['order_holds']
    text = benchmark.table(summary, results)
    assert "The paper's order holds here in the means, WS < WS+WT < WS+WD < WS+WT+WD; 2 of its 3 steps" in text
    assert [pair['verdict'] for pair in summary['pairs'][:3]] == ['as in the paper', 'as in the paper', 'undecided']


def test_an_order_that_does_not_hold_is_reported_as_it_is(benchmark):
    results = made_up(benchmark, (98, 92, 93, 90.0, 93.1), (98, 91, 92, 89.1, 92.3), (98, 90, 91, 88.0, 91.0))
    summary = benchmark.summarise(results)
    assert not summary['order_holds']
    text = benchmark.table(summary, results)
    assert 'does NOT hold here in the means: WS+WD < WS < WS+WT < WS+WT+WD.' in text
    by_name = {(pair['better'], pair['worse']): pair for pair in summary['pairs']}
    assert by_name['WS+WD', 'WS+WT']['verdict'] == by_name['WS+WD', 'WS']['verdict'] == 'REVERSED'
    assert by_name['WS+WT', 'WS']['verdict'] == 'as in the paper'


def test_intervals_are_students_t(benchmark):
    # Tables: the 97.5 % point of t with 4 degrees of freedom is 2.776.
    found = benchmark.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found['mean'] == 3
    assert found['half_width'] == pytest.approx(2.776 * (2.5**0.5) / 5**0.5, abs=1e-3)


def test_equal_seeds_decide_nothing_when_there_is_no_difference(benchmark):
    assert benchmark.verdict(0.0, 0.0) == 'undecided'


def test_the_paper_has_the_order_that_is_asked_about(benchmark):
    for column in benchmark.PAPER.values():
        assert sorted(benchmark.ORDER, key=column.__getitem__) == list(benchmark.ORDER)
