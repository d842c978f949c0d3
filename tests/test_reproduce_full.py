"""`reproduce --scale full` end to end: honest jobs of every kind, on data sets laid out as the real ones.

Only numbers are patched: of images, classes and epochs. Models have random weights, imported as the released ones.
"""

import dataclasses
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fake_datasets as fake
import pytest
import timm
import torch
from resealed import reseal
from safetensors.torch import load_file, save_file
from typer.main import get_command

from tinyvit_zoo.checkpoints import imported_path
from tinyvit_zoo.cli import reproduce as command
from tinyvit_zoo.cli.app import app
from tinyvit_zoo.data.registry import REGISTRY
from tinyvit_zoo.downstream.imagenet_c import ALEXNET_ERRORS
from tinyvit_zoo.downstream.reproduce import full, running, tinyvit
from tinyvit_zoo.downstream.reproduce.entries import ENTRIES
from tinyvit_zoo.downstream.reproduce.full import full_plan
from tinyvit_zoo.downstream.reproduce.jobs import Line, State, run_rows
from tinyvit_zoo.downstream.reproduce.numbers import read_numbers
from tinyvit_zoo.downstream.reproduce.plans import Scale
from tinyvit_zoo.downstream.reproduce.record import released
from tinyvit_zoo.downstream.reproduce.running import Jobs
from tinyvit_zoo.training.recipes import RECIPES

NUMBERS = {number.id: number for number in read_numbers()}
RUN = partial(command._run_command, get_command(app))
TINY, TINYMIM = 'tinyvit_5m_224.in1k', 'tinymim_vit_tiny_patch16_224.ft_in1k'
ENCODER = 'mae_lite_vit_tiny_encoder_patch16_224.mae_in1k'
WNIDS_R = ('n01443537', 'n01484850')
CLASSES = 5  # of the transfer sets

COUNTS = {
    'imagenet-1k': dict(train=2, validation=2), 'imagenet-real': dict(validation=2), 'imagenet-v2': dict(test=2),
    'imagenet-a': dict(test=2), 'imagenet-r': dict(test=2), 'oxford_pets': dict(trainval=20, test=5),
    'eurosat': dict(all=100),
}  # fmt: skip
KINDS = {
    '1k': 'tinyvit/table4/tinyvit-5m-in-1k-scratch/top1/imagenet-1k',
    'top-5': 'tinyvit/table4/tinyvit-5m-in-1k-scratch/top5/imagenet-1k',
    'real': 'minivit/table4/mini-deit-ti/top1/imagenet-real',
    'v2': 'minivit/table4/mini-deit-ti/top1/imagenet-v2',
    'a': 'tinymim/table4/tinymim-vit-t/top1/imagenet-a',
    'r': 'tinymim/table4/tinymim-vit-t/top1/imagenet-r',
    'c': 'tinymim/table4/tinymim-vit-t/mce/imagenet-c',
    'probe': 'tinyvit/table5/tinyvit-21m-in-1k-scratch/top1/oxford-pets',
    'few-shot': 'tinyvit/table5/tinyvit-21m-in-1k-scratch/accuracy-5shot/eurosat',
    'transfer': 'mae_lite/table4/deit-tiny-12h/top1/oxford-pets',
    'encoder': 'mae_lite/table4/mae-tiny/top1/oxford-pets',
}


def quiet(_: str) -> None:
    pass


def make_data(root: Path) -> None:
    fake.class_folders(root / 'imagenet-1k' / 'train', fake.WNIDS, images=1)
    for i in range(2):
        fake.image(root / 'imagenet-1k' / 'val' / fake.WNIDS[i] / f'ILSVRC2012_val_0000000{i + 1}.JPEG', seed=i)
    fake.class_folders(root / 'imagenet-v2' / 'imagenetv2-matched-frequency-format-val', ('0', '1'), images=1)
    for name in ('imagenet-a', 'imagenet-r'):
        fake.class_folders(root / name / name, fake.WNIDS_A if name == 'imagenet-a' else WNIDS_R, images=1)
    for corruption in ALEXNET_ERRORS:
        for severity in range(1, 6):
            fake.class_folders(root / 'imagenet-c' / corruption / str(severity), fake.WNIDS, images=1)
    pets(root / 'oxford_pets' / 'oxford-iiit-pet')
    fake.class_folders(root / 'eurosat' / 'eurosat' / '2750', tuple('abcde'), images=20)


def pets(folder: Path) -> None:
    """Five breeds in four images to train on and one to test with."""
    rows: dict[str, list[str]] = dict(trainval=[], test=[])
    for label, breed in enumerate(('Abyssinian', 'Bengal', 'Birman', 'pug', 'samoyed'), 1):
        for i in range(5):
            fake.image(folder / 'images' / f'{breed}_{i}.jpg', seed=10 * label + i)
            rows['test' if i == 4 else 'trainval'].append(f'{breed}_{i} {label} 1 1\n')
    (folder / 'annotations').mkdir()
    for part, lines in rows.items():
        (folder / 'annotations' / f'{part}.txt').write_text(''.join(lines))


def import_weights(name: str) -> None:
    torch.manual_seed(0)
    folder = imported_path(name)
    folder.mkdir(parents=True)
    save_file(timm.create_model(name.partition('.')[0]).state_dict(), folder / 'model.safetensors')


@pytest.fixture(scope='module')
def place(tmp_path_factory) -> Iterator[Path]:
    """A folder with `data`, and the weights in `home`."""
    folder = tmp_path_factory.mktemp('full')
    make_data(folder / 'data')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TINYVIT_ZOO_HOME', str(folder / 'home'))
        forget_weights()
        for name in (TINY, TINYMIM, 'mini_deit_tiny_patch16_224.distill_in1k', ENCODER,
                     'mae_lite_vit_tiny_patch16_224.deit_impr_in1k'):  # fmt: skip
            import_weights(name)
        for name, counts in COUNTS.items():
            classes = dict(classes=CLASSES) if not name.startswith('imagenet') else {}
            patch.setitem(REGISTRY, name, dataclasses.replace(REGISTRY[name], counts=counts, **classes))
        # The rows of probes and few-shot are all of a model of 21 M.
        patch.setitem(tinyvit.SUBJECTS, 'TinyViT-21M (IN-1k scratch)', released(TINY, evaluate=tinyvit.CROP))
        patch.setattr(full, 'PROBE_EPOCHS', 2)
        patch.setitem(ENTRIES['tinyvit/table5'].jobs, 'linear_probe', 'probe {name} -d {data} --epochs 2')
        short = dataclasses.replace(RECIPES['mae_lite_transfer'], epochs=2, warmup_epochs=1, batch_size=8)
        patch.setitem(RECIPES, 'mae_lite_transfer', short)
        yield folder
    forget_weights()


def at_full(place: Path, kind: str, run=RUN, jobs: str = 'jobs') -> Line:
    said: list[str] = []
    where = Jobs(place / jobs, run, place / 'data', said.append)
    (line,) = run_rows([NUMBERS[KINDS[kind]]], scale=Scale.FULL, jobs=where, say=quiet)
    assert line.state is not State.FAILED, (line.remark, said)
    return line


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_an_honest_job_of_the_full_protocol_is_measured(place, kind):
    line = at_full(place, kind)
    assert (line.state, line.remark, line.replaced) == (State.MEASURED, '', '')
    if kind == 'c':
        assert line.interval is None
    else:
        assert 0 <= line.interval[0] <= line.measured <= line.interval[1] <= 100


def finished(place: Path, kind: str, copy: Path) -> Path:
    """A copy of all jobs, that of a kind among them; the folder of that job."""
    at_full(place, kind)
    shutil.copytree(place / 'jobs', copy)
    (job,) = (
        path.parent for path in copy.glob('*/job.json') if full_plan(NUMBERS[KINDS[kind]]).folder_name in str(path)
    )
    return job


def read_back(place: Path, kind: str, jobs: Path) -> tuple[Line, str]:
    """The row of a kind without running anything, and what was said."""
    said: list[str] = []
    where = Jobs(jobs, None, place / 'data', said.append)
    (line,) = run_rows([NUMBERS[KINDS[kind]]], dry=True, scale=Scale.FULL, jobs=where, say=quiet)
    return line, ' '.join(said)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('kind', 'change', 'problem'),
    [
        ('probe', lambda r: r['model'].update(input_size=[3, 192, 192]), 'pixels: [192, 192], not [224, 224]'),
        ('probe', lambda r: r.update(epochs=90), 'epochs: 90, not 2'),
        ('probe', lambda r: r['data']['held_out'].update(images=1), "train: {'name': 'oxford_pets'"),
        ('few-shot', lambda r: r['model'].update(input_size=[3, 288, 288]), 'pixels: [288, 288], not [224, 224]'),
        ('few-shot', lambda r: r['results'][0].update(episodes=100), 'drawn: [100], not [600]'),
        ('few-shot', lambda r: r.update(preprocessing="the model's own"), "the model's own, not squashed"),
        ('encoder', lambda r: r['start'].update(tensors_sha256='0' * 64), 'it did not start from mae_lite_vit_tiny'),
        ('encoder', lambda r: r.update(command=r['command'].replace('mae_in1k', 'dmae_in1k')), 'command: ['),
        ('encoder', lambda r: r['test_preprocessing'].update(crop_pct=1.0), 'crop: 1.0, not 0.875'),
        ('c', lambda r: r.update(images=75), 'counted: 75, not 150'),
        ('c', lambda r: r['ce'].pop('fog'), 'corruptions: ['),
    ],
    ids=['probe', 'epochs', 'held-out', 'pixels', 'episodes', 'squash', 'start', 'file', 'crop', 'images', 'sets'],
)  # fmt: skip
def test_results_of_another_protocol_are_not_measured(place, tmp_path, kind, change, problem):
    reseal(finished(place, kind, tmp_path / 'jobs'), change)
    line, said = read_back(place, kind, tmp_path / 'jobs')
    assert (line.state, line.measured) == (State.TO_MEASURE, None)
    assert problem in said


@pytest.mark.slow
def test_a_transfer_moves_with_its_weights_and_is_of_no_others(place, tmp_path, monkeypatch):
    before = at_full(place, 'encoder')
    finished(place, 'encoder', tmp_path / 'jobs')
    shutil.copytree(place / 'home', tmp_path / 'a home')
    monkeypatch.setenv('TINYVIT_ZOO_HOME', str(tmp_path / 'a home'))
    forget_weights()
    assert read_back(place, 'encoder', tmp_path / 'jobs') == (before, '')
    path = imported_path(ENCODER) / 'model.safetensors'
    tensors = load_file(path)
    tensors['pos_embed'] += 1
    save_file(tensors, path)
    forget_weights()
    line, said = read_back(place, 'encoder', tmp_path / 'jobs')
    forget_weights()
    assert (line.state, line.measured) == (State.TO_MEASURE, None)
    assert f'its weights are not those of {ENCODER}' in said


def forget_weights() -> None:
    running.released_hash.cache_clear()
    running.imported_hash.cache_clear()
