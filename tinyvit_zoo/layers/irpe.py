"""Image relative position encoding on keys, "product" method (iRPE, https://arxiv.org/abs/2107.14222; Mini-DeiT).

Shape legend: `B` batch, `heads` attention heads, `g` one of B * heads, `h w` patch grid, `N` = h * w patches, `d` width
of a head.
"""

import math

import torch
from torch import nn

from .inference import known_class

__all__ = ['RelativeKeys', 'irpe_index', 'piecewise_index']

# The released models: ratio 1.9, so (alpha, beta, gamma) = (1.9, 3.8, 15.2), and buckets -3 ... 3 on each axis.
ALPHA = 1.9
SIDE = 7


def piecewise_index(offset: torch.Tensor, alpha: float = ALPHA) -> torch.Tensor:
    """Bucket of an offset along one axis: itself when near, coarser when far (iRPE Eq. 18).

    Args:
        offset: Cells between two patches, int64, any shape.
        alpha: Up to here every offset has its own bucket. (An argument, since TorchScript reads no globals.)

    Returns:
        int64 of the same shape, -3 ... 3. (The formula clips to beta = 3.8, and the released code then cuts off the
        fraction: 4 and beyond share bucket 3.)
    """
    distance = offset.abs().float()
    far = alpha + (distance.clamp(min=1) / alpha).log() / math.log(8.0) * alpha
    far = far.round().clamp(max=2 * alpha)
    return offset.sign() * torch.where(distance <= alpha, distance, far).long()


def irpe_index(grid: tuple[int, int], device: torch.device | None = None, side: int = SIDE) -> torch.Tensor:
    """Where each pair of patches finds its value in the lookups of `RelativeKeys`.

    Args:
        grid: Patch grid (h, w).
        device: Where to build it.
        side: Buckets on an axis.

    Returns:
        int64 (N * N,): i * 49 + bucket of (i, j), the bucket being that of the rows times 7 plus that of the columns.
    """
    h, w = grid
    row, col = torch.arange(h, device=device), torch.arange(w, device=device)
    rows = (piecewise_index(row[:, None] - row[None, :]) + side // 2)[:, None, :, None]
    cols = (piecewise_index(col[:, None] - col[None, :]) + side // 2)[None, :, None, :]
    buckets = (rows * side + cols).reshape(h * w, h * w)
    return (torch.arange(h * w, device=device)[:, None] * (side * side) + buckets).flatten()


@known_class
class RelativeKeys(nn.Module):
    """A learned key for every relative position, shared by the heads.

    The position part of the logits, out[g, i, j] = q[g, i] . table[:, bucket(i, j)]. Each query meets the 49
    keys once; one copy by a precomputed flat index then spreads its 49 products over the N patches, several times
    faster than indexing by two dimensions as the released code does. Buckets depend on the grid alone, so a new
    image size needs no interpolation.
    """

    def __init__(self, head_dim: int, device=None, dtype=None) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(1, head_dim, SIDE**2, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initial values of the released code: zero, so no position part."""
        nn.init.zeros_(self.table)

    def lookups(self, q: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        """Products of queries (..., d) with each key, (..., 49)."""
        return q @ (self.table[0] * scale)

    def forward(self, q: torch.Tensor, index: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        """Position part of the logits, a fresh tensor.

        Args:
            q: Queries (B * heads, N, d).
            index: Of their grid, from `irpe_index`.
            scale: Factor of the result; cheapest here, where it meets the table.

        Returns:
            (B * heads, N, N).
        """
        lookups = self.lookups(q, scale).flatten(1)
        # In two dimensions: with more, index_select takes a path that is three times slower on CPU.
        return lookups.index_select(1, index).view(q.shape[0], q.shape[1], q.shape[1])
