"""Hooks that mmengine's runner lacks for long runs on machines that fail: exact resuming, whole checkpoints, curves.

mmengine's checkpoints hold weights, optimizer and schedulers, but no random states; a resumed run of iterations reads
all images again that it has already seen, and a run killed while writing leaves a truncated file under the final name.
Each hook here works with mmdet's stock tools: name it in the config.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from mmengine.dist import get_rank, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.registry import DATA_SAMPLERS, HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import BatchSampler, DataLoader, Sampler

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.files import write_whole
from tinyvit_zoo.common.seeding import Seeds, seed_generators
from tinyvit_zoo.data.seeded import Draw, SeededDataset

from .curves import Point, read_points, write_curves

__all__ = ['AtomicCheckpointHook', 'AtomicLocalBackend', 'CurvesHook', 'RandomStateHook']


# ---- random states


class NumberedBatches(Sampler[list[Draw]]):
    """Batches of draws, in the order of a batch sampler.

    Args:
        batches: Batch sampler; those of torch and mmengine have `sampler` and `batch_size`.
        key: Of the seeds of all draws, before the numbers of epoch, batch and place in the batch.
        endless: Start again at the end, as a loop over iterations does.
        skip: Number of batches to skip at first, without reading them.
    """

    def __init__(self, batches: Any, key: tuple[int, ...], endless: bool, skip: int) -> None:
        self.batches, self.key, self.endless, self.skip, self.epoch = batches, key, endless, skip, 0

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, skip, self.skip = self.epoch, self.skip, 0
        while True:
            if self.endless and hasattr(self.sampler, 'set_epoch'):
                self.sampler.set_epoch(epoch)
            number = -1
            for number, batch in enumerate(self.batches):
                if skip:
                    skip -= 1
                    continue
                yield [self._draw(index, epoch, number, place) for place, index in enumerate(batch)]
            if not self.endless or number < 0:
                return
            epoch += 1

    def _draw(self, index: int, *when: int) -> Draw:
        return Draw(int(index), Seeds.spawned(*self.key, *when))

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def sampler(self) -> Any:
        """Of the batch sampler: mmengine's own hook passes the epoch to it."""
        return self.batches.sampler

    @property
    def batch_size(self) -> int:
        return self.batches.batch_size


class _RemainingBatches:
    """Iterator over the remaining batches, for a loop that first skips those it has had: it yields None for each."""

    def __init__(self, loader: DataLoader, had: int) -> None:
        self.iterator, self.had = iter(loader), had

    def __iter__(self) -> '_RemainingBatches':
        return self

    def __next__(self) -> Any:
        if self.had:
            self.had -= 1
            return None
        return next(self.iterator)


@HOOKS.register_module()
class RandomStateHook(Hook):
    """Makes a run that was killed and resumed continue exactly as without the interruption.

    Nothing is stored for it but the seed, which mmengine stores: the random states of an iteration are a function of
    (seed, process, iteration), the augmentation of an image is a function of (seed, process, epoch, number of the
    batch, place in it). Checkpoints are written by the first process alone and could not hold the states of the others.
    The loader starts where the run had stopped, without reading earlier images, and in the order given by the seed of
    the checkpoint.

    Not covered: gradients that were being accumulated over iterations when the checkpoint was written, and a resumed
    run with another number of processes or images per batch, which continues in a different order.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Replace the loop's loader by the seeded one.

        Raises:
            EvaluationError: If there is nothing to train on.
        """
        loop, old = runner.train_loop, runner.train_loop.dataloader
        if not len(old.dataset):
            raise EvaluationError(
                'No image is left to train on: compare the classes of the config with the categories of the '
                'annotations, and its filter_cfg with the sizes of the images.'
            )
        self.key = runner.seed, get_rank()
        endless = isinstance(loop, IterBasedTrainLoop)
        had = runner.iter if endless else max(0, runner.iter - runner.epoch * len(old))
        self.batches = NumberedBatches(self._fresh_batches(runner, old), (*self.key, 1), endless, had)
        loop.dataloader = DataLoader(
            SeededDataset(old.dataset),
            batch_sampler=self.batches,
            num_workers=old.num_workers,
            collate_fn=old.collate_fn,
            pin_memory=old.pin_memory,
            timeout=old.timeout,
            worker_init_fn=old.worker_init_fn,
            multiprocessing_context=old.multiprocessing_context,
            prefetch_factor=old.prefetch_factor,
            persistent_workers=old.persistent_workers,
        )
        if endless:
            loop.dataloader_iterator = _RemainingBatches(loop.dataloader, had)

    def after_train(self, runner: Runner) -> None:
        """Stop the workers now: stopped later by the garbage collector, each would take a timeout of 5 seconds."""
        loop, old = runner.train_loop, runner.train_loop.dataloader
        if self.batches.endless:
            loop.dataloader_iterator = iter(())
        loop.dataloader = DataLoader(old.dataset, batch_sampler=self.batches, collate_fn=old.collate_fn)

    def before_train_epoch(self, runner: Runner) -> None:
        if not self.batches.endless:
            self.batches.epoch = runner.epoch

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        seed_generators(Seeds.spawned(*self.key, 0, runner.iter), device=True)

    def _fresh_batches(self, runner: Runner, old: DataLoader) -> Any:
        """A new batch sampler: the loop's own has already been read from, and has the seed from before resuming."""
        config, seed = runner.cfg.get('train_dataloader'), runner.seed
        if not isinstance(config, dict) or not isinstance(config.get('sampler'), dict):
            print_log('The loader was not built from the config: its order is not resumed.', 'current', logging.WARNING)
            return old.batch_sampler
        if runner.cfg.get('randomness', {}).get('diff_rank_seed', False):
            seed -= get_rank()  # all processes take their images from the same order
        sampler = DATA_SAMPLERS.build(config['sampler'], default_args=dict(dataset=old.dataset, seed=seed))
        batches = cast(BatchSampler, old.batch_sampler)  # mmengine always gives its loaders one
        if not config.get('batch_sampler'):
            return BatchSampler(sampler, batches.batch_size, old.drop_last)
        return DATA_SAMPLERS.build(
            config['batch_sampler'], default_args=dict(sampler=sampler, batch_size=batches.batch_size)
        )


# ---- checkpoints


class AtomicLocalBackend(LocalBackend):
    """mmengine's local files, each written under a temporary name and then renamed."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file whole or not at all.

        Raises:
            EvaluationError: If it cannot be written; an existing file is kept.
        """
        write_whole(Path(filepath), obj)


register_backend('atomic', AtomicLocalBackend, force=True)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's `CheckpointHook`, for runs that may be killed at any moment.

    Its files are complete or absent. The oldest one is removed before the next is written, so at least two are kept.

    Args:
        max_keep_ckpts: As in `CheckpointHook`, but 2 instead of 1.
        backend_args: As in `CheckpointHook`; the default writes files as `AtomicLocalBackend`.
        **kwargs: Of `CheckpointHook`.
    """

    def __init__(self, *, max_keep_ckpts: int = -1, backend_args: dict | None = None, **kwargs: Any) -> None:
        local = '://' not in str(kwargs.get('out_dir') or '')
        super().__init__(
            max_keep_ckpts=2 if max_keep_ckpts == 1 else max_keep_ckpts,
            backend_args=dict(backend='atomic') if backend_args is None and local else backend_args,
            **kwargs,
        )


# ---- curves


@HOOKS.register_module()
class CurvesHook(Hook):
    """Records losses and validation metrics as `curves.csv`, `losses.png` and `metrics.png` in the work dir.

    The files are written with every checkpoint, after every validation and at the end; a resumed run continues them
    from its checkpoint.

    Args:
        interval: Number of iterations over which a point of the losses is averaged.
    """

    priority = 'BELOW_NORMAL'

    def __init__(self, interval: int = 10) -> None:
        self.interval = interval
        self.points: list[Point] = []
        self.recent: list[dict[str, float]] = []
        self.training = False

    def before_train(self, runner: Runner) -> None:
        self.points, self.recent = read_points(Path(runner.work_dir) / 'curves.csv', runner.iter), []
        self.training = True

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        values = {k: float(torch.as_tensor(v).detach()) for k, v in (outputs or {}).items() if 'loss' in k}
        self.recent.append(values)
        if len(self.recent) == self.interval or self.is_last_train_iter(runner):
            self._add_point(runner.iter + 1)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self._write(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        if not self.training:  # mmengine's `Runner.val`
            return
        self.points += [(runner.iter, f'val/{name}', float(value)) for name, value in (metrics or {}).items()]
        self._write(runner)

    def after_train(self, runner: Runner) -> None:
        self._write(runner)
        if is_main_process():
            runner.logger.info(f'Curves: {Path(runner.work_dir) / "curves.csv"}, and the figures in the same folder.')

    def _add_point(self, iteration: int) -> None:
        names = dict.fromkeys(name for values in self.recent for name in values)
        for name in names:
            values = [v[name] for v in self.recent if name in v]
            self.points.append((iteration, f'train/{name}', sum(values) / len(values)))
        self.recent = []

    def _write(self, runner: Runner) -> None:
        if is_main_process() and self.points:
            write_curves(Path(runner.work_dir), self.points, runner.experiment_name)
