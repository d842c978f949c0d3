"""ViTDet's pyramid as a neck: levels of strides 4 to 64 from the single map of a plain ViT."""

from collections.abc import Sequence

import torch
from mmengine.registry import MODELS

from tinyvit_zoo.layers import pyramid

__all__ = ['SimpleFeaturePyramid']


@MODELS.register_module()
class SimpleFeaturePyramid(pyramid.SimpleFeaturePyramid):
    """`tinyvit_zoo.layers.pyramid.SimpleFeaturePyramid` under mmdet's argument names, with its state-dict names."""

    def __init__(self, in_channels: int | Sequence[int], out_channels: int = 256, num_outs: int = 5) -> None:
        """
        Args:
            in_channels: Of the map; if there are several, the last one is used.
            out_channels: Of every level.
            num_outs: 4 for levels of strides 4, 8, 16 and 32 (with patches of 16), 5 to add one of stride 64.

        Raises:
            ValueError: If `num_outs` is neither 4 nor 5.
        """
        if num_outs not in (4, 5):
            raise ValueError(f'num_outs must be 4 or 5, got {num_outs}.')
        in_channels = in_channels if isinstance(in_channels, int) else in_channels[-1]
        super().__init__(in_channels, out_channels, top_pool=num_outs == 5)

    def forward(self, maps: torch.Tensor | Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Maps of a backbone, of which the last (B, C, h, w) is used -> levels, see `layers.pyramid`."""
        return tuple(super().forward(maps))
