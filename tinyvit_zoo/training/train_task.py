"""A whole training of a task that measures nothing but its losses: pre-training and distillation are such."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack, cast

from timm.task import TrainingTask
from torch import nn
from torch.utils.data import Dataset, Sampler

from .loop import Record, RunSettings, TrainingLoop
from .recipes import Recipe

__all__ = ['Trained', 'train_task', 'unreached_frozen']


@dataclass(frozen=True)
class Trained:
    """A finished training of a task; its module has the weights of the last epoch.

    Attributes:
        history: One record an epoch: each of the task's losses, and 'lr'.
        recipe: As it was trained by.
        precision: 'no' (float32), 'bf16' or 'fp16'.
        processes: How many trained together, at the end where a run was resumed with others.
    """

    history: tuple[Record, ...]
    recipe: Recipe
    precision: str
    processes: int


def train_task(
    task: TrainingTask,
    views: Dataset,
    sampler: Sampler,
    recipe: Recipe,
    output: str | Path,
    identity: Mapping[str, str],
    **run: Unpack[RunSettings],
) -> Trained:
    """Train a task that measures nothing but its losses, or resume an earlier run into the same folder.

    Args:
        task: See `TrainingLoop`. Its trainable module is left in eval mode.
        views: Items that torch collates to the arguments of the task's forward.
        sampler: Indices of `views`, in whole batches of the recipe.
        recipe: Its mixing and augmentation have no effect: the views are what they are.
        output: Folder for `state.pt`, all that a resumed run needs, and `best.pt`, the weights that result.
        identity: What must be the same for a run to be resumed, besides recipe, seed, precision and initial weights.
        **run: See `TrainingLoop`.

    Raises:
        EvaluationError: For a reason of `TrainingLoop` or of its `run`.
    """
    with unreached_frozen(cast(nn.Module, task.get_trainable_module())):
        loop = TrainingLoop(task, recipe, Path(output), **run)
        history = loop.run(loop.loader(views, sampler), identity)
    loop.module.eval()
    return Trained(tuple(history), recipe, loop.accelerator.mixed_precision, loop.accelerator.num_processes)


@contextmanager
def unreached_frozen(module: nn.Module) -> Iterator[None]:
    """A block, for a whole training, in which parameters have no gradient that the module names as out of its output's
    reach (`unreached_parameters`). DistributedDataParallel would wait for theirs.
    """
    names = set(cast(Any, module).unreached_parameters()) if hasattr(module, 'unreached_parameters') else set()
    frozen = [parameter for name, parameter in module.named_parameters() if name in names and parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
