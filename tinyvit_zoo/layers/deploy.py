"""Layers of the deploy form: a convolution or linear layer by the fastest route of this processor, GELU included.

`timm.models.reparameterize_model(model)` inserts them. In plain inference they take the route that `routes.route` has
for the device, the dtype, the processor and the shape: oneDNN's fused kernel, in which the bias and, in `conv_act` and
`linear_act`, the exact GELU are applied while the result is still in cache; `F.linear`, for 1x1 convolutions on the
B,H,W,C view, then GELU in place; or, on CUDA, a convolution without bias, then one kernel for bias and GELU. Everywhere
else (autograd, autocast, quantized or other special weights, torch.export, TorchScript, tracing) they are the plain
layer. All routes compute in the weights' dtype and differ by rounding only.

The activation remains a module of its own: hooks see the same tensors as before, and an adapter around the layer (LoRA)
adds to its output, not to what the activation made of it.
"""

from typing import TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from timm.layers import is_exporting
from timm.models import register_notrace_module
from torch import nn

from .bias_gelu import add_bias_gelu_, computes, is_one_block
from .inference import is_observed, is_untouched, known_class
from .routes import ROUTES, Kind, Route, choose, device_name, may_be_onednn

__all__ = ['DeployConv2d', 'DeployLinear', 'fuses_gelu', 'is_pointwise', 'pointwise']


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


def _is_plain_call(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> bool:
    """Whether a route other than the plain layer may be taken: they have no autograd formula, or no rule for special
    tensors, or nobody must see that another function is called.
    """
    return (
        not torch.is_grad_enabled()
        and type(x) is torch.Tensor  # no proxy, no tensor subclass
        and x.device.type in ('cpu', 'cuda')
        and x.layout is torch.strided
        and weight is not None
        and _takes_part(weight, x)
        and (bias is None or _takes_part(bias, x))
        and not torch.is_autocast_enabled(x.device.type)
        and (not is_exporting() if torch.compiler.is_compiling() else _is_unwatched())
        and x.numel() > 0  # last: a trace would record it
    )


def _takes_part(weight: torch.Tensor, x: torch.Tensor) -> bool:
    """Whether a weight is a plain dense tensor of x's dtype and device: not quantized, not sharded, not offloaded."""
    return (
        (type(weight) is nn.Parameter or type(weight) is torch.Tensor)
        and weight.device == x.device
        and weight.dtype is x.dtype
        and weight.layout is torch.strided
    )


def _is_unwatched() -> bool:
    return not torch.jit.is_tracing() and not is_observed()


def _allowed(x: torch.Tensor, on_view: bool = True, own_bias: bool = False) -> tuple[Route, ...]:
    """Routes that this build of torch has for x.

    `on_view`: whether a product can read the map without a copy. `own_bias`: whether there is a bias to add afterwards.
    """
    compiling = torch.compiler.is_compiling()
    admitted = {
        'plain': True,
        'linear': on_view,
        'onednn': x.is_cpu and x.dtype in ONEDNN_DTYPES and (compiling or torch._C._get_mkldnn_enabled()),
        # Inductor writes such a kernel by itself.
        'triton': own_bias and not compiling and device_name(x.device) == 'cuda' and computes(x),
    }
    return tuple(r for r in ROUTES if admitted[r])


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


def is_pointwise(conv: nn.Conv2d) -> bool:
    """Whether a convolution is a linear layer over the channels of every pixel."""
    return (
        conv.kernel_size == (1, 1)
        and conv.stride == (1, 1)
        and conv.padding == (0, 0)
        and conv.groups == 1
        and conv.padding_mode == 'zeros'
    )


def pointwise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A 1x1 convolution as `F.linear` on the B,H,W,C view. (B, C, H, W), without a copy if in channels_last."""
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


def _gelu(x: torch.Tensor) -> torch.Tensor:
    """Exact GELU, in place where memory is ours to choose: a fresh map of tens of MB costs page faults."""
    return F.gelu(x) if torch.compiler.is_compiling() else torch.ops.aten.gelu_(x)


@known_class
class DeployConv2d(nn.Conv2d):
    """Conv2d. (B, C, H, W) in any memory format."""

    @torch.jit.unused
    def route_of(self, x: torch.Tensor, gelu: bool) -> Route | None:
        """By which route `run` is to compute what `forward` does; None where `run` may not stand in for it."""
        # Not `self.weight`: torch looks that up slowly, and it may be computed from others.
        weight, bias = self._parameters.get('weight'), self._parameters.get('bias')
        if not _is_plain_call(x, weight, bias) or x.ndim != 4 or x.shape[1] != self.in_channels:
            return None
        kind: Kind = 'conv1x1' if is_pointwise(self) else 'conv' if self.groups == 1 else 'depthwise'
        on_view = kind == 'conv1x1' and x.is_contiguous(memory_format=torch.channels_last)
        rows = x.shape[0] * (x.shape[2] // self.stride[0]) * (x.shape[3] // self.stride[1])

        def run(route: Route) -> torch.Tensor:
            return self.run(x, route, gelu)

        return choose(
            kind, x, rows, self.in_channels, self.out_channels, gelu, run, _allowed(x, on_view, bias is not None)
        )

    @torch.jit.unused
    def run(self, x: torch.Tensor, route: Route, gelu: bool) -> torch.Tensor:
        """As `forward` by a route that `route_of` allows, then an exact GELU if `gelu` is set."""
        if route == 'onednn':
            conv2d = _conv2d_op if torch.compiler.is_compiling() else _conv2d
            assert not isinstance(self.padding, str)  # ConvNorm pads by a number
            return conv2d(x, self.weight, self.bias, list(self.stride), list(self.padding), self.groups, gelu)
        if route == 'linear':
            x = pointwise(x, self.weight, self.bias)
            return _gelu(x) if gelu else x
        if route == 'triton':
            assert self.bias is not None  # see `_allowed`
            x = self._conv_forward(x, self.weight, None)
            if is_one_block(x):
                return add_bias_gelu_(x, self.bias, gelu)
            x = x + self.bias[:, None, None]
        else:
            x = self._conv_forward(x, self.weight, self.bias)
        return F.gelu(x) if gelu else x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting():
            route = self.route_of(x, False)
            if route is not None:
                return self.run(x, route, False)
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
    def route_of(self, x: torch.Tensor, gelu: bool) -> Route | None:
        """By which route `run` is to compute what `forward` does; None where `run` may not stand in for it."""
        # Not `self.weight`: torch looks that up slowly, and it may be computed from others.
        weight, bias = self._parameters.get('weight'), self._parameters.get('bias')
        if not _is_plain_call(x, weight, bias) or x.shape[-1] != self.in_features:
            return None
        rows = x.numel() // self.in_features

        def run(route: Route) -> torch.Tensor:
            return self.run(x, route, gelu)

        return choose('linear', x, rows, self.in_features, self.out_features, gelu, run, _allowed(x))

    @torch.jit.unused
    def run(self, x: torch.Tensor, route: Route, gelu: bool) -> torch.Tensor:
        """As `forward` by a route that `route_of` allows, then an exact GELU if `gelu` is set."""
        if route == 'onednn':
            return (_linear_op if torch.compiler.is_compiling() else _linear)(x, self.weight, self.bias, gelu)
        x = F.linear(x, self.weight, self.bias)
        if not gelu:
            return x
        return _gelu(x) if route == 'linear' else F.gelu(x)

    @torch.jit.unused
    def _takes_onednn(self, x: torch.Tensor) -> bool:
        return may_be_onednn('linear', x) and self.route_of(x, False) == 'onednn'

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting() and self._takes_onednn(x):
            return self.run(x, 'onednn', False)
        return F.linear(x, self.weight, self.bias)


# FX must not look inside: the choice of route depends on the tensor.
register_notrace_module(DeployConv2d)
register_notrace_module(DeployLinear)


def fuses_gelu(layer: nn.Module, act: nn.Module) -> TypeGuard[DeployConv2d | DeployLinear]:
    """Whether `layer.run(x, route, True)` gives `act(layer(x))`: both untouched, the activation an exact GELU."""
    kind = DeployLinear if type(layer) is DeployLinear else DeployConv2d
    return (
        type(layer) is kind and is_untouched(layer, kind) and is_untouched(act, nn.GELU) and act.approximate == 'none'
    )
