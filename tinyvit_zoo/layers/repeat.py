"""Modules that a shared block keeps apart for each of its repeats (weight multiplexing, MiniViT paper Sec. 3.1)."""

import torch
from torch import nn

from .inference import known_class

__all__ = ['PerRepeat']


@known_class
class PerRepeat(nn.ModuleList):
    """One module for each repeat of a shared block; every call says which repeat it is.

    Nothing is remembered between calls, so a block may run in several threads and graphs at once. (The released
    Mini-DeiT code writes a counter into every sub-module during forward, and may not.)
    """

    def forward(self, x: torch.Tensor, repeat: int) -> torch.Tensor:
        for i, module in enumerate(self):  # TorchScript cannot index modules by a number that it does not know
            if i == repeat:
                return module(x)
        raise IndexError('There is no such repeat.')
