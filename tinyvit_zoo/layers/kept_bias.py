"""A bias spread over all pairs of tokens once, in deploy form on CUDA, instead of in every forward pass.

What is kept is in no buffer: `torch.export` writes also buffers that no operator reads, and TorchScript all tensors of
a module, so that exported files would grow. It is spread again when its table has changed: by another size, dtype or
device, by loading weights, by training; and it is not used where somebody could notice. Only writing through
`table.data` leaves no trace in torch: `model.eval()` afterwards spreads it again.
"""

from typing import Any

import torch
from timm.layers import is_exporting
from torch import nn

from .filled_buffers import FillsBuffers
from .inference import is_observed
from .routes import device_name, is_capturing

__all__ = ['KeepsBias']


class _Kept:
    """What was spread from which state of which table. A copy or a pickle holds nothing."""

    def __init__(self, table: torch.Tensor, bias: torch.Tensor) -> None:
        self.table: torch.Tensor | None = table
        self.version, self.bias = table._version, bias
        self.address = table.data_ptr()

    def is_of(self, table: torch.Tensor) -> bool:
        """Whether it is the bias of the table as it is now."""
        return self.table is table and self.version == table._version and self.address == table.data_ptr()

    def __reduce__(self) -> tuple[Any, ...]:
        return _nothing, ()


def _nothing() -> None:
    return None


class KeepsBias(FillsBuffers):
    """An attention with one table of biases; a subclass says which, and how it is spread.

    Attributes:
        may_keep_bias: Set by the model: whether the spread tables of all its layers together are smaller than its
            weights.
        keeps_bias: Whether this is the deploy form.
    """

    may_keep_bias = False
    keeps_bias = False
    _kept: _Kept | None = None

    def bias_table(self) -> torch.Tensor:
        """The parameter."""
        raise NotImplementedError

    def spread_bias(self, dtype: torch.dtype) -> torch.Tensor:
        """The table spread, in another dtype: (heads, N, N)."""
        raise NotImplementedError

    def can_spread_bias(self) -> bool:
        """Whether the indices are filled; after `to_empty` they would lead anywhere."""
        raise NotImplementedError

    @torch.jit.unused
    def bias_for(self, q: torch.Tensor) -> torch.Tensor:
        """(heads, N, N) of q's dtype: what is kept, or spread now."""
        kept = self._kept_for(q) if self.keeps_bias and self.may_keep_bias else None
        return self.spread_bias(q.dtype) if kept is None else kept

    def _kept_for(self, q: torch.Tensor) -> torch.Tensor | None:
        table = self.bias_table()
        if torch.is_grad_enabled():
            if table.requires_grad and self._kept is not None and not is_exporting():
                self._kept.table = None  # a step may follow, and those of fused optimizers are not counted
            return None
        if (
            type(q) is not torch.Tensor
            or type(table) is not nn.Parameter
            or not keeps_on(q.device)
            or table.device != q.device
            or table.dtype is not q.dtype
        ):
            return None
        if torch.compiler.is_compiling():  # a graph cannot count changes; what changes a table at rest spreads it again
            fits = self._kept is not None and self._kept.table is table and not is_exporting()
            return self._kept.bias if fits and self._kept is not None else None
        if torch.jit.is_tracing() or is_observed() or table.is_inference():  # those do not count their changes
            return None
        if self._kept is None or not self._kept.is_of(table):
            if is_capturing(q.device):
                return None
            self.keep_bias()
        return None if self._kept is None else self._kept.bias

    @torch.jit.unused
    def keep_bias(self) -> None:
        """Spread the table now, or forget what was spread, by the form, the device and the size of the model."""
        table, old = self.bias_table(), self._kept
        self._kept = None
        keeps = self.keeps_bias and self.may_keep_bias and keeps_on(table.device) and not table.is_inference()
        # Only a plain table: one in shards (FSDP) or without numbers (FakeTensorMode) cannot be spread here.
        if keeps and type(table) is nn.Parameter and self.can_spread_bias():
            with torch.inference_mode(False), torch.no_grad():
                bias = self.spread_bias(table.dtype)
                if old is not None and _is_alike(old.bias, bias):
                    bias = old.bias.copy_(bias)  # a captured CUDA graph goes on reading this memory
                self._kept = _Kept(table, bias)

    def _apply(self, fn: Any, recurse: bool = True) -> 'KeepsBias':  # every change of dtype and device
        super()._apply(fn, recurse)
        self.keep_bias()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.keep_bias()

    def train(self, mode: bool = True) -> 'KeepsBias':
        super().train(mode)
        self.keep_bias()
        return self


def keeps_on(device: torch.device) -> bool:
    """Whether a spread bias is kept there. On a CPU spreading takes next to no time, see `expand_abs_bias`."""
    return device_name(device) == 'cuda'


def _is_alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and one.dtype is other.dtype and one.device == other.device
