"""Released state dicts of the dense-prediction forms, filled by the golden rule."""

import math

import numpy as np
import torch
from golden_rule import manifest, rule_value


def beit_index(side: int, prefix_tokens: int) -> torch.Tensor:
    """The released `relative_position_index` of a square grid, its assignments one after the other."""
    cells = np.stack(np.divmod(np.arange(side * side), side))
    rows, cols = cells[:, :, None] - cells[:, None, :] + side - 1
    T = (2 * side - 1) ** 2 + 3 * prefix_tokens
    index = np.zeros((side * side + prefix_tokens,) * 2, np.int64)
    index[prefix_tokens:, prefix_tokens:] = rows * (2 * side - 1) + cols
    for token in reversed(range(prefix_tokens)):
        last = T - 3 * token
        index[token, :], index[:, token], index[token, token] = last - 3, last - 2, last - 1
    return torch.from_numpy(index)


def released_dense(name: str) -> dict[str, torch.Tensor]:
    """State dict of a dense form as the released code saves it."""
    prefix_tokens = 2 if 'star' in name else 1
    state_dict = {}
    for key, (shape, dtype) in manifest(name).items():
        if key.endswith('relative_position_index'):
            state_dict[key] = beit_index(math.isqrt(shape[0] - prefix_tokens), prefix_tokens)
            continue
        value = rule_value(key, shape)
        state_dict[key] = torch.zeros(shape, dtype=dtype) if value is None else torch.from_numpy(np.asarray(value))
    return state_dict
