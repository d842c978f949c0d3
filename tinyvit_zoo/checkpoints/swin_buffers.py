"""Indices and masks that the released Swin code stores with its weights, although they follow from the geometry."""

from collections.abc import Mapping, Sequence
from math import isqrt

import torch

from ..common.errors import CheckpointError
from ..layers import shifted_window_mask, signed_offset_index

__all__ = ['check_swin_buffers', 'swin_buffers']

TABLE, INDEX, MASK = '.attn.relative_position_bias_table', '.attn.relative_position_index', '.attn_mask'


def _window(table: torch.Tensor | None) -> int | None:
    """Side of the square window of a bias table ((2w - 1)^2, heads); None if it is not such a table."""
    if table is None or table.ndim != 2:
        return None
    window = (isqrt(len(table)) + 1) // 2
    return window if window > 0 and (2 * window - 1) ** 2 == len(table) else None


def _mask(windows: tuple[int, int], window: int) -> torch.Tensor | None:
    """Mask of (nH, nW) windows; None if one axis has a single window, since the released code then shifts neither."""
    if min(windows) < 2:
        return None
    size = (windows[0] * window, windows[1] * window)
    return shifted_window_mask(size, (window, window), (window // 2, window // 2))


def swin_buffers(
    state_dict: Mapping[str, torch.Tensor], img_size: tuple[int, int] | None = None
) -> dict[str, torch.Tensor]:
    """Index and mask of every block.

    Args:
        state_dict: Weights under official names.
        img_size: (H, W) of the images. Default: such that stage 0 has 8 windows per side, as all released
            configurations have.

    Raises:
        CheckpointError: On windows that the released code does not know: not square, or not filling the map.
    """
    buffers = {}
    for key, table in state_dict.items():
        if not key.endswith(TABLE):
            continue
        block, window = key.removesuffix(TABLE), _window(table)
        if window is None:
            raise CheckpointError(f'{key} is not of a square window: the released code cannot load this model.')
        halvings = int(block.split('.')[1])
        grid = (8 * window >> halvings,) * 2 if img_size is None else tuple(s // 4 >> halvings for s in img_size)
        if any(n % window for n in grid):
            raise CheckpointError(
                f'Windows of {window} do not fill the {grid[0]} x {grid[1]} map of {block}: the released code cannot '
                'load this model.'
            )
        buffers[block + INDEX] = signed_offset_index((window, window))
        mask = _mask((grid[0] // window, grid[1] // window), window)
        if mask is not None:
            buffers[block + MASK] = mask
    return buffers


def check_swin_buffers(
    state_dict: Mapping[str, torch.Tensor], window_sizes: Sequence[tuple[int, int]] | None = None
) -> None:
    """Compare stored indices and masks with what the released code computes.

    An index must fit its own table, a mask some arrangement of as many windows. Buffers without a table, or with one
    of another shape, are skipped; others report those.

    Args:
        state_dict: Under official names.
        window_sizes: Windows (h, w) of the stages of the model that will load it. Stages with other windows in the
            file are skipped, since the model computes its own buffers. Default: compare all.

    Raises:
        CheckpointError: If they differ: the file is damaged, or was made by other code.
    """
    for key, value in state_dict.items():
        leaf = next((leaf for leaf in (INDEX, MASK) if key.endswith(leaf)), None)
        if leaf is None or value.is_meta:
            continue
        window = _window(state_dict.get(key.removesuffix(leaf) + TABLE))
        if window is None:
            continue
        if window_sizes is not None and (window, window) not in window_sizes[int(key.split('.')[1]) :][:1]:
            continue
        candidates: list[torch.Tensor | None]
        if leaf == INDEX:
            candidates = [signed_offset_index((window, window))]
        else:
            count = value.shape[0] if value.ndim == 3 else 0
            arrangements = [(count // n, n) for n in range(2, count // 2 + 1) if count % n == 0]
            candidates = [_mask(windows, window) for windows in arrangements]
        if not any(c is not None and c.shape == value.shape and torch.equal(value.to(c.dtype), c) for c in candidates):
            raise CheckpointError(
                f'{key} does not hold what the released code computes for windows of {window}: the file is damaged, '
                'or was made by code that attends differently.'
            )
