"""Values as JSON holds them."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

__all__ = ['plain']


def plain(value: Any) -> Any:
    """The value in types that JSON has; numbers that are not finite become None.

    Raises:
        TypeError: If it contains something that JSON cannot hold.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, 'tolist'):  # arrays and scalars of torch and numpy
        return plain(value.tolist())
    if isinstance(value, Sequence | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, Path | torch.dtype | torch.device):
        return str(value)
    raise TypeError(f'{type(value).__name__} has no form in JSON.')
