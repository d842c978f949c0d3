"""Weights and inputs behind the reference outputs in `golden/`, computable from names and shapes alone.

The released code was run once with weights filled by this rule and its outputs were stored (`golden/*.npz`), together
with the names and shapes of its state dict (`golden/*.keys.json`). A test fills an official-layout checkpoint by the
same rule, loads it and compares: no released weight is needed, and every entry of the checkpoint matters.
"""

import json
import math
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / 'golden'

# Tables and positions are small numbers in trained models; so are they here, although they are matrices.
SMALL_LEAVES = ('attention_biases', 'relative_position_bias_table', 'lookup_table_weight', 'lookup_table_bias')
SMALL_ENDINGS = ('pos_embed', '_token')
# Buffers that keep the values of the model.
CONSTANT_LEAVES = ('num_batches_tracked', 'attention_bias_idxs', 'relative_position_index', 'attn_mask')


def rule_value(key: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """The value of the rule for an official name; None for an entry that keeps the value it was built with.

    Normal numbers seeded by the CRC-32 of the name, scaled by kind: running variances 1 + 0.1 |z|, scales of norms
    1 + 0.1 z, vectors and bias tables 0.1 z, matrices and kernels z / sqrt(fan in).
    """
    leaf = key.split('.')[-1]
    if leaf in CONSTANT_LEAVES:
        return None
    z = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    if leaf == 'running_var':
        return np.float32(1) + np.float32(0.1) * np.abs(z)
    if leaf == 'weight' and len(shape) == 1:
        return np.float32(1) + np.float32(0.1) * z
    if len(shape) < 2 or leaf in SMALL_LEAVES or leaf.endswith(SMALL_ENDINGS):
        return np.float32(0.1) * z
    return np.float32(1 / np.sqrt(math.prod(shape[1:]))) * z


def manifest(name: str) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Official name -> (shape, dtype) of every entry of an official state dict, in its order."""
    entries = json.loads((GOLDEN / f'{name}.keys.json').read_text())
    return {
        key: (tuple(shape), getattr(torch, dtype.removeprefix('torch.'))) for key, (shape, dtype) in entries.items()
    }


def official_state_dict(name: str) -> dict[str, torch.Tensor]:
    """The state dict of an official model, filled by the rule."""
    state_dict = {}
    for key, (shape, dtype) in manifest(name).items():
        value = rule_value(key, shape)
        if value is None:
            value = constant(key.split('.')[-1], shape)
        state_dict[key] = torch.from_numpy(np.array(value)).to(dtype)  # a copy: constants are shared
    return state_dict


@cache
def constant(leaf: str, shape: tuple[int, ...]) -> np.ndarray:
    """The released code's value of a buffer that the rule does not change, spelled out cell by cell."""
    if leaf == 'relative_position_index':
        side = math.isqrt(shape[0])
        return _swin_index(side) if side**2 == shape[0] else _beit_index(side)
    if leaf == 'attn_mask':
        return _swin_mask(math.isqrt(shape[0]), math.isqrt(shape[1]))
    return np.zeros(shape)


def _swin_index(window: int) -> np.ndarray:
    """Row of the bias table for each pair of cells of a window: offsets from -(w - 1) to w - 1 on both axes."""
    cells = [(row, col) for row in range(window) for col in range(window)]
    index = np.empty((len(cells), len(cells)), np.int64)
    for i, (row, col) in enumerate(cells):
        for j, (other_row, other_col) in enumerate(cells):
            index[i, j] = (row - other_row + window - 1) * (2 * window - 1) + (col - other_col + window - 1)
    return index


def _beit_index(side: int) -> np.ndarray:
    """Swin's index with a class token before the patches: it reads the last rows of the table."""
    patches = _swin_index(side)
    rows = (2 * side - 1) ** 2 + 3
    index = np.empty((side**2 + 1, side**2 + 1), np.int64)
    index[1:, 1:], index[0, :], index[:, 0], index[0, 0] = patches, rows - 3, rows - 2, rows - 1
    return index


def _swin_mask(windows: int, window: int) -> np.ndarray:
    """-100 between cells of a window that were apart before the map was rolled by half a window."""
    side, shift = windows * window, window // 2
    region = [(position >= side - window) + (position >= side - shift) for position in range(side)]
    mask = np.zeros((windows**2, window**2, window**2), np.float32)
    for n in range(windows**2):
        rows = range(n // windows * window, (n // windows + 1) * window)
        cols = range(n % windows * window, (n % windows + 1) * window)
        regions = [(region[row], region[col]) for row in rows for col in cols]
        for i, one in enumerate(regions):
            mask[n, i] = [0 if one == other else -100 for other in regions]
    return mask


@torch.no_grad()
def fill_by_rule(model: torch.nn.Module) -> torch.nn.Module:
    """Give a model weights and statistics that are far from their initial values. Returns it in eval mode."""
    for key, tensor in model.state_dict().items():
        value = rule_value(key, tuple(tensor.shape))
        if value is not None:
            tensor.copy_(torch.from_numpy(np.asarray(value)))
    return model.eval()


def golden(name: str) -> dict[str, np.ndarray]:
    """Reference outputs."""
    with np.load(GOLDEN / f'{name}.npz') as arrays:
        return dict(arrays)


def noise(height: int, width: int) -> torch.Tensor:
    """(2, 3, H, W) normal numbers."""
    return torch.from_numpy(np.random.RandomState(0).standard_normal((2, 3, height, width)).astype(np.float32))


def ramp(height: int, width: int) -> torch.Tensor:
    """(2, 3, H, W) waves; they distinguish rows from columns, and images and channels from one another."""
    n, c, i, j = np.ogrid[:2, :3, :height, :width]
    return torch.from_numpy(np.sin(0.05 * (n + 1) * i + 0.11 * (c + 1) * j + c).astype(np.float32))
