"""The hooks: a toy run that is stopped anywhere and resumed equals one that never stopped; whole files; curves."""

import csv
import multiprocessing
import os
import random
from contextlib import suppress

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, MODELS
from mmengine.runner import Runner
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

import tinyvit_zoo.downstream.detection  # noqa: F401  registers the hooks
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.downstream.detection.detector_checkpoint import latest_checkpoint

pytestmark = pytest.mark.slow  # mmdet's import alone takes seconds


@DATASETS.register_module()
class Noisy(Dataset):
    """Ten numbers, each augmented by all three generators."""

    def __init__(self, length=10):
        self.metainfo = dict(classes=('a',))
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return torch.tensor([index, random.random(), np.random.rand(), torch.rand(()).item()])


@MODELS.register_module()
class Dropping(BaseModel):
    """A layer with dropout: draws from torch's generator in each iteration."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, *batch, mode='loss'):
        x = torch.stack(batch)
        y = self.layer(nn.functional.dropout(x, 0.5, self.training))
        return dict(loss=(y - x.sum(1, keepdim=True)).square().mean() + 0.1 * random.random())


@HOOKS.register_module()
class Watch(Hook):
    """Records inputs and losses of every iteration; stops the run after an iteration as a kill would."""

    seen: list = []  # noqa: RUF012  one run at a time

    def __init__(self, until=10**9):
        self.until = until
        type(self).seen = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen.append((torch.stack(list(data_batch)).flatten().tolist(), float(outputs['loss'].detach())))
        if runner.iter + 1 == self.until:
            raise KeyboardInterrupt


EPOCHS = dict(train_cfg=dict(by_epoch=True, max_epochs=4), sampler=dict(type='DefaultSampler', shuffle=True))
ITERATIONS = dict(train_cfg=dict(by_epoch=False, max_iters=16), sampler=dict(type='InfiniteSampler', shuffle=True))
RESTARTED = dict(ITERATIONS, sampler=dict(type='DefaultSampler', shuffle=True))


def run(folder, loop, *, workers=0, until=10**9, resume=False, seed=3, hook=True, persistent=False, length=10):
    by_epoch = loop['train_cfg']['by_epoch']
    config = Config(
        dict(
            work_dir=str(folder),
            model=dict(type='Dropping'),
            train_dataloader=dict(
                batch_size=2,
                num_workers=workers,
                persistent_workers=persistent and workers > 0,
                sampler=loop['sampler'],
                dataset=dict(type='Noisy', length=length),
            ),
            train_cfg=loop['train_cfg'],
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
            default_hooks=dict(
                logger=None,
                checkpoint=dict(type='AtomicCheckpointHook', by_epoch=by_epoch, interval=1 if by_epoch else 6),
            ),
            custom_hooks=[dict(type='RandomStateHook')] * hook
            + [dict(type='CurvesHook'), dict(type='Watch', until=until)],
            randomness=dict(seed=seed),
            default_scope='mmengine',
            resume=resume,
            log_level='ERROR',
            experiment_name=f'{folder.name}_{resume}_{os.urandom(4).hex()}',
        )
    )
    runner = Runner.from_cfg(config)
    with suppress(KeyboardInterrupt):
        runner.train()
    # A killed process leaves no workers; here they would be waited for.
    runner.train_loop.dataloader = runner.train_loop.dataloader_iterator = None
    return list(Watch.seen)


@pytest.mark.parametrize('loop', [EPOCHS, ITERATIONS, RESTARTED], ids=['epochs', 'iterations', 'restarted'])
@pytest.mark.parametrize('workers', [0, 2])
def test_a_resumed_run_has_the_same_inputs_and_losses(tmp_path, loop, workers):
    whole = run(tmp_path / 'whole', loop, workers=workers)
    killed = run(tmp_path / 'killed', loop, workers=workers, until=13)
    assert killed == whole[:13]
    resumed = run(tmp_path / 'killed', loop, workers=workers, resume=True)
    last = 10 if loop is EPOCHS else 12  # iteration of the last checkpoint
    assert resumed == whole[last:]


def test_without_the_hook_a_resumed_run_differs(tmp_path):
    whole = run(tmp_path / 'whole', ITERATIONS, hook=False)
    run(tmp_path / 'killed', ITERATIONS, hook=False, until=13)
    resumed = run(tmp_path / 'killed', ITERATIONS, hook=False, resume=True)
    assert resumed != whole[12:]


@pytest.mark.parametrize('loop', [EPOCHS, ITERATIONS], ids=['epochs', 'iterations'])
def test_the_number_of_workers_changes_nothing(tmp_path, loop):
    alone = run(tmp_path / 'alone', loop)
    assert run(tmp_path / 'two', loop, workers=2) == alone
    assert run(tmp_path / 'persistent', loop, workers=2, persistent=True) == alone


def test_without_a_seed_in_the_config_that_of_the_checkpoint_is_used(tmp_path):
    whole = run(tmp_path / 'run', ITERATIONS, seed=None)
    os.remove(tmp_path / 'run' / 'iter_16.pth')
    (tmp_path / 'run' / 'last_checkpoint').write_text(str(tmp_path / 'run' / 'iter_12.pth'))
    assert run(tmp_path / 'run', ITERATIONS, seed=None, resume=True) == whole[12:]
    assert run(tmp_path / 'other', ITERATIONS, seed=None) != whole


def test_no_worker_is_left_when_the_training_ends(tmp_path):
    others = set(multiprocessing.active_children())  # of other tests
    for loop in (EPOCHS, ITERATIONS):
        run(tmp_path / loop['sampler']['type'], loop, workers=2, persistent=True)
        assert set(multiprocessing.active_children()) <= others


def test_augmentations_differ_between_epochs_and_places(tmp_path):
    seen = [values for values, _ in run(tmp_path / 'run', EPOCHS, workers=2)]
    drawn = [tuple(values[i + 1 : i + 4]) for values in seen for i in (0, 4)]
    assert len(set(drawn)) == len(drawn) == 40


def test_an_empty_data_set_is_reported_and_does_not_hang(tmp_path):
    with pytest.raises(EvaluationError, match='No image is left to train on'):
        run(tmp_path / 'run', ITERATIONS, length=0)


def test_a_checkpoint_is_whole_or_absent(tmp_path, monkeypatch):
    run(tmp_path / 'run', ITERATIONS, until=7)
    before = (tmp_path / 'run' / 'iter_6.pth').read_bytes()

    def full(self, target):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('pathlib.Path.replace', full)
    with pytest.raises(EvaluationError, match='No space left on device'):
        run(tmp_path / 'run', ITERATIONS, until=7)
    monkeypatch.undo()
    assert (tmp_path / 'run' / 'iter_6.pth').read_bytes() == before
    assert not list((tmp_path / 'run').glob('.*.part'))


def test_at_least_two_checkpoints_are_kept(tmp_path):
    hook = HOOKS.build(dict(type='AtomicCheckpointHook', interval=1, max_keep_ckpts=1))
    assert hook.max_keep_ckpts == 2
    assert hook.backend_args == dict(backend='atomic')
    remote = HOOKS.build(dict(type='AtomicCheckpointHook', interval=1, out_dir='s3://bucket'))
    assert remote.backend_args is None


def test_the_newest_whole_checkpoint_is_resumed(tmp_path):
    folder = tmp_path / 'run'
    run(folder, ITERATIONS, until=13)
    assert latest_checkpoint(folder).name == 'iter_12.pth'
    (folder / 'last_checkpoint').write_text('')  # killed between opening and writing
    assert latest_checkpoint(folder).name == 'iter_12.pth'
    data = (folder / 'iter_12.pth').read_bytes()
    (folder / 'iter_12.pth').write_bytes(data[: len(data) // 2])
    assert latest_checkpoint(folder).name == 'iter_6.pth'
    (folder / 'iter_6.pth').write_bytes(b'PK')
    with pytest.raises(EvaluationError, match='start again'):
        latest_checkpoint(folder)
    assert latest_checkpoint(tmp_path) is None


def test_curves_continue_after_resuming(tmp_path):
    folder = tmp_path / 'run'
    run(folder, ITERATIONS, until=13)
    run(folder, ITERATIONS, resume=True)
    with (folder / 'curves.csv').open() as file:
        rows = [(int(row['iteration']), row['name']) for row in csv.DictReader(file)]
    assert rows == [(10, 'train/loss'), (16, 'train/loss')]
    with Image.open(folder / 'losses.png') as image:
        assert min(image.size) > 300
