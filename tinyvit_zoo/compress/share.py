"""Weight sharing: adjacent blocks that hold the same layers, and state dicts that hold each of them once.

A group is k adjacent blocks of one stage. Its blocks remain k modules with their own norms, layer scales, drop paths,
shifts and transformations, but every Linear (and Swin's bias table) in them is the same module object. So no module
needs to know which layer it is called for, and `parameters()` yields each weight once. With `share_norms` the norms and
layer scales are the same objects, too: only the transformations differ, if there are any (paper Eq. 4, Fig. 2a).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformer, WindowAttention
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from .transform import TRANSFORMATIONS, RelativePositionBias

__all__ = ['Group', 'Stage', 'find_groups', 'find_stages', 'keep_each_once', 'keep_each_once_in', 'tie']

# timm's own WindowAttention (no head mixing) holds nothing that belongs to one layer: shift and mask are the block's.
SHARED = (nn.Linear, RelativePositionBias, WindowAttention)


@dataclass(frozen=True)
class Stage:
    """Blocks of one width.

    Attributes:
        name: Path of the blocks in the model.
        blocks: The blocks.
        before: The module between the last block of the previous stage and the first of these.
    """

    name: str
    blocks: nn.Sequential
    before: nn.Module


def find_stages(model: nn.Module) -> list[Stage]:
    """The stages of a model that can be multiplexed; a plain ViT is one.

    Raises:
        ValueError: If the model is neither a VisionTransformer nor a SwinTransformer of timm.
    """
    if isinstance(model, VisionTransformer):
        return [Stage('blocks', model.blocks, nn.Identity())]
    if isinstance(model, SwinTransformer):
        layers: Any = model.layers
        return [Stage(f'layers.{i}.blocks', layer.blocks, layer.downsample) for i, layer in enumerate(layers)]
    raise ValueError(
        f'{type(model).__name__} cannot be multiplexed: weights are shared between the blocks of a timm '
        'VisionTransformer (ViT, DeiT, MAE, CLIP, DINO, SigLIP, ...) or SwinTransformer. Pass such a model.'
    )


@dataclass(frozen=True)
class Group:
    """Blocks that share their weights.

    Attributes:
        blocks: The blocks, in order. The weights are those of the first.
        weights: Each block's own weights before sharing: name in the block -> tensor.
    """

    blocks: list[nn.Module]
    weights: list[dict[str, torch.Tensor]]


def find_groups(model: nn.Module, share_every: int | str, share_norms: bool = False) -> list[list[list[nn.Module]]]:
    """The groups of blocks that are to share weights, by stage.

    Args:
        model: See `find_stages`.
        share_every: Number of blocks in a group, or 'stage' for all of a stage.
        share_norms: See `shared_layers`.

    Raises:
        ValueError: If the model is of another kind, a stage cannot be cut into such groups, or blocks of a group do
            not match.
    """
    stages = find_stages(model)
    depths = [len(stage.blocks) for stage in stages]
    found = []
    for stage, depth, size in zip(stages, depths, _group_sizes(depths, share_every), strict=True):
        for start in range(0, depth, size):
            for i in range(start + 1, start + size):
                _check_alike(stage, start, i, share_norms)
        found.append([list(stage.blocks[i : i + size]) for i in range(0, depth, size)])
    return found


def _group_sizes(depths: list[int], share_every: int | str) -> list[int]:
    """Number of blocks in a group, for each stage."""
    if share_every == 'stage':
        return depths
    is_count = isinstance(share_every, int) and not isinstance(share_every, bool) and share_every > 0
    size = int(share_every) if is_count else 0
    if size and all(depth % size == 0 for depth in depths):
        return [size] * len(depths)
    fitting = [n for n in range(1, min(depths) + 1) if all(depth % n == 0 for depth in depths)]
    raise ValueError(
        f'share_every={share_every!r} does not divide the {" + ".join(map(str, depths))} blocks of this model: '
        f"use one of {', '.join(map(str, fitting))}, or 'stage' to share all blocks of a stage."
    )


def shared_layers(module: nn.Module, share_norms: bool = False, prefix: str = '') -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of the layers that a block shares with the others of its group.

    Args:
        module: The block.
        share_norms: Take norms and layer scales, too: all that has parameters, except the transformations.
        prefix: Of the names.
    """
    for name, child in module.named_children():
        if isinstance(child, TRANSFORMATIONS):
            continue
        if isinstance(child, SHARED) or (share_norms and any(True for _ in child.parameters(recurse=False))):
            yield prefix + name, child
        else:
            yield from shared_layers(child, share_norms, f'{prefix}{name}.')


def _check_alike(stage: Stage, first: int, other: int, share_norms: bool) -> None:
    loose = [name for name, _ in stage.blocks[first].named_parameters(recurse=False)]
    if share_norms and loose:
        raise ValueError(
            f'{stage.name}.{first} holds {", ".join(loose)} itself, in no layer that could be shared: leave '
            'share_norms out.'
        )
    ours, theirs = _facts(stage.blocks[first], share_norms), _facts(stage.blocks[other], share_norms)
    for name in ours | theirs:
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                f'{stage.name}.{first} and {stage.name}.{other} cannot share weights: {name} is '
                f'{ours.get(name, "absent")} in one and {theirs.get(name, "absent")} in the other. Blocks of a group '
                'must be alike: choose another share_every, or a model whose blocks are all of one kind.'
            )


def _facts(block: nn.Module, share_norms: bool) -> dict[str, Any]:
    """Properties that two blocks must agree on, by name: shapes of shared tensors, kinds of layers, head counts."""
    facts: dict[str, Any] = {'the block': type(block).__name__}
    for name, layer in shared_layers(block, share_norms):
        facts[name] = type(layer).__name__
        facts |= {f'{name}.{key}': tuple(p.shape) for key, p in layer.named_parameters()}
    facts |= {f'num_heads of {name}': m.num_heads for name, m in block.named_modules() if hasattr(m, 'num_heads')}
    return facts


def tie(blocks: list[nn.Module], share_norms: bool = False) -> Group:
    """Replace the layers of the other blocks by the shared layers of the first; see `shared_layers`."""
    weights = [
        {
            f'{name}.{key}': p.detach()
            for name, layer in shared_layers(block, share_norms)
            for key, p in layer.named_parameters()
        }
        for block in blocks
    ]
    weights[0] = {name: value.clone() for name, value in weights[0].items()}  # these layers stay in use
    for name, layer in list(shared_layers(blocks[0], share_norms)):
        parent, _, child = name.rpartition('.')
        for block in blocks[1:]:
            setattr(block.get_submodule(parent), child, layer)
    return Group(blocks, weights)


def keep_each_once(model: nn.Module) -> None:
    """Make state dicts hold a shared tensor once, under its first name, and fill in the others when loading.

    Otherwise a checkpoint would be as large as the teacher's, safetensors would refuse it, and timm's EMA would
    update shared weights twice. Sharing is looked up each time, so that a layer that has been replaced in one place
    (LoRA) is saved separately.
    """
    # For features, timm cuts ViTs to a new Sequential of blocks, and puts Swin's stages into another module.
    for module in model.layers if isinstance(model, SwinTransformer) else [model]:
        keep_each_once_in(module)


def keep_each_once_in(module: nn.Module) -> None:
    """As `keep_each_once`, for a module whose own layers share their weights."""
    module.register_state_dict_post_hook(_drop_repeats)
    module.register_load_state_dict_pre_hook(_fill_repeats)


def _repeats(module: nn.Module) -> dict[str, str]:
    """Each further name of a shared parameter -> its first name."""
    first: dict[int, str] = {}
    repeats: dict[str, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            repeats[name] = first[id(parameter)]
    return repeats


def _drop_repeats(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict) -> None:
    for name in _repeats(module):
        state_dict.pop(prefix + name, None)


def _fill_repeats(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict,
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    for name, first in _repeats(module).items():
        value, shared = state_dict.get(prefix + name), state_dict.get(prefix + first)
        if value is None:
            if shared is not None:
                state_dict[prefix + name] = shared
        elif shared is None or not _same(value, shared):
            error_msgs.append(
                f'{prefix}{name} differs from {prefix}{first}, although this model shares them: the checkpoint is '
                'of a model that is not multiplexed, or not in this way.'
            )


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a is b or (a.shape == b.shape and not a.is_meta and torch.equal(a, b))
