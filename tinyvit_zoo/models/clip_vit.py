"""CLIP's ViT-L/14 with a classifier for ImageNet-22k: the teacher that TinyViT's students were distilled from.

Paper: TinyViT, https://arxiv.org/abs/2207.10666; the network is the image tower of CLIP, https://arxiv.org/abs/2103.00020
Released code and weights: https://github.com/microsoft/Cream/tree/main/TinyViT (MIT)

timm's CLIP towers have one linear layer behind the class token. This model has two, without anything between them:
CLIP's projection to the space it shares with text, which has no bias, and the classifier.

Shape legend: `B` batch, `N` patches, `C` width, `D` width of the projection.
"""

from functools import partial
from typing import Any

import torch
from timm.layers import LayerNorm, get_device_dtype
from timm.models import generate_default_cfgs, register_model
from torch import nn

from ..checkpoints import CLIP_VIT_KEYS, fit_to_model, source_grid
from ..releases import FAMILIES
from ._create import Family, create_zoo_model
from .plain_vit import PlainVit, WeightInit, plain_vit_cfg, resize_to_grid

__all__ = ['ClipVit', 'checkpoint_filter_fn']


class ClipVit(PlainVit):
    """A CLIP image tower (a norm before the blocks, QuickGELU, class token) whose projection a classifier reads."""

    def __init__(
        self,
        *args: Any,
        proj_dim: int = 768,
        weight_init: WeightInit = '',
        device=None,
        dtype=None,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            *args: As in timm's `VisionTransformer`.
            proj_dim: Width D of the projection, which the classifier reads.
            weight_init: As in timm's `VisionTransformer`.
            device: Of the parameters.
            dtype: Of the parameters.
            **kwargs: As in timm's `VisionTransformer`.
        """
        super().__init__(*args, weight_init='skip', device=device, dtype=dtype, **kwargs)
        self.num_features = self.head_hidden_size = proj_dim
        self.proj: nn.Module = nn.Linear(self.embed_dim, proj_dim, bias=False, device=device, dtype=dtype)
        self._build_classifier(device=device, dtype=dtype)
        self.weight_init_mode = 'reset' if weight_init == 'skip' else weight_init
        if weight_init != 'skip':
            self.init_weights(needs_reset=False)

    def _build_classifier(self, **dd: Any) -> None:
        width, classes = self.num_features, self.num_classes
        self.head = nn.Linear(width, classes, **dd) if classes > 0 else nn.Identity()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier behind the projection; `global_pool=None` keeps the pooling."""
        super().reset_classifier(num_classes, global_pool)
        self._build_classifier(**get_device_dtype(self))
        self.head.train(self.training)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """(B, 1 + N, C) -> (B, num_classes), or the projected class token (B, D) with `pre_logits`.

        Without pooling every token is projected and classified; without a classifier as well, none is.
        """
        if self.global_pool == '' and self.num_classes == 0:
            return self.head_drop(self.fc_norm(x))
        x = self.head_drop(self.proj(self.fc_norm(self.pool(x))))
        return x if pre_logits else self.head(x)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the blocks after the last of `indices`; the projection belongs to the head."""
        take_indices = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_head:
            self.proj = nn.Identity()
            self.num_features = self.head_hidden_size = self.embed_dim
        return take_indices

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        """Layers for layer-wise learning rates; the last norm and the projection are the last of them."""
        return dict(
            stem=r'^cls_token|pos_embed|patch_embed|norm_pre',
            blocks=[(r'^blocks\.(\d+)', None), (r'^norm\.|^fc_norm|^proj', (99999,))],
        )


def checkpoint_filter_fn(
    state_dict: dict[str, torch.Tensor],
    model: ClipVit,
    source_img_size: tuple[int, int] | None = None,
    fresh_head: bool = False,
) -> dict[str, torch.Tensor]:
    """A checkpoint for this model: every key accounted for, position embedding resized.

    The released code has no resizing of this model's positions; it is that of the other families.

    Args:
        state_dict: Tensors of a checkpoint, already unwrapped (`checkpoints.read_checkpoint`).
        model: The model that will load the result.
        source_img_size: Image size that the checkpoint was saved at, where known.
        fresh_head: Leave the checkpoint's classifier out; the model keeps its own.

    Raises:
        CheckpointError: On a key that is unknown, missing or of a wrong shape.
    """
    state_dict, layout = CLIP_VIT_KEYS.to_ours(state_dict)
    resize_to_grid(state_dict, model, partial(source_grid, model=model, layout=layout, source_img_size=source_img_size))
    return fit_to_model(state_dict, model, CLIP_VIT_KEYS, layout, fresh_head)


default_cfgs = generate_default_cfgs({release.name: plain_vit_cfg(release) for release in FAMILIES['clip_vit']})


FAMILY = Family(
    ClipVit,
    CLIP_VIT_KEYS,
    checkpoint_filter_fn,
    final_grid=lambda img_size: None,
    out_indices=3,
    feature_cfg=dict(feature_cls='getter'),
)


def _create_clip_vit(variant: str, pretrained: bool, args: dict[str, Any], kwargs: dict[str, Any]) -> ClipVit:
    tower = dict(pre_norm=True, norm_layer=partial(LayerNorm, eps=1e-5), act_layer='quick_gelu')
    return create_zoo_model(FAMILY, variant, pretrained, **{**tower, **args, **kwargs})


@register_model
def clip_vit_large_patch14_224(pretrained: bool = False, **kwargs) -> ClipVit:
    """CLIP ViT-L/14, the teacher of TinyViT: 325M parameters with its 21841 classes."""
    args = dict(patch_size=14, embed_dim=1024, depth=24, num_heads=16, proj_dim=768)
    return _create_clip_vit('clip_vit_large_patch14_224', pretrained, args, kwargs)
