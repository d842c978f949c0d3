"""Buffers that follow from a layer's sizes and are in no checkpoint: filled by whoever loads weights, or here."""

import torch
from torch import nn

__all__ = ['FillsBuffers']


class FillsBuffers(nn.Module):
    """A layer that fills its buffers at the next `train()` or `eval()` once it has left the meta device.

    A loader that builds on the meta device has to call `init_non_persistent_buffers` of every layer. transformers does
    so in its wrapper of timm models, but DETR and its kin take the model out of the wrapper, and the buffers then hold
    whatever was in memory: wrong biases or an index out of range. `from_pretrained` ends with `eval()`.
    """

    _is_unfilled = False

    def init_non_persistent_buffers(self) -> None:
        """Register all buffers of the layer that no checkpoint holds, on the device of its parameters."""
        raise NotImplementedError

    def register_buffer(self, name: str, tensor: torch.Tensor | None, persistent: bool = True) -> None:
        super().register_buffer(name, tensor, persistent)
        if tensor is not None and not persistent and tensor.is_meta:
            self._is_unfilled = True

    def train(self, mode: bool = True) -> 'FillsBuffers':
        super().train(mode)
        if self._is_unfilled and not any(t.is_meta for t in (*self.parameters(), *self.buffers())):
            self.init_non_persistent_buffers()
            self._is_unfilled = False
        return self
