"""Absolute position embeddings of plain ViTs: the fixed sine-cosine table, and resizing of any table.

Shape legend: `h w` grid of patches, `N` = h * w, `P` prefix tokens (class, distillation), `C` width.
"""

import torch

from .bias_table import resize_grid
from .window import is_exactly

__all__ = ['resize_position', 'sincos_position']


def sincos_position(
    width: int,
    grid: tuple[int, int],
    prefix_tokens: int = 1,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Fixed 2-D sine-cosine position embedding as MAE has it.

    The first half of the channels encodes the column, the second half the row; each half is [sin | cos] over the
    frequencies 10000^(-k / (C / 4)), k = 0 ... C / 4 - 1. Rows of prefix tokens are zero.

    Args:
        width: C, a multiple of 4.
        grid: (h, w).
        prefix_tokens: P.
        device: Of the result.
        dtype: Of the result; default torch's. Computed in float64.

    Returns:
        (1, P + N, C).

    Raises:
        ValueError: If the width is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f'A sine-cosine position embedding needs a width that is a multiple of 4, got {width}.')
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64, device=device) / (width // 4))

    def axis(size: int) -> torch.Tensor:
        angles = torch.arange(size, dtype=torch.float64, device=device)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    h, w = grid
    columns, rows = axis(w)[None].expand(h, -1, -1), axis(h)[:, None].expand(-1, w, -1)
    table = torch.cat([columns, rows], dim=-1).flatten(0, 1)
    prefix = table.new_zeros(prefix_tokens, width)
    return torch.cat([prefix, table])[None].to(dtype or torch.get_default_dtype())


def resize_position(
    pos_embed: torch.Tensor, old: tuple[int, int], new: tuple[int, int], prefix_tokens: int
) -> torch.Tensor:
    """Position embedding for another grid: patches bicubic without antialias, prefix tokens unchanged.

    As in the released code of MAE, TinyMIM and MAE-Lite; timm's own resize is antialiased and differs, see
    `resize_grid`.

    Args:
        pos_embed: (1, P + N, C) of the grid `old`.
        old: (h, w).
        new: (h, w). The same grid returns `pos_embed` itself.
        prefix_tokens: P.

    Returns:
        (1, P + N', C).
    """
    if is_exactly(new[0], new[1], old):
        return pos_embed
    prefix, patches = pos_embed[:, :prefix_tokens], pos_embed[0, prefix_tokens:]
    grid = patches.transpose(0, 1).reshape(-1, old[0], old[1])
    resized = resize_grid(grid, new).flatten(1).transpose(0, 1)[None]
    return torch.cat([prefix, resized], dim=1)
