"""The index that BEiT-like code stores with each relative-position table, although it follows from the grid."""

from collections.abc import Mapping
from math import isqrt

import torch

from ..common.errors import CheckpointError
from ..layers import beit_offset_index

__all__ = ['beit_buffers', 'check_beit_buffers', 'table_grid']

TABLE, INDEX = 'relative_position_bias_table', 'relative_position_index'
EXTRA_ROWS = 3
"""Of a table with one prefix token: class to patch, patch to class, class to class."""


def table_grid(table: torch.Tensor) -> tuple[int, int] | None:
    """Square grid (h, w) of a table ((2h - 1)(2w - 1) + 3, heads); None if it is of no square grid."""
    if table.ndim != 2:
        return None
    side = (isqrt(max(0, len(table) - EXTRA_ROWS)) + 1) // 2
    return (side, side) if side > 0 and (2 * side - 1) ** 2 + EXTRA_ROWS == len(table) else None


def beit_buffers(
    state_dict: Mapping[str, torch.Tensor], img_size: tuple[int, int] | None = None
) -> dict[str, torch.Tensor]:
    """The index of every table.

    Args:
        state_dict: Weights under official names.
        img_size: (H, W) of the images, in patches of 16. Default: square, by the size of the table.

    Raises:
        CheckpointError: If a table is not of that grid.
    """
    buffers = {}
    for key, table in state_dict.items():
        if not key.endswith(TABLE):
            continue
        grid = table_grid(table) if img_size is None else (img_size[0] // 16, img_size[1] // 16)
        if grid is None or table.ndim != 2 or len(table) != (2 * grid[0] - 1) * (2 * grid[1] - 1) + EXTRA_ROWS:
            raise CheckpointError(f'{key} {tuple(table.shape)} is not of a {grid or "square"} grid of patches.')
        buffers[key.removesuffix(TABLE) + INDEX] = beit_offset_index(grid, prefix_tokens=1)
    return buffers


def check_beit_buffers(state_dict: Mapping[str, torch.Tensor]) -> None:
    """Compare the indices of an official state dict with what they must be.

    Raises:
        CheckpointError: If one differs, that is, if the table has another order; the message names the first.
    """
    for key, index in state_dict.items():
        table = state_dict.get(key.removesuffix(INDEX) + TABLE) if key.endswith(INDEX) else None
        if table is None or (grid := table_grid(table)) is None:
            continue
        if not torch.equal(index, beit_offset_index(grid, prefix_tokens=1)):
            raise CheckpointError(
                f'{key} is not the index of a {grid[0]} x {grid[1]} grid with a class token: its table has '
                'another order than the released one.'
            )
