"""Hashes that identify weights, settings and transforms."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

__all__ = ['described', 'json_hash', 'settings_of', 'state_hash', 'tensors_hash']


def state_hash(model: nn.Module) -> str:
    """sha256 (hex) over name, dtype, shape and bytes of everything in the state dict, statistics of norms included.

    It is the same on every device. Equal hashes before and after an evaluation prove that it did not change the model.
    """
    return tensors_hash(model.state_dict())


def tensors_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 (hex) over name, dtype, shape and bytes of tensors, independent of their order and device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f'{name}|{tensor.dtype}|{tuple(tensor.shape)}|'.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def json_hash(values: Mapping[str, Any]) -> str:
    """sha256 (hex) of values that JSON can hold, independent of the order of keys."""
    return hashlib.sha256(json.dumps(dict(values), sort_keys=True).encode()).hexdigest()


def settings_of(model: nn.Module) -> str:
    """sha256 (hex) of how a model uses its weights: type, repr and plain attributes of every module."""
    digest = hashlib.sha256(repr(model).encode())
    for name, module in model.named_modules():
        plain = {k: v for k, v in vars(module).items() if k != 'training' and _is_plain(v)}
        digest.update(f'{name}|{type(module).__module__}.{type(module).__qualname__}|{sorted(plain.items())}'.encode())
    return digest.hexdigest()


def described(transform: Callable) -> str:
    """A transform as text: repr and plain attributes, its own and those of its parts.

    Not every transform of torchvision and timm has its settings in its repr.
    """
    plain = sorted((k, v) for k, v in getattr(transform, '__dict__', {}).items() if _is_plain(v))
    inner = getattr(transform, 'transforms', None)
    parts = [described(part) for part in inner] if isinstance(inner, list | tuple) else []
    return ' '.join([repr(transform), repr(plain), *parts])


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return isinstance(value, str | int | float | bool | None)
