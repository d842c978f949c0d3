"""Layers of the deploy form: a convolution or linear layer with its GELU in one kernel where the CPU has one.

`timm.models.reparameterize_model(model)` puts these in. Without autograd, in plain eager mode on a CPU, they call
oneDNN's fused kernels (the same operators that Inductor emits): the bias and the exact GELU are applied while the
result is still in cache, and float32 products use AVX-512 also on processors where MKL does not. Everywhere else
(training, GPU, autocast, torch.compile, torch.export, TorchScript, tracing) they are the plain layer followed by
`F.gelu`. Both paths compute in the weights' dtype; they differ by rounding only.
"""

from typing import Final

import torch
import torch.nn.functional as F
from timm.models import register_notrace_module
from torch import nn

__all__ = ['DeployConv2d', 'DeployLinear', 'fold_gelu']


def _has_onednn_kernels() -> bool:
    """Whether this build of torch has the two operators; they are Inductor's, not public API, so ask."""
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in ('_convolution_pointwise', '_linear_pointwise')
    )


HAS_ONEDNN_KERNELS = _has_onednn_kernels()


@torch.jit.ignore
def _use_onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether this call may take the fused CPU kernel: it has no autograd formula and no autocast rule."""
    return (
        HAS_ONEDNN_KERNELS
        and not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and type(x) is torch.Tensor
        and x.device.type == 'cpu'
        and x.dtype == weight.dtype
        and (x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()))
        and not torch.is_autocast_enabled('cpu')
        and not torch.jit.is_tracing()
        and torch.backends.mkldnn.enabled
        and x.numel() > 0
    )


class DeployConv2d(nn.Conv2d):
    """Conv2d, then exact GELU if `gelu` is set. (B, C, H, W) in any memory format."""

    gelu: Final[bool]

    def __init__(self, *args, gelu: bool = False, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.gelu = gelu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting():
            if _use_onednn(x, self.weight):
                return torch.ops.mkldnn._convolution_pointwise(
                    x,
                    self.weight,
                    self.bias,
                    self.padding,
                    self.stride,
                    self.dilation,
                    self.groups,
                    'gelu' if self.gelu else 'none',
                    [],
                    'none',
                )
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
    def from_linear(cls, linear: nn.Linear, gelu: bool = False) -> 'DeployLinear':
        """A deploy layer that shares the parameters of `linear`."""
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None, gelu=gelu, device='meta')
        layer.weight, layer.bias = linear.weight, linear.bias
        return layer.train(linear.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting():
            if _use_onednn(x, self.weight):
                return torch.ops.mkldnn._linear_pointwise(
                    x, self.weight, self.bias, 'gelu' if self.gelu else 'none', [], 'none'
                )
        x = F.linear(x, self.weight, self.bias)
        return F.gelu(x) if self.gelu else x


# FX must not look inside: the choice of kernel depends on the tensor at hand.
register_notrace_module(DeployConv2d)
register_notrace_module(DeployLinear)


def fold_gelu(layer: nn.Module, act: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Deploy form of `act(layer(x))`: the layer with the activation folded in, and what is left of the activation.

    Args:
        layer: A layer with `fuse()` (ConvNorm) or an nn.Linear.
        act: Its activation. Only an exact nn.GELU can be folded; any other is returned as it is.
    """
    gelu = isinstance(act, nn.GELU) and act.approximate == 'none'
    layer = layer.fuse() if hasattr(layer, 'fuse') else DeployLinear.from_linear(layer)
    layer.gelu = gelu
    return layer, nn.Identity().train(act.training) if gelu else act
