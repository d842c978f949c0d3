"""For which windows or grids the tables of a checkpoint were laid out: their length alone does not tell."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isqrt

import torch
from timm.layers import to_2tuple
from torch import nn

__all__ = ['source_grid', 'source_windows', 'stage_tables']

Size = tuple[int, int]


def source_windows(lengths: Mapping[int, int], candidates: Sequence[Sequence]) -> dict[int, tuple[int, int]]:
    """Windows (h, w) that a checkpoint's bias tables were laid out for.

    A table of L entries does not say its own (h, w), so the first candidate layout with the right L in every stage
    is taken, and square windows if none has.

    Args:
        lengths: Entries L of the tables, by stage.
        candidates: Layouts to try, best guess first; each holds one (h, w) per stage.

    Returns:
        Window by stage; stages whose tables are neither square nor known are left out.
    """
    for windows in candidates:
        if all(stage < len(windows) and windows[stage][0] * windows[stage][1] == n for stage, n in lengths.items()):
            return {stage: tuple(windows[stage]) for stage in lengths}
    return {stage: (isqrt(n), isqrt(n)) for stage, n in lengths.items() if isqrt(n) ** 2 == n}


def source_grid(
    entries: int,
    model: nn.Module,
    layout: str,
    source_img_size: Size | int | None,
    grid_of: Callable[[Size], Size] = lambda patches: patches,
) -> Size | None:
    """Grid that a plain ViT's position embedding or table over offsets was laid out for.

    Args:
        entries: Its number of entries.
        model: With a `patch_embed`.
        layout: 'official' (square unless `source_img_size` says otherwise) or 'ours'.
        source_img_size: Image size that the checkpoint was saved at, where known.
        grid_of: Grid of the entries by that of the patches (h, w): the same for a position embedding.

    Returns:
        None where the number is neither square nor known; the entries then have the wrong number for the model, and
        `fit_to_model` will say so.
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
    model: nn.Module,
    layout: str,
    source_img_size: Size | None,
    leaf: str,
    axis: int,
    windows_arg: str,
    grid_of: Callable[[Size], Size] = lambda window: window,
) -> Iterator[tuple[str, Size, Size]]:
    """Position-bias tables of a hierarchical model, each with the grid it was laid out for and the model's.

    Args:
        state_dict: Under our names, 'stages.<i>. ... .<leaf>'.
        model: With `window_sizes` of its stages, and `_layout(img_size, windows, stages)` to find those of a size.
        layout: 'official' or 'ours'.
        source_img_size: Image size that the checkpoint was saved at, where known.
        leaf: Name of a table.
        axis: Axis of a table, of two, that runs over its grid.
        windows_arg: Constructor argument that overrides the windows of a size.
        grid_of: Grid that a table of a window has.

    Yields:
        Key, grid of the checkpoint's table, grid of the model's. Tables of which nothing is known are left out: they
        have the wrong shape, and `fit_to_model` will say so.
    """
    by_stage: dict[int, list[str]] = {}
    for key in model.state_dict():
        table = state_dict.get(key) if key.endswith(f'.{leaf}') else None
        if table is not None and table.ndim == 2 and table.numel():
            by_stage.setdefault(int(key.split('.')[1]), []).append(key)
    # The blocks of a stage share their window.
    found = {stage: {state_dict[key].shape[axis] for key in keys} for stage, keys in by_stage.items()}
    lengths = {stage: lengths.pop() for stage, lengths in found.items() if len(lengths) == 1}

    # A model reloaded from its own config.json knows the sizes it was saved with; the released code knows square
    # windows only; one of ours may have been saved at this model's size, whatever that is.
    stages = len(model.window_sizes)
    saved = getattr(model, 'pretrained_model_args', {})
    candidates = [] if layout == 'official' else [model.window_sizes]
    if source_img_size is not None:
        candidates.insert(0, model._layout(source_img_size, None, stages)[1])
    if saved.get('img_size') is not None:
        candidates.insert(0, model._layout(saved['img_size'], saved.get(windows_arg), stages)[1])
    for stage, source in source_windows(lengths, [[grid_of(w) for w in c] for c in candidates]).items():
        for key in by_stage[stage]:
            yield key, source, grid_of(model.window_sizes[stage])
