"""What `tinyvit-zoo reproduce` says beside its tables: costs, figures, contradictions, ratios of speed and training."""

import csv
import dataclasses
import itertools
import json
import shlex
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import timm
from typer.main import get_command

from tinyvit_zoo.bench import Settings, bench_calls
from tinyvit_zoo.build import build_model
from tinyvit_zoo.cli.app import app
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.hashes import state_hash
from tinyvit_zoo.downstream.reports.ratios import read_ratios, write_ratios
from tinyvit_zoo.downstream.reproduce import ratios as ratios_module
from tinyvit_zoo.downstream.reproduce import training_costs
from tinyvit_zoo.downstream.reproduce.costs import ARCHIVES, costs_of
from tinyvit_zoo.downstream.reproduce.entries import ENTRIES, numbers_of
from tinyvit_zoo.downstream.reproduce.figures import FIGURES
from tinyvit_zoo.downstream.reproduce.jobs import State, run_rows
from tinyvit_zoo.downstream.reproduce.notes import NOTES, notes_of
from tinyvit_zoo.downstream.reproduce.numbers import read_numbers
from tinyvit_zoo.downstream.reproduce.overview import overview
from tinyvit_zoo.downstream.reproduce.ratios import measure_ratios, runnable
from tinyvit_zoo.downstream.reproduce.record import DATA
from tinyvit_zoo.downstream.reproduce.training_costs import measure_training_costs
from tinyvit_zoo.training.recipes import DISTILLATION, RECIPES, WEIGHT_DISTILLATION

NUMBERS = {number.id: number for number in read_numbers()}
SPEEDS = [number for number in numbers_of(ENTRIES['tinyvit/table4']) if number.task == 'throughput']
COSTS = [number for number in numbers_of(ENTRIES['tinyvit/table3']) if number.task == 'training_cost']
STUDENT, TAUGHT = 'tinyvit-21m-in-21k-pretrain-no-distill', 'tinyvit-21m-in-21k-distill-teacher-{}'
TRAINED = {STUDENT: 'test_vit', TAUGHT.format('beit-l'): 'test_resnet', TAUGHT.format('swin-l'): 'test_vit2'}
SMALL = {'tinyvit-5m-in-1k-scratch': 'test_vit', 'resnet-18': 'test_resnet', 'levit-256': 'test_vit'}


# --- contradictions


def test_numbers_of_a_note_exist_and_differ():
    for note in NOTES:
        values = {NUMBERS[i].value for i in note.ids}
        assert len(values) > 1, note
        assert note.text.endswith('.'), note


def test_one_model_with_two_values_has_a_note():
    values = defaultdict(list)
    for number in NUMBERS.values():
        if number.value and not number.cell.startswith('miou-after-fine-tuning'):
            values[number.paper, number.model, number.dataset, number.task, number.metric].append(number)
    noted = {frozenset(pair) for note in NOTES for pair in itertools.combinations(note.ids, 2)}
    missing = [
        (a.id, b.id)
        for same in values.values()
        for a, b in itertools.pairwise(same)
        if float(a.value) != float(b.value) and frozenset((a.id, b.id)) not in noted
    ]
    assert missing == []


def test_notes_stand_below_the_table_and_in_its_files(cli, tmp_path):
    row = 'mini-deit-s'
    code, out, _ = cli('reproduce', 'minivit/table4', '--only', row, '-o', tmp_path)
    assert code == 0
    text = 'Table 4 has 80.7, the README 80.9 for the released weights'
    assert text in ' '.join(out.split())
    assert text in (tmp_path / 'table.md').read_text()
    (note,) = json.loads((tmp_path / 'results.json').read_text())['notes']
    assert note['ids'] == [f'minivit/{name}/mini-deit-s/top1/imagenet-1k' for name in ('table4', 'readme')]
    assert notes_of(numbers_of(ENTRIES['tinyvit/supplement_table1'])) == []


# --- figures


def test_figures_are_entries_of_their_own():
    assert not FIGURES.keys() & ENTRIES.keys()
    assert {figure.paper for figure in FIGURES.values()} == {'tinyvit', 'minivit', 'mae_lite'}
    for figure in FIGURES.values():
        assert set(figure.data) <= DATA.keys(), figure.name
        assert [name for name in figure.models if timm.get_pretrained_cfg(name) is None] == [], figure.name


@pytest.mark.parametrize('name', FIGURES)
def test_the_commands_of_a_figure_parse(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('FILE').touch()
    outputs = []
    for line in FIGURES[name].commands:
        command, words = get_command(app), shlex.split(line)[1:]
        while hasattr(command, 'commands'):
            command = command.commands[words.pop(0)]
        found = command.make_context(name, words).params
        outputs.append(Path(found.get('output') or found['store']))
        outputs[-1].mkdir(parents=True)
        (outputs[-1] / 'model').mkdir()  # which later commands may name
        if found.get('recipe') is not None:
            assert found['recipe'] in {**RECIPES, **DISTILLATION, **WEIGHT_DISTILLATION}
    assert len(set(outputs)) == len(outputs) > 1


def test_a_figure_prints_its_commands_and_what_they_need(cli):
    code, out, err = cli('reproduce', 'mae_lite/figure3')
    assert (code, err) == (0, '')
    said = ' '.join(out.split())
    for command in FIGURES['mae_lite/figure3'].commands:
        assert command in said
    assert 'imagenet-1k (https://image-net.org/download)' in said
    assert 'mae_lite_vit_tiny_encoder_patch16_224.mocov3_in1k' in said


def test_a_figure_without_its_weights_says_so(cli):
    assert 'Florence, and its student without distillation are not public' in ' '.join(
        cli('reproduce', 'tinyvit/figure3')[1].split()
    )


def test_lists_and_figures_need_no_extra_beyond_the_command_line(cli, monkeypatch):
    """Only tables load the reports, which need matplotlib."""
    for name in ('ratios', 'reproduce'):
        monkeypatch.setitem(sys.modules, f'tinyvit_zoo.downstream.reports.{name}', None)
    assert 'Frequencies' in cli('reproduce', 'mae_lite/figure3')[1]
    assert 'mae_lite/figure1' in cli('reproduce', '--list', 'mae_lite/figure1')[1]
    with pytest.raises(ModuleNotFoundError, match='halted'):
        cli('reproduce', 'tinyvit/table4', '--dry-run')


def test_figures_are_listed(cli):
    code, out, _ = cli('reproduce', '--list', 'mae_lite/figure1')
    assert code == 0
    assert 'mae_lite/figure1' in out
    assert 'mae_lite/figure3' not in out
    assert 'mae_lite/table1' not in out


# --- bytes and GPU-hours


def test_every_data_set_has_an_archive_and_every_size_a_source():
    for name, archive in ARCHIVES.items():
        assert (archive.bytes is None) == (archive.source == ''), name
    for number in NUMBERS.values():
        found = costs_of(run_rows([number], dry=True), [])
        assert set(found.archives) <= ARCHIVES.keys()


def test_an_evaluation_needs_the_validation_images_and_a_training_all():
    evaluated, trained = overview(ENTRIES['minivit/readme']).costs, overview(ENTRIES['tinymim/table5']).costs
    assert evaluated.archives == ('imagenet-1k validation',)
    assert set(trained.archives) == {'imagenet-1k train', 'imagenet-1k validation'}
    assert trained.data_bytes == 147_897_477_120 + 6_744_924_160
    assert evaluated.weight_bytes > 9e8
    assert trained.weight_bytes == 0


def test_gpu_hours_are_published_or_called_estimates():
    published = overview(ENTRIES['tinyvit/table3']).costs
    assert (published.gpu_hours(estimated=False), published.gpu_hours(estimated=True)) == (30608, None)
    assert {NUMBERS[hours.source].metric for hours in published.hours} == {'gpu_hours'}
    estimated = overview(ENTRIES['mae_lite/table3']).costs
    assert estimated.gpu_hours(estimated=False) is None
    hours = {hours.training: hours.hours for hours in estimated.hours}
    # 1 % of the images of MAE-Tiny's 184 hours
    assert hours['tinyvit-zoo pretrain mae --size tiny -d imagenet-1k --subset 1% -o OUT'] == pytest.approx(1.84)
    assert overview(ENTRIES['minivit/table3']).costs.hours == ()  # nobody has published any


def test_the_list_of_a_table_names_its_sources(cli):
    code, out, _ = cli('reproduce', '--list', 'tinymim/table4')
    assert code == 0
    assert 'imagenet-r: 2.2 GB (tensorflow/datasets, url_checksums/imagenet_r.txt)' in out
    assert 'imagenet-c: size not known' in out
    assert '9.6 GB+' in out


# --- ratios


@pytest.fixture(scope='module')
def measured():
    return measure_ratios(SPEEDS, SMALL, batch=1, settings=Settings(rounds=2, img_size=(32, 32)))


def test_ratios_stand_beside_those_of_the_paper(measured):
    rows = {row.number.row: row for row in measured.rows}
    assert len(rows) == len(SPEEDS)
    first = rows['tinyvit-5m-in-1k-scratch']
    assert measured.first == first.number
    assert (first.published, first.here, first.low, first.high) == (1, 1, 1, 1)
    resnet = rows['resnet-18']
    assert resnet.published == pytest.approx(8714 / 3060)
    assert resnet.low <= resnet.here <= resnet.high
    assert (resnet.model, resnet.remark) == ('test_resnet', '')
    assert rows['levit-256'].here == 1  # the same model as the first
    assert (rows['glit-tiny'].here, rows['glit-tiny'].remark) == (None, 'no model here')
    assert rows['crossvit-9'].remark == 'timm has the model at 240 px'


def test_ratios_say_where_they_were_measured(measured, tmp_path):
    assert measured.hardware == 'V100, LeViT script'
    for words in ('1 thread', 'float32', '1 image a call', '2 rounds', measured.machine['processor']):
        assert words in measured.words
    write_ratios(tmp_path, ENTRIES['tinyvit/table4'], measured, say=lambda _: None)
    assert {path.name for path in tmp_path.iterdir()} == {'ratios.csv', 'ratios.md', 'ratios.json'}
    with (tmp_path / 'ratios.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['id'] for row in rows] == [number.id for number in SPEEDS]
    whole = json.loads((tmp_path / 'ratios.json').read_text())
    assert (whole['first'], whole['settings']['threads']) == (measured.first.id, 1)
    assert measured.words in (tmp_path / 'ratios.md').read_text()


def test_no_ratio_makes_a_number_measured(measured, tmp_path):
    write_ratios(tmp_path, ENTRIES['tinyvit/table4'], measured, say=lambda _: None)
    states = {line.state for line in run_rows(SPEEDS, tmp_path)}
    assert states == {State.OTHER_HARDWARE}


def test_models_are_taken_at_the_size_of_the_paper():
    models = {number.row: runnable(number) for number in SPEEDS}
    assert models['tinyvit-21m-in-21k-distill-512px'] == 'tinyvit_21m_512'
    assert models['effnet-b5'] == 'tf_efficientnet_b5'
    assert models['crossvit-15'] == models['pvt-tiny'] == ''
    assert sum(map(bool, models.values())) > 14


def test_a_table_without_speeds_has_no_ratios(cli, monkeypatch):
    code, _, err = cli('reproduce', 'tinyvit/table5', '--ratios')
    assert code == 2
    tables = 'take tinyvit/table3, tinyvit/table4, tinyvit/readme, mae_lite/table2.'
    assert 'tinyvit/table5 has neither images a second nor the time of a training with a public teacher' in err
    assert tables in err
    assert tables in cli('reproduce', 'tinyvit/text', '--ratios')[2]  # its costs are those of Florence
    with pytest.raises(EvaluationError, match='need two rows'):
        measure_ratios(SPEEDS[:3])


def test_the_command_prints_ratios(cli, tmp_path, monkeypatch, measured):
    monkeypatch.setattr(ratios_module, 'measure_ratios', lambda numbers: measured)
    code, out, err = cli('reproduce', 'tinyvit/table4', '--only', 'resnet-18', '--ratios', '-o', tmp_path)
    assert (code, err) == (0, '')
    assert 'here, ratio' in out
    assert 'none of them is a measured number of the table' in out
    assert (tmp_path / 'ratios.json').is_file()


def rows_of_table(folder) -> dict[str, dict[str, str]]:
    with (folder / 'table.csv').open(newline='') as file:
        return {row['id']: row for row in csv.DictReader(file)}


def test_ratios_have_a_column_of_the_table_which_later_runs_keep(cli, tmp_path, monkeypatch, measured):
    monkeypatch.setattr(ratios_module, 'measure_ratios', lambda numbers: measured)
    table = ('reproduce', 'tinyvit/table4', '--only', 'tinyvit-5m-in-1k-scratch,resnet-18,glit-tiny', '-o', tmp_path)
    assert cli(*table)[0] == 0
    assert {row['ratio'] + row['paper_ratio'] for row in rows_of_table(tmp_path).values()} == {''}
    assert 'ratio' not in (tmp_path / 'table.md').read_text()
    code, out, err = cli(*table, '--ratios')
    assert (code, err) == (0, '')
    found = rows_of_table(tmp_path)
    resnet = next(row for row in measured.rows if row.number.row == 'resnet-18')
    row = found[resnet.number.id]
    assert [float(row[key]) for key in ('paper_ratio', 'ratio', 'ratio_low', 'ratio_high')] == [
        resnet.published, resnet.here, resnet.low, resnet.high,
    ]  # fmt: skip
    assert (row['state'], row['measured'], row['difference']) == ('other hardware', '', '')
    glit = found['tinyvit/table4/glit-tiny/throughput_img_s']
    assert (bool(glit['paper_ratio']), glit['ratio']) == (True, '')  # no model here
    assert {row['ratio'] for key, row in found.items() if 'throughput' not in key} == {''}
    assert f'| {resnet.published:.2f} | {resnet.here:.2f} | other hardware |' in (tmp_path / 'table.md').read_text()
    assert f'above 1 is faster; here: {measured.words}.' in (tmp_path / 'table.md').read_text()
    before = (tmp_path / 'table.csv').read_bytes()
    code, out, err = cli(*table)
    assert (code, err) == (0, '')
    assert 'ratio, here' in out
    assert (tmp_path / 'table.csv').read_bytes() == before


def test_ratios_of_an_earlier_version_are_those_of_throughput(measured, tmp_path):
    entry = ENTRIES['tinyvit/table4']
    write_ratios(tmp_path, entry, measured, say=lambda _: None)
    path = tmp_path / 'ratios.json'
    now, found = read_ratios(tmp_path, entry), json.loads(path.read_text())
    assert found.pop('task') == 'throughput'
    path.write_text(json.dumps(found))
    assert read_ratios(tmp_path, entry) == now
    assert now.rows == measured.rows


@pytest.mark.parametrize('damage', ['{', '[]', '{"table": 1}', 'letters'])
def test_a_damaged_file_of_ratios_is_named_and_stops_nothing(cli, tmp_path, measured, damage):
    write_ratios(tmp_path, ENTRIES['tinyvit/table4'], measured, say=lambda _: None)
    path = tmp_path / 'ratios.json'
    path.write_text(path.read_text().replace('"here": 1', '"here": "a"') if damage == 'letters' else damage)
    code, out, err = cli('reproduce', 'tinyvit/table4', '--only', 'resnet-18', '-o', tmp_path)
    assert (code, err) == (0, '')
    assert 'ratios.json holds no ratios of tinyvit/table4: it is not used.' in ' '.join(out.split())
    assert rows_of_table(tmp_path)['tinyvit/table4/resnet-18/throughput_img_s']['ratio'] == ''


# --- ratios of training time


@pytest.fixture(scope='module')
def trained():
    settings = Settings(rounds=2, train=True)
    return measure_training_costs(COSTS, TRAINED, classes=10, batch=2, settings=settings)


def test_training_times_with_a_teacher_stand_beside_those_of_the_paper(trained):
    rows = {(row.number.row, row.number.metric): row for row in trained.rows}
    assert len(rows) == len(COSTS) == 14
    first = rows[STUDENT, 'gpu_hours']
    assert trained.first == first.number
    assert (first.published, first.here, first.low, first.high) == (1, 1, 1, 1)
    hours, times = (rows[TAUGHT.format('beit-l'), metric] for metric in ('gpu_hours', 'time_ratio_x'))
    assert (hours.published, times.published) == (pytest.approx(6415 / 3360), 1.9)
    assert hours.low <= hours.here <= hours.high
    assert (times.here, times.model, times.pixels, times.remark) == (hours.here, 'test_resnet', 160, '')
    florence = rows[TAUGHT.format('florence'), 'time_ratio_x']
    assert (florence.published, florence.here, florence.remark) == (2.4, None, 'Florence is not public')


def test_the_memory_of_a_teacher_has_no_ratio_and_says_why(trained):
    memory = [row for row in trained.rows if row.number.metric == 'teacher_memory_gb']
    assert [(row.published, row.here) for row in memory] == [(None, None)] * 5
    assert memory[0].remark == 'there is no teacher'
    why = 'the paper does not say for how many images; on a CPU nothing counts the peak of memory'
    assert {row.remark for row in memory[1:]} == {why}


def test_a_training_that_takes_twice_the_time_has_a_ratio_of_two(monkeypatch):
    def half_as_fast(makers, batch, settings):
        rows = bench_calls(makers, batch, settings)
        return [rows[0], *(dataclasses.replace(row, ratio=0.5, ratio_low=0.4, ratio_high=0.8) for row in rows[1:])]

    monkeypatch.setattr(training_costs, 'bench_calls', half_as_fast)
    settings = Settings(rounds=1, train=True)
    found = measure_training_costs(COSTS, TRAINED, classes=10, batch=2, settings=settings)
    (row,) = [row for row in found.rows if row.number.id.endswith('teacher-swin-l/gpu_hours/imagenet-22k')]
    assert (row.here, row.low, row.high) == (2, 1.25, 2.5)


def test_an_update_trains_the_student_alone_and_asks_the_teacher_once(monkeypatch):
    models, asked, changed = [], [], {}

    def build(name, **options):
        model = build_model(name, **options)
        model.register_forward_hook(lambda *_: asked.append(name))
        models.append(model)
        return model

    def once(makers, batch, settings):
        for row, make in makers.items():
            call = make()
            before = [state_hash(model) for model in models]
            asked.clear()
            call()
            after = [state_hash(model) for model in models]
            changed[row] = (list(asked), [a != b for a, b in zip(before, after, strict=True)])
        return bench_calls(makers, batch, settings)

    monkeypatch.setattr(training_costs, 'build_model', build)
    monkeypatch.setattr(training_costs, 'bench_calls', once)
    models_of = {STUDENT: 'test_vit', TAUGHT.format('beit-l'): 'test_vit2'}
    measure_training_costs(COSTS, models_of, classes=10, batch=2, settings=Settings(rounds=1, train=True))
    assert changed == {
        STUDENT: (['test_vit'], [True]),
        TAUGHT.format('beit-l'): (['test_vit2', 'test_vit'], [True, False]),
    }


def test_the_teachers_of_the_paper_are_those_of_its_table():
    models = {number.row: training_costs._model_of(number) for number in COSTS}
    assert models == {
        STUDENT: 'tinyvit_21m_224',
        TAUGHT.format('beit-l'): 'beit_large_patch16_224',
        TAUGHT.format('swin-l'): 'swin_large_patch4_window7_224',
        TAUGHT.format('clip-vit-l-14'): 'clip_vit_large_patch14_224',
        TAUGHT.format('florence'): '',
    }
    assert {number.note.split('; ')[1] for number in COSTS if number.metric == 'gpu_hours'} == {training_costs.HARDWARE}


def test_rows_without_a_public_teacher_have_no_training_time_to_measure(cli):
    for row in (STUDENT, TAUGHT.format('florence')):
        code, _, err = cli('reproduce', 'tinyvit/table3', '--only', row, '--ratios')
        assert code == 1
        assert 'a public teacher, such as BEiT-L in tinyvit/table3; Florence is not public.' in err


def test_ratios_of_training_time_have_columns_and_no_number_becomes_measured(cli, tmp_path, monkeypatch, trained):
    monkeypatch.setattr(training_costs, 'measure_training_costs', lambda numbers: trained)
    table = ('reproduce', 'tinyvit/table3', '--only', f'{STUDENT},{TAUGHT.format("beit-l")}', '-o', tmp_path)
    code, out, err = cli(*table, '--ratios')
    assert (code, err) == (0, '')
    assert 'above 1 takes longer; none of them is a measured number of the table' in out
    found = rows_of_table(tmp_path)
    hours, memory = (
        found[f'tinyvit/table3/{TAUGHT.format("beit-l")}/{metric}/imagenet-22k']
        for metric in ('gpu_hours', 'teacher_memory_gb')
    )
    (row,) = [row for row in trained.rows if row.number.id == hours['id']]
    assert [float(hours[key]) for key in ('paper_ratio', 'ratio', 'ratio_low', 'ratio_high')] == [
        row.published, row.here, row.low, row.high,
    ]  # fmt: skip
    assert (hours['state'], hours['measured'], hours['difference']) == ('other hardware', '', '')
    assert (memory['paper_ratio'], memory['ratio'], memory['state']) == ('', '', 'other hardware')
    assert memory['remark'].startswith('measured on other machines; no ratio: the paper does not say for how many')
    written = (tmp_path / 'table.md').read_text()
    assert f'Ratios of training time are over {STUDENT}, above 1 takes longer; here: {trained.words}.' in written
    for words in ('float32', '2 images an update without reading images and stored labels', 'paper: V100'):
        assert words in trained.words
    before = (tmp_path / 'table.csv').read_bytes()
    assert cli(*table)[0] == 0  # reads them from ratios.json
    assert (tmp_path / 'table.csv').read_bytes() == before
