"""Relative-position bias tables: the entry that each pair of cells reads, and resizing to another grid.

Shape legend: `h w` window height and width in cells, `N` = h * w cells, `heads` attention heads.
"""

import torch
import torch.nn.functional as F

from .window import is_exactly

__all__ = [
    'abs_offset_index',
    'expand_abs_bias',
    'expand_signed_bias',
    'resize_grid',
    'signed_offset',
    'signed_offset_index',
]


def abs_offset_index(size: int, device: torch.device | str | None = None) -> torch.Tensor:
    """Distance |i - j| of every pair of cells along one axis.

    Args:
        size: Number of cells n on the axis.
        device: Where to build the index.

    Returns:
        int64 tensor (n, n).
    """
    cells = torch.arange(size, device=device)
    return (cells[:, None] - cells[None, :]).abs()


def expand_abs_bias(table: torch.Tensor, rows: torch.Tensor, cols: torch.Tensor, gather: bool = False) -> torch.Tensor:
    """Expand a table over absolute offsets to one bias per pair of cells.

    bias[k, (r1, c1), (r2, c2)] = table[k, |r1 - r2| * w + |c1 - c2|], the order of TinyViT's released
    `attention_biases` (Cream `tiny_vit.py`, `Attention`): cells row-major, offsets numbered row-major.

    Columns are expanded first and rows second, so that every copy moves whole rows. On CPU this is about ten times
    faster than one (N, N) gather, forward and backward, and needs no (N, N) index: cheap enough to repeat in every
    forward pass, so there is no cache that could go stale. On CUDA it costs four launches, and atomics and two more
    copies in the backward; there `gather` takes one launch for the index and one for the entries.

    Args:
        table: (heads, h * w), any floating dtype.
        rows: (h, h) row distances from `abs_offset_index`.
        cols: (w, w) column distances.
        gather: One gather instead of two steps.

    Returns:
        (heads, N, N) of the table's dtype.
    """
    h, w = rows.shape[0], cols.shape[0]
    if gather:
        index = torch.add(cols[None, :, None, :], rows[:, None, :, None], alpha=w)  # r1, c1, r2, c2
        return table[:, index.reshape(h * w, h * w)]
    heads = table.shape[0]
    x = table.view(heads, h, w).index_select(2, cols.flatten()).view(heads, h, w, w)  # heads, dr, c1, c2
    x = x.permute(0, 2, 1, 3).reshape(heads * w, h, w)  # (heads c1), dr, c2
    x = x.index_select(1, rows.flatten()).view(heads, w, h, h, w)  # heads, c1, r1, r2, c2
    return x.transpose(1, 2).reshape(heads, h * w, h * w)


def signed_offset(size: int, device: torch.device | str | None = None) -> torch.Tensor:
    """Offset i - j of every pair of cells along one axis, counted from 0 (so i - j + size - 1).

    Args:
        size: Number of cells n on the axis.
        device: Where to build the index.

    Returns:
        int64 tensor (n, n) with values 0 ... 2n - 2.
    """
    cells = torch.arange(size, device=device)
    return cells[:, None] - cells[None, :] + (size - 1)


def signed_offset_index(window: tuple[int, int], device: torch.device | str | None = None) -> torch.Tensor:
    """Row of a table over signed offsets that each pair of cells reads: Swin's `relative_position_index`.

    Args:
        window: (h, w).
        device: Where to build the index.

    Returns:
        int64 tensor (N, N): (r1 - r2 + h - 1) * (2w - 1) + (c1 - c2 + w - 1).
    """
    h, w = window
    rows = signed_offset(h, device)[:, None, :, None] * (2 * w - 1)
    return (rows + signed_offset(w, device)[None, :, None, :]).reshape(h * w, h * w)


def expand_signed_bias(table: torch.Tensor, rows: torch.Tensor, cols: torch.Tensor) -> torch.Tensor:
    """Expand a table over signed offsets to one bias per pair of cells.

    bias[k, i, j] = table[signed_offset_index[i, j], k], the order of Swin's `relative_position_bias_table`. In two
    steps as in `expand_abs_bias`, and for the same reason.

    Args:
        table: ((2h - 1) * (2w - 1), heads), any floating dtype.
        rows: (h, h) row offsets from `signed_offset`.
        cols: (w, w) column offsets.

    Returns:
        (heads, N, N) of the table's dtype.
    """
    h, w = rows.shape[0], cols.shape[0]
    heads = table.shape[1]
    x = table.view(2 * h - 1, 2 * w - 1, heads).permute(2, 0, 1)
    x = x.reshape(heads * (2 * h - 1), 2 * w - 1).index_select(1, cols.flatten())
    x = x.view(heads, 2 * h - 1, w, w).transpose(1, 2).reshape(heads * w, 2 * h - 1, w)  # (heads c1), dr, c2
    x = x.index_select(1, rows.flatten()).view(heads, w, h, h, w)  # heads, c1, r1, r2, c2
    return x.transpose(1, 2).reshape(heads, h * w, h * w)


def resize_grid(grid: torch.Tensor, size: tuple[int, int], mode: str = 'bicubic') -> torch.Tensor:
    """Resize values that lie on a 2-D grid: bias tables (by offset) or position embeddings (by place).

    Bicubic with `align_corners=False` and no antialias is what all released code does and what its resized weights
    expect; timm's antialiased kernel uses another cubic coefficient (-0.5, not -0.75) and differs even when
    enlarging. The paper's text says bilinear (TinyViT, Sec. 5.1): `mode='bilinear'`.

    Args:
        grid: (channels, h, w). Half precision is resized in float32.
        size: New (h, w). The same size returns `grid` itself.
        mode: 'bicubic' or 'bilinear'.

    Returns:
        (channels, *size) of the grid's dtype.
    """
    if is_exactly(size[0], size[1], (grid.shape[-2], grid.shape[-1])):
        return grid
    dtype = grid.dtype
    compute = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    return F.interpolate(grid[None].to(compute), size=size, mode=mode, align_corners=False)[0].to(dtype)
