"""Windows: the number of cells and the window size of each stage, and cutting a map into windows.

Shape legend: `B` batch, `H W` map height and width, `C` channels, `h w` window height and width, `nH nW` windows per
side, `N` = h * w tokens of a window.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import is_exporting
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

__all__ = [
    'is_exactly',
    'is_fx_proxy',
    'per_stage_windows',
    'scaled_windows',
    'shifted_window_mask',
    'stage_grids',
    'window_partition',
    'window_reverse',
]

Size = tuple[int, int]


def stage_grids(
    img_size: Size, num_stages: int = 4, stem_halvings: int = 2, output_stride: int = 32
) -> tuple[Size, ...]:
    """Feature-map size (H, W) of every stage. Each stride-2 convolution (3x3, padding 1) rounds up.

    A stage whose map would have a larger stride than `output_stride` keeps the size of the one before.
    """
    size = img_size
    for _ in range(stem_halvings):
        size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    grids = [size]
    for stage in range(1, num_stages):
        if 2 ** (stem_halvings + stage) <= output_stride:
            size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
        grids.append(size)
    return tuple(grids)


def scaled_windows(grids: Sequence[Size], num_windows: Sequence[int]) -> tuple[Size, ...]:
    """Windows (h, w) that cut each stage's map into `num_windows` per side, rounded up.

    The released 384 and 512 models keep the number of windows while the image grows.
    """
    return tuple((-(-H // n), -(-W // n)) for (H, W), n in zip(grids, num_windows, strict=True))


def per_stage_windows(window_sizes: int | Sequence, num_stages: int = 4, conv_stage: bool = True) -> tuple[Size, ...]:
    """Read a window specification as one (h, w) per stage.

    Args:
        window_sizes: One int for all stages; or one entry per stage, each an int or an (h, w) pair, with or without
            the entry of a convolutional stage 0; or a single (h, w) pair for all stages.
        num_stages: Number of stages, a convolutional stage 0 included.
        conv_stage: Stage 0 has no windows.

    Returns:
        `num_stages` pairs (h, w).

    Raises:
        ValueError: If the specification has another number of entries or an entry below 1.
    """
    entries: list[int | Sequence[int]]
    if not isinstance(window_sizes, Sequence):
        entries = [window_sizes] * num_stages
    elif len(window_sizes) == num_stages:
        entries = list(window_sizes)
    elif conv_stage and len(window_sizes) == num_stages - 1:
        entries = [window_sizes[0], *window_sizes]
    elif len(window_sizes) == 2 and all(isinstance(s, int) for s in window_sizes):
        entries = [tuple(window_sizes)] * num_stages
    else:
        left_out = f'; {num_stages - 1} when stage 0, which has no windows, is left out' if conv_stage else ''
        raise ValueError(
            f'window_sizes must be an int, one (h, w), or {num_stages} entries (int or (h, w) per stage{left_out}). '
            f'Got {window_sizes!r}.'
        )
    windows = [(e, e) if isinstance(e, int) else e for e in entries]
    for w in windows:
        if not isinstance(w, Sequence) or len(w) != 2 or not all(isinstance(s, int) and s > 0 for s in w):
            raise ValueError(f'Every window must be a positive int or a pair (h, w) of them. Got {window_sizes!r}.')
    return tuple((w[0], w[1]) for w in windows)


@torch.jit.unused
def _known(condition: bool) -> bool:
    """Whether a comparison of sizes holds, without making torch.export fix the sizes to find out."""
    return statically_known_true(condition)


@torch.jit.unused
def is_fx_proxy(value: object) -> bool:
    """Whether torch.fx is tracing, and this is one of its values: nothing may branch on it."""
    return isinstance(value, fx.Proxy)


def is_exactly(H: int, W: int, size: tuple[int, int]) -> bool:
    """Whether a map (H, W) has this size (h, w); False where torch.export keeps H or W open, and under torch.fx."""
    h, w = size
    if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript leaves out the whole block)
        if is_fx_proxy(H) or is_fx_proxy(W):
            return False
    if is_exporting():
        return _known(H == h) and _known(W == w)
    return H == h and W == w


def _is_open(H: int, W: int, window_size: tuple[int, int]) -> bool:
    """Whether torch.export is running and leaves open whether H or W needs padding."""
    return is_exporting() and not (_known(H % window_size[0] == 0) and _known(W % window_size[1] == 0))


def window_partition(x: torch.Tensor, window_size: tuple[int, int]) -> torch.Tensor:
    """Cut a map into windows, zero-padding it at the bottom and right to whole windows.

    The padding is part of the model: padded cells are not masked (as released; TinyViT, Cream `tiny_vit.py`).

    Args:
        x: (B, H, W, C).
        window_size: (h, w).

    Returns:
        (B * nH * nW, h * w, C).
    """
    h, w = window_size
    B, H, W, C = x.shape
    if _is_open(H, W, window_size):
        return _gather_windows(x, window_size)
    if H % h != 0 or W % w != 0:
        x = F.pad(x, (0, 0, 0, -W % w, 0, -H % h))
    nH, nW = (H + h - 1) // h, (W + w - 1) // w
    return x.reshape(B, nH, h, nW, w, C).transpose(2, 3).reshape(B * nH * nW, h * w, C)


def window_reverse(x: torch.Tensor, window_size: tuple[int, int], size: tuple[int, int, int]) -> torch.Tensor:
    """Put windows back together and cut off the padding; the inverse of `window_partition`.

    Args:
        x: (B * nH * nW, h * w, C).
        window_size: (h, w).
        size: (B, H, W) of the map before padding.

    Returns:
        (B, H, W, C).
    """
    h, w = window_size
    B, H, W = size
    if _is_open(H, W, window_size):
        return _scatter_windows(x, window_size, size)
    nH, nW = (H + h - 1) // h, (W + w - 1) // w
    C = x.shape[-1]
    x = x.view(B, nH, nW, h, w, C).transpose(2, 3).reshape(B, nH * h, nW * w, C)
    return x[:, :H, :W]


def shifted_window_mask(
    size: Size,
    window_size: tuple[int, int],
    shift: tuple[int, int],
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Mask with -100 on pairs of cells that only a cyclic shift brought into one window (Swin).

    After the shift, the last window of an axis holds cells from both ends of the map. Padding counts as part of the
    map, as in timm.

    Args:
        size: Map (H, W).
        window_size: (h, w).
        shift: Cells by which the map was rolled towards its start; 0 for an axis that is not shifted.
        device: Device of the result.
        dtype: Floating dtype of the result.

    Returns:
        (nH * nW, N, N), 0 or -100.
    """
    rows = _wrapped(size[0], window_size[0], shift[0], device)[:, None]
    cols = _wrapped(size[1], window_size[1], shift[1], device)[None, :]
    region = window_partition((2 * rows + cols)[None, :, :, None], window_size)[:, :, 0]
    apart = region[:, :, None] != region[:, None, :]
    return torch.zeros(apart.shape, device=device, dtype=dtype).masked_fill(apart, -100.0)


def _wrapped(size: int, window: int, shift: int, device: torch.device | None) -> torch.Tensor:
    """1 for the cells of a padded axis that a shift brought from its start to its end, else 0."""
    padded = (size + window - 1) // window * window
    return (torch.arange(padded, device=device) >= padded - shift).long()


# While torch.export keeps H and W open, nothing may branch on them, and no dimension may be nH or nW, because export
# fixes a dimension that could be 1. So the exported graph moves cells by computed indices: a gather each way.
# The ONNX exporter of torch 2.15 knows no remainder by an open size, hence the products.


def _gather_windows(x: torch.Tensor, window_size: tuple[int, int]) -> torch.Tensor:
    h, w = window_size
    _, H, W, C = x.shape
    nH, nW = (H + h - 1) // h, (W + w - 1) // w
    cell = torch.arange(nH * nW * h * w, device=x.device)
    window, inside = cell // (h * w), cell % (h * w)
    row_of_windows = window // nW
    row, col = row_of_windows * h + inside // w, (window - row_of_windows * nW) * w + inside % w
    source = torch.where((row < H) & (col < W), row * W + col, H * W)
    x = F.pad(x.flatten(1, 2), (0, 0, 0, 1))  # cell H * W: zeros, for the padding
    # Via a list of cells: a direct reshape would test whether there is one window, and fix the answer.
    return x.index_select(1, source).reshape(-1, C).reshape(-1, h * w, C)


def _scatter_windows(x: torch.Tensor, window_size: tuple[int, int], size: tuple[int, int, int]) -> torch.Tensor:
    h, w = window_size
    B, H, W = size
    nW = (W + w - 1) // w
    cell = torch.arange(H * W, device=x.device)
    row = cell // W
    col = cell - row * W
    source = (row // h * nW + col // w) * (h * w) + row % h * w + col % w
    C = x.shape[-1]
    return x.reshape(-1, C).reshape(B, -1, C).index_select(1, source).unflatten(1, (H, W))
