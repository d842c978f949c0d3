"""What `tinyvit-zoo reproduce` says beside its tables: costs, figures, contradictions, and ratios of speed."""

import csv
import itertools
import json
import shlex
from collections import defaultdict
from pathlib import Path

import pytest
import timm
from typer.main import get_command

from tinyvit_zoo.bench import Settings
from tinyvit_zoo.cli.app import app
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.downstream.reports.ratios import write_ratios
from tinyvit_zoo.downstream.reproduce import ratios as ratios_module
from tinyvit_zoo.downstream.reproduce.costs import ARCHIVES, costs_of
from tinyvit_zoo.downstream.reproduce.entries import ENTRIES, numbers_of
from tinyvit_zoo.downstream.reproduce.figures import FIGURES
from tinyvit_zoo.downstream.reproduce.jobs import State, run_rows
from tinyvit_zoo.downstream.reproduce.notes import NOTES, notes_of
from tinyvit_zoo.downstream.reproduce.numbers import read_numbers
from tinyvit_zoo.downstream.reproduce.overview import overview
from tinyvit_zoo.downstream.reproduce.ratios import measure_ratios, runnable
from tinyvit_zoo.downstream.reproduce.record import DATA
from tinyvit_zoo.training.recipes import DISTILLATION, RECIPES, WEIGHT_DISTILLATION

NUMBERS = {number.id: number for number in read_numbers()}
SPEEDS = [number for number in numbers_of(ENTRIES['tinyvit/table4']) if number.task == 'throughput']
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
    assert 'tinyvit/table5 has no images a second; take tinyvit/table4, tinyvit/readme, mae_lite/table2.' in err
    with pytest.raises(EvaluationError, match='need two rows'):
        measure_ratios(SPEEDS[:3])


def test_the_command_prints_ratios(cli, tmp_path, monkeypatch, measured):
    monkeypatch.setattr(ratios_module, 'measure_ratios', lambda numbers: measured)
    code, out, err = cli('reproduce', 'tinyvit/table4', '--ratios', '-o', tmp_path)
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


@pytest.mark.parametrize('damage', ['{', '[]', '{"table": 1}', 'letters'])
def test_a_damaged_file_of_ratios_is_named_and_stops_nothing(cli, tmp_path, measured, damage):
    write_ratios(tmp_path, ENTRIES['tinyvit/table4'], measured, say=lambda _: None)
    path = tmp_path / 'ratios.json'
    path.write_text(path.read_text().replace('"here": 1', '"here": "a"') if damage == 'letters' else damage)
    code, out, err = cli('reproduce', 'tinyvit/table4', '--only', 'resnet-18', '-o', tmp_path)
    assert (code, err) == (0, '')
    assert 'ratios.json holds no ratios of tinyvit/table4: it is not used.' in ' '.join(out.split())
    assert rows_of_table(tmp_path)['tinyvit/table4/resnet-18/throughput_img_s']['ratio'] == ''
