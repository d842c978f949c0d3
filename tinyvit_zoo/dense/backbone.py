"""A plain ViT with a pyramid on top: images in, four maps of strides 4, 8, 16 and 32 out."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.models._features import FeatureInfo
from torch import nn

from ..layers.pyramid import SimpleFeaturePyramid, TinyMimNeck, TinyMimStarNeck
from .tinymim_seg import TinyMimTrunk
from .vitdet import VitDetTrunk

__all__ = [
    'DenseBackbone',
    'mae_lite_vitdet_small',
    'mae_lite_vitdet_tiny',
    'tinymim_base_seg',
    'tinymim_small_seg',
    'tinymim_star_tiny_seg',
    'tinymim_tiny_seg',
]


class DenseBackbone(nn.Module):
    """Any plain ViT with `forward_intermediates`, and a pyramid; behaves like timm's `features_only` models.

    `forward(images)` returns a list of maps, `feature_info` holds their channels and strides. The images may have any
    size that the ViT takes: create a timm ViT with `dynamic_img_size=True` for more than one.

    The ViT is changed in place: it loses what no map needs, which is the blocks after the last one taken, the
    classifier and, unless `norm`, the final norm (through its `prune_intermediate_layers`). So every parameter gets a
    gradient; copy a model first if it is still needed as a classifier.

    State-dict names are those of the parts with the prefix `net.` or `pyramid.`. For those of the released code see
    `loading.official_state_dict`.

    Args:
        net: The ViT: ours, timm's, or a trunk of this package.
        pyramid: One of `layers.pyramid`, or a module with the same interface. Default: `SimpleFeaturePyramid` of the
            ViT's width, on its device and of its dtype.
        indices: Blocks whose maps the pyramid takes. Default: the last, or for four maps blocks 3, 5, 7, 11 of 12 (as
            in TinyMIM; 7, 11, 15, 23 of 24).
        norm: Apply the ViT's final norm to the maps. ViTDet and TinyMIM do not.

    Raises:
        ValueError: If the number of different indices is not the number of maps that the pyramid takes.
    """

    # Any of timm's plain ViTs, and any pyramid: their interfaces are conventions, not types.
    net: Any
    pyramid: Any

    def __init__(
        self,
        net: Any,
        pyramid: Any = None,
        indices: Sequence[int] | None = None,
        norm: bool = False,
    ) -> None:
        super().__init__()
        source = net.feature_info[-1]
        if pyramid is None:
            weight = next(net.parameters())
            pyramid = SimpleFeaturePyramid(source['num_chs'], device=weight.device, dtype=weight.dtype)
        depth = len(net.feature_info)
        if indices is None:
            indices = [depth * k // 12 - 1 for k in ((12,) if pyramid.num_maps == 1 else (4, 6, 8, 12))]
        if len(set(indices)) != pyramid.num_maps:
            raise ValueError(f'{type(pyramid).__name__} takes {pyramid.num_maps} maps, got indices {list(indices)}.')
        if hasattr(net, 'prune_intermediate_layers'):
            indices = net.prune_intermediate_layers(list(indices), prune_norm=not norm)
        self.indices = list(indices)
        self.norm = norm
        self.net = net
        self.pyramid = pyramid
        self.feature_info = FeatureInfo(
            [
                dict(num_chs=chans, reduction=_whole(source['reduction'] / scale), module=f'pyramid.{level}')
                for chans, scale, level in zip(pyramid.out_channels, pyramid.scales, pyramid.levels, strict=True)
            ],
            tuple(range(len(pyramid.scales))),
        )

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {f'net.{name}' for name in self.net.no_weight_decay()}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        """Layers for layer-wise learning rates: those of the ViT, then the pyramid as the last."""

        def inside(pattern: str) -> str:
            return rf'^net\.(?:{pattern.replace("^", "")})'  # timm matches from the start, so its anchors are redundant

        return {
            name: inside(spec) if isinstance(spec, str) else [(inside(pattern), suffix) for pattern, suffix in spec]
            for name, spec in self.net.group_matcher(coarse).items()
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.net.set_grad_checkpointing(enable)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Images (B, in_chans, H, W) -> one map (B, channels, H / stride, W / stride) per level, largest first."""
        maps = self.net.forward_intermediates(
            x, indices=self.indices, norm=self.norm, stop_early=True, output_fmt='NCHW', intermediates_only=True
        )
        return self.pyramid(maps)


def _whole(stride: float) -> int:
    if stride != int(stride):
        raise ValueError(f'The patch size must be a multiple of 4 for whole strides, got a stride of {stride}.')
    return int(stride)


def tinymim_base_seg(
    img_size: int | tuple[int, int] = 512, drop_path_rate: float = 0.1, device=None, dtype=None
) -> DenseBackbone:
    """TinyMIM-B as released for UperNet on ADE20K: four maps of 768 channels.

    Args:
        img_size: H, or (H, W), that positions and tables are laid out for.
        drop_path_rate: 0.1 as in the released configuration.
        device: Of the parameters.
        dtype: Of the parameters.
    """
    return _plain_seg(768, img_size, drop_path_rate, 12, device, dtype)


def tinymim_small_seg(
    img_size: int | tuple[int, int] = 512, drop_path_rate: float = 0.1, num_heads: int = 6, device=None, dtype=None
) -> DenseBackbone:
    """The class of `tinymim_base_seg` at the width of TinyMIM-S: four maps of 384 channels.

    The released code takes any width; what its authors segmented with at this one they have not published.

    Args:
        img_size: H, or (H, W), that positions and tables are laid out for.
        drop_path_rate: As the released configurations of the others.
        num_heads: Of every block. Default: those that it was fine-tuned with, and pre-trained but for the last block.
        device: Of the parameters.
        dtype: Of the parameters.
    """
    return _plain_seg(384, img_size, drop_path_rate, num_heads, device, dtype)


def tinymim_tiny_seg(
    img_size: int | tuple[int, int] = 512, drop_path_rate: float = 0.1, num_heads: int = 3, device=None, dtype=None
) -> DenseBackbone:
    """The class of `tinymim_base_seg` at the width of TinyMIM-T: four maps of 192 channels.

    The released code takes any width; what its authors segmented with at this one they have not published.

    Args:
        img_size: H, or (H, W), that positions and tables are laid out for.
        drop_path_rate: As the released configurations of the others.
        num_heads: Of every block. Default: those that it was fine-tuned with; it was pre-trained with 6.
        device: Of the parameters.
        dtype: Of the parameters.
    """
    return _plain_seg(192, img_size, drop_path_rate, num_heads, device, dtype)


def _plain_seg(
    width: int, img_size: int | tuple[int, int], drop_path_rate: float, num_heads: int, device, dtype
) -> DenseBackbone:
    dd = {'device': device, 'dtype': dtype}
    trunk = TinyMimTrunk(img_size, embed_dim=width, num_heads=num_heads, drop_path_rate=drop_path_rate, **dd)
    return DenseBackbone(trunk, TinyMimNeck(width, **dd))


def tinymim_star_tiny_seg(
    img_size: int | tuple[int, int] = 512, drop_path_rate: float = 0.1, device=None, dtype=None
) -> DenseBackbone:
    """TinyMIM*-T as released for UperNet on ADE20K: four maps of 768 channels, from a width of 192.

    Args:
        img_size: H, or (H, W), that positions and tables are laid out for.
        drop_path_rate: 0.1 as in the released configuration.
        device: Of the parameters.
        dtype: Of the parameters.
    """
    dd = {'device': device, 'dtype': dtype}
    trunk = TinyMimTrunk(img_size, embed_dim=192, distilled=True, drop_path_rate=drop_path_rate, **dd)
    return DenseBackbone(trunk, TinyMimStarNeck(192, 1280, **dd))


def mae_lite_vitdet_tiny(
    img_size: int | tuple[int, int] = 640, top_pool: bool = True, device=None, dtype=None
) -> DenseBackbone:
    """ViTDet's backbone of ViT-Tiny with 12 heads, as MAE-Lite trained it on COCO: maps of 256 channels.

    Args:
        img_size: H, or (H, W), that the offset embeddings of the global blocks are laid out for.
        top_pool: Add the fifth map, of stride 64, that Mask R-CNN takes.
        device: Of the parameters.
        dtype: Of the parameters.
    """
    return _vitdet(192, img_size, top_pool, device, dtype)


def mae_lite_vitdet_small(
    img_size: int | tuple[int, int] = 640, top_pool: bool = True, device=None, dtype=None
) -> DenseBackbone:
    """`mae_lite_vitdet_tiny` at the width of MAE-Lite's ViT-Small: its authors have not published such a detector.

    Args:
        img_size: H, or (H, W), that the offset embeddings of the global blocks are laid out for.
        top_pool: Add the fifth map, of stride 64, that Mask R-CNN takes.
        device: Of the parameters.
        dtype: Of the parameters.
    """
    return _vitdet(384, img_size, top_pool, device, dtype)


def _vitdet(width: int, img_size: int | tuple[int, int], top_pool: bool, device, dtype) -> DenseBackbone:
    dd = {'device': device, 'dtype': dtype}
    return DenseBackbone(VitDetTrunk(img_size, embed_dim=width, **dd), SimpleFeaturePyramid(width, 256, top_pool, **dd))
