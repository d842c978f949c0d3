"""MoCo-v3's contrastive loss.

Paper: An Empirical Study of Training Self-Supervised Vision Transformers, https://arxiv.org/abs/2104.02057,
Algorithm 1. Released code, as MAE-Lite uses it: https://github.com/wangsr126/MAE-Lite, `projects/mocov3/mocov3.py`.
"""

import torch
import torch.nn.functional as F
from torch import distributed as dist

from .precision import check_temperature, in_full_precision

__all__ = ['info_nce_loss']


@in_full_precision
def info_nce_loss(queries: torch.Tensor, keys: torch.Tensor, temperature: float = 0.2) -> torch.Tensor:
    """InfoNCE of each query against the keys of all images of all processes, times 2T; add both directions.

    Queries and keys are normalized; the key of the same image is the positive. If torch.distributed is initialized,
    keys are gathered over the default group, so every process must call this with the same number of images. No
    gradient goes into the keys. Half precision is computed in float32, autocast or not.

    Args:
        queries: (B, C), of one view of this process's images.
        keys: (B, C), of the other view of the same images, by the momentum encoder.
        temperature: T.

    Returns:
        Scalar: mean over this process's images.

    Raises:
        ValueError: If the shapes differ, or T is not above 0.
    """
    if queries.shape != keys.shape or queries.ndim != 2 or not queries.numel():
        raise ValueError(
            f'Queries {tuple(queries.shape)} and keys {tuple(keys.shape)} must be (B, C) of the same images.'
        )
    check_temperature(temperature)
    queries, keys = F.normalize(queries, dim=1), F.normalize(keys, dim=1)
    everyone, first = _gather(keys)
    positives = torch.arange(len(queries), device=queries.device) + first
    return F.cross_entropy(queries @ everyone.T / temperature, positives) * (2 * temperature)


def _gather(keys: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Keys of all processes in the order of their ranks, and the row where this process's begin."""
    if not (dist.is_available() and dist.is_initialized()):
        return keys, 0
    parts = [torch.empty_like(keys) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, keys.contiguous())
    return torch.cat(parts), len(keys) * dist.get_rank()
