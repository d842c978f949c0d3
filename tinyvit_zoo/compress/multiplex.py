"""Weight multiplexing of any timm ViT or Swin: share and transform (MiniViT paper Sec. 3.1 and 3.2, phase 1)."""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import Attention
from timm.models import filter_pretrained_cfg
from timm.models.swin_transformer import SwinTransformer, WindowAttention
from timm.models.vision_transformer import Block
from torch import nn

from .init import initialize
from .share import Group, find_groups, find_stages, keep_each_once, tie
from .transform import (
    EMBEDDINGS,
    GridConv,
    MixedAttention,
    MixedWindowAttention,
    MultiplexedSwinBlock,
    MultiplexedVitBlock,
    TokenConv,
)

__all__ = ['Restructured', 'describe_weights', 'multiplex', 'restructure']

MIXED: dict[type[nn.Module], Any] = {Attention: MixedAttention, WindowAttention: MixedWindowAttention}
VIT_KERNEL = 7
"""Side of a plain ViT's convolution: that of a Swin at 224 pixels. The paper names none, and a ViT has no windows."""


def multiplex(
    model: nn.Module,
    share_every: int | str = 2,
    transform: bool = True,
    *,
    mlp_transform: bool | None = None,
    mlp_conv_kernel: int | Sequence[int] | None = None,
    share_norms: bool = False,
    init: str = 'best',
    calibration: Iterable[torch.Tensor] | None = None,
    fit: bool | None = None,
) -> nn.Module:
    """A model of the same class in which adjacent blocks share their weights. `model` is not changed.

    Blocks of a group hold the same layers as the same module objects. So a hook on `blocks[0].attn.qkv` runs once for
    every block that shares it, in their order; tools that replace layers by name (LoRA) find a shared one in its
    first block only, and leave the original in the others; layer-wise learning rates treat it as that block's. Call
    `torch.func.functional_call` with `tie_weights=False`: otherwise it does not restore such a layer's weights.

    Args:
        model: A timm `VisionTransformer` (ViT, DeiT, MAE, CLIP, DINO, SigLIP, ...) or `SwinTransformer`.
        share_every: Number of blocks that share one set of weights; must divide the depth (of every stage). 'stage':
            all blocks of a stage; a plain ViT is one stage. Groups never cross stages.
        transform: Give every layer its own head mixing, initialized to identity. Without it the attention stays timm's.
        mlp_transform: Give every layer its own depthwise convolution before the MLP, initialized to identity; in a ViT
            it is over the patches, and the other tokens stay as they are. Default: on if `transform` is on and the
            model is a Swin (as in the paper, which found little use for it in DeiT).
        mlp_conv_kernel: Side of that convolution, odd; one for all stages or one each. Default: the stage's window
            (paper Sec. 4.1), plus one if that is even; 7 in a ViT.
        share_norms: Share norms and layer scales, too: without transformations a group is then one block that runs
            several times (paper Eq. 4 and Fig. 2a, which it found to train badly).
        init: Initial weights of a group: those of its 'first' block, the 'mean' of its blocks, or the 'best' among
            all its blocks' and their mean, group by group: those with which the rest of `model`, applied to the
            group's output, comes closest to the features of `model`. That is greedy: in 3 of 24 small random Swins
            'first' or 'mean' for all groups ended up closer.
        calibration: Batches of preprocessed images (B, in_chans, H, W), like those that the model is meant for; a few
            dozen images suffice. Default: 32 images of noise with the spectrum of natural images, for `init='best'`
            only.
        fit: Fit the parameters that each layer keeps to itself (norms, layer scales, transformations) so that its
            output is closest to that of the same layer of `model`: least squares on the calibration images, no labels.
            Default: on if `calibration` is given. Layers that share all they have are not fitted.

    Returns:
        The multiplexed model, in the same mode and dtype and on the same device. `save_folder` and timm's Hub functions
        save it so that `timm.create_model` makes it again, if `model` came from `timm.create_model`.

    Raises:
        ValueError: On another kind of model, blocks that do not match, or arguments that do not fit.
    """
    cfg: dict[str, Any] = getattr(model, 'pretrained_cfg', None) or {}
    if cfg.get('architecture') == 'multiplexed':
        raise ValueError('This model is already multiplexed: multiplex the one that it was made from.')
    student: Any = deepcopy(model)
    new = restructure(student, share_every, transform, mlp_transform, mlp_conv_kernel, share_norms)
    fit = calibration is not None if fit is None else fit
    initialize(model, student, new.groups, init, calibration, fit)
    if cfg:  # made by `timm.create_model`
        student._model_args = dict(getattr(model, '_model_args', {}), base=cfg['architecture'], **new.args)
        student.pretrained_cfg = student.default_cfg = describe_weights(cfg)
    return student


def describe_weights(cfg: dict[str, Any]) -> dict[str, Any]:
    """The pretrained cfg of a model made from one with `cfg`: its license and preprocessing, not its tag and files."""
    kept = filter_pretrained_cfg(cfg, remove_source=True)
    return {k: v for k, v in kept.items() if k not in ('tag', 'state_dict')} | dict(architecture='multiplexed')


@dataclass(frozen=True)
class Restructured:
    """Result of `restructure`.

    Attributes:
        groups: Groups of blocks that now share weights, by stage, with the previous weights of each block.
        args: Arguments that do the same to another model, regardless of its windows.
    """

    groups: list[list[Group]]
    args: dict[str, Any]


def restructure(
    model: nn.Module,
    share_every: int | str = 2,
    transform: bool = True,
    mlp_transform: bool | None = None,
    mlp_conv_kernel: int | Sequence[int] | None = None,
    share_norms: bool = False,
) -> Restructured:
    """Insert the transformations and share the weights, in place; every group gets those of its first block.

    Arguments and errors as in `multiplex`.
    """
    find_groups(model, share_every, share_norms)  # raises before anything is changed
    if len(list(model.parameters())) < len(list(model.named_parameters(remove_duplicate=False))):
        raise ValueError('Layers of this model already share weights: multiplex the model that it was made from.')
    if mlp_transform is None:
        mlp_transform = transform and isinstance(model, SwinTransformer)
    if mlp_conv_kernel is not None and not mlp_transform:
        raise ValueError('mlp_conv_kernel is for the MLP transformation, which is off for this model.')
    sizes = _conv_sizes(model, mlp_conv_kernel) if mlp_transform else None
    if transform:
        _mix_heads(model)
    if sizes and isinstance(model, SwinTransformer):
        _convolve_grid(model, sizes)
    elif sizes:
        _convolve_tokens(model, sizes[0])
    groups = [[tie(blocks, share_norms) for blocks in stage] for stage in find_groups(model, share_every, share_norms)]
    keep_each_once(model)
    args: dict[str, Any] = dict(share_every=share_every, transform=transform, mlp_transform=mlp_transform)
    if sizes:
        args['mlp_conv_kernel'] = sizes
    if share_norms:
        args['share_norms'] = True
    return Restructured(groups, args)


def _mix_heads(model: nn.Module) -> None:
    found = [
        (block, name, attn)
        for stage in find_stages(model)
        for block in stage.blocks
        for name, attn in block.named_modules()
        if type(attn) in MIXED
    ]
    unknown = {type(block).__name__ for stage in find_stages(model) for block in stage.blocks} - {
        type(block).__name__ for block, _, _ in found
    }
    if unknown:
        raise ValueError(
            f"{', '.join(sorted(unknown))} has no attention whose heads could be mixed (timm's Attention or "
            'WindowAttention): pass transform=False to share weights without transformations.'
        )
    for block, name, attn in found:
        parent, _, child = name.rpartition('.')
        setattr(block.get_submodule(parent), child, MIXED[type(attn)](attn).train(attn.training))


def _conv_sizes(model: nn.Module, kernel_size: int | Sequence[int] | None) -> list[int]:
    """Side of each stage's convolution."""
    stages = find_stages(model)
    if not isinstance(model, SwinTransformer):
        _check_tokens(model)
    if kernel_size is None:
        if not isinstance(model, SwinTransformer):
            return [VIT_KERNEL]
        firsts: list[Any] = [stage.blocks[0] for stage in stages]
        return [max(block.window_size) // 2 * 2 + 1 for block in firsts]
    sizes = list(kernel_size) if isinstance(kernel_size, Sequence) else [kernel_size] * len(stages)
    if len(sizes) != len(stages) or not all(type(s) is int and s > 0 and s % 2 == 1 for s in sizes):
        each = f', or one for each of the {len(stages)} stages' if len(stages) > 1 else ''
        raise ValueError(f'mlp_conv_kernel must be an odd number{each}; got {kernel_size!r}.')
    return sizes


def _check_tokens(model: Any) -> None:
    """Refuse a ViT whose blocks are of another kind, or do not always see the whole grid of one size."""
    others = {type(block).__name__ for block in model.blocks if type(block) is not Block}
    if others:
        raise ValueError(
            f'{", ".join(sorted(others))} has no place before its MLP for the convolution of the MLP transformation '
            "(timm's Block has): leave mlp_transform out."
        )
    if type(model.patch_embed) not in EMBEDDINGS:
        raise ValueError(
            f'{type(model.patch_embed).__name__} does not say the grid of its patches, which the MLP transformation '
            'needs: leave mlp_transform out.'
        )
    if model.dynamic_img_size:
        raise ValueError(
            'The MLP transformation of a ViT needs a grid of patches that stays: leave dynamic_img_size out, and say '
            'the size by img_size or set_input_size.'
        )
    if not isinstance(model.patch_drop, nn.Identity):
        raise ValueError(
            'The MLP transformation of a ViT needs all patches of the grid: leave patch_drop_rate out, or '
            'mlp_transform.'
        )


def _convolve_grid(model: SwinTransformer, sizes: list[int]) -> None:
    block: Any
    for stage, size in zip(find_stages(model), sizes, strict=True):
        for block in stage.blocks:
            weight = block.norm2.weight
            block.mlp_conv = GridConv(block.dim, size, weight.device, weight.dtype).train(block.training)
            block.__class__ = MultiplexedSwinBlock  # the same layers under the same names, and one more
            block._is_unfilled = any(buffer.is_meta for buffer in block.buffers())


def _convolve_tokens(model: Any, size: int) -> None:
    embed, prefix = model.patch_embed, model.num_prefix_tokens
    for block in model.blocks:
        weight = block.mlp.fc1.weight
        conv = TokenConv(model.embed_dim, size, embed.grid_size, prefix, weight.device, weight.dtype)
        block.mlp_conv = conv.train(block.training)
        block.__class__ = MultiplexedVitBlock
    embed.grid_convs = tuple(block.mlp_conv for block in model.blocks)
    embed.__class__ = EMBEDDINGS[type(embed)]
