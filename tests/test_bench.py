"""The command that measures speed: what it measures, its rows, resuming, and errors; never a time."""

import json
import mmap
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import refused

from tinyvit_zoo import bench as bench_module
from tinyvit_zoo import bench_rows
from tinyvit_zoo.bench import Settings, bench, bench_variants, read_rows
from tinyvit_zoo.common.errors import EvaluationError, ModelError

SMALL = Settings(rounds=3, img_size=(64, 64))


@pytest.fixture
def calls(monkeypatch):
    """The variants in the order in which they were called, warm-up included."""
    called, variant = [], bench_module._variant

    def counted(row, settings):
        call = variant(row, settings)

        def counting():
            called.append((row.model, row.form, row.batch))
            return call()

        return counting

    monkeypatch.setattr(bench_module, '_variant', counted)
    return called


def test_variants_run_in_turn_and_the_order_is_reversed_every_other_round(calls):
    rows = bench(['test_vit', 'test_resnet'], [2], settings=SMALL)
    vit, resnet = ('test_vit', 'created', 2), ('test_resnet', 'created', 2)
    assert calls == [vit, vit, resnet, resnet, vit, resnet, resnet, vit, vit, resnet]
    assert [(row.model, row.form, row.batch) for row in rows] == [vit, resnet]


def test_a_row_says_what_was_measured_where_and_when():
    (row,) = bench(['test_vit'], [2], settings=SMALL)
    assert row.processor
    assert row.isa == torch.backends.cpu.get_cpu_capability()
    assert (row.torch, row.threads, row.img_size, row.mode) == (torch.__version__, 1, '64x64', 'inference')
    assert (row.clock, row.state, row.memory_mb) == ('process CPU time', 'ok', None)
    assert row.ratio == row.ratio_low == row.ratio_high == 1.0
    assert row.images_per_second == pytest.approx(2 / (row.median_ms / 1e3))
    assert row.p95_ms >= row.median_ms > 0


@pytest.mark.skipif(find_spec('resource') is None, reason='Windows does not count page faults')
def test_a_row_says_how_many_pages_the_system_maps_in(monkeypatch):
    def mapping(row, settings):
        return lambda: mmap.mmap(-1, 64 * mmap.PAGESIZE).write(bytes(64 * mmap.PAGESIZE))

    monkeypatch.setattr(bench_module, '_variant', mapping)
    (row,) = bench(['test_vit'], [2], settings=SMALL)
    assert 64 <= row.page_faults < 640


def test_a_file_from_before_page_faults_were_counted_is_read(tmp_path):
    file = tmp_path / 'rows.csv'
    (row,) = bench(['test_vit'], [1], settings=SMALL, csv_file=file)
    names, values = ([*line.split(',')] for line in file.read_text().splitlines())
    at = names.index('page_faults')
    file.write_text('\n'.join(','.join(line[:at] + line[at + 1 :]) for line in (names, values)))
    (old,) = read_rows(file)
    assert (old.page_faults, old.commit, old.state) == (None, row.commit, 'ok')


def test_several_threads_are_measured_by_the_wall_clock():
    before = torch.get_num_threads()
    try:
        (row,) = bench(['test_vit'], [1], settings=Settings(rounds=1, threads=2))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert row.clock == 'wall-clock time'


def test_forms_are_what_they_say(monkeypatch):
    seen = {}

    def inference(model, x, settings):
        seen[len(seen)] = model, x
        return lambda: None

    monkeypatch.setattr(bench_module, '_inference', inference)
    forms = ['created', 'deploy', 'compiled', 'deploy+compiled']
    bench(['tinyvit_5m_224'], [1], forms, Settings(rounds=1, dtype='bfloat16'))
    (created, plain), (deploy, last), (compiled, _), (both, _) = seen.values()
    for folded in (deploy, both):
        assert not any(type(module).__name__ == 'BatchNorm2d' for module in folded.modules())
    assert any(type(module).__name__ == 'BatchNorm2d' for module in created.modules())
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert plain.dtype == next(deploy.parameters()).dtype == torch.bfloat16
    assert None not in (compiled._compiled_call_impl, both._compiled_call_impl)
    assert created._compiled_call_impl is deploy._compiled_call_impl is None


def test_pairs_of_model_and_form_can_be_measured_alone(calls):
    pairs = [('test_resnet', 'created'), ('test_vit', 'deploy')]
    rows = bench_variants(pairs, [1], SMALL)
    assert [(row.model, row.form) for row in rows] == pairs
    assert {(model, form) for model, form, _ in calls} == set(pairs)
    assert {row.first for row in rows} == {'test_resnet created'}


def test_training_is_a_step_that_moves_the_weights(monkeypatch):
    models, create = [], bench_module._create

    def kept(name, settings, device):
        models.append(create(name, settings, device))
        return models[-1]

    monkeypatch.setattr(bench_module, '_create', kept)
    bench(['test_vit'], [2], settings=Settings(rounds=1, train=True))
    torch.manual_seed(0)
    fresh = create('test_vit', Settings(), 'cpu')
    trained = dict(models[-1].named_parameters())
    assert models[-1].training
    assert any(not torch.equal(value, trained[name]) for name, value in fresh.named_parameters())


def test_what_runs_out_of_memory_ends_its_row_and_not_the_run(monkeypatch):
    variant = bench_module._variant

    def hungry(row, settings):
        if row.model == 'test_resnet':
            return lambda: torch.empty(2**60)
        return variant(row, settings)

    monkeypatch.setattr(bench_module, '_variant', hungry)
    rows = bench(['test_vit', 'test_resnet', 'test_convnext'], [1], settings=SMALL)
    assert [row.state for row in rows] == ['ok', 'oom', 'ok']
    assert rows[1].images_per_second is None
    assert rows[2].ratio is not None


def test_what_runs_out_of_memory_beside_the_others_ends_there(monkeypatch):
    variant = bench_module._variant

    def growing(row, settings):
        call, count = variant(row, settings), iter(range(99))
        return (lambda: torch.empty(2**60) if next(count) > 2 else call()) if row.model == 'test_vit' else call

    monkeypatch.setattr(bench_module, '_variant', growing)
    rows = bench(['test_vit', 'test_resnet'], [1], settings=SMALL)
    assert [(row.state, row.ratio) for row in rows] == [('oom', None), ('ok', None)]
    assert rows[1].images_per_second > 0


def test_an_error_of_a_model_is_no_lack_of_memory(monkeypatch):
    def broken(row, settings):
        raise RuntimeError('shapes do not fit')

    monkeypatch.setattr(bench_module, '_variant', broken)
    with pytest.raises(RuntimeError, match='shapes do not fit'):
        bench(['test_vit'], [1], settings=SMALL)


# --- rows of earlier runs


def test_a_file_is_read_as_it_was_written_and_its_batches_are_not_measured_again(tmp_path, calls):
    file = tmp_path / 'rows.csv'
    first = bench(['test_vit', 'test_resnet'], [1], settings=SMALL, csv_file=file)
    assert [row.median_ms for row in read_rows(file)] == pytest.approx([row.median_ms for row in first], rel=1e-5)
    calls.clear()
    again = bench(['test_vit', 'test_resnet'], [1, 2], settings=SMALL, csv_file=file)
    assert {call[2] for call in calls} == {2}
    assert [row.batch for row in again] == [row.batch for row in read_rows(file)] == [1, 1, 2, 2]
    assert [row.median_ms for row in again[:2]] == pytest.approx([row.median_ms for row in first], rel=1e-5)


def test_rows_of_other_settings_stay_and_are_no_answer(tmp_path, calls):
    file = tmp_path / 'rows.csv'
    bench(['test_vit'], [1], settings=SMALL, csv_file=file)
    calls.clear()
    bench(['test_vit'], [1], settings=Settings(rounds=3, img_size=(64, 64), channels_last=True), csv_file=file)
    assert calls
    assert [row.channels_last for row in read_rows(file)] == [False, True]


SCRIPT = """
import os, signal, sys
from pathlib import Path
from tinyvit_zoo import bench
measure = bench._measure_batch
def dying(rows, settings):
    if rows[0].batch == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return measure(rows, settings)
bench._measure_batch = dying
bench.bench(['test_vit'], [1, 2], settings=bench.Settings(rounds=3, img_size=(64, 64)), csv_file=Path(sys.argv[1]))
"""


@pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no SIGKILL')
def test_a_killed_run_keeps_its_rows_and_the_next_one_does_the_rest(tmp_path, calls):
    file = tmp_path / 'rows.csv'
    paths = [str(Path(__file__).parents[1]), os.environ.get('PYTHONPATH', '')]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, paths)))
    done = subprocess.run([sys.executable, '-c', SCRIPT, str(file)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [row.batch for row in read_rows(file)] == [1]
    bench(['test_vit'], [1, 2], settings=SMALL, csv_file=file)
    assert {call[2] for call in calls} == {2}
    assert [row.batch for row in read_rows(file)] == [1, 2]


@pytest.mark.parametrize(
    'text', ['a,b\n1,2\n', 'a,b\n', 'notes\n', 'a' * 200_000], ids=['rows', 'names', 'text', 'long']
)
def test_a_file_of_something_else_is_refused_and_stays(text, tmp_path):
    file = tmp_path / 'rows.csv'
    file.write_text(text)
    refused(lambda: bench(['test_vit'], [1], settings=SMALL, csv_file=file), 'choose another --csv', kind=ModelError)
    assert file.read_text() == text


def test_a_line_that_is_not_whole_is_no_finished_row(tmp_path, calls):
    file = tmp_path / 'rows.csv'
    bench(['test_vit'], [1], settings=SMALL, csv_file=file)
    whole, calls[:] = file.read_text(), []
    for cut in (whole[:-40], whole[: whole.rindex(',ok,')], whole[:-1] + ',1\n'):
        file.write_text(cut)
        refused(lambda: bench(['test_vit'], [1], settings=SMALL, csv_file=file), 'or damaged', kind=ModelError)
        assert file.read_text() == cut
    assert not calls


def test_rows_that_another_run_adds_meanwhile_stay(tmp_path, monkeypatch):
    file, measure = tmp_path / 'rows.csv', bench_module._measure_batch

    def slow(rows, settings):
        monkeypatch.setattr(bench_module, '_measure_batch', measure)
        bench(['test_resnet'], [1], settings=SMALL, csv_file=file)
        return measure(rows, settings)

    monkeypatch.setattr(bench_module, '_measure_batch', slow)
    bench(['test_vit'], [1], settings=SMALL, csv_file=file)
    assert [row.model for row in read_rows(file)] == ['test_resnet', 'test_vit']


def test_what_is_asked_for_twice_is_measured_once(calls):
    assert len(bench(['test_vit', 'test_vit'], [1, 1], ['created', 'created'], SMALL)) == 1
    assert len(calls) == bench_module.WARM_UP + SMALL.rounds


@pytest.mark.parametrize(('changed', 'commit'), [('', 'abc'), (' M bench.py', 'abc+')])
def test_a_commit_is_marked_where_the_package_has_changes_and_not_for_a_page(changed, commit, monkeypatch):
    asked = []

    def git(folder, *words):
        asked.append((folder, words))
        return changed if words[0] == 'status' else 'abc'

    monkeypatch.setattr(bench_rows, '_git', git)
    assert bench_rows._commit() == commit
    (folder, words), _ = asked
    assert folder == Path(bench_rows.__file__).parent
    assert words[-2:] == ('--', '.')


# --- errors, before anything is measured


@pytest.mark.parametrize(
    ('words', 'arguments'),
    {
        'no_such_model': (['test_vit', 'no_such_model'], ['created'], Settings()),
        'created, deploy, compiled, graph': (['test_vit'], ['folded'], Settings()),
        'leave graph out': (['test_vit'], ['deploy+graph'], Settings()),
        'created and compiled only': (['test_vit'], ['deploy'], Settings(train=True)),
    }.items(),
    ids=['model', 'form', 'graph', 'train'],
)
def test_what_cannot_be_measured_is_one_error_before_anything_is(words, arguments, calls):
    models, forms, settings = arguments
    refused(lambda: bench(models, [1], forms, settings), words, kind=ModelError)
    assert not calls


def test_a_file_that_cannot_be_written_is_known_before_anything_is_measured(tmp_path, calls):
    (tmp_path / 'no_folder').write_text('')
    file = tmp_path / 'no_folder' / 'rows.csv'
    refused(lambda: bench(['test_vit'], [1], settings=SMALL, csv_file=file), 'cannot be written', kind=EvaluationError)
    assert not calls


def test_images_that_a_model_does_not_take_are_one_error():
    settings = Settings(rounds=1, img_size=(33, 33))
    refused(lambda: bench(['test_vit'], [1], settings=settings), 'give multiples of them, not 33x33', kind=ModelError)


def test_the_command_prints_a_table_or_json(cli, tmp_path):
    words = ('bench', 'test_vit', '-b', '1,2', '--rounds', '2', '--img-size', '64', '--csv', str(tmp_path / 'f.csv'))
    code, out, _ = cli(*words)
    assert code == 0
    assert 'ratios to test_vit created' in out
    assert len([line for line in out.splitlines() if line.startswith('test_vit created')]) == 2
    code, out, _ = cli(*words, '--json')
    assert code == 0
    assert [row['batch'] for row in json.loads(out)] == [1, 2]
