"""`tinyvit-zoo reproduce`: what is measured beside the published numbers, what is not, and what a folder may hold."""

import csv
import dataclasses
import json
import shlex
from collections import Counter
from pathlib import Path

import pytest
from typer.main import get_command

from tinyvit_zoo.cli.app import app
from tinyvit_zoo.common.errors import ModelError
from tinyvit_zoo.common.hashes import json_hash
from tinyvit_zoo.downstream.reproduce import jobs, measure
from tinyvit_zoo.downstream.reproduce.entries import ENTRIES, numbers_of
from tinyvit_zoo.downstream.reproduce.jobs import Line, State, job_of, run_rows
from tinyvit_zoo.downstream.reproduce.numbers import read_numbers
from tinyvit_zoo.downstream.reproduce.overview import overview
from tinyvit_zoo.releases.profile import find_profile

NUMBERS = {number.id: number for number in read_numbers()}
ROWS = 'tinyvit-5m-in-1k-scratch,glit-tiny'
TABLE = ('reproduce', 'tinyvit/table4', '--only', ROWS)
SIZE = NUMBERS['tinyvit/table4/tinyvit-5m-in-1k-scratch/params_m']
MACS = NUMBERS['tinyvit/table4/tinyvit-5m-in-1k-scratch/macs_g']


def lines_of(*ids: str) -> list[Line]:
    return run_rows([NUMBERS[i] for i in ids])


def dry(*numbers, folder: Path | None = None) -> list[State]:
    return [line.state for line in run_rows(numbers, folder, dry=True, say=lambda _: None)]


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / 'table.csv').open(newline='') as file:
        return list(csv.DictReader(file))


# --- what is measured


def test_sizes_and_macs_are_those_of_the_releases():
    profile = find_profile('tinyvit_5m_224.in1k')
    size, macs = run_rows([SIZE, MACS])
    assert (size.measured, macs.measured) == (profile.params / 1e6, profile.macs / 1e9)
    assert (size.agrees, macs.agrees) == (True, True)
    assert size.difference == pytest.approx(5.392764 - 5.4)


def test_sizes_have_the_classifier_that_the_paper_counts():
    bare, teacher = lines_of('tinyvit/table6/tinyvit-21m-in-1k-scratch/params_m',
                             'tinyvit/table3/swin-l-teacher-in-21k/params_m')  # fmt: skip
    assert bare.measured == pytest.approx(find_profile('tinyvit_21m_224.in1k').params / 1e6 - (576 + 1) * 1e-3)
    assert teacher.measured == pytest.approx(228.565, abs=5e-4)  # 21841 classes
    assert teacher.agrees


def test_models_that_nobody_has_released_are_built_for_their_size():
    size, ratio = lines_of(
        'minivit/table2/mini-deit-b-sharing-all-layers/params_m',
        'minivit/table2/mini-deit-b-sharing-all-layers/params_ratio_x',
    )
    assert size.agrees
    assert ratio.measured == pytest.approx(86.567656 / size.measured)
    assert not ratio.agrees  # 9.98, the paper prints 9.7


def test_sharing_without_transformations_has_the_sizes_that_minivit_prints():
    rows = [n for n in NUMBERS.values() if n.id.startswith(('minivit/table1', 'minivit/text')) and '-ws' in n.row]
    lines = [line for line in run_rows(rows, dry=False) if line.state is State.MEASURED]
    sizes = {line.number.row: line.measured for line in lines}
    assert sizes['mini-deit-s-ws'] == sizes['mini-deit-s-ws-wd'] == pytest.approx(11.403880)
    assert sizes['mini-swin-t-ws'] == sizes['mini-swin-t-ws-wd'] == pytest.approx(11.755741)
    assert sizes['swin-s-ws-only-vs-swin-s'] == pytest.approx(4.22, abs=5e-3)  # printed: fourfold
    assert [line.number.id for line in lines if not line.agrees] == []


def test_the_architecture_of_tinyvit_is_that_of_the_paper():
    lines = run_rows(numbers_of(ENTRIES['tinyvit/supplement_table1']))
    assert len(lines) == 37
    assert [line.number.id for line in lines if not line.agrees] == []


def test_soft_labels_take_the_storage_that_the_paper_says():
    lines = run_rows([n for n in numbers_of(ENTRIES['tinyvit/text']) if n.task == 'label_storage'])
    found = {(line.number.dataset, line.number.metric): line for line in lines}
    assert found['imagenet-1k', 'storage_gb'].measured == pytest.approx(44 * 1_281_167 * 300 / 2**30)
    assert found['imagenet-22k', 'storage_gb'].measured == pytest.approx(404 * 14_197_122 * 90 / 2**30)
    assert [line.agrees for line in lines if line.state is State.MEASURED] == [True] * 5
    assert found['imagenet-1k', 'topk'].state is State.QUOTED  # a setting, nothing to measure


def test_macs_at_another_resolution_than_the_papers_are_not_measured():
    (line,) = lines_of('tinyvit/table4/crossvit-9/macs_g')
    assert (line.state, line.measured) == (State.QUOTED, None)
    assert line.remark == 'timm has the model at 240 px, the paper at 224'


@pytest.mark.parametrize(('measured', 'agrees'), [(84.75, True), (84.85, True), (84.86, False), (84.74, False)])
def test_numbers_agree_within_half_a_unit_of_the_last_printed_digit(measured, agrees):
    number = dataclasses.replace(SIZE, value='84.8')
    assert Line(number, State.MEASURED, measured).agrees is agrees


# --- what is not


@pytest.mark.parametrize(
    ('number', 'state'),
    [
        ('tinyvit/table5/tinyvit-21m-in-1k-scratch/accuracy-5shot/eurosat',
         'no data (https://github.com/phelber/EuroSAT)'),
        ('tinyvit/table5/tinyvit-21m-in-1k-distill/accuracy-5shot/eurosat', 'no weights'),
        ('tinyvit/table4/resnet-18/throughput_img_s', 'other hardware'),
        ('tinyvit/table3/tinyvit-21m-in-21k-distill-teacher-florence/gpu_hours/imagenet-22k', 'other hardware'),
        ('minivit/table4/autoformer-t/top1/imagenet-1k', 'quoted'),
        ('minivit/table4/mini-deit-b-384/top1/imagenet-1k', 'lost in the text'),
        ('tinymim/table10/tinymim-vit-b-target-block-12/miou/ade20k', 'no weights'),
        ('tinymim/table3/tinymim-vit-t/miou/ade20k', 'no data (https://ade20k.csail.mit.edu)'),
        ('tinymim/table3/tinymim-vit-b/miou/ade20k', 'no data (https://ade20k.csail.mit.edu)'),
    ],
)  # fmt: skip
def test_a_number_that_is_not_measured_says_why(number, state):
    (line,) = lines_of(number)
    assert (line.state_in_words, line.measured, line.difference, line.agrees) == (state, None, None, None)


def test_every_number_has_one_state():
    states = Counter(state for state in dry(*NUMBERS.values()))
    assert states.total() == 1029
    assert states[State.LOST] == 3
    assert states[State.OTHER_HARDWARE] == 54
    assert states[State.TO_MEASURE] == 230
    assert set(states) == set(State) - {State.MEASURED, State.FAILED, State.ON_DIGITS, State.NOT_ON_DIGITS}


def test_commands_of_all_rows_exist_with_their_options():
    commands = {line.command for line in run_rows(list(NUMBERS.values()), dry=True) if line.command}
    assert len(commands) > 300
    lines = {step for command in commands for step in command.split(' && ')}
    root = get_command(app)
    for line in lines:
        command, words = root, shlex.split(line)[1:]
        while hasattr(command, 'commands'):
            command = command.commands[words.pop(0)]
        options = {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
        assert [word for word in words if word.startswith('-') and word not in options] == [], line
        assert '{' not in line


def test_tinyvit_is_evaluated_with_the_published_crop():
    (line,) = lines_of('tinyvit/table4/tinyvit-5m-in-1k-scratch/top1/imagenet-1k')
    assert line.command == 'tinyvit-zoo evaluate tinyvit_5m_224.in1k -d imagenet-1k --protocol paper'


def test_a_transfer_has_the_recipe_of_its_data_set_or_no_command():
    lines = {
        line.number.dataset: line.command
        for line in run_rows(numbers_of(ENTRIES['minivit/table5']), dry=True)
        if line.number.model == 'Mini-DeiT-B 384' and line.number.task == 'transfer_finetune'
    }
    assert lines['cifar-10'].endswith('--recipe minivit_transfer -d cifar10 -o OUT')
    assert lines['stanford-cars'].endswith('--recipe minivit_transfer_cars -d stanford_cars -o OUT')
    (other,) = lines_of('minivit/table5/deit-b/top1/cifar-10')  # its authors' recipe is not packaged
    assert (other.state, other.command) == (State.NO_DATA, '')


def test_an_overview_counts_what_becomes_of_a_table():
    found = overview(ENTRIES['tinyvit/table4'])
    assert (found.numbers, found.measured, found.other_hardware, found.no_weights) == (113, 32, 24, 0)
    assert found.no_data + found.quoted == 113 - 32 - 24
    assert found.data == ('imagenet-1k',)


# --- the command


def test_a_table_is_written_with_its_jobs(cli, tmp_path):
    code, out, err = cli(*TABLE, '-o', tmp_path)
    assert (code, err) == (0, '')
    assert '9 numbers: 2 measured (2 within half a unit of the last printed digit), 2 no data' in out
    assert {p.name for p in tmp_path.iterdir()} == {'jobs', 'results.json', 'table.csv', 'table.md', 'table.png'}
    rows = {row['id']: row for row in table(tmp_path)}
    assert len(rows) == 9
    assert (rows[SIZE.id]['paper'], rows[SIZE.id]['measured'], rows[SIZE.id]['state']) == (
        '5.4',
        '5.392764',
        'measured',
    )
    assert rows['tinyvit/table4/glit-tiny/params_m']['measured'] == ''
    results = json.loads((tmp_path / 'results.json').read_text())
    assert (results['table'], results['only']) == ('tinyvit/table4', ROWS.split(','))
    assert [row['job'] for row in results['rows'] if row['id'] == SIZE.id] == [job_of(SIZE).key]
    text = (tmp_path / 'table.md').read_text()
    assert '| tinyvit-5m-in-1k-scratch | params_m | 5.4 | 5.393 | -0.007 | measured |' in text


def test_finished_rows_stay_and_failed_ones_are_tried_again(cli, tmp_path, monkeypatch):
    real, broken = measure.measure, {'macs_g'}

    def breaking(measurement):
        if measurement.metric in broken:
            raise ModelError('no memory')
        return real(measurement)

    monkeypatch.setattr(jobs, 'measure', breaking)
    code, out, _ = cli(*TABLE, '-o', tmp_path)
    assert code == 1
    assert f'{MACS.id} failed: no memory' in out
    assert {row['id']: row['state'] for row in table(tmp_path)}[MACS.id] == 'failed'
    assert {row['id']: row['state'] for row in table(tmp_path)}[SIZE.id] == 'measured'
    broken.clear()
    broken.add('params_m')  # which must not be asked for again
    code, out, _ = cli(*TABLE, '-o', tmp_path)
    assert code == 0
    assert '2 measured' in out


def test_a_stopped_table_goes_on_and_ends_the_same(cli, tmp_path, monkeypatch):
    entry = ('reproduce', 'minivit/readme', '-o')
    cli(*entry, tmp_path / 'whole')
    real, left = measure.measure, []

    def stopping(measurement):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return real(measurement)

    numbers = numbers_of(ENTRIES['minivit/readme'])
    monkeypatch.setattr(jobs, 'measure', stopping)
    for done in range(1, 9):  # each run measures one number more
        left[:] = [None]
        if done < 8:
            with pytest.raises(KeyboardInterrupt):
                run_rows(numbers, tmp_path / 'parts')
        assert len(list((tmp_path / 'parts' / 'jobs').iterdir())) == min(done, 7)
    left[:] = [None]  # one is left
    assert cli(*entry, tmp_path / 'parts')[0] == 0
    assert (tmp_path / 'parts' / 'table.csv').read_bytes() == (tmp_path / 'whole' / 'table.csv').read_bytes()


def test_a_dry_run_says_the_commands_and_writes_nothing(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, 'measure', lambda _: pytest.fail('measured'))
    code, out, err = cli('reproduce', 'tinyvit/table5', '--only', 'tinyvit-21m-in-1k-scratch', '--dry-run',
                         '-o', tmp_path / 'out')  # fmt: skip
    assert (code, err) == (0, '')
    assert 'tinyvit-zoo probe tinyvit_21m_224.in1k -d cifar10' in out
    assert '17 numbers: 17 no data' in out
    assert list(tmp_path.iterdir()) == []


def test_tables_of_a_paper_are_listed(cli):
    code, out, err = cli('reproduce', '--list', 'minivit')
    assert (code, err) == (0, '')
    states, needs = [line.split() for line in out.splitlines() if line.startswith('minivit/table4')]
    assert states[:3] == ['minivit/table4', '155', '58']
    assert needs[1:6] == ['8.0', 'GB', '938', 'MB', '-']  # data, weights, GPU-hours
    assert 'tinyvit/' not in out


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (('tinyvit/tabel4',), "No table is called 'tinyvit/tabel4': the nearest names are tinyvit/table4"),
        (('--list', 'tinymin'), "No paper or table is called 'tinymin': the nearest names are tinymim"),
        (('tinyvit/table4', '--only', 'glit'), "tinyvit/table4 has no row 'glit': the nearest"),
        (('tinyvit/table4', '--only', 'xx'), "tinyvit/table4 has no row 'xx': --dry-run without --only shows its 24"),
        (('tinyvit/table4', '--only', ','), '--only names no row'),
        (('tinyvit',), 'tinyvit is a paper: --list tinyvit shows its tables'),
        (('tinyvit/table4', '--ratios', '--dry-run'), '--ratios measures and --dry-run does not: leave one of'),
        ((), 'Name a table, such as tinyvit/table4'),
    ],
    ids=['table', 'paper', 'row', 'no-row', 'no-rows', 'paper-alone', 'ratios', 'nothing'],
)
def test_mistakes_end_in_one_sentence(cli, words, message):
    code, out, err = cli('reproduce', *words)
    assert code != 0
    assert message in err
    assert err.count('\n') == 1
    assert out == ''


def test_a_folder_keeps_one_table(cli, tmp_path):
    assert cli(*TABLE, '-o', tmp_path)[0] == 0
    code, _, err = cli('reproduce', 'minivit/table1', '-o', tmp_path)
    assert code == 1
    assert err == f'{tmp_path} has the results of tinyvit/table4: choose another folder for minivit/table1.\n'


# --- a folder that somebody has changed


def forge(folder: Path, number=SIZE, seal: bool = True, **changes) -> None:
    """A finished job with other content, its checksum made right again unless `seal` is off."""
    run_rows([SIZE], folder)
    result = json.loads(job_of(SIZE).path(folder).read_text()) | changes
    if seal:
        del result['sha256']
        result['sha256'] = json_hash(result)
    path = folder / 'jobs' / f'{number.id.replace("/", ".")}.json'
    path.write_text(json.dumps(result))


@pytest.mark.parametrize(
    'changes',
    [
        dict(seal=False, measured=5.4),
        dict(measurement=dict(metric='params_m', models=[dict(architecture='resnet18', classes=1000)], labels=None)),
        dict(versions=dict(tinyvit_zoo='0.0.1', torch='2.0', timm='1.0')),
        dict(data=dict(name='digits', images=450)),
        dict(weights='0' * 64),
        dict(key='0' * 64),
        dict(id='tinyvit/table4/tinyvit-11m-in-1k-scratch/params_m'),
        dict(measured=float('nan')),
        dict(measured='5.4'),
        dict(measured=None),
    ],
    ids=['value', 'model', 'versions', 'data', 'weights', 'key', 'id', 'nan', 'text', 'nothing'],
)  # fmt: skip
def test_a_result_of_another_job_is_not_used(tmp_path, changes):
    forge(tmp_path, **changes)
    assert dry(SIZE, folder=tmp_path) == [State.TO_MEASURE]


@pytest.mark.parametrize('content', [b'', b'[]', b'{', b'\xff', b'{"measured": 5.4}', b'[' * 100_000])
def test_a_file_that_is_no_result_is_measured_again(tmp_path, content):
    path = job_of(SIZE).path(tmp_path)
    path.parent.mkdir()
    path.write_bytes(content)
    said = []
    (line,) = run_rows([SIZE], tmp_path, say=said.append)
    assert (line.state, line.measured) == (State.MEASURED, 5.392764)
    assert said == [f'{path} holds no result of this job, these models and these versions: it is not used.']
    assert dry(SIZE, folder=tmp_path) == [State.MEASURED]


def test_no_file_makes_an_accuracy_measured(tmp_path):
    accuracy = NUMBERS['tinyvit/table4/tinyvit-5m-in-1k-scratch/top1/imagenet-1k']
    forge(tmp_path, number=accuracy, id=accuracy.id, measured=79.1, data=dict(name='imagenet-1k', images=50_000))
    (line,) = run_rows([accuracy], tmp_path)
    assert (line.state, line.measured) == (State.NO_DATA, None)


def test_a_copied_result_counts_for_its_own_number_only(tmp_path):
    forge(tmp_path, number=MACS)
    assert dry(SIZE, MACS, folder=tmp_path) == [State.MEASURED, State.TO_MEASURE]
