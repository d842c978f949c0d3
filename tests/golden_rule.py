"""Weights and inputs behind the reference outputs in `golden/`, computable from names and shapes alone.

The released code was run once with weights filled by this rule and its outputs were stored (`golden/*.npz`), together
with the names and shapes of its state dict (`golden/*.keys.json`). A test fills an official-layout checkpoint by the
same rule, loads it and compares: no released weight is needed, and every entry of the checkpoint matters.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / 'golden'

# Tables and positions are small numbers in trained models; so are they here, although they are matrices.
SMALL_LEAVES = ('attention_biases', 'relative_position_bias_table', 'lookup_table_weight', 'lookup_table_bias')
SMALL_ENDINGS = ('pos_embed', '_token')
# Buffers that stay as the model builds them.
CONSTANT_LEAVES = ('num_batches_tracked', 'attention_bias_idxs', 'relative_position_index', 'attn_mask')


def rule_value(key: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """What the rule puts under an official name; None for an entry that stays as it was built.

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
        state_dict[key] = torch.zeros(shape, dtype=dtype) if value is None else torch.from_numpy(np.asarray(value))
    return state_dict


@torch.no_grad()
def fill_by_rule(model: torch.nn.Module) -> torch.nn.Module:
    """Give a model weights and statistics that are far from their start values. Returns it in eval mode."""
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
    """(2, 3, H, W) waves; they tell rows from columns and one image and channel from another."""
    n, c, i, j = np.ogrid[:2, :3, :height, :width]
    return torch.from_numpy(np.sin(0.05 * (n + 1) * i + 0.11 * (c + 1) * j + c).astype(np.float32))
