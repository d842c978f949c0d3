"""Plain ViTs in pre-training: initialization, and runs up to a chosen block or on some of the patches only.

Shape legend: `B` images, `N` patches, `K` visible patches, `P` prefix tokens, `C` width, `H` heads, `d` head width.
"""

from collections.abc import Collection
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..distill import HeadQKV
from ..layers import sincos_position

__all__ = [
    'block_inputs',
    'check_block',
    'check_visible',
    'embed',
    'fix_position',
    'head_qkv',
    'init_as_mae',
    'refuse_arguments',
    'visible_tokens',
]


def embed(vit: VisionTransformer, images: torch.Tensor) -> torch.Tensor:
    """Input of the first block: (B, 3, H, W) -> (B, P + N, C)."""
    return vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))


def visible_tokens(vit: VisionTransformer, images: torch.Tensor, ids_keep: torch.Tensor) -> torch.Tensor:
    """Input of the first block when it sees only some patches.

    Args:
        vit: A plain ViT.
        images: (B, 3, H, W).
        ids_keep: int64 (B, K), indices of the visible patches in the order of the result.

    Returns:
        (B, P + K, C).
    """
    x = embed(vit, images)
    prefix, patches = x[:, : vit.num_prefix_tokens], x[:, vit.num_prefix_tokens :]
    return torch.cat([prefix, patches.gather(1, ids_keep[..., None].expand(-1, -1, patches.shape[-1]))], dim=1)


def block_inputs(vit: VisionTransformer, tokens: torch.Tensor, blocks: Collection[int]) -> dict[int, torch.Tensor]:
    """Inputs of the chosen blocks. Blocks after the last of them are not run.

    Args:
        vit: A plain ViT.
        tokens: (B, P + K, C), from `embed` or `visible_tokens`.
        blocks: Indices from 0; the depth stands for the output of the last block.

    Returns:
        (B, P + K, C) for each.
    """
    inputs = {}
    for i in range(max(blocks) + 1):
        if i in blocks:
            inputs[i] = tokens
        if i < max(blocks):
            block = vit.blocks[i]
            recompute = vit.grad_checkpointing and torch.is_grad_enabled()
            tokens = checkpoint(block, tokens, use_reentrant=False) if recompute else block(tokens)
    return inputs


def head_qkv(block: Any, tokens: torch.Tensor, heads: int | None = None) -> HeadQKV:
    """Queries, keys and values of a block, from its input; nothing after the projection is computed.

    Args:
        block: timm's `Block`: a `norm1`, and an `attn` with a fused `qkv`.
        tokens: (B, M, C).
        heads: H, any divisor of C; None for the block's own.

    Returns:
        Each (B, H, M, d).
    """
    qkv = block.attn.qkv(block.norm1(tokens))
    qkv = qkv.unflatten(-1, (3, block.attn.num_heads if heads is None else heads, -1))  # (B, M, 3, H, d)
    return HeadQKV(*qkv.permute(2, 0, 3, 1, 4).unbind(0))


@torch.no_grad()
def init_as_mae(vit: VisionTransformer, needs_reset: bool = True) -> None:
    """(Re-)initialize a ViT in place as MAE does; its position embedding becomes the fixed sine-cosine table.

    Linear layers are Xavier-uniform (queries, keys and values as one matrix) with bias 0, and so is the patch
    projection as a matrix (C, patch pixels); its bias keeps the default of a convolution. Class token: normal with
    standard deviation 0.02.

    Args:
        vit: A plain ViT with a class token and a position embedding for every token.
        needs_reset: Also reset the layers that have no rule here (norms, the bias of the patch projection).
    """
    for m in vit.modules():
        reset = getattr(m, 'reset_parameters', None)
        if needs_reset and m is not vit and reset is not None:
            reset()
        if isinstance(m, nn.Linear):
            nn.init.xavier_uniform_(m.weight)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
    nn.init.xavier_uniform_(vit.patch_embed.proj.weight.flatten(1))
    assert vit.cls_token is not None
    assert vit.pos_embed is not None
    nn.init.normal_(vit.cls_token, std=0.02)
    fix_position(vit.pos_embed, vit.patch_embed.grid_size)


@torch.no_grad()
def fix_position(pos_embed: nn.Parameter, grid: tuple[int, int]) -> None:
    """Set a position embedding (1, 1 + N, C) to the sine-cosine table of its grid, and freeze it."""
    pos_embed.copy_(sincos_position(pos_embed.shape[-1], grid, dtype=pos_embed.dtype, device=pos_embed.device))
    pos_embed.requires_grad_(False)


def refuse_arguments(factory: str, kwargs: Collection[str], unused: Collection[str]) -> None:
    """Refuse arguments of a ViT that would have no effect on what a form of pre-training computes.

    Raises:
        TypeError: If one of them is given.
    """
    given = [name for name in kwargs if name in unused]
    if given:
        raise TypeError(f'{factory} takes no {", ".join(given)}: it would have no effect.')


def check_block(block: Any, heads: int | None = None) -> None:
    """Refuse a block that `head_qkv` would misread.

    Raises:
        ValueError: If it has no fused `qkv`, normalizes queries and keys, or its width is not a multiple of `heads`.
    """
    attn = block.attn
    if not isinstance(getattr(attn, 'qkv', None), nn.Linear):
        raise ValueError(f'{type(attn).__name__} has no fused qkv projection to take queries, keys and values from.')
    if not all(isinstance(getattr(attn, name, None), nn.Identity | None) for name in ('q_norm', 'k_norm')):
        raise ValueError(f'{type(attn).__name__} normalizes queries and keys, which plain ViTs do not.')
    width = attn.qkv.out_features // 3
    if heads is not None and (heads < 1 or width % heads):
        raise ValueError(f'{heads} heads do not divide the width {width}.')


def check_visible(vit: Any) -> None:
    """Refuse a ViT that cannot run on some of the patches.

    Raises:
        ValueError: If its attention has relative positions, of all patches.
    """
    if any(getattr(block.attn, 'needs_all_patches', False) for block in vit.blocks):
        raise ValueError(
            'The attention of the teacher has relative positions of all patches, and it is to see some of them only: '
            'choose another teacher, or leave the mask out.'
        )
