"""The windows or grids that the tables of a checkpoint were made for, which their length alone does not determine."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isqrt
from typing import Any, Protocol

import torch
from timm.layers import to_2tuple

__all__ = ['source_grid', 'source_windows', 'stage_tables']

Size = tuple[int, int]

WINDOWS_ARGS = ('window_sizes', 'window_size')
"""Names of the constructor's argument that overrides the windows of a size."""


class HasPatches(Protocol):
    """A plain ViT, as far as its grid of patches is concerned."""

    patch_embed: Any


class HasWindows(Protocol):
    """A hierarchical model, as far as its windows are concerned.

    Attributes:
        window_sizes: (h, w) of every stage.
    """

    window_sizes: tuple[Size, ...]

    @staticmethod
    def _layout(
        img_size: Size, window_sizes: Any, num_stages: int, always_partition: bool = True
    ) -> tuple[Size, tuple[Size, ...]]:
        """Image size and the windows of every stage at that size."""

    def state_dict(self) -> dict[str, torch.Tensor]: ...


def source_windows(lengths: Mapping[int, int], candidates: Sequence[Sequence]) -> dict[int, tuple[int, int]]:
    """Windows (h, w) that a checkpoint's bias tables were made for.

    L entries do not determine (h, w), so the result is the first candidate layout with the right L in every stage, and
    square windows if there is none.

    Args:
        lengths: Entries L of the tables, by stage.
        candidates: Layouts to try, best guess first; each holds one (h, w) per stage.

    Returns:
        Window by stage; stages whose tables are neither square nor known are left out.
    """
    for windows in candidates:
        if all(stage < len(windows) and windows[stage][0] * windows[stage][1] == n for stage, n in lengths.items()):
            return {stage: (windows[stage][0], windows[stage][1]) for stage in lengths}
    return {stage: (isqrt(n), isqrt(n)) for stage, n in lengths.items() if isqrt(n) ** 2 == n}


def source_grid(
    entries: int,
    model: HasPatches,
    layout: str,
    source_img_size: Size | int | None,
    grid_of: Callable[[Size], Size] = lambda patches: patches,
) -> Size | None:
    """Grid that a plain ViT's position embedding or table over offsets was made for.

    Args:
        entries: Its number of entries.
        model: The model that will load it.
        layout: 'official' (square unless `source_img_size` says otherwise) or 'ours'.
        source_img_size: Image size that the checkpoint was saved at, where known.
        grid_of: Grid of the entries by that of the patches (h, w): the same for a position embedding.

    Returns:
        None if the number is neither square nor known; the entries then do not fit the model, and `fit_to_model`
        reports them.
    """
    if entries < 1:  # fewer than the prefix tokens alone
        return None
    patch = model.patch_embed.patch_size
    saved = getattr(model, 'pretrained_model_args', {}).get('img_size')
    candidates = [] if layout == 'official' else [tuple(model.patch_embed.grid_size)]
    for size in (source_img_size, saved):
        if size is not None:
            height, width = to_2tuple(size)
            candidates.insert(0, (height // patch[0], width // patch[1]))
    grid = source_windows({0: entries}, [[grid_of(c)] for c in candidates]).get(0)
    return grid if grid is not None and grid[0] > 0 else None


def stage_tables(
    state_dict: Mapping[str, torch.Tensor],
    model: HasWindows,
    layout: str,
    source_img_size: Size | None,
    leaf: str,
    axis: int,
    grid_of: Callable[[Size], Size] = lambda window: window,
) -> Iterator[tuple[str, Size, Size]]:
    """Position-bias tables of a hierarchical model, each with its own grid and the model's.

    Args:
        state_dict: Under our names, 'stages.<i>. ... .<leaf>'.
        model: The model that will load them.
        layout: 'official' or 'ours'.
        source_img_size: Image size that the checkpoint was saved at, where known.
        leaf: Name of a table.
        axis: The axis of a table (of two) that runs over its grid.
        grid_of: Grid of the table of a window.

    Yields:
        Key, grid of the checkpoint's table, grid of the model's. Tables of unknown grids are left out: they have
        the wrong shape, and `fit_to_model` reports them.
    """
    by_stage: dict[int, list[str]] = {}
    for key in model.state_dict():
        table = state_dict.get(key) if key.endswith(f'.{leaf}') else None
        if table is not None and table.ndim == 2 and table.numel():
            by_stage.setdefault(int(key.split('.')[1]), []).append(key)
    # The blocks of a stage share their window.
    found = {stage: {state_dict[key].shape[axis] for key in keys} for stage, keys in by_stage.items()}
    lengths = {stage: lengths.pop() for stage, lengths in found.items() if len(lengths) == 1}

    # A model reloaded from its own config.json knows the sizes it was saved with; the released code has only square
    # windows; a checkpoint of ours may have been saved at this model's size, whatever that is.
    stages = len(model.window_sizes)
    saved = getattr(model, 'pretrained_model_args', {})
    candidates = [] if layout == 'official' else [model.window_sizes]
    if source_img_size is not None:
        candidates.insert(0, model._layout(source_img_size, None, stages)[1])
    if saved.get('img_size') is not None:
        windows = next((saved[name] for name in WINDOWS_ARGS if saved.get(name) is not None), None)
        candidates.insert(0, model._layout(saved['img_size'], windows, stages, saved.get('always_partition', True))[1])
    for stage, source in source_windows(lengths, [[grid_of(w) for w in c] for c in candidates]).items():
        for key in by_stage[stage]:
            yield key, source, grid_of(model.window_sizes[stage])
