"""Convolution + BatchNorm, the unit that TinyViT's stem, MBConv, merging and local convolution are made of."""

import torch
from torch import nn

from .deploy import DeployConv2d
from .inference import is_plain_inference

__all__ = ['ConvNorm']


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
        """Start values; called after those of `conv` and `bn` by `init_weights` (children first)."""
        nn.init.constant_(self.bn.weight, self.bn_weight_init)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting() and self._folds(x):
            return self.conv._conv_forward(x, *self._folded())
        return self.bn(self.conv(x))

    @torch.jit.unused
    def _folds(self, x: torch.Tensor) -> bool:
        """Whether to fold now: a product the size of the weights instead of a pass over the whole map.

        Only in plain eager evaluation on a CPU: a GPU would pay more for starting the small kernels than it saves.
        Graphs (compile, export, trace) keep the two layers, which their own optimisers and quantisers look for, and
        so does whatever stands in for the norm, or listens to it.
        """
        bn = self.bn
        return (
            is_plain_inference(x)
            and x.device.type == 'cpu'
            and type(bn) is nn.BatchNorm2d
            and not bn.training
            and not (bn._forward_hooks or bn._forward_pre_hooks or self.conv._forward_hooks)
        )

    def _folded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias of the one convolution that gives what conv + BN (running statistics) give.

        Computed in at least float32; returned in the weights' dtype.
        """
        weight, bn = self.conv.weight, self.bn
        compute = torch.promote_types(weight.dtype, torch.float32)
        scale = bn.weight.to(compute) * (bn.running_var.to(compute) + bn.eps).rsqrt()
        bias = bn.bias.to(compute) - bn.running_mean.to(compute) * scale
        return (weight.to(compute) * scale[:, None, None, None]).to(weight.dtype), bias.to(weight.dtype)

    @torch.no_grad()
    def fuse(self) -> DeployConv2d:
        """The folded convolution, for good; same device, dtype and training flag."""
        conv = self.conv
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
        fused.bias.copy_(bias)
        return fused.train(self.training)
