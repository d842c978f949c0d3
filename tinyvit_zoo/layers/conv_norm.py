"""Convolution + BatchNorm, the unit that TinyViT's stem, MBConv, merging and local convolution are made of."""

import torch
from torch import nn

from .deploy import DeployConv2d

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
        return self.bn(self.conv(x))

    @torch.no_grad()
    def fuse(self) -> DeployConv2d:
        """One convolution with a bias that gives what conv + BN (evaluation statistics) give.

        Computed in at least float32 whatever the weights' dtype; same device, dtype and training flag.
        """
        conv, bn = self.conv, self.bn
        compute = torch.promote_types(conv.weight.dtype, torch.float32)
        scale = bn.weight.to(compute) / (bn.running_var.to(compute) + bn.eps).sqrt()
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
        fused.weight.copy_(conv.weight.to(compute) * scale[:, None, None, None])
        fused.bias.copy_(bn.bias.to(compute) - bn.running_mean.to(compute) * scale)
        return fused.train(self.training)
