"""Layers of the deploy form: a convolution or linear layer in the fused kernel that some CPUs have, GELU included.

`timm.models.reparameterize_model(model)` inserts them. For inference on a CPU in float32 or bfloat16 they call
oneDNN's fused kernels: the bias and, in `conv_act` and `linear_act`, the exact GELU are applied while the result is
still in cache, and float32 products use AVX-512 also on processors where MKL does not. Everywhere else (autograd, GPU,
autocast, quantised or other special weights, torch.export, TorchScript, tracing) they are the plain layer. Both paths
compute in the weights' dtype and differ by rounding only.

The activation remains a module of its own: hooks see the same tensors as before, and an adapter around the layer (LoRA)
adds to its output, not to what the activation made of it.
"""

from typing import TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from timm.layers import is_exporting
from timm.models import register_notrace_module
from torch import nn

from .inference import is_observed, is_untouched, known_class

__all__ = ['DeployConv2d', 'DeployLinear', 'fuses_gelu']


def _onednn_dtypes() -> tuple[torch.dtype, ...]:
    """Dtypes for which this build of torch and this processor have the two kernels.

    torch's own compiler emits these operators, but they are not public API, hence the checks.
    """
    names = ('_convolution_pointwise', '_linear_pointwise')
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return ()
    has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return (torch.float32, torch.bfloat16) if has_bf16 else (torch.float32,)


ONEDNN_DTYPES = _onednn_dtypes()

M = TypeVar('M', bound=nn.Module)


def _use_onednn(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> bool:
    """Whether this call can use the fused CPU kernel, which has no autograd formula and no rule for special tensors."""
    return (
        not torch.is_grad_enabled()
        and type(x) is torch.Tensor  # no proxy, no tensor subclass
        and x.is_cpu
        and x.dtype in ONEDNN_DTYPES
        and x.layout is torch.strided
        and weight is not None
        and _takes_part(weight, x.dtype)
        and (bias is None or _takes_part(bias, x.dtype))
        and not torch.is_autocast_enabled('cpu')
        and (not is_exporting() if torch.compiler.is_compiling() else _is_unwatched())
        and x.numel() > 0  # last: a trace would record it
    )


def _takes_part(weight: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether a weight is a plain dense tensor on the CPU: not quantised, not sharded, not offloaded."""
    return (
        (type(weight) is nn.Parameter or type(weight) is torch.Tensor)
        and weight.is_cpu
        and weight.dtype is dtype
        and weight.layout is torch.strided
    )


def _is_unwatched() -> bool:
    return not torch.jit.is_tracing() and torch._C._get_mkldnn_enabled() and not is_observed()


def _conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    groups: int,
    gelu: bool,
) -> torch.Tensor:
    attr = 'gelu' if gelu else 'none'
    return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, padding, stride, [1, 1], groups, attr, [], 'none')


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gelu: bool) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, 'gelu' if gelu else 'none', [], 'none')


# Under torch.compile the kernels are opaque custom operators; otherwise Inductor would choose MKL's product.
_conv2d_op = torch.library.custom_op('tinyvit_zoo::conv2d_gelu', _conv2d, mutates_args=())
_linear_op = torch.library.custom_op('tinyvit_zoo::linear_gelu', _linear, mutates_args=())
_conv2d_op.register_fake(_conv2d)
_linear_op.register_fake(_linear)


@known_class
class DeployConv2d(nn.Conv2d):
    """Conv2d. (B, C, H, W) in any memory format."""

    @torch.jit.unused
    def has_kernel(self, x: torch.Tensor) -> bool:
        """Whether `run_kernel` can compute what `forward` does."""
        # Not `self.weight`: torch looks that up slowly, and it may be computed from others.
        return _use_onednn(x, self._parameters.get('weight'), self._parameters.get('bias'))

    @torch.jit.unused
    def run_kernel(self, x: torch.Tensor, gelu: bool) -> torch.Tensor:
        """As `forward`, then an exact GELU if `gelu` is set."""
        conv2d = _conv2d_op if torch.compiler.is_compiling() else _conv2d
        assert not isinstance(self.padding, str)  # ConvNorm pads by a number
        return conv2d(x, self.weight, self.bias, list(self.stride), list(self.padding), self.groups, gelu)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting() and self.has_kernel(x):
            return self.run_kernel(x, False)
        return self._conv_forward(x, self.weight, self.bias)


@known_class
class DeployLinear(nn.Linear):
    """Linear over the last dimension."""

    @classmethod
    @torch.no_grad()
    def from_linear(cls, linear: M) -> 'M | DeployLinear':
        """A deploy layer that shares the parameters of `linear`; `linear` itself if it is not a plain nn.Linear."""
        if not is_untouched(linear, nn.Linear):
            return linear
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None, device='meta')
        layer.weight, layer.bias = linear.weight, linear.bias
        return layer.train(linear.training)

    @torch.jit.unused
    def has_kernel(self, x: torch.Tensor) -> bool:
        """Whether `run_kernel` can compute what `forward` does."""
        # Not `self.weight`: torch looks that up slowly, and it may be computed from others.
        return _use_onednn(x, self._parameters.get('weight'), self._parameters.get('bias'))

    @torch.jit.unused
    def run_kernel(self, x: torch.Tensor, gelu: bool) -> torch.Tensor:
        """As `forward`, then an exact GELU if `gelu` is set."""
        linear = _linear_op if torch.compiler.is_compiling() else _linear
        return linear(x, self.weight, self.bias, gelu)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting() and self.has_kernel(x):
            return self.run_kernel(x, False)
        return F.linear(x, self.weight, self.bias)


# FX must not look inside: the choice of kernel depends on the tensor.
register_notrace_module(DeployConv2d)
register_notrace_module(DeployLinear)


def fuses_gelu(layer: nn.Module, act: nn.Module, x: torch.Tensor) -> TypeGuard[DeployConv2d | DeployLinear]:
    """Whether `layer.run_kernel(x, True)` gives `act(layer(x))`: both untouched, an exact GELU, a kernel for x."""
    kind = DeployLinear if type(layer) is DeployLinear else DeployConv2d
    return (
        type(layer) is kind
        and layer.has_kernel(x)
        and is_untouched(layer, kind)
        and is_untouched(act, nn.GELU)
        and act.approximate == 'none'
    )
