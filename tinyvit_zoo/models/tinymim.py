"""TinyMIM: small ViTs that learn the token relations of a masked autoencoder.

Paper: TinyMIM: An Empirical Study of Distilling MIM Pre-trained Models, https://arxiv.org/abs/2301.01296
Released code and weights: https://github.com/OliverRensu/TinyMIM (no license given)

Three kinds of model, whose files cannot be distinguished by their shapes:

* `tinymim_vit_*`: fine-tuned, 3 / 6 / 12 heads, the mean of the patches is classified;
* `tinymim_vit_*_student_*`: pre-trained, 6 / 6 / 12 heads and 12 / 12 / 16 in the last ("adaptive") block, whose second
  half was never trained;
* `tinymim_vit_tiny_star_*`: TinyMIM*-T, 12 heads, a distillation token and an expansion before its two classifiers.

Shape legend: `B` batch, `P` prefix tokens, `N` patches, `C` width.
"""

from functools import partial
from typing import Any, Final, cast

import torch
from timm.layers import LayerNorm, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import nn

from ..releases import FAMILIES, Release
from .plain_vit import (
    PlainBlock,
    PlainVit,
    TwoHeadVit,
    WeightInit,
    checkpoint_filter_fn,
    create_plain_vit,
    plain_vit_cfg,
)

__all__ = ['TinyMim', 'TinyMimStar', 'TinyMimStudent', 'checkpoint_filter_fn']


class TinyMim(PlainVit):
    """Fine-tuned TinyMIM: a plain ViT that classifies the normalized mean of its patches (`fc_norm`)."""


def _student_block(
    num_heads: int, last_heads: int, last: int, depth: int, drop_path: float, rate: float, **kwargs
) -> PlainBlock:
    """Block number `depth` of a student: the last one has its own heads, all others the same drop path."""
    is_last = depth == last
    return PlainBlock(
        num_heads=last_heads if is_last else num_heads, drop_path=0.0 if is_last else rate, depth=depth, **kwargs
    )


class TinyMimStudent(PlainVit):
    """Pre-trained TinyMIM encoder; its features are those of the last block that was trained.

    Pre-training compares the queries, keys and values of the last block with the teacher's (`tinyvit_zoo.pretrain`), so
    only `norm1` and `attn.qkv` of that block are trained. Its projection, `norm2`, MLP and the final `norm` have their
    random initial values in the released files, and the model keeps them for the round trip; `forward` stops before
    that block.
    """

    forward_depth: Final[int]

    def __init__(
        self,
        *args,
        depth: int = 12,
        last_heads: int = 12,
        forward_depth: int | None = None,
        drop_path_rate: float = 0.0,
        **kwargs,
    ) -> None:
        """
        Args:
            *args: As in timm's `VisionTransformer`.
            depth: Blocks.
            last_heads: Attention heads of the last block, as many as the teacher's target block has (Sec. 3.2,
                adaptive block).
            forward_depth: Blocks that `forward` runs; default: all but the last. `depth` runs all and the final norm,
                for weights that were trained further.
            drop_path_rate: Stochastic depth, the same in all blocks but the last, where there is none; as released.
            **kwargs: As in timm's `VisionTransformer`.

        Raises:
            ValueError: If `forward_depth` is not in 1 ... depth.
        """
        block = partial(_student_block, last_heads=last_heads, last=depth - 1, rate=drop_path_rate)
        super().__init__(*args, depth=depth, block_fn=block, **kwargs)
        forward_depth = max(1, depth - 1) if forward_depth is None else forward_depth
        if not 1 <= forward_depth <= depth:
            raise ValueError(f'forward_depth must be in 1 ... {depth}, got {forward_depth}.')
        self.forward_depth = forward_depth
        self.stops_early = forward_depth < depth
        self.feature_info = self.feature_info[:forward_depth]

    @torch.jit.ignore
    def unreached_parameters(self) -> list[str]:
        """Names of the parameters that its output does not depend on, which training then leaves as they are."""
        if not self.stops_early:
            return []
        tail = tuple(f'blocks.{i}.' for i in range(self.forward_depth, len(self.blocks)))
        return [name for name, _ in self.named_parameters() if name.startswith((*tail, 'norm.'))]

    def _normed(self, x: torch.Tensor) -> torch.Tensor:
        """The end of the features: the final norm only behind the whole model, since it was not trained."""
        return x if self.stops_early else self.norm(x)

    def forward_features(
        self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False
    ) -> torch.Tensor:
        """(B, in_chans, H, W) -> (B, P + N, C) after `forward_depth` blocks, not normalized."""
        x = self._embed(x)
        for i, block in enumerate(self.blocks):
            if i < self.forward_depth:
                if torch.jit.is_scripting():
                    x = block(x, attn_mask=attn_mask, is_causal=is_causal)
                else:
                    x = self._run(block, x, attn_mask, is_causal)
        return self._normed(x)

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False) -> torch.Tensor:
        return self.forward_head(self.forward_features(x, attn_mask, is_causal))

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: torch.Tensor | None = None,
        is_causal: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]] | dict[str, Any]:
        """Outputs of blocks, as timm's ViT returns them; `indices` count the `forward_depth` blocks that run.

        Args:
            x: Images (B, in_chans, H, W).
            indices: Blocks to return: the last n if an int, all if None, else those listed.
            return_prefix_tokens: Return pairs of patches and prefix tokens (B, P, C).
            norm: Apply the final norm to each; it was not trained.
            stop_early: Stop after the last block asked for.
            output_fmt: 'NCHW' or 'NLC'.
            intermediates_only: Return the list alone.
            output_dict: Return a dictionary with the keys of timm's ViT instead.
            attn_mask: As in `forward_features`.
            is_causal: As in `forward_features`.

        Returns:
            The final features and the list of (B, C, h, w) or (B, N, C); the list alone; or a dictionary.
        """
        if output_fmt not in ('NCHW', 'NLC'):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NLC', got '{output_fmt}'.")
        take_indices, last = feature_take_indices(self.forward_depth, indices)
        height, width = self.patch_embed.dynamic_feat_size((x.shape[-2], x.shape[-1]))
        x = self._embed(x)
        taken = []
        for i, block in enumerate(self.blocks[: last + 1 if stop_early else self.forward_depth]):
            x = self._run(block, x, attn_mask, is_causal)
            if i in take_indices:
                taken.append(self.norm(x) if norm else x)
        patches = [y[:, self.num_prefix_tokens :] for y in taken]
        if output_fmt == 'NCHW':
            patches = [y.transpose(1, 2).unflatten(2, (height, width)) for y in patches]
        prefix = [y[:, : self.num_prefix_tokens] for y in taken]
        if output_dict:
            with_prefix = dict(image_intermediates_prefix=prefix) if return_prefix_tokens else {}
            features = {} if intermediates_only else dict(image_features=self._normed(x))
            return dict(image_intermediates=patches, **with_prefix, **features)
        outputs: list[Any] = list(zip(patches, prefix, strict=True)) if return_prefix_tokens else patches
        return outputs if intermediates_only else (self._normed(x), outputs)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the blocks after the last of `indices`, which count the blocks that run."""
        take_indices, last = feature_take_indices(self.forward_depth, indices)
        self.blocks = self.blocks[: last + 1]
        self.forward_depth = last + 1  # type: ignore[misc]  # Final is for TorchScript, where it makes a constant
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.fc_norm = nn.Identity()
            self.reset_classifier(0, '')
        return take_indices


FIXED_IN_STAR = ('class_token', 'reg_tokens', 'pos_embed', 'no_embed_class', 'fc_norm', 'pool_include_prefix')


class TinyMimStar(TwoHeadVit):
    """TinyMIM*-T: a class and a distillation token, and an expansion of all tokens before two classifiers.

    The authors published this model's segmentation backbone, but not how its classifier reads the tokens. That part is
    inferred from the names and shapes in their training log: all tokens are expanded (`conv1x1`), one classifier reads
    the normalized mean of the patches, the other the distillation token (index 1), and evaluation takes the mean of
    both. Whether this gives the published accuracy could not be checked without the file; a file whose `fc_norm` has
    another width than the expansion is refused.
    """

    def __init__(
        self,
        *args,
        embed_dim: int = 192,
        expand_dim: int = 1280,
        weight_init: WeightInit = '',
        device=None,
        dtype=None,
        **kwargs,
    ) -> None:
        """
        Args:
            *args: As in timm's `VisionTransformer`.
            embed_dim: Width C of the tokens.
            expand_dim: Width that the classifiers read.
            weight_init: As in timm's `VisionTransformer`.
            device: Of the parameters.
            dtype: Of the parameters.
            **kwargs: As in timm's `VisionTransformer`.

        Raises:
            TypeError: On an argument about its tokens or norms, which are fixed.
        """
        dd = {'device': device, 'dtype': dtype}
        given = [name for name in FIXED_IN_STAR if name in kwargs]
        if given:
            raise TypeError(f'TinyMIM* takes no {", ".join(given)}: its tokens, positions and norms are fixed.')
        super().__init__(*args, embed_dim=embed_dim, final_norm=False, weight_init='skip', **dd, **kwargs)
        self.num_features = self.head_hidden_size = expand_dim
        self.num_prefix_tokens = 2
        cast(Any, self.patch_drop).num_prefix_tokens = 2  # an attribute without effect where no patches are dropped
        self.dist_token = nn.Parameter(torch.empty(1, 1, embed_dim, **dd))
        self.pos_embed = nn.Parameter(torch.empty(1, self.patch_embed.num_patches + 2, embed_dim, **dd))
        # The only norm of the model with torch's default eps of 1e-5, as released.
        expansion = [nn.LayerNorm(embed_dim, **dd), nn.Linear(embed_dim, expand_dim, **dd), nn.GELU()]
        self.conv1x1: nn.Module = nn.Sequential(*expansion)
        self.fc_norm = LayerNorm(expand_dim, **dd)
        self._build_classifiers(**dd)
        self._finish(weight_init)

    def init_weights(self, mode: str = '', needs_reset: bool = True) -> None:
        """(Re-)initialize everything."""
        trunc_normal_(self.dist_token, std=0.02)
        super().init_weights(mode, needs_reset)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        """Layers for layer-wise learning rates; the expansion is the last of them."""
        return dict(
            stem=r'^cls_token|dist_token|pos_embed|patch_embed',
            blocks=[(r'^blocks\.(\d+)', None), (r'^conv1x1', (99999,))],
        )

    def _with_prefix(self, x: torch.Tensor) -> torch.Tensor:
        batch = x.shape[0]
        assert self.cls_token is not None
        return torch.cat([self.cls_token.expand(batch, -1, -1), self.dist_token.expand(batch, -1, -1), x], dim=1)

    def forward_features(
        self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False
    ) -> torch.Tensor:
        """(B, in_chans, H, W) -> all tokens (B, 2 + N, expand_dim)."""
        x = self._embed(x)
        for block in self.blocks:
            if torch.jit.is_scripting():
                x = block(x, attn_mask=attn_mask, is_causal=is_causal)
            else:
                x = self._run(block, x, attn_mask, is_causal)
        return self.conv1x1(x)

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False) -> torch.Tensor:
        return self.forward_head(self.forward_features(x, attn_mask, is_causal))

    def forward_intermediates(
        self, x: torch.Tensor, indices: int | list[int] | None = None, *args: Any, **kwargs: Any
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]] | dict[str, Any]:
        """As in timm's `VisionTransformer`: blocks give (B, C, h, w), the final features are expanded."""
        outputs = super().forward_intermediates(x, indices, *args, **kwargs)
        if isinstance(outputs, tuple):
            return self.conv1x1(outputs[0]), outputs[1]
        if isinstance(outputs, dict) and 'image_features' in outputs:
            outputs['image_features'] = self.conv1x1(outputs['image_features'])
        return outputs

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the blocks after the last of `indices`; the expansion belongs to the head."""
        take_indices = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_head:
            self.conv1x1 = nn.Identity()
            self.num_features = self.head_hidden_size = self.embed_dim
        return take_indices

    def _pooled(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.fc_norm(x[:, 2:].mean(dim=1)), x[:, 1]


def _cfg(release: Release) -> dict:
    classifier = ('head', 'head_dist') if '_star_' in release.architecture else 'head'
    return plain_vit_cfg(release, classifier=classifier)


default_cfgs = generate_default_cfgs({release.name: _cfg(release) for release in FAMILIES['tinymim']})


@register_model
def tinymim_vit_tiny_patch16_224(pretrained: bool = False, **kwargs) -> TinyMim:
    """TinyMIM-T: 3 heads, 5.7M parameters."""
    args = dict(embed_dim=192, num_heads=3, global_pool='avg')
    return create_plain_vit(TinyMim, 'tinymim_vit_tiny_patch16_224', pretrained, args, kwargs)


@register_model
def tinymim_vit_small_patch16_224(pretrained: bool = False, **kwargs) -> TinyMim:
    """TinyMIM-S: 6 heads, 22.1M parameters."""
    args = dict(embed_dim=384, num_heads=6, global_pool='avg')
    return create_plain_vit(TinyMim, 'tinymim_vit_small_patch16_224', pretrained, args, kwargs)


@register_model
def tinymim_vit_base_patch16_224(pretrained: bool = False, **kwargs) -> TinyMim:
    """TinyMIM-B: 12 heads, 86.6M parameters."""
    args = dict(embed_dim=768, num_heads=12, global_pool='avg')
    return create_plain_vit(TinyMim, 'tinymim_vit_base_patch16_224', pretrained, args, kwargs)


# Students have no classifier; their features are the mean of the patches, as fine-tuning reads them.
STUDENT = dict(global_pool='avg', fc_norm=False)


@register_model
def tinymim_vit_tiny_student_patch16_224(pretrained: bool = False, **kwargs) -> TinyMimStudent:
    """Pre-trained TinyMIM-T: 6 heads, 12 in the last block, which is not part of its features."""
    args = dict(embed_dim=192, num_heads=6, last_heads=12, **STUDENT)
    return create_plain_vit(TinyMimStudent, 'tinymim_vit_tiny_student_patch16_224', pretrained, args, kwargs)


@register_model
def tinymim_vit_small_student_patch16_224(pretrained: bool = False, **kwargs) -> TinyMimStudent:
    """Pre-trained TinyMIM-S: 6 heads, 12 in the last block, which is not part of its features."""
    args = dict(embed_dim=384, num_heads=6, last_heads=12, **STUDENT)
    return create_plain_vit(TinyMimStudent, 'tinymim_vit_small_student_patch16_224', pretrained, args, kwargs)


@register_model
def tinymim_vit_base_student_patch16_224(pretrained: bool = False, **kwargs) -> TinyMimStudent:
    """Pre-trained TinyMIM-B: 12 heads, 16 in the last block, which is not part of its features."""
    args = dict(embed_dim=768, num_heads=12, last_heads=16, **STUDENT)
    return create_plain_vit(TinyMimStudent, 'tinymim_vit_base_student_patch16_224', pretrained, args, kwargs)


@register_model
def tinymim_vit_tiny_star_patch16_224(pretrained: bool = False, **kwargs) -> TinyMimStar:
    """TinyMIM*-T: 12 heads, a distillation token, two classifiers of width 1280."""
    args = dict(embed_dim=192, num_heads=12, global_pool='avg')
    return create_plain_vit(TinyMimStar, 'tinymim_vit_tiny_star_patch16_224', pretrained, args, kwargs)
