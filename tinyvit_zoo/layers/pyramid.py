"""Pyramids of feature maps from a plain ViT, whose own maps all have the same stride.

ViTDet: Exploring Plain Vision Transformer Backbones for Object Detection, https://arxiv.org/abs/2203.16527, section 3
and its code (detectron2 `modeling/backbone/vit.py`), as MAE-Lite uses it. The necks before UperNet are those of
TinyMIM's released code (`Segmentation/*/backbone/mae.py`), after BEiT.

A pyramid takes `num_maps` maps and returns one map per entry of `scales` (relative to the input); `levels` names the
modules that compute them.

Shape legend: `B` batch, `C` channels, `h w` height and width of the maps taken (stride 16 with patches of 16).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import nn

__all__ = ['SimpleFeaturePyramid', 'TinyMimNeck', 'TinyMimStarNeck']


class NormConv2d(nn.Module):
    """Convolution without bias, and the LayerNorm after it as its child `norm`: the released names.

    It is not an `nn.Conv2d`, because it is not linear: what wraps such a layer (LoRA) would add to the norm's output,
    and to its input once merged.
    """

    def __init__(self, in_chans: int, out_chans: int, kernel_size: int, device=None, dtype=None) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.padding = kernel_size // 2
        self.weight = nn.Parameter(torch.empty(out_chans, in_chans, kernel_size, kernel_size, **dd))
        self.reset_parameters()
        self.norm = LayerNorm2d(out_chans, **dd)

    def reset_parameters(self) -> None:
        """Initial values of a convolution."""
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(F.conv2d(x, self.weight, padding=self.padding))


class SimpleFeaturePyramid(nn.Module):
    """ViTDet's pyramid: every level is computed from the last map alone.

    Scales 4, 2, 1 and 1/2 by up-convolution, nothing, or max pooling; then a 1x1 and a 3x3 convolution, each followed
    by a LayerNorm over channels (eps 1e-6) and by no activation, as released. Names are those of detectron2 without
    its wrapper: `simfp_2` ... `simfp_5`, the number being log2 of the stride with patches of 16.

    Args:
        in_chans: C.
        out_chans: Channels of every level.
        top_pool: Add a fifth level, every second value of the fourth (p6 of detectron2's Mask R-CNN).
        device: Of the parameters.
        dtype: Of the parameters.
    """

    num_maps = 1

    def __init__(self, in_chans: int, out_chans: int = 256, top_pool: bool = False, device=None, dtype=None) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        half, quarter = in_chans // 2, in_chans // 4
        self.top_pool = top_pool
        self.scales = (4, 2, 1, 0.5, 0.25) if top_pool else (4, 2, 1, 0.5)
        self.out_channels = (out_chans,) * len(self.scales)
        self.levels = ('simfp_2', 'simfp_3', 'simfp_4', 'simfp_5', 'simfp_5')[: len(self.scales)]

        self.simfp_2 = nn.Sequential(
            nn.ConvTranspose2d(in_chans, half, 2, stride=2, **dd),
            LayerNorm2d(half, **dd),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, stride=2, **dd),
            *self._out(quarter, out_chans, dd),
        )
        self.simfp_3 = nn.Sequential(
            nn.ConvTranspose2d(in_chans, half, 2, stride=2, **dd), *self._out(half, out_chans, dd)
        )
        self.simfp_4 = nn.Sequential(*self._out(in_chans, out_chans, dd))
        self.simfp_5 = nn.Sequential(nn.MaxPool2d(2, stride=2), *self._out(in_chans, out_chans, dd))

    @staticmethod
    def _out(in_chans: int, out_chans: int, dd: dict) -> tuple[nn.Module, nn.Module]:
        return NormConv2d(in_chans, out_chans, 1, **dd), NormConv2d(out_chans, out_chans, 3, **dd)

    def forward(self, maps: torch.Tensor | Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Pyramid of one map.

        Args:
            maps: (B, C, h, w), alone or as the only one of a list.

        Returns:
            (B, out_chans, 4h, 4w), (.., 2h, 2w), (.., h, w), (.., h // 2, w // 2) and, with `top_pool`, every second
            row and column of the last.
        """
        x = maps if isinstance(maps, torch.Tensor) else maps[-1]
        levels = [self.simfp_2(x), self.simfp_3(x), self.simfp_4(x), self.simfp_5(x)]
        return [*levels, F.max_pool2d(levels[-1], 1, stride=2)] if self.top_pool else levels


class TinyMimNeck(nn.Module):
    """Neck of TinyMIM-B before UperNet: one level from each of four maps, all of one width.

    Up-convolutions for the first two, the third map unchanged, the fourth pooled. As released, the input maps are not
    normalized, and there is one BatchNorm, inside `fpn1`. The released one is a `SyncBatchNorm`, whose entries in a
    state dict are the same; on several GPUs `torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)` converts it.

    Args:
        dim: C of the maps taken, and of the levels.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    num_maps = 4
    scales = (4, 2, 1, 0.5)
    levels = ('fpn1', 'fpn2', 'fpn3', 'fpn4')

    def __init__(self, dim: int = 768, device=None, dtype=None) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.out_channels = (dim,) * 4
        self.fpn1 = _up_twice(dim, dim, dim, dd)
        self.fpn2 = nn.Sequential(nn.ConvTranspose2d(dim, dim, 2, stride=2, **dd))
        self.fpn3 = nn.Identity()
        self.fpn4 = nn.MaxPool2d(2, stride=2)

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Levels (B, C, 4h, 4w), (.., 2h, 2w), (.., h, w), (.., h // 2, w // 2) of four maps (B, C, h, w)."""
        first, second, third, fourth = maps
        return [self.fpn1(first), self.fpn2(second), self.fpn3(third), self.fpn4(fourth)]


class TinyMimStarNeck(nn.Module):
    """Neck of TinyMIM*-T before UperNet: as `TinyMimNeck`, to four times the width, the last map through `conv1x1`.

    `conv1x1` is the widening layer that the classifier of TinyMIM*-T has before its head (LayerNorm, linear, GELU), so
    a classification checkpoint fills it. Its LayerNorm has eps 1e-5 as released, where every other one has 1e-6.

    Args:
        dim: C of the maps taken; the levels have 4C channels.
        hidden_dim: Width of `conv1x1`.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    num_maps = 4
    scales = TinyMimNeck.scales
    levels = TinyMimNeck.levels

    def __init__(self, dim: int = 192, hidden_dim: int = 1280, device=None, dtype=None) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        wide = 4 * dim
        self.out_channels = (wide,) * 4
        self.conv1x1 = nn.Sequential(nn.LayerNorm(dim, eps=1e-5, **dd), nn.Linear(dim, hidden_dim, **dd), nn.GELU())
        self.fpn1 = _up_twice(dim, 2 * dim, wide, dd)
        self.fpn2 = nn.Sequential(nn.ConvTranspose2d(dim, wide, 2, stride=2, **dd))
        self.fpn3 = nn.Conv2d(dim, wide, 1, **dd)
        self.fpn4 = nn.Sequential(nn.Conv2d(hidden_dim, wide, 3, stride=2, padding=1, **dd))

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Levels (B, 4C, 4h, 4w), (.., 2h, 2w), (.., h, w), (.., (h + 1) // 2, (w + 1) // 2) of maps (B, C, h, w)."""
        first, second, third, fourth = maps
        fourth = self.conv1x1(fourth.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return [self.fpn1(first), self.fpn2(second), self.fpn3(third), self.fpn4(fourth)]


def _up_twice(in_chans: int, mid_chans: int, out_chans: int, dd: dict) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(in_chans, mid_chans, 2, stride=2, **dd),
        nn.BatchNorm2d(mid_chans, **dd),
        nn.GELU(),
        nn.ConvTranspose2d(mid_chans, out_chans, 2, stride=2, **dd),
    )
