"""Sizes and shapes of a model for its card, counted on the meta device, once for all tags that share them."""

from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from timm.layers import to_2tuple
from timm.models._input import get_model_input_config
from torch import nn

from ..build import build_model
from ..info import describe, profile_model
from ..releases import all_releases, find_family, list_releases

__all__ = ['SIDES', 'Shapes', 'Size', 'family_rows', 'model_facts', 'shapes_of', 'sides_of', 'sizes_of']

SIDES = (224, 256, 288, 384, 512)
"""Sides of the square images of a resolution table, see `sides_of`."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Size:
    """A model at one image size.

    Attributes:
        windows: (height, width) of the windows of every stage with attention; None for a model without windows.
        tokens: Number and layout of the tokens in words; None for a model with windows.
    """

    side: int
    params: int
    macs: int
    windows: tuple[tuple[int, int], ...] | None
    tokens: str | None


@dataclass(frozen=True)
class Shapes:
    """Shapes of a model's outputs for one image: logits, feature maps, unpooled features, and their pooled vector."""

    output: Shape
    maps: tuple[Shape, ...]
    features: Shape
    embedding: Shape


@cache
def family_rows(family: str) -> list[dict[str, Any]]:
    """Rows of `list_releases` of one family."""
    return [row for row in list_releases(f'{family}*') if row['family'] == family]


@cache
def model_facts(architecture: str, num_classes: int) -> dict[str, Any]:
    """The entry 'model' of `describe` for an architecture with a head of `num_classes` classes."""
    names = (r.name for r in all_releases() if (r.architecture, r.num_classes) == (architecture, num_classes))
    return describe(next(names))['model']


@cache
def shapes_of(architecture: str, num_classes: int) -> Shapes:
    """Shapes of an architecture at its own size."""
    model = cast(Any, build_model(architecture, device='meta', num_classes=num_classes))
    image = torch.empty(1, *get_model_input_config(model)['input_size'], device='meta')
    with torch.no_grad():
        maps = build_model(architecture, device='meta', features_only=True)(image)
        features = model.forward_features(image)
        embedding = model.forward_head(features, pre_logits=True)
        output = model.forward_head(features)
    return Shapes(
        tuple(output.shape), tuple(tuple(m.shape) for m in maps), tuple(features.shape), tuple(embedding.shape)
    )


# Family and layout at the smallest size -> sizes: architectures that differ only in their own size share them.
_SIZES: dict[tuple, tuple[Size, ...]] = {}


@cache
def sides_of(architecture: str) -> tuple[int, ...]:
    """`SIDES`, each raised to a multiple of the patch: of 14 pixels, none but 224 is one."""
    embed = cast(Any, build_model(architecture, device='meta')).patch_embed
    patch = to_2tuple(getattr(embed, 'patch_size', 1))[0]
    return tuple(-side // patch * -patch for side in SIDES)


@cache
def sizes_of(architecture: str, num_classes: int) -> tuple[Size, ...]:
    """An architecture at all of `sides_of`."""
    sides = sides_of(architecture)
    # A new model for every size: on the meta device, resizing tables takes longer than making them.
    models = (build_model(architecture, device='meta', num_classes=num_classes, img_size=side) for side in sides)
    first = next(models)
    key = (find_family(architecture), tuple((name, tuple(v.shape)) for name, v in first.state_dict().items()))
    if key not in _SIZES:
        _SIZES[key] = tuple(_size(model) for model in (first, *models))
    return _SIZES[key]


def _size(model: nn.Module) -> Size:
    profile = profile_model(model)
    side = get_model_input_config(model)['input_size'][-1]
    return Size(side, profile.params, profile.macs, _windows(model), _tokens(model))


def _windows(model: nn.Module) -> tuple[tuple[int, int], ...] | None:
    sizes = getattr(model, 'window_sizes', None)
    if sizes is None:
        return None
    attends = (any(hasattr(block, 'attn') for block in stage.blocks) for stage in cast(Any, model).stages)
    return tuple(size for size, has in zip(sizes, attends, strict=True) if has)


def _tokens(model: nn.Module) -> str | None:
    if hasattr(model, 'window_sizes'):
        return None
    height, width = cast(Any, model).patch_embed.grid_size
    prefix = cast(Any, model).num_prefix_tokens
    count = f'{height * width + prefix}'
    return f'{count} ({height}x{width} patches{f" and {prefix}" if prefix else ""})'
