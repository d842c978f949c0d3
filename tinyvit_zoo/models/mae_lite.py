"""MAE-Lite: lightweight ViTs pre-trained by masked autoencoding, with and without distillation, or by MoCo v3.

Paper: A Closer Look at Self-Supervised Lightweight Vision Transformers, https://arxiv.org/abs/2205.14443
Released code and weights: https://github.com/wangsr126/MAE-Lite (Apache-2.0; parts modified from MAE, CC-BY-NC 4.0)

All have 12 heads, ViT-Tiny and ViT-Small alike, where timm's and DeiT's have 3 and 6 at equal shapes. Fine-tuned models
classify the normalized mean of their patches; encoders normalize all tokens and take the mean of the patches.

Shape legend: `B` batch, `N` patches, `C` width.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm, is_exporting
from timm.models import Beit, beit, generate_default_cfgs, register_model
from torch import nn

from ..layers import (
    FillsBuffers,
    beit_offset_index,
    beit_table_rows,
    check_patch_grid,
    is_observed,
    is_untouched,
    resize_beit_table,
    resize_position,
)
from ..releases import FAMILIES, Release
from .plain_vit import (
    PlainVit,
    TwoHeadVit,
    WeightInit,
    checkpoint_filter_fn,
    create_plain_vit,
    plain_vit_cfg,
    set_patch_grid,
)

__all__ = ['MaeLite', 'MaeLiteDistilled', 'MaeLiteRpe', 'checkpoint_filter_fn']


class MaeLite(PlainVit):
    """MAE-Lite's plain ViT."""


class MaeLiteDistilled(TwoHeadVit):
    """MAE-Lite's plain ViT with two classifiers; the class token serves as DeiT's distillation token.

    As in the released code with `distilled=True`. The mean of the patches and the class token have a norm each.
    """

    def __init__(self, *args: Any, weight_init: WeightInit = '', device=None, dtype=None, **kwargs) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__(*args, weight_init='skip', **dd, **kwargs)
        self.dist_norm: nn.Module = LayerNorm(self.embed_dim, **dd)
        self._finish(weight_init)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the blocks after the last of `indices`; `dist_norm` belongs to the head."""
        take_indices = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_head:
            self.dist_norm = nn.Identity()
        return take_indices

    def _pooled(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.fc_norm(self.pool(x)), self.dist_norm(x[:, 0])


class TableAttention(beit.Attention):
    """The attention of timm's BEiT, which calls its projection `qkv`. (B, N, C).

    timm reads that layer's weight instead, and never calls it: an adapter around it (LoRA) would do nothing, a hook
    would hear nothing, and offloaded weights would not be there.
    """

    def _project(self, x: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values (B, N, 3 C), with the biases that the checkpoints store apart from the weight."""
        if self.q_bias is None or self.k_bias is None or self.v_bias is None:  # all or none
            return self.qkv(x)
        bias = torch.cat((self.q_bias, self.k_bias, self.v_bias))
        if not torch.jit.is_scripting() and self._adds_bias(x):
            return F.linear(x, self.qkv.weight, bias)
        return self.qkv(x) + bias

    @torch.jit.unused
    def _adds_bias(self, x: torch.Tensor) -> bool:
        """Whether the product itself can add the bias, which saves a pass: not in graphs, and where nobody notices."""
        in_graph = torch.compiler.is_compiling() or torch.jit.is_tracing() or is_exporting()
        return not in_graph and not is_observed() and is_untouched(self.qkv, nn.Linear) and self.qkv.bias is None

    def forward(self, x: torch.Tensor, shared_rel_pos_bias: torch.Tensor | None = None) -> torch.Tensor:
        B, N, C = x.shape
        qkv = self._project(x).reshape(B, N, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        bias = shared_rel_pos_bias
        if self.relative_position_bias_table is not None:
            bias = self._get_rel_pos_bias()
            if shared_rel_pos_bias is not None:
                bias = bias + shared_rel_pos_bias
        if self.fused_attn:
            drop = self.attn_drop.p if self.training else 0.0
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=drop)
        else:
            attn = (q * self.scale) @ k.transpose(-2, -1)
            if bias is not None:
                attn = attn + bias
            x = self.attn_drop(attn.softmax(dim=-1)) @ v
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(B, N, C)))


class MaeLiteRpe(FillsBuffers, Beit):
    """timm's BEiT with the relative-position tables and LayerScale of MAE-Lite, resized as in released code."""

    def __init__(self, img_size: int | tuple[int, int] = 224, patch_size: int | tuple[int, int] = 16, **kwargs) -> None:
        """
        Args:
            img_size: Image size, int or (H, W), a multiple of the patch.
            patch_size: Patch size, int or (h, w).
            **kwargs: As in timm's `Beit`.
        """
        check_patch_grid(img_size, patch_size)
        super().__init__(img_size=img_size, patch_size=patch_size, **kwargs)
        for block in self.blocks:
            cast(Any, block).attn.__class__ = TableAttention  # the same layers under the same names
        self._is_unfilled = any(buffer.is_meta for buffer in self.buffers())

    def init_non_persistent_buffers(self) -> None:
        """Fill the indices of the tables, which no checkpoint holds."""
        for module in self.modules():
            if module is not self and hasattr(module, 'init_non_persistent_buffers'):
                cast(Any, module).init_non_persistent_buffers()

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """As in the released training code, which applies weight decay to the tables."""
        return {'pos_embed', 'cls_token'}

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Change the image (or patch) size; position embedding and tables are resized.

        Raises:
            ValueError: On a size that is not a multiple of the patch; the model is then unchanged.
        """
        old = set_patch_grid(self, img_size, patch_size)
        grid = self.patch_embed.grid_size
        if grid == old:
            return
        if self.pos_embed is not None:
            resized = resize_position(self.pos_embed.detach(), old, grid, prefix_tokens=1).contiguous()
            self.pos_embed = nn.Parameter(resized, requires_grad=self.pos_embed.requires_grad)
        for bias in (self.rel_pos_bias, *(cast(Any, block).attn for block in self.blocks)):
            if bias is not None and bias.relative_position_bias_table is not None:
                _set_window(bias, old, grid)


def _set_window(bias: Any, old: tuple[int, int], new: tuple[int, int]) -> None:
    """Resize the table of timm's `Attention` or `RelativePositionBias` (of its BEiT) to another grid.

    Their own `set_window_size` would interpolate linearly, see `resize_beit_table`.
    """
    table = bias.relative_position_bias_table
    bias.relative_position_bias_table = nn.Parameter(
        resize_beit_table(table.detach(), old, new), requires_grad=table.requires_grad
    )
    bias.register_buffer('relative_position_index', beit_offset_index(new, device=table.device), persistent=False)
    bias.window_size, bias.window_area = new, new[0] * new[1]
    bias.num_relative_distance = beit_table_rows(new)


def _cfg(release: Release) -> dict:
    return plain_vit_cfg(release)


default_cfgs = generate_default_cfgs({release.name: _cfg(release) for release in FAMILIES['mae_lite']})


def _create_mae_lite(
    variant: str, pretrained: bool, args: dict, kwargs: dict, distilled: bool
) -> MaeLite | MaeLiteDistilled:
    if distilled:
        return create_plain_vit(MaeLiteDistilled, variant, pretrained, args, kwargs)
    return create_plain_vit(MaeLite, variant, pretrained, args, kwargs)


@register_model
def mae_lite_vit_tiny_patch16_224(pretrained: bool = False, distilled: bool = False, **kwargs) -> nn.Module:
    """MAE-Lite's ViT-Tiny, fine-tuned: 12 heads, 5.7M parameters. `distilled`: see `MaeLiteDistilled`."""
    args = dict(embed_dim=192, num_heads=12, global_pool='avg')
    return _create_mae_lite('mae_lite_vit_tiny_patch16_224', pretrained, args, kwargs, distilled)


@register_model
def mae_lite_vit_small_patch16_224(pretrained: bool = False, distilled: bool = False, **kwargs) -> nn.Module:
    """MAE-Lite's ViT-Small, fine-tuned: 12 heads, 22.1M parameters. `distilled`: see `MaeLiteDistilled`."""
    args = dict(embed_dim=384, num_heads=12, global_pool='avg')
    return _create_mae_lite('mae_lite_vit_small_patch16_224', pretrained, args, kwargs, distilled)


# The norm of all tokens is trained; the mean of the patches is what all released fine-tunings read.
ENCODER = dict(num_heads=12, global_pool='avg', fc_norm=False)


@register_model
def mae_lite_vit_tiny_encoder_patch16_224(pretrained: bool = False, **kwargs) -> MaeLite:
    """MAE-Lite's ViT-Tiny, pre-trained. The class token instead of the mean: `global_pool='token'`."""
    args = dict(embed_dim=192, **ENCODER)
    return create_plain_vit(MaeLite, 'mae_lite_vit_tiny_encoder_patch16_224', pretrained, args, kwargs)


@register_model
def mae_lite_vit_small_encoder_patch16_224(pretrained: bool = False, **kwargs) -> MaeLite:
    """MAE-Lite's ViT-Small, pre-trained. The class token instead of the mean: `global_pool='token'`."""
    args = dict(embed_dim=384, **ENCODER)
    return create_plain_vit(MaeLite, 'mae_lite_vit_small_encoder_patch16_224', pretrained, args, kwargs)


@register_model
def mae_lite_vit_tiny_rpe_patch16_224(pretrained: bool = False, **kwargs) -> MaeLiteRpe:
    """MAE-Lite's ViT-Tiny with relative-position tables: 12 heads, LayerScale, 5.8M parameters."""
    args = dict(embed_dim=192, num_heads=12, init_values=0.1, use_rel_pos_bias=True)
    return create_plain_vit(MaeLiteRpe, 'mae_lite_vit_tiny_rpe_patch16_224', pretrained, args, kwargs)
