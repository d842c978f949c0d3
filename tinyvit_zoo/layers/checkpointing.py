"""Activation checkpointing that does not change the statistics of BatchNorm."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from timm.layers import use_reentrant_ckpt
from timm.models import checkpoint
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ['checkpoint_block']


def checkpoint_block(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`block(x)`, whose activations are recomputed in the backward pass instead of stored.

    The recomputation would count the batch twice in the running statistics of BatchNorm, so it leaves them untouched:
    training is the same as without checkpointing. (Compiled and re-entrant checkpointing allow no such context; there
    the batch counts twice.)
    """
    if torch.compiler.is_compiling() or use_reentrant_ckpt():
        return checkpoint(block, x)
    return checkpoint(block, x, context_fn=lambda: (nullcontext(), _frozen_statistics(block)))


@contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, forward passes compute the same tensors but update no running statistics and count no batch."""
    kept = [
        (m, m.momentum, m.num_batches_tracked)
        for m in module.modules()
        if isinstance(m, _BatchNorm) and m.training and m.track_running_stats
    ]
    for norm, _, _ in kept:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, count in kept:
            norm.momentum, norm.num_batches_tracked = momentum, count
