"""`ZooBackbone`: any model of the zoo, or of timm, as a backbone of mmdet and mmseg."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from timm.models import ResNet, SwinTransformer, SwinTransformerV2
from timm.models._manipulate import group_with_matcher
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tinyvit_zoo.checkpoints import WeightsNotFoundError
from tinyvit_zoo.models import MiniSwin, TinyViT

from .backbone_weights import load_weights
from .net import build_net, fixed_size

__all__ = ['ZooBackbone']

T = TypeVar('T')

STRIDES = (4, 8, 16, 32)
WITH_NORMS = (MiniSwin, SwinTransformer, SwinTransformerV2)
"""Families whose detection recipe has a LayerNorm on every map."""
WHOLE_MAPS = (TinyViT, MiniSwin, ResNet)
"""Families whose maps have ceil(H / stride) rows for images of any size without padding."""
INSTEAD = (
    'Or change the config by --cfg-options: model.backbone.init_cfg.checkpoint=FILE, or model.backbone.init_cfg=None '
    'for random weights.'
)


@MODELS.register_module()
class ZooBackbone(BaseModule):
    """Any timm model with intermediate features: images of any size in, a tuple of NCHW maps out.

    The model is timm's own, without the parts that no map needs (later stages, final norm, classifier), so every
    parameter gets a gradient. State-dict names are timm's with the prefix `net.`, and `norm{i}.` for the norm of map i
    where there is one.

    Attributes:
        channels: Of every map.
        strides: Of every map, which has ceil(H / stride) rows and ceil(W / stride) columns.
    """

    net: Any  # of any of timm's classes, whose common interface is a convention, not a type
    _is_init: bool  # mmengine's

    def __init__(
        self,
        model_name: str,
        out_indices: Sequence[int] | None = None,
        pretrained: bool | str = False,
        img_size: int | tuple[int, int] | None = None,
        window_sizes: int | Sequence | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        drop_path_rate: float | None = None,
        out_norm: bool | None = None,
        init_cfg: dict | list[dict] | None = None,
        **model_args: Any,
    ) -> None:
        """
        Args:
            model_name: As in `timm.create_model`, the zoo's models among them; or one of `net.DENSE_FORMS`.
            out_indices: Maps to return, numbered as by timm's `features_only`. Default: the last ones of strides 4, 8,
                16 and 32; of a plain ViT that of the last block (put the neck `SimpleFeaturePyramid` behind it).
            pretrained: False; True for the weights of the name; a file or folder; 'hf-hub:...' or 'local-dir:...'.
            img_size: Size that windows, tables and positions are laid out for. Default: the architecture's.
            window_sizes: Window sizes instead of those that follow from `img_size`.
            frozen_stages: -1 for none, 0 for the stem, n for the stem and the first n stages (plain ViTs: blocks).
            norm_eval: Keep BatchNorm layers in evaluation mode.
            with_cp: Gradient checkpointing: compute blocks again in the backward pass, to save memory.
            drop_path_rate: Stochastic depth. Default: the architecture's.
            out_norm: Normalize every map. Default: where the family's detection recipe does (Swin, Mini-Swin).
            init_cfg: mmengine's. `dict(type='Pretrained', checkpoint=...)` accepts the same sources as `pretrained`,
                and is read in `init_weights`.
            **model_args: Further arguments of the model.

        Raises:
            CheckpointError: If the weights cannot be found, read or matched.
            ValueError: If the arguments do not fit the model.
        """
        super().__init__(init_cfg)
        self.model_name = model_name
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        given = dict(img_size=img_size, window_sizes=window_sizes, drop_path_rate=drop_path_rate)
        net_args = {**model_args, **{k: v for k, v in given.items() if v is not None}}
        self.net, self.spec = build_net(model_name, net_args)
        info = self.net.feature_info
        info = list(getattr(info, 'info', info))
        self.out_indices = self._indices(info, out_indices)
        if not self.spec.is_pyramid:
            self.net.prune_intermediate_layers(list(self.out_indices), prune_norm=True, prune_head=True)
        self.channels = tuple(info[i]['num_chs'] for i in self.out_indices)
        self.strides = tuple(info[i]['reduction'] for i in self.out_indices)
        self.out_norm = isinstance(self.net, WITH_NORMS) if out_norm is None else out_norm
        if self.out_norm:
            for i, chans in zip(self.out_indices, self.channels, strict=True):
                self.add_module(f'norm{i}', nn.LayerNorm(chans))
        if with_cp:
            self.net.set_grad_checkpointing(True)
        if pretrained:
            load_weights(self, self.spec, pretrained)
        self._freeze()

    def _indices(self, info: list[dict], asked: Sequence[int] | None) -> tuple[int, ...]:
        if self.spec.is_pyramid:
            if asked is not None and tuple(asked) != tuple(range(len(info))):
                raise ValueError(
                    f'{self.model_name} returns all {len(info)} maps of its pyramid: leave out_indices out.'
                )
            return tuple(range(len(info)))
        if asked is not None:
            if not asked or any(not 0 <= i < len(info) for i in asked) or sorted(set(asked)) != list(asked):
                raise ValueError(f'{self.model_name} has maps 0 to {len(info) - 1}, got out_indices {tuple(asked)}.')
            return tuple(asked)
        last_of = {level['reduction']: i for i, level in enumerate(info)}
        if len(last_of) == 1:
            return (len(info) - 1,)
        return tuple(last_of[stride] for stride in STRIDES if stride in last_of)

    def init_weights(self) -> None:
        """Load what `init_cfg` names; without one the weights stay those that the model was made with.

        mmengine would reinitialize every layer here, loaded or not, and load checkpoints without checking what is
        missing in them.

        Raises:
            CheckpointError: If the weights cannot be found, read or matched.
            ValueError: On an `init_cfg` of another type.
        """
        if self._is_init:
            return
        for cfg in [self.init_cfg] if isinstance(self.init_cfg, dict) else self.init_cfg or []:
            if cfg.get('type') != 'Pretrained':
                raise ValueError(f"init_cfg of a ZooBackbone is dict(type='Pretrained', checkpoint=...), got {cfg}.")
            try:
                load_weights(self, self.spec, cfg['checkpoint'], cfg.get('prefix'))
            except WeightsNotFoundError as e:
                raise WeightsNotFoundError(f'{e} {INSTEAD}') from e
        self._is_init = True

    def train(self, mode: bool = True) -> 'ZooBackbone':
        """Set training mode, except for frozen stages and, with `norm_eval`, BatchNorm."""
        super().train(mode)
        if mode:
            for module in self._frozen(dict(self.named_modules())):
                module.training = False
            if self.norm_eval:
                for module in self.modules():
                    if isinstance(module, _BatchNorm):
                        module.training = False
        return self

    def _freeze(self) -> None:
        for parameter in self._frozen(dict(self.named_parameters())):
            parameter.requires_grad = False
        self.train(self.training)

    def _frozen(self, named: Mapping[str, T]) -> Iterator[T]:
        """The named modules or parameters that belong to the stem and the frozen stages."""
        if self.frozen_stages < 0:
            return
        inside = ((name.removeprefix('net.'), name) for name in named if name.startswith('net.'))
        stages = group_with_matcher(inside, self.net.group_matcher(coarse=True), return_values=True)
        for stage in range(self.frozen_stages + 1):
            yield from (named[name] for name in stages.get(stage, ()))
        norms = tuple(f'norm{i}' for i in range(self.frozen_stages))
        yield from (value for name, value in named.items() if name.partition('.')[0] in norms)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, 3, H, W) -> maps (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])), largest first."""
        H, W = images.shape[-2:]
        images = self._padded(images)
        if self.spec.is_pyramid:
            maps = self.net(images)
        else:
            maps = self.net.forward_intermediates(
                images, indices=list(self.out_indices), stop_early=True, output_fmt='NCHW', intermediates_only=True
            )
        maps = [self._normed(i, x) for i, x in zip(self.out_indices, maps, strict=True)]
        return tuple(x[:, :, : -(-H // s), : -(-W // s)] for s, x in zip(self.strides, maps, strict=True))

    def _normed(self, index: int, x: torch.Tensor) -> torch.Tensor:
        if not self.out_norm:
            return x
        return getattr(self, f'norm{index}')(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def _padded(self, images: torch.Tensor) -> torch.Tensor:
        """Pad with zeros at the bottom and right if the model needs whole patches, or accepts one size only."""
        H, W = images.shape[-2:]
        if isinstance(self.net, WHOLE_MAPS):
            return images
        fixed = fixed_size(self.net)
        if fixed is None:
            # Pyramids halve the map of the patches; timm's Swin itself pads maps after the patches that do not divide.
            step = 32 if self.spec.is_pyramid else 4 if isinstance(self.net, SwinTransformer) else max(self.strides)
            return F.pad(images, (0, -W % step, 0, -H % step))
        if H > fixed[0] or W > fixed[1]:
            raise ValueError(
                f'{self.model_name} has tables for images up to {fixed[0]} x {fixed[1]}, got {H} x {W}: give img_size '
                'the size of the largest image.'
            )
        return F.pad(images, (0, fixed[1] - W, 0, fixed[0] - H))
