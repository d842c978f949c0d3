"""`reproduce --scale`: evaluators and trainers as jobs, and what of their results a table believes."""

import csv
import dataclasses
import errno
import json
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fake_datasets as fake
import pytest
import timm
import torch
import typer
from filelock import FileLock
from resealed import reseal
from safetensors.torch import save_file
from typer.main import get_command

from tinyvit_zoo.checkpoints import imported_path
from tinyvit_zoo.cli import reproduce as command
from tinyvit_zoo.cli.app import app
from tinyvit_zoo.common.hashes import json_hash
from tinyvit_zoo.data.registry import REGISTRY
from tinyvit_zoo.downstream.reproduce import running
from tinyvit_zoo.downstream.reproduce.digits import digits_plan
from tinyvit_zoo.downstream.reproduce.entries import ENTRIES, numbers_of
from tinyvit_zoo.downstream.reproduce.full import full_plan
from tinyvit_zoo.downstream.reproduce.jobs import Line, State, may_be_measured, run_rows
from tinyvit_zoo.downstream.reproduce.numbers import read_numbers
from tinyvit_zoo.downstream.reproduce.order import Order, paper_order
from tinyvit_zoo.downstream.reproduce.plans import OUT, Plan, Scale
from tinyvit_zoo.downstream.reproduce.protocol import facts_of, read_number
from tinyvit_zoo.downstream.reproduce.running import Busy, JobError, Jobs
from tinyvit_zoo.hub import save_folder

NUMBERS = {number.id: number for number in read_numbers()}
SCRATCH = NUMBERS['tinyvit/table4/tinyvit-5m-in-1k-scratch/top1/imagenet-1k']
ON_A = NUMBERS['tinymim/table4/tinymim-vit-t/top1/imagenet-a']
RUN = partial(command._run_command, get_command(app))
TINY = 'tinymim_vit_tiny_patch16_224.ft_in1k'


def quiet(_: str) -> None:
    pass


def jobs_in(folder: Path, run=RUN, **more) -> Jobs:
    return Jobs(folder, run, say=quiet, **more)


def words_of(line: str) -> list[list[str]]:
    """The commands of a line without `tinyvit-zoo`."""
    return [shlex.split(part)[1:] for part in line.split(' && ')]


def unknown_options(words: list[str]) -> list[str]:
    parsed = get_command(app)
    while hasattr(parsed, 'commands'):
        parsed = parsed.commands[words.pop(0)]
    options = {option for p in parsed.params for option in (*p.opts, *p.secondary_opts)}
    return [word for word in words if word.startswith('-') and word not in options]


# --- what runs


def test_every_number_has_a_state_at_full_and_missing_data_has_its_address():
    lines = run_rows(list(NUMBERS.values()), dry=True, scale=Scale.FULL)
    states = Counter(line.state for line in lines)
    assert states.total() == 1029
    assert set(states) == {
        State.TO_MEASURE, State.NO_DATA, State.NO_WEIGHTS, State.OTHER_HARDWARE, State.QUOTED, State.LOST,
    }  # fmt: skip
    missing = [line for line in lines if line.state is State.NO_DATA]
    assert len(missing) > 350
    assert [line for line in missing if not line.remark.startswith('https://')] == []
    assert {line.number.entry for line in lines} == ENTRIES.keys()
    jobs = {line.command for line in missing if line.job}
    assert len(jobs) > 100
    assert [line for line in jobs for words in words_of(line) if unknown_options(words)] == []


def test_a_full_job_has_the_published_protocol():
    plan = full_plan(SCRATCH)
    assert plan.command == (
        'tinyvit-zoo evaluate tinyvit_5m_224.in1k -d imagenet-1k --protocol paper --root ROOT -o OUT'
    )
    assert (plan.weights, plan.data) == ('tinyvit_5m_224.in1k', 'imagenet-1k')
    wanted = plan.protocol
    assert (wanted['counted'], wanted['crop'], wanted['pixels']) == (50_000, 0.875, [224, 224])
    squashed = full_plan(NUMBERS['tinyvit/table4/tinyvit-21m-in-21k-distill-384px/top1/imagenet-1k']).protocol
    assert (squashed['crop'], squashed['crop_mode'], squashed['pixels']) == (1.0, 'squash', [384, 384])
    assert full_plan(NUMBERS['tinyvit/table4/resnet-18/top1/imagenet-1k']).protocol['interpolation'] == 'bilinear'
    shots = full_plan(NUMBERS['tinyvit/table5/tinyvit-21m-in-1k-scratch/accuracy-20shot/eurosat']).protocol
    assert (shots['shots'], shots['drawn'], shots['data']['images']) == ([20], [600], 27_000)
    corrupted = full_plan(NUMBERS['tinymim/table4/tinymim-vit-t/mce/imagenet-c']).protocol
    assert (corrupted['counted'], len(corrupted['corruptions'])) == (75 * 50_000, 15)


def test_a_job_does_not_depend_on_where_its_weights_lie(monkeypatch, tmp_path):
    number = NUMBERS['mae_lite/table4/mae-tiny/top1/cifar-100']
    plan = full_plan(number)
    assert plan.weights == 'mae_lite_vit_tiny_encoder_patch16_224.mae_in1k'
    assert ' --weights FILE --as-init ' in plan.command
    places = []
    for home in ('one', 'an other'):
        monkeypatch.setenv('TINYVIT_ZOO_HOME', str(tmp_path / home))
        words = Jobs(tmp_path / 'jobs', root=tmp_path)._words(full_plan(number))
        places.append(words[words.index('--weights') + 1])
        assert full_plan(number).key == plan.key
    assert places == [str(tmp_path / home / 'weights' / plan.weights) for home in ('one', 'an other')]


def test_weights_for_another_resolution_measure_nothing():
    (line,) = run_rows([dataclasses.replace(SCRATCH, note='256px')], dry=True, scale=Scale.FULL)
    assert (line.state, line.remark) == (
        State.QUOTED, 'the released weights are for 224 px, the paper has 256',
    )  # fmt: skip


def test_digits_take_the_place_of_data_size_epochs_and_batch():
    probe = digits_plan(NUMBERS['tinyvit/table5/tinyvit-21m-in-1k-distill/top1/cifar-10'])
    teacher, student, own = list(probe.chain())
    short = '-d digits --epochs 1 --batch-size 32'
    assert teacher.command.endswith(f'finetune tinyvit_5m_224 --random --img-size 32 --recipe small {short} -o OUT')
    assert 'distill train tinyvit_21m_224 --random --teacher' in student.command
    assert own.command.endswith('/model -d textures --epochs 1 --step-batch 32 -o OUT')
    shared = digits_plan(NUMBERS['tinyvit/readme/tinyvit-5m-in-1k-scratch/top1/imagenet-1k'])
    assert shared.key == digits_plan(SCRATCH).key  # two tables, one job


def test_one_percent_of_digits_takes_a_batch_of_its_images():
    number = NUMBERS['mae_lite/table3/mocov3-tiny-pre-trained-on-1-in1k/top1/imagenet-1k']
    (finetuned,) = digits_plan(number).needs
    (pretrained,) = finetuned.needs
    assert '--subset 1%' in pretrained.command
    assert '--batch-size 8' in pretrained.command
    assert '--batch-size 32' in finetuned.command


def test_a_detector_on_digits_needs_no_trained_backbone():
    tested = digits_plan(NUMBERS['minivit/table6/mini-swin-t-ws/box_ap/coco-2017'])
    assert 'model.backbone.model_name=multiplexed' in tested.needs[0].arguments


@pytest.mark.parametrize(
    ('number', 'reason'),
    [
        ('minivit/table4/deit-b/top1/imagenet-1k', '86.6 M parameters; the limit is 30 M, as all tables are to take a '
         'CPU 20 minutes'),
        ('minivit/table2/mini-deit-b-sharing-all-layers/top1/imagenet-1k', 'about 0.8 GMACs at 48 '
         'pixels; the limit is 0.5, as all tables are to take a CPU 20 minutes'),
        ('tinymim/table4/tinymim-vit-t/mce/imagenet-c', 'there are no corrupted digits'),
        ('tinyvit/table4/crossvit-9/top1/imagenet-1k', 'the grids of its two branches do not fit images of 32 pixels'),
        ('tinymim/table3/scratch-deit-vit-t/miou/ade20k', 'no config here trains it'),
        ('mae_lite/table1/vit-tiny-sup.-in21k-30e-impr.-ft/top1/imagenet-1k', 'nobody has published its weights, and '
         'no command trains it'),
        ('minivit/table1/mini-swin-t-ws/top1/imagenet-1k', 'another command makes the student of its trainer, and this '
         'scale does not run it'),
    ],
    ids=['size', 'repeats', 'corruptions', 'grids', 'config', 'trainer', 'student'],
)  # fmt: skip
def test_a_row_without_a_job_on_digits_says_why(number, reason):
    (line,) = run_rows([NUMBERS[number]], dry=True, scale=Scale.DIGITS)
    assert (line.state_in_words, line.digits) == (f'not on digits ({reason})', None)


@pytest.mark.slow
def test_commands_on_digits_exist_with_their_options():
    lines = run_rows(list(NUMBERS.values()), dry=True, scale=Scale.DIGITS)
    commands = {words for line in lines if line.state is State.TO_MEASURE for words in line.command.split(' && ')}
    assert len(commands) > 100
    assert [line for line in commands if unknown_options(shlex.split(line)[1:])] == []
    kinds = {' '.join(line.split()[1:3]) for line in commands if '-d ' in line}
    assert {'pretrain mae', 'pretrain mocov3', 'pretrain d_mae', 'pretrain tinymim', 'pretrain minivit'} <= kinds


# --- one job of each kind


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """64 images of four classes to train on, 16 to test on."""
    root = tmp_path_factory.mktemp('data')
    for part, images in dict(train=16, test=20).items():
        fake.class_folders(root / part, ('a', 'b', 'c', 'd'), images)
    return root


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> Path:
    """A folder with a small classifier of these classes."""
    folder = tmp_path_factory.mktemp('model') / 'model'
    net = timm.create_model(
        'tinymim_vit_tiny_patch16_224', embed_dim=48, depth=2, num_heads=3, img_size=32, num_classes=4
    )
    save_folder(net.eval(), folder, label_names=('a', 'b', 'c', 'd'))
    return folder


SHORT = ('--epochs', '1', '--batch-size', '32')
KINDS = {
    'evaluate': (('evaluate', '{model}'), 'top1'),
    'probe': (('probe', '{model}', '--epochs', '1', '--step-batch', '64'), 'top1'),
    'fewshot': (('fewshot', '{model}', '--shots', '1', '--ways', '4', '--queries', '3', '--episodes', '5'), 'accuracy'),
    'finetune': (('finetune', '{model}', '--held-out', '0', *SHORT), 'top1'),
    'distill': (('distill', 'train', '{model}', '--teacher', '{model}', '-k', '2', *SHORT), ''),
    'pretrain': (('pretrain', 'features', '--student', '{model}', '--teacher', '{model}', *SHORT), ''),
}


@pytest.mark.parametrize('kind', KINDS)
def test_a_job_runs_once_and_is_read_back(kind, data, model, tmp_path, monkeypatch):
    words, metric = KINDS[kind]
    arguments = tuple(word.replace('{model}', str(model)) for word in (*words, '-d', str(data), '-o'))
    plan = Plan((*arguments, OUT), protocol={} if not metric else dict(seed=None if kind == 'evaluate' else 0))
    monkeypatch.setattr(Jobs, '_given_weights', lambda *_: '')  # those of no job and no release
    results = jobs_in(tmp_path).finish(plan)
    assert jobs_in(tmp_path, run=lambda *_: pytest.fail('ran again')).finish(plan) == results
    assert sys.argv[0] != 'tinyvit-zoo'
    assert not list((tmp_path / plan.folder_name / 'out').glob('state.pt'))
    if metric:
        value, (low, high) = read_number(results, metric, 'imagenet-1k')
        assert 0 <= low <= value <= high <= 100
        wanted = full_plan(_of_kind(kind)).protocol
        assert wanted.keys() <= facts_of(results).keys()


def _of_kind(kind: str):
    return NUMBERS[
        {
            'evaluate': SCRATCH.id,
            'probe': 'tinyvit/table5/tinyvit-21m-in-1k-scratch/top1/cifar-10',
            'fewshot': 'tinyvit/table5/tinyvit-21m-in-1k-scratch/accuracy-5shot/eurosat',
            'finetune': 'minivit/table5/mini-deit-b-384/top1/cifar-10',
        }[kind]
    ]


def test_a_number_that_results_lack_is_an_error():
    with pytest.raises(JobError.__base__, match='The results of few-shot have no top1'):
        read_number(dict(evaluator='few-shot', results=[]), 'top1', 'imagenet-1k')


# --- the full protocol, on a data set of four images


@pytest.fixture(scope='module')
def finished(tmp_path_factory) -> tuple[Path, Line]:
    """A folder with imported weights, ImageNet-A in four images, and the job of the full protocol; its row."""
    folder = tmp_path_factory.mktemp('full')
    fake.class_folders(folder / 'data' / 'imagenet-a' / 'imagenet-a', fake.WNIDS_A)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TINYVIT_ZOO_HOME', str(folder / 'home'))
        import_weights()
        whole(patch, images=4)
        return folder, at_full(folder / 'data', folder / 'jobs')


@pytest.fixture
def released(finished, tmp_path, monkeypatch) -> Path:
    """The folder of data sets, beside the weights and a copy of the job in `jobs`."""
    monkeypatch.setenv('TINYVIT_ZOO_HOME', str(finished[0] / 'home'))
    whole(monkeypatch, images=4)
    shutil.copytree(finished[0] / 'jobs', tmp_path / 'jobs')
    return finished[0] / 'data'


@pytest.fixture
def other_home(released, tmp_path, monkeypatch) -> Iterator[Path]:
    """An empty place for weights."""
    monkeypatch.setenv('TINYVIT_ZOO_HOME', str(tmp_path / 'home'))
    running.released_hash.cache_clear()
    yield tmp_path / 'home'
    running.released_hash.cache_clear()


def import_weights(seed: int = 0) -> None:
    torch.manual_seed(seed)
    folder = imported_path(TINY)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(timm.create_model(TINY.partition('.')[0]).state_dict(), folder / 'model.safetensors')


def whole(monkeypatch, images: int) -> None:
    monkeypatch.setitem(REGISTRY, 'imagenet-a', dataclasses.replace(REGISTRY['imagenet-a'], counts=dict(test=images)))


def at_full(root: Path, folder: Path, run=RUN, dry: bool = False) -> Line:
    (line,) = run_rows([ON_A], dry=dry, scale=Scale.FULL, jobs=jobs_in(folder, run, root=root), say=quiet)
    return line


def no_run(*_):
    raise JobError('it would run again')


def test_a_finished_job_of_the_full_protocol_is_measured(released, finished, tmp_path):
    line = finished[1]
    assert (line.state, line.remark, line.digits) == (State.MEASURED, '', None)
    assert line.interval[0] <= line.measured <= line.interval[1]
    assert at_full(released, tmp_path / 'jobs', no_run) == line
    assert at_full(released, tmp_path / 'jobs', dry=True) == line


@pytest.mark.parametrize(
    ('change', 'problem'),
    [
        (lambda r: r['data'].update(images=3), 'data: {'),
        (lambda r: r['data'].update(complete=False), 'data: {'),
        (lambda r: r['data'].update(unreadable_left_out=['a.png']), 'data: {'),
        (lambda r: r['data'].update(split='all'), 'data: {'),
        (lambda r: r['data'].update(name='digits'), 'data: {'),
        (lambda r: r.update(images=3), 'counted: 3, not 4'),
        (lambda r: r['preprocessing'].update(crop_pct=0.95), 'crop: 0.95, not 0.875'),
        (lambda r: r['preprocessing'].update(input_size=[3, 192, 192]), 'pixels: [192, 192], not [224, 224]'),
        (lambda r: r['preprocessing'].update(interpolation='bilinear'), 'interpolation: bilinear, not bicubic'),
        (lambda r: r['preprocessing'].update(crop_mode='squash'), 'crop_mode: squash, not center'),
        (lambda r: r['preprocessing'].update(mean=[0.5, 0.5, 0.5]), 'mean: [0.5, 0.5, 0.5], not'),
        (lambda r: r['model'].update(weights_sha256='0' * 64), 'its weights are others'),
        (lambda r: r.update(command=r['command'] + ' --img-size 192'), 'command: ['),
        (lambda r: r['versions'].update(timm='1.0'), 'versions: {'),
        (lambda r: r.update(evaluator='few-shot'), 'it is not a complete result'),
        (lambda r: r.pop('evaluator'), 'it is not a complete result'),
    ],
    ids=['fewer', 'incomplete', 'unreadable', 'split', 'digits', 'counted', 'crop', 'pixels', 'interpolation', 'mode',
         'mean', 'weights', 'command', 'versions', 'evaluator', 'nothing'],
)  # fmt: skip
def test_results_of_another_protocol_are_not_measured(released, tmp_path, change, problem):
    folder = tmp_path / 'jobs'
    (place,) = (path.parent for path in folder.glob('*/job.json'))
    reseal(place, change)
    said = []
    (line,) = run_rows([ON_A], dry=True, scale=Scale.FULL, jobs=Jobs(folder, None, released, said.append))
    assert (line.state, line.measured) == (State.TO_MEASURE, None)
    assert problem in said[0]


def test_a_result_changed_by_hand_is_not_measured_and_made_again(released, finished, tmp_path):
    folder = tmp_path / 'jobs'
    (path,) = folder.glob('*/out/results.json')
    path.write_text(path.read_text().replace('"top1": ', '"top1": 9'))
    assert at_full(released, folder, dry=True).state is State.TO_MEASURE
    assert at_full(released, folder) == finished[1]
    assert len(list(folder.glob('*/unused-1/out/results.json'))) == 1  # nothing of anybody is lost


def test_a_digits_job_under_the_name_of_a_full_one_is_not_measured(released, tmp_path):
    folder = tmp_path / 'jobs'
    place = folder / full_plan(ON_A).folder_name
    wrong = Plan(('evaluate', TINY, '-d', 'digits', '-o', OUT))
    job = dict(wrong.facts, key=wrong.key, weights_sha256='', results_sha256='')
    (place / 'job.json').write_text(json.dumps(dict(job, sha256=json_hash(job))))
    assert at_full(released, folder, dry=True).state is State.TO_MEASURE


def test_with_other_weights_than_before_nothing_is_measured(released, other_home, tmp_path):
    import_weights(seed=1)
    assert at_full(released, tmp_path / 'jobs', dry=True).state is State.TO_MEASURE


def test_missing_data_and_missing_images_are_reported(released, tmp_path, monkeypatch):
    nothing = at_full(tmp_path / 'elsewhere', tmp_path / 'jobs', no_run)
    assert nothing.state_in_words == 'no data (https://github.com/hendrycks/natural-adv-examples)'
    whole(monkeypatch, images=7500)
    cropped = at_full(released, tmp_path / 'jobs')
    assert (cropped.state, cropped.measured) == (State.FAILED, None)
    assert 'has 4 images here, and 7,500' in cropped.remark


@pytest.mark.parametrize(
    ('root', 'words'),
    [
        (('--root', '.'), ' has none of the folders imagenet-1k, imagenet-a, imagenet-r, imagenet-c.'),
        ((), 'Data sets are looked for in --root DIR, in the folders imagenet-1k, imagenet-a, imagenet-r, imagenet-c.'),
    ],
    ids=['root', 'none'],
)
def test_folders_that_are_not_there_are_named(cli, tmp_path, monkeypatch, root, words):
    monkeypatch.chdir(tmp_path)
    row = ('reproduce', 'tinymim/table4', '--only', 'tinymim-vit-t', '--scale', 'full', '-o', 'out')
    code, out, err = cli(*row, *root)
    assert (code, err) == (0, '')
    assert words in out


def test_a_dry_run_without_an_output_finds_the_folders(cli, tmp_path):
    (tmp_path / 'imagenet-a').mkdir()
    row = ('reproduce', 'tinymim/table4', '--only', 'tinymim-vit-t', '--scale', 'full', '--dry-run')
    code, out, err = cli(*row, '--root', tmp_path)
    assert (code, err) == (0, '')
    assert ' has none of the folders imagenet-1k, imagenet-r, imagenet-c.' in out
    assert ' 1 to measure' in out
    assert [path.name for path in tmp_path.iterdir()] == ['imagenet-a']


def test_a_detector_says_that_the_full_scale_does_not_train_it():
    (line,) = run_rows([NUMBERS['minivit/table6/mini-swin-t-ws-wd-wt/box_ap/coco-2017']], dry=True, scale=Scale.FULL)
    assert line.state_in_words == (
        'no data (https://cocodataset.org/#download; detectors and segmenters are not trained at this scale)'
    )


def test_missing_weights_are_reported(released, other_home, tmp_path):
    said = []
    jobs = Jobs(tmp_path / 'jobs', RUN, released, said.append)
    (line,) = run_rows([ON_A], scale=Scale.FULL, jobs=jobs, say=quiet)
    assert line.state is State.NO_WEIGHTS
    assert 'no program can download them' in line.remark
    assert said == [f'{ON_A.id}: {line.remark}']  # the state alone says that nobody has published them


# --- intervals and order


@pytest.mark.parametrize(
    ('interval', 'agrees'),
    [((79.16, 79.9), False), ((79.15, 79.9), True), ((78.2, 79.04), False), ((78.2, 79.05), True)],
)
def test_the_interval_widened_by_half_a_unit_has_to_cover_the_paper(interval, agrees):
    line = Line(SCRATCH, State.MEASURED, 79.5, interval=interval)
    assert (SCRATCH.value, line.agrees) == ('79.1', agrees)


def test_pairs_of_rows_are_kept_turned_undecided_or_tied():
    def line(paper: str, value: float, job: str, task: str = 'classification') -> Line:
        number = dataclasses.replace(SCRATCH, value=paper, task=task)
        return Line(number, State.ON_DIGITS, digits=value, interval=(value - 1, value + 1), job=job)

    lines = [line('70', 50, 'a'), line('80', 60, 'b'), line('90', 55, 'c'), line('90', 60.5, 'd'), line('60', 60, 'b')]
    # a < b, a < c, a < d as in the paper; 60 < 70 and 60 < 90 (e and a, e and c) turned; b > c turned; b ~ d, e ~ d.
    assert paper_order(lines) == Order(kept=3, turned=3, undecided=2, one_job=1, tied=1)
    assert sum(dataclasses.astuple(paper_order(lines))) == 10
    assert '10 pairs' in paper_order(lines).words
    assert paper_order([lines[0], line('80', 60, 'b', 'linear_probe')]).words == ''


# --- claims and failures


def two_numbers() -> list:
    return [SCRATCH, NUMBERS['tinyvit/table4/resnet-18/top1/imagenet-1k']]


class Pretending:
    """Writes results that an evaluator or trainer could have; counts and may fail."""

    def __init__(self, fails: str = '', before=None) -> None:
        self.ran, self.fails, self.before = [], fails, before or (lambda words: None)

    def __call__(self, words, log) -> None:
        self.before(words)
        self.ran.append(words[0])
        if self.fails and self.fails in words:
            raise JobError('no memory')
        out = Path(words[words.index('-o') + 1])
        out.mkdir(parents=True, exist_ok=True)
        log.write_text('said')
        versions = Plan(()).facts['versions']
        common = dict(command=shlex.join(['tinyvit-zoo', *words]), versions=versions, data=None, seed=0)
        config = dict(
            input_size=[3, 32, 32], crop_pct=0.9, crop_mode='center', interpolation='bicubic', mean=[0.5], std=[0.5]
        )
        results = dict(
            common, evaluator=words[0], model=dict(weights_sha256='f' * 64), images=450, top1=50.0, top5=90.0,
            dtype='fp32', preprocessing=config, test_preprocessing=config, recipe=dict(name='small', batch_size=32),
            epochs=2, training_images=1, validation_images=1, test_images=1,
        )  # fmt: skip
        (out / 'results.json').write_text(json.dumps(results))


def on_digits(folder: Path, run) -> list[Line]:
    return run_rows(two_numbers(), scale=Scale.DIGITS, jobs=jobs_in(folder, run), say=quiet)


def test_a_failed_job_stops_no_other_and_is_tried_again(tmp_path):
    first, second = on_digits(tmp_path, Pretending(fails='tinyvit_5m_224'))
    assert (first.state, first.remark, second.state, second.digits) == (
        State.FAILED, 'no memory', State.ON_DIGITS, 50.0,
    )  # fmt: skip
    failing, row = Pretending(fails='tinyvit_5m_224'), numbers_of(ENTRIES['tinyvit/table4'])
    run_rows([n for n in row if n.row == SCRATCH.row], scale=Scale.DIGITS, jobs=jobs_in(tmp_path, failing), say=quiet)
    assert failing.ran == ['finetune']  # once for top-1 and top-5
    again = Pretending()
    lines = on_digits(tmp_path, again)
    assert [line.state for line in lines] == [State.ON_DIGITS] * 2
    assert again.ran == ['finetune', 'evaluate']  # of the failed row only


def test_an_error_that_is_nobodys_sentence_leaves_its_traceback(tmp_path):
    def breaking(words, log):
        raise ZeroDivisionError('of a bug')

    first, _ = on_digits(tmp_path, breaking)
    assert first.state is State.FAILED
    (log, *_) = tmp_path.glob('*/log.txt')
    assert 'ZeroDivisionError: of a bug' in log.read_text()


def test_a_full_disk_fails_the_job_and_not_the_table(tmp_path):
    def breaking(words, log):
        log.unlink(missing_ok=True)
        log.mkdir(exist_ok=True)  # nor can the traceback be written
        raise OSError(errno.ENOSPC, 'No space left on device')

    first, second = on_digits(tmp_path, breaking)
    assert (first.state, second.state) == (State.FAILED, State.FAILED)
    assert 'No space left on device' in first.remark


@pytest.mark.parametrize('error', [KeyboardInterrupt, typer.Abort])
def test_an_interrupted_job_ends_the_table(tmp_path, error):
    small = typer.Typer()

    @small.command()
    def interrupted() -> None:
        raise error

    with pytest.raises(KeyboardInterrupt):
        jobs_in(tmp_path, lambda words, log: command._run_command(get_command(small), [], log)).finish(Plan(('probe',)))
    assert not list(tmp_path.glob('*/job.json'))
    shutil.rmtree(tmp_path)  # nothing holds the claim


def test_a_folder_of_jobs_may_move(tmp_path):
    first = on_digits(tmp_path / 'here', Pretending())
    (tmp_path / 'here').rename(tmp_path / 'there')
    assert on_digits(tmp_path / 'there', no_run) == first


def test_a_claimed_job_is_left_to_its_process_and_read_at_the_end(tmp_path):
    job = digits_plan(SCRATCH).needs[0]
    (tmp_path / job.folder_name).mkdir()
    lock = FileLock(tmp_path / job.folder_name / running.LOCK)
    lock.acquire()
    with pytest.raises(Busy):
        jobs_in(tmp_path, no_run).finish(job)
    order = []

    def release(words):
        order.append(words[1])
        lock.release()

    lines = on_digits(tmp_path, Pretending(before=release))
    assert [line.state for line in lines] == [State.ON_DIGITS] * 2
    assert order[0] == 'resnet18'  # the second row went first
    assert lines[0].number == SCRATCH


@pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no SIGKILL')
def test_the_claim_of_a_dead_process_is_nobodys(tmp_path):
    job = digits_plan(SCRATCH).needs[0]
    (tmp_path / job.folder_name).mkdir()
    script = (
        'import os, signal, sys; from filelock import FileLock; '
        'FileLock(sys.argv[1]).acquire(); os.kill(os.getpid(), signal.SIGKILL)'
    )
    path = tmp_path / job.folder_name / running.LOCK
    assert subprocess.run([sys.executable, '-c', script, str(path)]).returncode < 0
    assert jobs_in(tmp_path, Pretending()).finish(job)['evaluator'] == 'finetune'


def test_weights_of_another_job_than_the_one_needed_are_not_used(tmp_path):
    on_digits(tmp_path, Pretending())
    need = digits_plan(SCRATCH).needs[0]
    path = tmp_path / need.folder_name / 'out' / 'results.json'
    path.write_text(path.read_text().replace('f' * 64, 'e' * 64))
    assert jobs_in(tmp_path, None).results_of(digits_plan(SCRATCH)) is None


# --- the command


def test_the_table_prints_digits_in_a_column_of_its_own(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(command, '_runner', lambda _: Pretending())
    rows = 'tinyvit-5m-in-1k-scratch,tinyvit-5m-in-21k-distill,resnet-18'
    code, out, err = cli('reproduce', 'tinyvit/table4', '--only', rows, '--scale', 'digits', '-o', tmp_path)
    assert (code, err) == (0, '')
    assert 'On digits, classification: digits for ImageNet; weights made on digits' in out
    assert '6 pairs of rows with the same metric and data set: 0 in' in out
    assert '2 of one job' in out
    with (tmp_path / 'table.csv').open(newline='') as file:
        row = next(row for row in csv.DictReader(file) if row['id'] == SCRATCH.id)
    assert (row['measured'], row['difference'], row['digits'], row['state']) == ('', '', '50.0', 'digits')
    assert float(row['low']) < 50 < float(row['high'])
    assert '| digits | 95 % interval | state |' in (tmp_path / 'table.md').read_text()
    results = json.loads((tmp_path / 'results.json').read_text())
    assert (results['scale'], results['order']['one_job']) == ('digits', 2)


def test_tables_may_share_their_jobs(cli, tmp_path, monkeypatch):
    pretending = Pretending()
    monkeypatch.setattr(command, '_runner', lambda _: pretending)
    for table in ('table4', 'readme'):
        code, _, err = cli(
            'reproduce', f'tinyvit/{table}', '--only', 'tinyvit-5m-in-1k-scratch', '--scale', 'digits',
            '-o', tmp_path / table, '--jobs', tmp_path / 'shared',
        )  # fmt: skip
        assert (code, err) == (0, '')
    assert pretending.ran == ['finetune', 'evaluate']


def test_a_failed_job_ends_in_exit_code_1_with_a_whole_table(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(command, '_runner', lambda _: Pretending(fails='tinyvit_5m_224'))
    code, out, _ = cli('reproduce', 'tinyvit/table4', '--only', 'tinyvit-5m-in-1k-scratch', '--scale', 'digits',
                       '-o', tmp_path)  # fmt: skip
    assert code == 1
    assert 'failed: no memory' in out
    assert (tmp_path / 'table.csv').exists()


def test_a_command_that_fails_says_its_own_sentence(tmp_path):
    with pytest.raises(JobError, match="Unknown model 'no_such_model'"):
        RUN(['evaluate', 'no_such_model', '-d', 'digits', '-o', str(tmp_path)], tmp_path / 'log.txt')
    with pytest.raises(JobError, match='No such option'):
        RUN(['evaluate', '--no-such-option'], tmp_path / 'log.txt')


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (('tinyvit/table4', '--scale', 'half', '-o', 'x'), "'half' is not one of 'digits', 'full'"),
        (('tinyvit/table4', '--scale', 'digits'), '--scale digits needs a folder for results and states: add --output'),
        (('tinyvit/table4', '--scale', 'full', '--root', 'nowhere', '-o', 'x'), 'There is no folder nowhere: give'),
        (('tinyvit/table4', '--scale', 'digits', '--root', '.', '-o', 'x'), '--root is for --scale full'),
        (('tinyvit/table4', '--root', '.'), '--root is for evaluators and trainers: add --scale full'),
        (('tinyvit/table4', '--only', 'glit-tiny', '--scale', 'full', '-o', 'x'), 'All of these rows are quoted'),
    ],
    ids=['scale', 'output', 'root', 'digits', 'alone', 'rows'],
)
def test_mistakes_end_in_one_sentence(cli, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli('reproduce', *words)
    assert code != 0
    assert message in err
    assert err.count('\n') == 1
    assert (out, list(tmp_path.iterdir())) == ('', [])


def test_every_entry_has_rows_that_may_be_measured():
    assert [name for name, entry in ENTRIES.items() if not any(map(may_be_measured, numbers_of(entry)))] == []
