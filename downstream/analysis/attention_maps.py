"""Distance and entropy of maps of attention, added up over queries a part of a map at a time.

Shape legend: `B` images or windows, `N` tokens that attend to each other, `h w` their grid, `H W` map of a layer.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from tinyvit_zoo.common.errors import EvaluationError

__all__ = [
    'EPSILON',
    'LayerAttention',
    'Layout',
    'Sums',
    'add_map',
    'at_least_float',
    'grid_distances',
    'real_cells',
    'reduce',
]

EPSILON = 1e-6
"""Added to probabilities in the logarithm, as in the released code: an entropy is up to N * 1e-6 lower by it."""
IN_CACHE = 1 << 18  # numbers of a map that are reduced at a time on a CPU
ON_CARD = 1 << 26


@dataclass(frozen=True)
class LayerAttention:
    """One layer.

    Attributes:
        layer: Its name.
        distance: float64 (heads,), mean distance from a query to what it attends to, in pixels.
        entropy: float64 (heads,), in nats.
        grid: (h, w) of the tokens that attend to each other: all patches, or those of a window.
        pixel_step: Pixels from a token to the next, vertically and horizontally.
        queries: That the means are over, all images together; not those of padded cells.
    """

    layer: str
    distance: np.ndarray
    entropy: np.ndarray
    grid: tuple[int, int]
    pixel_step: tuple[float, float]
    queries: int

    @property
    def relative_entropy(self) -> np.ndarray:
        """Entropy over that of uniform attention, log N: comparable between windows and images."""
        N = math.prod(self.grid)
        return self.entropy / math.log(N) if N > 1 else np.full_like(self.entropy, np.nan)

    @property
    def uniform_distance(self) -> float:
        """Distance of uniform attention."""
        return float(grid_distances(self.grid, self.pixel_step).mean())


def grid_distances(grid: tuple[int, int], pixel_step: tuple[float, float]) -> torch.Tensor:
    """Distances in pixels between all tokens of a grid: float64 (h * w, h * w)."""
    y, x = (torch.arange(side, dtype=torch.float64) * step for side, step in zip(grid, pixel_step, strict=True))
    y, x = y.repeat_interleave(len(x)), x.repeat(len(y))
    return torch.hypot(y[:, None] - y, x[:, None] - x)


@lru_cache(maxsize=8)
def _distances(
    grid: tuple[int, int], pixel_step: tuple[float, float], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    return grid_distances(grid, pixel_step).to(device, dtype)


def reduce(
    logits: torch.Tensor, distances: torch.Tensor, epsilon: float = EPSILON
) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance and entropy of each query.

    Args:
        logits: (..., queries, keys), scaled, before the softmax.
        distances: (queries, keys).
        epsilon: See `EPSILON`; 0 for the entropy itself.

    Returns:
        Both (...,  queries).
    """
    p = logits.softmax(dim=-1)
    distance = (p * distances).sum(dim=-1)
    if epsilon == 0:
        return distance, torch.special.entr(p).sum(dim=-1)
    return distance, (p + epsilon).log_().mul_(p).sum(dim=-1).neg_()


class Layout(NamedTuple):
    """How the tokens of a map lie."""

    grid: tuple[int, int]
    prefix: int
    of_map: tuple[int, int]
    """(H, W) of the layer's map."""
    real: torch.Tensor | None
    """bool (windows of an image, N): cells that the map has; None for all."""


@dataclass
class Sums:
    """What is added up over the queries of a layer."""

    layout: Layout
    pixel_step: tuple[float, float]
    distance: torch.Tensor | float = 0.0
    entropy: torch.Tensor | float = 0.0
    queries: int = 0

    def mean(self, name: str) -> LayerAttention:
        """The layer of that name."""
        distance, entropy = ((torch.as_tensor(x) / self.queries).cpu().numpy() for x in (self.distance, self.entropy))
        if not np.isfinite([distance, entropy]).all():
            raise EvaluationError(
                f'The attention of {name} is not finite: check the weights of the model, or use float32.'
            )
        return LayerAttention(name, distance, entropy, self.layout.grid, self.pixel_step, self.queries)


@torch.no_grad()
def add_map(
    sums: Sums,
    shape: Sequence[int],
    layout: Layout,
    logits: Callable[[slice, slice, int], torch.Tensor],
    device: torch.device,
    epsilon: float,
) -> None:
    """Add the queries of a map (B, heads, N, N), a part of it at a time.

    Args:
        sums: Of the layer; changed in place.
        shape: Of the map, with its prefix tokens.
        layout: Of the map without them.
        logits: Slices of images and of rows, and the number of prefix tokens, to those logits (images, heads, rows, N).
        device: Of the logits.
        epsilon: See `reduce`.
    """
    B, heads = shape[:2]
    N = math.prod(layout.grid)
    most = IN_CACHE if device.type == 'cpu' else ON_CARD
    rows = max(1, min(N, most // (heads * N)))
    images = max(1, most // (heads * rows * N))
    for a in range(0, B, images):
        chosen = slice(a, min(a + images, B))
        for start in range(0, N, rows):
            part = slice(start, min(start + rows, N))
            scores = at_least_float(logits(chosen, part, layout.prefix))
            distances = _distances(layout.grid, sums.pixel_step, scores.dtype, device)
            distance, entropy = reduce(scores, distances[part], epsilon)
            if layout.real is None:
                sums.queries += scores.shape[0] * scores.shape[2]
            else:
                windows = torch.arange(chosen.start, chosen.stop, device=device) % len(layout.real)
                real = layout.real[windows, part]
                distance, entropy = distance * real[:, None], entropy * real[:, None]
                sums.queries += int(real.sum())
            sums.distance = sums.distance + distance.sum(dim=(0, 2), dtype=torch.float64)
            sums.entropy = sums.entropy + entropy.sum(dim=(0, 2), dtype=torch.float64)


def at_least_float(x: torch.Tensor) -> torch.Tensor:
    """float64 as it is, everything else as float32."""
    return x if x.dtype == torch.float64 else x.float()


@lru_cache(maxsize=32)
def real_cells(of_map: tuple[int, int], window: tuple[int, int], device: torch.device) -> torch.Tensor | None:
    """bool (windows of an image, N): False where windows reach beyond the map; None if they do not."""
    inside = [
        (torch.arange(math.ceil(side / w) * w, device=device) < side).view(-1, w)
        for side, w in zip(of_map, window, strict=True)
    ]
    real = (inside[0][:, None, :, None] & inside[1][None, :, None, :]).flatten(2).flatten(0, 1)
    return None if real.all() else real
