"""Shifted windows on CUDA: roll and partition as one gather, and the way back as another.

As single operators both copy the map, and so does the way back; here every cell is moved once each way, by an index
that is computed once per size and kept.

Shape legend: see `window`.
"""

from functools import lru_cache
from typing import Any

import torch

from . import routes
from .inference import is_plain_cuda
from .routes import is_capturing
from .window import window_partition

__all__ = ['gather_windows', 'gathers_windows', 'return_windows']


@torch.jit.unused
def gathers_windows(x: torch.Tensor, window_size: tuple[int, int]) -> bool:
    """Whether `gather_windows` takes the map x (B, H, W, C): on CUDA, where whole windows fit the map.

    Not under `torch.compile`, which fuses roll and partition itself.
    """
    if torch.compiler.is_compiling() or not is_plain_cuda(x) or routes.SETTING == 'plain':
        return False
    return x.shape[1] % window_size[0] == 0 and x.shape[2] % window_size[1] == 0


@torch.jit.unused
def gather_windows(x: torch.Tensor, window_size: tuple[int, int], shift: tuple[int, int]) -> torch.Tensor:
    """`window_partition` of the map, rolled by `shift` towards its start.

    Args:
        x: (B, H, W, C); H and W are multiples of the window.
        window_size: (h, w).
        shift: Rows and columns.

    Returns:
        (B * nH * nW, h * w, C).
    """
    B, H, W, C = x.shape
    there, back = _cells_for(x, (H, W), window_size, shift)
    return _Moved.apply(x.reshape(B, H * W, C), there, back).reshape(-1, window_size[0] * window_size[1], C)


@torch.jit.unused
def return_windows(
    x: torch.Tensor, window_size: tuple[int, int], shift: tuple[int, int], size: tuple[int, int, int]
) -> torch.Tensor:
    """The inverse of `gather_windows`.

    Args:
        x: (B * nH * nW, h * w, C).
        window_size: (h, w).
        shift: Rows and columns.
        size: (B, H, W).

    Returns:
        (B, H, W, C).
    """
    B, H, W = size
    there, back = _cells_for(x, (H, W), window_size, shift)
    return _Moved.apply(x.reshape(B, H * W, x.shape[-1]), back, there).reshape(B, H, W, x.shape[-1])


def _cells_for(
    x: torch.Tensor, size: tuple[int, int], window_size: tuple[int, int], shift: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """`_cells`, kept unless a CUDA graph is being captured, whose memory ends with the graph."""
    if is_capturing(x.device):
        return _cells.__wrapped__(size, window_size, shift, x.device)
    return _cells(size, window_size, shift, x.device)


@lru_cache(maxsize=64)
def _cells(
    size: tuple[int, int], window_size: tuple[int, int], shift: tuple[int, int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cell of the map for each cell of the windows, and the reverse, int64 (H * W,).

    Kept for any later call, so made outside of inference mode, whose tensors autograd cannot save.
    """
    with torch.inference_mode(False):
        cells = torch.arange(size[0] * size[1], device=device).view(1, *size, 1)
        there = window_partition(cells.roll((-shift[0], -shift[1]), (1, 2)), window_size).flatten()
        return there, there.argsort()


class _Moved(torch.autograd.Function):
    """Cells of (B, cells, C) in another order; the gradient is moved back by a gather as well, not added up."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, there: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(there, back)
        return x.index_select(1, there)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        there, back = ctx.saved_tensors
        return _Moved.apply(grad, back, there), None, None
