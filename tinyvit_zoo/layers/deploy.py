"""Layers of the deploy form: a convolution or linear layer fused with its GELU where the CPU has such a kernel.

`timm.models.reparameterize_model(model)` inserts them. For inference on a CPU in float32 or bfloat16 they call
oneDNN's fused kernels: the bias and the exact GELU are applied while the result is still in cache, and float32
products use AVX-512 also on processors where MKL does not. Everywhere else (autograd, GPU, autocast, torch.export,
TorchScript, tracing) they are the plain layer followed by `F.gelu`. Both paths compute in the weights' dtype and
differ by rounding only.
"""

from typing import Final, TypeVar, overload

import torch
import torch.nn.functional as F
from timm.layers import is_exporting
from timm.models import register_notrace_module
from torch import nn

from .inference import is_untouched

__all__ = ['DeployConv2d', 'DeployLinear', 'fold_gelu']


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
L = TypeVar('L', bound=nn.Linear | nn.Conv2d)


@torch.jit.unused
def _use_onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether this call can use the fused CPU kernel, which has no autograd formula and no autocast rule."""
    return (
        not torch.is_grad_enabled()
        and type(x) is torch.Tensor  # no proxy, no tensor subclass
        and x.device.type == 'cpu'
        and weight.device.type == 'cpu'
        and x.dtype == weight.dtype
        and x.dtype in ONEDNN_DTYPES
        and not torch.is_autocast_enabled('cpu')
        and not is_exporting()
        and not torch.jit.is_tracing()
        and x.numel() > 0
    )


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


class DeployConv2d(nn.Conv2d):
    """Conv2d, then exact GELU if `gelu` is set. (B, C, H, W) in any memory format."""

    gelu: Final[bool]

    def __init__(self, *args, gelu: bool = False, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.gelu = gelu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting() and _use_onednn(x, self.weight):
            conv2d = _conv2d_op if torch.compiler.is_compiling() else _conv2d
            assert not isinstance(self.padding, str)  # ConvNorm pads by a number
            return conv2d(
                x, self.weight, self.bias, list(self.stride), list(self.padding), self.groups, self.gelu
            )  # fmt: skip
        x = self._conv_forward(x, self.weight, self.bias)
        return F.gelu(x) if self.gelu else x


class DeployLinear(nn.Linear):
    """Linear over the last dimension, then exact GELU if `gelu` is set."""

    gelu: Final[bool]

    def __init__(self, *args, gelu: bool = False, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.gelu = gelu

    @classmethod
    @torch.no_grad()
    def from_linear(cls, linear: M, gelu: bool = False) -> 'M | DeployLinear':
        """A deploy layer that shares the parameters of `linear`; `linear` itself if it is not a plain nn.Linear."""
        if not is_untouched(linear, nn.Linear):
            return linear
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None, gelu=gelu, device='meta')
        layer.weight, layer.bias = linear.weight, linear.bias
        return layer.train(linear.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting() and _use_onednn(x, self.weight):
            linear = _linear_op if torch.compiler.is_compiling() else _linear
            return linear(x, self.weight, self.bias, self.gelu)
        x = F.linear(x, self.weight, self.bias)
        return F.gelu(x) if self.gelu else x


# FX must not look inside: the choice of kernel depends on the tensor.
register_notrace_module(DeployConv2d)
register_notrace_module(DeployLinear)


@overload
def fold_gelu(layer: L, act: nn.Module) -> tuple[L | DeployLinear, nn.Module]: ...


@overload
def fold_gelu(layer: nn.Module, act: nn.Module) -> tuple[nn.Module, nn.Module]: ...


def fold_gelu(layer: nn.Module, act: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Deploy form of `act(layer(x))`: the layer with the activation folded in, and the activation that remains.

    Args:
        layer: A layer with `fuse()` (ConvNorm) or an nn.Linear.
        act: Its activation. Only an exact nn.GELU can be folded; any other is returned unchanged.
    """
    fuse = getattr(layer, 'fuse', None)
    layer = DeployLinear.from_linear(layer) if fuse is None else fuse()
    if type(layer) is not DeployConv2d and type(layer) is not DeployLinear:
        return layer, act
    if not is_untouched(act, nn.GELU) or act.approximate != 'none':
        return layer, act
    layer.gelu = True  # type: ignore[misc]  # Final is for TorchScript, where it makes a constant
    return layer, nn.Identity().train(act.training)
