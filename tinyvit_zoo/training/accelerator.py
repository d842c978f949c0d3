"""accelerate's accelerator for a recipe: processes, precision, and how a batch is cut."""

import torch

from ..common.errors import EvaluationError
from ..common.extras import needs_extra
from ..common.text import count_of
from .recipes import Recipe

with needs_extra('eval'):
    from accelerate import Accelerator, PartialState
    from accelerate.state import AcceleratorState
    from accelerate.utils import DataLoaderConfiguration

__all__ = ['create_accelerator', 'find_precision']


def find_precision(precision: str | None, device: torch.device | None) -> tuple[str, str]:
    """The precision of a training, 'bf16' on CUDA and else 'no' where none is given, and the kind of its device."""
    on_cuda = torch.cuda.is_available() if device is None else device.type == 'cuda'
    return precision or ('bf16' if on_cuda else 'no'), 'cuda' if on_cuda else 'cpu'


def create_accelerator(
    recipe: Recipe, micro_batch: int | None, precision: str | None, device: torch.device | None
) -> tuple[Accelerator, int]:
    """accelerate's accelerator, and the images that a process takes at once. Arguments and errors of `TrainingLoop`."""
    precision, kind = find_precision(precision, device)
    on_cuda = kind == 'cuda'
    if on_cuda and device is not None and device.index is not None:
        torch.cuda.set_device(device)
    if precision == 'fp16' and not on_cuda:
        raise EvaluationError('fp16 needs a CUDA device: choose bf16, or no.')
    AcceleratorState._reset_state(reset_partial_state=True)  # else device and precision of an earlier run stay
    processes = PartialState(cpu=not on_cuda).num_processes
    micro_batch = micro_batch or max(recipe.batch_size // processes, 1)
    accelerator = Accelerator(
        cpu=not on_cuda,
        mixed_precision=precision,
        gradient_accumulation_steps=_accumulated_steps(recipe, micro_batch, processes),
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        rng_types=[],  # every random number here has a seed of its own
    )
    return accelerator, micro_batch


def _accumulated_steps(recipe: Recipe, micro_batch: int, processes: int) -> int:
    steps, rest = divmod(recipe.batch_size, micro_batch * processes)
    if rest or not steps:
        raise EvaluationError(
            f'A batch of {recipe.batch_size} is not a multiple of {processes} x {micro_batch} images at once: choose '
            '--batch-size and --micro-batch so that one divides the other.'
        )
    if micro_batch % 2 and (recipe.mixup or recipe.cutmix):
        raise EvaluationError(
            f'Mixup needs pairs, and {count_of(micro_batch, "image")} at once is an odd number: choose an even '
            '--batch-size or --micro-batch.'
        )
    return steps
