"""BEiT's relative-position tables: offsets between patches, and rows of their own for the prefix tokens.

A table has one row per signed offset between two patches of a grid, followed by three rows per prefix token: the token
as query and anything as key, anything as query and the token as key, the token with itself.

Sources: the released code of TinyMIM (`Segmentation/*/backbone/mae.py`, `mmcv_custom/checkpoint.py`) and of MAE-Lite
(`vit_tiny_patch16_rpe`), both after BEiT, https://arxiv.org/abs/2106.08254.

Shape legend: `h w` grid height and width in patches, `n` = h * w, `prefix` 1 (class token) or 2 (class token, then
distillation token), `N` = prefix + n tokens, `T` = (2h - 1) * (2w - 1) + 3 * prefix rows, `heads` attention heads.
"""

import torch

from .bias_table import signed_offset_index

__all__ = ['beit_offset_index', 'beit_table_rows', 'expand_beit_bias', 'resize_beit_table']

Size = tuple[int, int]


def beit_table_rows(grid: Size, prefix_tokens: int = 1) -> int:
    """Number of rows T of a table.

    Args:
        grid: (h, w).
        prefix_tokens: 1 or 2.

    Raises:
        ValueError: If `prefix_tokens` is another number.
    """
    if prefix_tokens not in (1, 2):
        raise ValueError(f'BEiT tables are defined for 1 or 2 prefix tokens, not for {prefix_tokens}.')
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3 * prefix_tokens


def beit_offset_index(grid: Size, prefix_tokens: int = 1, device: torch.device | str | None = None) -> torch.Tensor:
    """Row of the table that each pair (query, key) of tokens reads: the released `relative_position_index`.

    Args:
        grid: (h, w).
        prefix_tokens: 1 or 2.
        device: Where to build the index.

    Returns:
        int64 tensor (N, N).

    Raises:
        ValueError: If `prefix_tokens` is another number.
    """
    rows, p = beit_table_rows(grid, prefix_tokens), prefix_tokens
    patches = signed_offset_index(grid, device)
    index = patches.new_empty(p + len(patches), p + len(patches))
    index[p:, p:] = patches
    # As released: the class token's rows come last in the table, and win where both tokens claim an entry.
    for token in reversed(range(p)):
        last = rows - 3 * token
        index[token, :], index[:, token], index[token, token] = last - 3, last - 2, last - 1
    return index


def expand_beit_bias(table: torch.Tensor, grid: Size, prefix_tokens: int = 1) -> torch.Tensor:
    """Expand a table to one bias per pair of tokens: bias[k, i, j] = table[beit_offset_index[i, j], k].

    A gather of (N, N) entries from each head's column, made contiguous first so that the result is contiguous too. The
    index is cheap to compute, so it is not stored: there is no (N, N) buffer that could go stale.

    Args:
        table: (T, heads), any floating dtype.
        grid: (h, w).
        prefix_tokens: 1 or 2.

    Returns:
        (heads, N, N) of the table's dtype, to be added to the scaled logits.

    Raises:
        ValueError: If the table does not have T rows.
    """
    _check_rows(table, grid, prefix_tokens)
    index = beit_offset_index(grid, prefix_tokens, table.device)
    return table.t().contiguous().index_select(1, index.flatten()).unflatten(1, index.shape)


def resize_beit_table(table: torch.Tensor, old: Size, new: Size, prefix_tokens: int = 1) -> torch.Tensor:
    """Resize a table to another grid of patches, as the released loaders do (TinyMIM, after BEiT).

    Offsets of the old grid are placed at positions that grow geometrically from the center, so that they reach the
    outermost offset of the new grid; a cubic spline through them gives the table at the new integer offsets. Near
    offsets thus keep their meaning, and far ones are stretched. The ratio is at least 1.01, so a smaller grid (almost)
    keeps the inner part of the table. The rows of prefix tokens are kept.

    The released code calls `scipy.interpolate.interp2d(kind='cubic')`, which SciPy has removed; this is the same
    spline (`RectBivariateSpline` with s=0: not-a-knot ends, positions outside clamped to the border), without SciPy.
    timm's `resize_rel_pos_bias_table` uses the same positions but interpolates linearly between them.
    Unlike both, an axis that keeps its length is not resampled when the other one changes: the released code knows
    square grids only, and there equal sizes are left alone.

    Tables of one or two patches along an axis have too few positions for a cubic: there the polynomial through all of
    them is used (a constant through one, a parabola through three).

    Args:
        table: ((2 old_h - 1) * (2 old_w - 1) + 3 * prefix, heads), any floating dtype; computed in float64.
        old: (h, w) of the grid that the table is for.
        new: (h, w) of the grid to resize to. The same grid returns `table` itself.
        prefix_tokens: 1 or 2.

    Returns:
        ((2 new_h - 1) * (2 new_w - 1) + 3 * prefix, heads) of the table's dtype.

    Raises:
        ValueError: If the table is not one of grid `old`.
    """
    _check_rows(table, old, prefix_tokens)
    if tuple(old) == tuple(new):
        return table
    extra = 3 * prefix_tokens
    offsets = table[:-extra].double().view(2 * old[0] - 1, 2 * old[1] - 1, -1)
    rows, cols = (
        _spline_matrix(_offset_places(2 * a - 1, 2 * b - 1), _centred(2 * b - 1)).to(table.device)
        if a != b
        else torch.eye(2 * a - 1, dtype=torch.float64, device=table.device)
        for a, b in zip(old, new, strict=True)
    )
    resized = torch.einsum('ia,abk->ibk', rows, offsets)
    resized = torch.einsum('jb,ibk->ijk', cols, resized).flatten(0, 1)
    return torch.cat([resized.to(table.dtype), table[-extra:]])


def _check_rows(table: torch.Tensor, grid: Size, prefix_tokens: int) -> None:
    rows = beit_table_rows(grid, prefix_tokens)
    if table.ndim != 2 or table.shape[0] != rows:
        raise ValueError(
            f'A table of a grid of {grid[0]}x{grid[1]} patches with {prefix_tokens} prefix tokens has the shape '
            f'({rows}, heads), not {tuple(table.shape)}.'
        )


def _centred(size: int) -> torch.Tensor:
    """Offsets -(size // 2) ... size // 2, float64."""
    return torch.arange(size, dtype=torch.float64) - size // 2


def _offset_places(old: int, new: int) -> torch.Tensor:
    """Positions of the `old` offsets of an axis among its `new` ones (both odd): +-(1 + q + q^2 + ...), float64 (old,).

    q is found by bisecting [1.01, 1.5] until it is known to 1e-6, the released tolerance.
    """
    half, left, right = old // 2, 1.01, 1.5
    while right - left > 1e-6:
        q = (left + right) / 2
        reach = (1 - q**half) / (1 - q)
        left, right = (left, q) if reach > new // 2 else (q, right)
    outward = torch.cumsum(q ** torch.arange(half, dtype=torch.float64), 0)
    return torch.cat([-outward.flip(0), torch.zeros(1, dtype=torch.float64), outward])


def _spline_matrix(places: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Linear operator from values at `places` to the values of the interpolating spline at `targets`.

    Cubic, with the second and the last but one place left out of the knots ("not a knot"), as FITPACK chooses knots
    when nothing is smoothed; of lower degree where there are fewer than 4 places.

    Args:
        places: (n,) increasing, n odd, float64.
        targets: (m,), float64; those outside are clamped to the nearest end.

    Returns:
        (m, n), float64.
    """
    degree = min(3, len(places) - 1)
    first, last = places[:1], places[-1:]
    knots = torch.cat([first.expand(degree + 1), places[2:-2], last.expand(degree + 1)])
    basis = _b_splines(places, knots, degree)
    return torch.linalg.solve(basis, _b_splines(targets.clamp(first, last), knots, degree), left=False)


def _b_splines(x: torch.Tensor, knots: torch.Tensor, degree: int) -> torch.Tensor:
    """Values (len(x), len(knots) - degree - 1) of the B-splines over `knots`, by the recursion of Cox and de Boor."""
    inside = (knots[:-1] <= x[:, None]) & (x[:, None] < knots[1:])
    # The last interval that is not empty includes its right end.
    inside[x == knots[-1], len(knots) - degree - 2] = True
    basis = inside.to(x.dtype)
    for d in range(1, degree + 1):
        width = knots[d:] - knots[:-d]
        weight = torch.where(width > 0, (x[:, None] - knots[:-d]) / width, 0)  # 0 / 0 counts as 0
        basis = weight[:, :-1] * basis[:, :-1] + (1 - weight[:, 1:]) * basis[:, 1:]
    return basis
