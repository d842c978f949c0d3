"""Activation checkpointing that leaves no trace in the model."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from timm.layers import use_reentrant_ckpt
from timm.models import checkpoint
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ['recomputed']


def recomputed(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`module(x)`, whose inner results are computed again in the backward pass instead of kept.

    The second run would count the batch twice in the running statistics of BatchNorm: here it leaves them alone, so
    training goes as without checkpointing. (Not where it is compiled or re-entrant, which allow no such context.)
    """
    if torch.compiler.is_compiling() or use_reentrant_ckpt():
        return checkpoint(module, x)
    return checkpoint(module, x, context_fn=lambda: (nullcontext(), _statistics_left_alone(module)))


@contextmanager
def _statistics_left_alone(module: nn.Module) -> Iterator[None]:
    """Whatever runs inside updates no running statistics and counts no batch; the same tensors are computed."""
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
