"""What a training will take: its updates, its hours and its memory, from two steps of it."""

import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import torch
from timm.task import TrainingTask
from torch.utils.data import Dataset, Sampler

from ..common.errors import EvaluationError
from ..common.text import count_of
from .ingredients import set_training
from .loop import RunSettings, TrainingLoop
from .recipes import Recipe

__all__ = ['Estimate', 'estimate', 'take_update']


@dataclass(frozen=True)
class Estimate:
    """What a training will take on this machine.

    Attributes:
        updates: In all.
        steps: Forward passes in all, each with its backward pass; several where gradients are added up.
        seconds: In all, as long as the second step took.
        memory: Bytes, the most so far: of the device on CUDA, else of the process; 0 on Windows, which does not tell.
    """

    updates: int
    steps: int
    seconds: float
    memory: int

    @property
    def words(self) -> str:
        return (
            f'{count_of(self.updates, "update")} in {count_of(self.steps, "step")}; about {self.seconds / 3600:,.2f} '
            f'hours and {self.memory / 2**20:,.0f} MiB for each process on this machine.'
        )


def estimate(
    task: TrainingTask, views: Dataset, sampler: Sampler, recipe: Recipe, **run: Unpack[RunSettings]
) -> Estimate:
    """Take two steps, reading of images included, and write nothing. They change the task's trainable module.

    Args:
        task: See `train_task`, also for the next three.
        views: Items.
        sampler: Their indices.
        recipe: Numbers.
        **run: See `TrainingLoop`.

    Raises:
        EvaluationError: For a reason of `TrainingLoop`, or if a loss is not a number.
    """
    loop = TrainingLoop(task, recipe, Path(), **run)
    loader: Any = loop.loader(views, sampler)
    set_training(loop.wrapped, recipe.freeze_batch_norm)
    batches, seconds = iter(loader), 0.0
    for _ in range(2):
        began = time.perf_counter()
        for batch in itertools.islice(batches, 1):
            if not take_update(loop, batch).isfinite():  # waits for the device, too
                raise EvaluationError('The first loss is not a number: choose a lower --lr, or --precision no.')
            seconds = time.perf_counter() - began
    steps = len(loader) * recipe.epochs
    updates = steps // loop.accelerator.gradient_accumulation_steps
    return Estimate(updates, steps, steps * seconds, _memory(loop.accelerator.device))


def take_update(loop: TrainingLoop, batch: Sequence[torch.Tensor], task: TrainingTask | None = None) -> torch.Tensor:
    """Forward and backward pass of a batch, and an update with the recipe's clipping. Returns its loss.

    Args:
        loop: Its trainable module and its optimizer.
        batch: Arguments of the task.
        task: Another one with the same trainable module; None for that of the loop.
    """
    loss = (task or loop.task)(*batch)['loss']
    loop.accelerator.backward(loss)
    if loop.recipe.clip_grad:
        loop.accelerator.clip_grad_norm_(loop.wrapped.parameters(), loop.recipe.clip_grad)
    loop.prepared_optimizer.step()
    loop.prepared_optimizer.zero_grad()
    return loss.detach()


def _memory(device: torch.device) -> int:
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == 'win32':
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak * 1024
