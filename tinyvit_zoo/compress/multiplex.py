"""Weight multiplexing of any timm ViT or Swin: share, and transform (MiniViT paper Sec. 3.1 and 3.2, phase 1)."""

from collections.abc import Iterable, Sequence
from copy import deepcopy

import torch
from timm.layers import Attention
from timm.models import filter_pretrained_cfg
from timm.models.swin_transformer import SwinTransformer, WindowAttention
from torch import nn

from .share import find_stages, groups, keep_each_once, tie
from .start import choose_weights, shared_tensors
from .transform import GridConv, MixedAttention, MixedWindowAttention, MultiplexedSwinBlock

__all__ = ['multiplex', 'restructure']

ARCHITECTURE = 'multiplexed'
"""Name under which `tinyvit_zoo.models.multiplexed` makes these models again."""


def multiplex(
    model: nn.Module,
    share_every: int | str = 2,
    transform: bool = True,
    *,
    mlp_transform: bool | None = None,
    mlp_conv_kernel: int | Sequence[int] | None = None,
    init: str = 'best',
    calibration: Iterable[torch.Tensor] | None = None,
) -> nn.Module:
    """A model of the same class in which adjacent blocks share their weights. `model` stays as it is.

    Args:
        model: A timm `VisionTransformer` (ViT, DeiT, MAE, CLIP, DINO, SigLIP, ...) or `SwinTransformer`.
        share_every: Blocks that share one set of weights; must divide the depth (of every stage). 'stage': all
            blocks of a stage; a plain ViT is one stage. Groups never cross stages.
        transform: Give every layer its own head mixing, starting at identity. Without it the attention stays timm's.
        mlp_transform: Give every layer its own depthwise convolution before the MLP, starting at identity. Default:
            where `transform` is on and the model is a Swin (as in the paper, which found little use for it in DeiT).
        mlp_conv_kernel: Side of that convolution, odd; one for all stages or one each. Default: the stage's window
            (paper Sec. 4.1), one more where that is even.
        init: Which weights a group starts from: those of its 'first' block, the 'mean' of its blocks, or the 'best'
            of all its blocks' and their mean, group by group, by how close the blocks' outputs stay to the model's.
        calibration: Batches of preprocessed images (B, in_chans, H, W), for `init='best'`. Default: 32 pictures of
            noise with the spectrum of natural images; real ones are better.

    Returns:
        The multiplexed model, in the same mode, dtype and place.

    Raises:
        ValueError: On another kind of model, blocks that do not match, or arguments that do not fit.
    """
    student = deepcopy(model)
    sources = restructure(student, share_every, transform, mlp_transform, mlp_conv_kernel)
    choose_weights(model, student, sources, init, calibration)
    return student


def restructure(
    model: nn.Module,
    share_every: int | str = 2,
    transform: bool = True,
    mlp_transform: bool | None = None,
    mlp_conv_kernel: int | Sequence[int] | None = None,
) -> list[list[list[dict[str, torch.Tensor]]]]:
    """Insert the transformations and share the weights, in place; every group has those of its first block.

    Args:
        model: See `multiplex`, as the other arguments.

    Returns:
        The weights that every block had, by stage and group.

    Raises:
        ValueError: See `multiplex`.
    """
    stages = find_stages(model)
    groups(stages, share_every)  # complains before anything is changed
    if len({id(p) for p in model.parameters()}) < len(list(model.named_parameters(remove_duplicate=False))):
        raise ValueError('The blocks of this model share weights already: multiplex the model that it was made from.')
    if mlp_transform is None:
        mlp_transform = transform and isinstance(model, SwinTransformer)
    if transform:
        _mix_heads(model)
    if mlp_transform:
        mlp_conv_kernel = _convolve_grid(model, mlp_conv_kernel)
    sources = []
    for stage in groups(stages, share_every):
        sources.append([[shared_tensors(block) for block in group] for group in stage])
        for leader, *followers in stage:
            for follower in followers:
                tie(leader, follower)
    keep_each_once(model)
    described = dict(share_every=share_every, transform=transform, mlp_transform=mlp_transform)
    _describe(model, **described, mlp_conv_kernel=mlp_conv_kernel if mlp_transform else None)
    return sources


def _mix_heads(model: nn.Module) -> None:
    mixed = {Attention: MixedAttention, WindowAttention: MixedWindowAttention}
    for stage in find_stages(model):
        for block in stage.blocks:
            found = [(name, m) for name, m in block.named_modules() if type(m) in mixed]
            if not found:
                raise ValueError(
                    f"{type(block).__name__} of {stage.name} has no attention whose heads could be mixed (timm's "
                    'Attention or WindowAttention): pass transform=False to share the weights alone.'
                )
            for name, attn in found:
                parent, _, child = name.rpartition('.')
                setattr(block.get_submodule(parent), child, mixed[type(attn)](attn).train(attn.training))


def _convolve_grid(model: nn.Module, kernel_size: int | Sequence[int] | None) -> list[int]:
    """Insert the MLP transformation; gives the side of each stage's convolution."""
    if not isinstance(model, SwinTransformer):
        raise ValueError(
            'The MLP transformation needs the grid of a hierarchical model (SwinTransformer): leave mlp_transform out.'
        )
    stages = find_stages(model)
    if kernel_size is None:
        kernel_size = [max(stage.blocks[0].window_size) // 2 * 2 + 1 for stage in stages]
    sizes = [kernel_size] * len(stages) if isinstance(kernel_size, int) else list(kernel_size)
    if len(sizes) != len(stages) or not all(isinstance(s, int) and s > 0 and s % 2 == 1 for s in sizes):
        raise ValueError(
            f'mlp_conv_kernel must be an odd number, or one for each of the {len(stages)} stages; got {kernel_size!r}.'
        )
    for stage, size in zip(stages, sizes, strict=True):
        for block in stage.blocks:
            weight = block.norm2.weight
            block.mlp_conv = GridConv(block.dim, size, weight.device, weight.dtype).train(block.training)
            block.__class__ = MultiplexedSwinBlock  # the same layers in the same places, and one more
    return sizes


def _describe(model: nn.Module, **args) -> None:
    """Let timm know how to make the model again by name."""
    cfg = getattr(model, 'pretrained_cfg', None)
    if not cfg:
        return  # not made by `timm.create_model`
    model._model_args = dict(getattr(model, '_model_args', {}), base=cfg['architecture'], **args)
    # The teacher's files hold other weights than these; licence and preprocessing stay.
    model.pretrained_cfg = dict(filter_pretrained_cfg(cfg, remove_source=True), architecture=ARCHITECTURE)
    model.default_cfg = model.pretrained_cfg
