"""The outputs that analyses compare: those of blocks, MAE-Lite's, or any that a pattern names.

A layer is a call: a block that runs twice is two layers, whose names are `blocks.0` and `blocks.0 (2)`.

Shape legend: `B` images, `N` tokens, `C` channels, `H W` pixels, `h w` map or grid.
"""

import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import nn

from tinyvit_zoo.common.errors import EvaluationError

from .analysed_model import AnalysedModel, check_not_compiled

__all__ = [
    'BLOCKS',
    'MAE_LITE',
    'Grid',
    'LayerOutputs',
    'as_map',
    'find_blocks',
    'next_name',
    'token_grid',
    'unwrapped',
]

T = TypeVar('T')

BLOCKS, MAE_LITE = 'blocks', 'mae-lite'
CONTAINERS = re.compile(r'(^|\.)(blocks\w*|layers?\d?|stages|resblocks)(\.\d+)+$')
"""Names of the items of timm's and transformers' lists of blocks; the deepest ones are the blocks."""
MOST_PREFIX = 16
"""Class, distillation and register tokens of any model."""


class Grid(NamedTuple):
    """How N tokens lie over an image: prefix tokens first, then the patches, row by row."""

    height: int
    width: int
    prefix: int


@dataclass(frozen=True)
class _Tap:
    """A module, and what is taken of its output."""

    module: nn.Module
    name: str
    take: Callable[[torch.Tensor, tuple[int, int]], torch.Tensor]


def find_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks of a model of timm or transformers by name; each object once, also if it runs several times."""
    modules = dict(model.named_modules())
    lists = (nn.Sequential, nn.ModuleList, nn.Identity)
    named = [name for name, m in modules.items() if CONTAINERS.search(name) and type(m) not in lists]
    return {name: modules[name] for name in named if not any(other.startswith(f'{name}.') for other in named)}


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside one that returns its maps, as timm's `features_only` and `DenseBackbone` do; else itself.

    The inner one says how it cuts images into patches.
    """
    for name in ('model', 'net'):
        inside = getattr(model, name, None)
        if isinstance(inside, nn.Module) and hasattr(inside, 'patch_embed') and not hasattr(model, 'patch_embed'):
            return inside
    return model


class LayerOutputs(Generic[T]):
    """Forward hooks that reduce the outputs of a model's layers at once, so that no features are kept.

    A context manager; the hooks exist only inside it.

        with LayerOutputs(model, ['blocks'], gram) as outputs:
            grams = outputs(images)

    Args:
        model: What runs.
        layers: 'blocks'; 'mae-lite': the output of each block's `norm1`, and of the last norm for all tokens, both
            without prefix tokens, as the released code of MAE-Lite compares them; or patterns of names of modules, as
            `fnmatch` reads them, in which * stands for dots, too.
        reduce: Called with the name of a layer, its output (B, ...), the size (H, W) of the images, and the module.

    Raises:
        EvaluationError: If the model has no such layers, or is compiled.
    """

    def __init__(
        self,
        model: AnalysedModel,
        layers: Sequence[str],
        reduce: Callable[[str, torch.Tensor, tuple[int, int], nn.Module], T],
    ) -> None:
        check_not_compiled(model.model, model.name)
        self.model, self.reduce = model, reduce
        self._taps = _find_taps(model, layers)
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._found: dict[str, T] = {}
        self._images, self._size = 0, model.size

    def __enter__(self) -> 'LayerOutputs[T]':
        for tap in self._taps:
            self._handles.append(tap.module.register_forward_hook(self._hook(tap)))
        return self

    def __exit__(self, *exc_info: object) -> None:
        while self._handles:
            self._handles.pop().remove()
        self._found = {}

    def __call__(self, images: torch.Tensor) -> dict[str, T]:
        """What was reduced of each layer, by name in the order of the calls.

        Args:
            images: (B, 3, H, W).

        Raises:
            EvaluationError: If no layer was called, or one gives no tensor of the images.
        """
        self._found, self._images, self._size = {}, len(images), (images.shape[-2], images.shape[-1])
        try:
            self.model(images)
        finally:
            self._images = 0
        if not self._found:
            raise EvaluationError(f'{self.model.name} called none of its layers {_names(self._taps)}: choose others.')
        found, self._found = self._found, {}
        return found

    def _hook(self, tap: _Tap) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not self._images:  # the model runs for another one
                return
            outputs = output if isinstance(output, tuple | list) else [output]
            # TNT's blocks give the pixels of each patch first, as so many images.
            x = next((x for x in outputs if isinstance(x, torch.Tensor) and x.shape[:1] == (self._images,)), None)
            name = next_name(tap.name, self._found)
            if x is None or x.ndim < 2:
                raise EvaluationError(f'{self.model.name}: {name} returns no tensor of images: choose other layers.')
            with torch.no_grad():
                self._found[name] = self.reduce(name, tap.take(x, self._size), self._size, module)

        return hook


def next_name(name: str, found: Collection[str]) -> str:
    """The name of the next call of a module, given those of the calls so far."""
    calls = 1
    while (named := name if calls == 1 else f'{name} ({calls})') in found:
        calls += 1
    return named


def _names(taps: Sequence[_Tap]) -> str:
    return ', '.join(tap.name for tap in taps[:3]) + (', ...' if len(taps) > 3 else '')


def _find_taps(model: AnalysedModel, layers: Sequence[str]) -> list[_Tap]:
    taps: dict[str, _Tap] = {}
    for layer in layers:
        found = _mae_lite(model) if layer == MAE_LITE else _whole(model, layer)
        taps.update({tap.name: tap for tap in found})
    if not taps:
        named = f'no layer {", ".join(layers)}' if layers else 'no layer without a name'
        problem = 'no blocks under a name known here' if tuple(layers) == (BLOCKS,) else named
        raise EvaluationError(
            f'{model.name} has {problem}: take names of its modules, in which * stands for anything (--layers).'
        )
    return list(taps.values())


def _whole(model: AnalysedModel, layer: str) -> Iterator[_Tap]:
    """Outputs as they are."""
    modules = find_blocks(model.model) if layer == BLOCKS else dict(model.model.named_modules())
    for name, module in modules.items():
        if layer == BLOCKS or (name and fnmatchcase(name, layer)):
            yield _Tap(module, name, lambda x, size: x)


def _mae_lite(model: AnalysedModel) -> Iterator[_Tap]:
    """The first norm of each block, and the last norm of the model for every token."""
    net: Any = unwrapped(model.model)

    def patches(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return x[:, token_grid(model, x.shape[1], size).prefix :] if x.ndim == 3 else x

    blocks = find_blocks(model.model)
    if not blocks:
        return
    for name, block in blocks.items():
        for norm in ('norm1', 'layernorm_before'):
            if isinstance(getattr(block, norm, None), nn.Module):
                yield _Tap(getattr(block, norm), f'{name}.{norm}', patches)
                break
        else:
            raise EvaluationError(
                f'{model.name} has no {MAE_LITE} layers, as {name} has no norm1: compare its blocks (--layers blocks).'
            )
    last, pooled = _first_norm(net, ('norm', 'layernorm')), _first_norm(net, ('fc_norm', 'pooler.layernorm'))
    if last is not None:
        yield _Tap(last[1], last[0], patches)
    elif pooled is not None:
        # timm and transformers' BEiT call it with pooled tokens; the released code applies it to each of them.
        block = next(reversed(blocks.values()))
        yield _Tap(block, pooled[0], lambda x, size: pooled[1](patches(x, size)))


def _first_norm(net: Any, names: Sequence[str]) -> tuple[str, nn.Module] | None:
    """The first of these modules that the model has and that does something."""
    modules = dict(net.named_modules())
    for name in names:
        if name in modules and not isinstance(modules[name], nn.Identity):
            return name, modules[name]
    return None


def token_grid(model: AnalysedModel, tokens: int, size: tuple[int, int]) -> Grid:
    """How the tokens of a layer lie over the images.

    Args:
        model: Its `patch_embed`, or its configuration, says how it cuts images into patches.
        tokens: N.
        size: (H, W) of the images.

    Raises:
        EvaluationError: If so many tokens make no grid.
    """
    net = unwrapped(model.model)
    prefix = getattr(net, 'num_prefix_tokens', None)
    for grid in _patch_grids(net, size):
        rest = tokens - math.prod(grid)
        if rest in (0, prefix) or (prefix is None and 0 < rest <= MOST_PREFIX):
            return Grid(*grid, rest)
    for rest in dict.fromkeys((prefix or 0, 0)):  # XCiT adds its class token after these blocks
        patches = tokens - rest
        height = round(math.sqrt(max(0, patches) * size[0] / size[1]))
        if height and height * round(height * size[1] / size[0]) == patches:
            return Grid(height, patches // height, rest)
    raise EvaluationError(
        f'{model.name} has {tokens} tokens for an image of {size[0]}x{size[1]} pixels, which form no known grid: '
        'compare its layers by CKA.'
    )


def _patch_grids(net: Any, size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Grids of patches that the model may have for images of this size."""
    embed: Any = getattr(net, 'patch_embed', None)
    patch = getattr(getattr(net, 'config', None), 'patch_size', None)
    if hasattr(embed, 'dynamic_feat_size') and getattr(embed, 'patch_size', None):
        height, width = embed.dynamic_feat_size(size)
        yield int(height), int(width)
    if getattr(embed, 'grid_size', None):
        height, width = embed.grid_size
        yield int(height), int(width)
    if isinstance(patch, int):
        yield size[0] // patch, size[1] // patch


def as_map(name: str, x: torch.Tensor, model: AnalysedModel, size: tuple[int, int], module: nn.Module) -> torch.Tensor:
    """Tokens (B, N, C), or a map with channels first or last, as (B, C, h, w) without prefix tokens.

    Args:
        name: Of the layer, for messages.
        x: Its output.
        model: See `token_grid`.
        size: (H, W) of the images.
        module: That gave the output.

    Raises:
        EvaluationError: If it is neither.
    """
    if x.ndim == 3:
        net = unwrapped(model.model)
        if hasattr(net, 'unroll') or hasattr(net, 'unroll_schedule'):  # Hiera, of timm and of transformers
            raise EvaluationError(
                f'{model.name} computes on tokens in an order of its own, not row by row: compare its layers by CKA.'
            )
        grid = token_grid(model, x.shape[1], size)
        return x[:, grid.prefix :].transpose(1, 2).unflatten(2, grid[:2])
    if x.ndim != 4 or not any(_may_be_map(sides, size) for sides in (x.shape[1:3], x.shape[2:])):
        raise EvaluationError(
            f'{model.name}: {name} gives {tuple(x.shape)}, which is not a map of an image: choose other layers.'
        )
    return x.permute(0, 3, 1, 2) if _channels_last(x, model, size, module) else x


def _may_be_map(sides: Sequence[int], size: tuple[int, int]) -> bool:
    """Whether a map of an image may have these sides: rounded, padded, or less what convolutions cut off."""
    ratio = size[0] / size[1]
    return abs(sides[0] - sides[1] * ratio) <= 2 * (1 + ratio)


def _channels_last(x: torch.Tensor, model: AnalysedModel, size: tuple[int, int], module: nn.Module) -> bool:
    """Whether a map is (B, h, w, C): by the sides' ratio of the images, else by the width of the layer's parameters."""
    ratio = size[0] / size[1]
    close = 0.5 if ratio == 1 else max(1.0, ratio)  # sides are rounded
    last, first = (abs(h - w * ratio) <= close for h, w in ((x.shape[1], x.shape[2]), (x.shape[2], x.shape[3])))
    if last != first:
        return last
    widths = [p.shape[0] for p in module.parameters() if p.ndim == 1]
    last, first = x.shape[3] in widths, x.shape[1] in widths
    return last if last != first else getattr(model.model, 'output_fmt', 'NCHW') == 'NHWC'
