"""Convolution + BatchNorm, the unit of TinyViT's stem, MBConv, patch merging and local convolution."""

from typing import Any, cast

import torch
from torch import nn

from .deploy import DeployConv2d, DeployLinear, fuses_gelu, is_pointwise, pointwise
from .inference import activate, is_plain_inference, is_untouched, known_class
from .routes import Route, choose, may_be_onednn

__all__ = ['ConvNorm', 'conv_act', 'linear_act']

# Elements of an activation that is worth computing in place: more than a core's second-level cache holds.
LARGE = 2**18


@known_class
class ConvNorm(nn.Module):
    """Conv2d without bias, then BatchNorm2d. (B, C, H, W) in any memory format.

    `fuse()` is the hook that `timm.models.reparameterize_model` calls.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        bn_weight_init: float = 1.0,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.bn_weight_init = bn_weight_init
        self.conv = nn.Conv2d(
            in_chs, out_chs, kernel_size, stride=stride, padding=kernel_size // 2, groups=groups, bias=False, **dd
        )
        self.bn = nn.BatchNorm2d(out_chs, **dd)
        nn.init.constant_(self.bn.weight, bn_weight_init)

    def reset_parameters(self) -> None:
        """Initial values; `init_weights` calls this after the ones of `conv` and `bn` (children first)."""
        nn.init.constant_(self.bn.weight, self.bn_weight_init)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting() and self.folds(x):
            return self.run_folded(x)
        return self.bn(self.conv(x))

    @torch.jit.unused
    def folds(self, x: torch.Tensor) -> bool:
        """Whether to fold now: a product the size of the weights instead of a pass over the whole map.

        Only in plain eager evaluation on a CPU: on a GPU, launching the small kernels would cost more than it saves,
        and graphs (compile, export, trace) keep the two layers, which their own optimizers and quantizers look for.
        """
        return is_plain_inference(x) and self._foldable(on_cpu=True)

    @torch.jit.unused
    def run_folded(self, x: torch.Tensor) -> torch.Tensor:
        """The one convolution that `folds` allows."""
        weight, bias = self._folded()
        conv = self.conv

        def run(route: Route) -> torch.Tensor:
            return pointwise(x, weight, bias) if route == 'linear' else conv._conv_forward(x, weight, bias)

        if not is_pointwise(conv) or not _on_view(x, weight):
            return run('plain')
        rows = x.shape[0] * x.shape[2] * x.shape[3]
        return run(choose('folded1x1', x, rows, conv.in_channels, conv.out_channels, False, run))

    def _foldable(self, on_cpu: bool = False) -> bool:
        """Whether one convolution can replace the two layers: both untouched, with running statistics.

        Args:
            on_cpu: For the input of this moment: both on the CPU, and in evaluation mode.
        """
        # In torch's dictionaries, since it looks attributes up slowly, and every call asks.
        conv: Any = self._modules['conv']
        bn: Any = self._modules['bn']
        if not is_untouched(conv, nn.Conv2d) or not is_untouched(bn, nn.BatchNorm2d):
            return False
        weight: torch.Tensor = cast(Any, conv)._parameters['weight']
        scale: torch.Tensor | None = bn._parameters['weight']
        return (
            conv._parameters['bias'] is None
            and conv.padding_mode == 'zeros'
            and scale is not None
            and bn._buffers['running_mean'] is not None
            and (weight.is_cpu and scale.is_cpu and not bn.training if on_cpu else weight.device == scale.device)
        )

    def _folded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias of the one convolution that gives what conv + BN (running statistics) give.

        Computed in at least float32; returned in the weights' dtype.
        """
        weight, bn = self.conv.weight, self.bn
        assert bn.running_mean is not None  # see `_foldable`
        assert bn.running_var is not None
        compute = torch.promote_types(weight.dtype, torch.float32)
        scale = bn.weight.to(compute) * (bn.running_var.to(compute) + bn.eps).rsqrt()
        bias = bn.bias.to(compute) - bn.running_mean.to(compute) * scale
        return (weight.to(compute) * scale[:, None, None, None]).to(weight.dtype), bias.to(weight.dtype)

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """The two layers as one convolution of equal device, dtype and training flag; self if it cannot be folded."""
        if not is_untouched(self, ConvNorm) or not self._foldable():
            return self
        conv: Any = self.conv
        fused = DeployConv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            stride=conv.stride,
            padding=conv.padding,
            groups=conv.groups,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
        )
        weight, bias = self._folded()
        fused.weight.copy_(weight)
        assert fused.bias is not None  # by default, a convolution has one
        fused.bias.copy_(bias)
        return fused.train(self.training)


def _on_view(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether a product over the channels can take x as it lies, and is refused only where a convolution is."""
    return (
        x.ndim == 4
        and x.shape[1] == weight.shape[1]
        and x.dtype is weight.dtype
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.is_autocast_enabled('cpu')
    )


def conv_act(conv: nn.Module, act: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`act(conv(x))`, in one kernel or with the activation in place where nobody can notice."""
    if fuses_gelu(conv, act) and (route := conv.route_of(x, True)) is not None:
        return conv.run(x, route, True)
    # A fold without a call of `conv`: then its output is referenced nowhere else.
    if is_untouched(conv, ConvNorm) and conv.folds(x):
        return activate(act, conv.run_folded(x), fresh=True)
    return act(conv(x))


def linear_act(linear: nn.Module, act: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`act(linear(x))`, in one kernel or with the activation in place where nobody can notice."""
    # The cheap question first: in a small model at batch 1 the others cost more than a kernel of their own gains.
    if may_be_onednn('linear', x) and fuses_gelu(linear, act) and (route := linear.route_of(x, True)) is not None:
        return linear.run(x, route, True)
    y = linear(x)
    if not _is_large(y):
        return act(y)
    kind = DeployLinear if type(linear) is DeployLinear else nn.Linear
    return activate(act, y, fresh=is_untouched(linear, kind))


def _is_large(x: torch.Tensor) -> bool:
    """Whether a second buffer costs more than what must be asked before doing without."""
    if torch.compiler.is_compiling() or type(x) is not torch.Tensor or torch.jit.is_tracing():
        return False
    return x.numel() >= LARGE
