"""Layer reserve (MAE-Lite): a training that keeps some pre-trained blocks, and draws the others anew.

Which blocks of a pre-training help is told by training with some of them only. Blocks are logical layers, counted from
1 in the order of their calls.

Paper: A Closer Look at Self-Supervised Lightweight Vision Transformers, https://arxiv.org/abs/2205.14443
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..common.errors import EvaluationError
from .blocks import block_calls, first_calls

__all__ = ['LayerReserve', 'reserve_layers']


@dataclass(frozen=True)
class LayerReserve:
    """Which blocks keep their weights.

    Attributes:
        keep: The first N blocks, with patch embedding, tokens and positions: later blocks, what lies between and after
            them, the last norm and the classifier begin anew. All blocks for plain loading. None where `reset` says it.
        reset: (first, last) block that begins anew; all else stays. None where `keep` says it.
    """

    keep: int | None = None
    reset: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if (self.keep is None) == (self.reset is None):
            raise EvaluationError('Blocks are either kept or reset: give one of --keep-blocks and --reset-blocks.')

    def facts(self, depth: int) -> dict[str, Any]:
        """Plain values for results.json."""
        own = dict(keep_blocks=self.keep) if self.reset is None else dict(reset_blocks=list(self.reset))
        return dict(own, blocks=depth)

    def words(self, depth: int) -> str:
        """For people, without a full stop."""
        if self.reset is not None:
            first, last = self.reset
            some = f'block {first}' if first == last else f'blocks {first} to {last}'
            return f'{some} of {depth} begin{"s" if first == last else ""} anew'
        if self.keep == depth:
            return f'all {depth} blocks stay, and so does everything else'
        rest = 'later blocks, the last norm and the classifier begin anew'
        stays = f'of {depth} blocks stays' if self.keep == 1 else f'{self.keep} of {depth} blocks stay'
        return f'the first {stays}; {rest}'


def reserve_layers(model: nn.Module, fresh: nn.Module, reserve: LayerReserve) -> int:
    """Give some layers of a model, in place, the weights and buffers of a fresh one.

    Args:
        model: A timm model with weights, made of blocks.
        fresh: The same model with random weights.
        reserve: Which blocks stay.

    Returns:
        The number of blocks, each counted as often as it runs.

    Raises:
        EvaluationError: If the model has no such blocks, blocks on both sides of a bound share weights (the message
            has the bounds that do not), or the models are not alike.
    """
    calls = block_calls(model)
    depth = len(calls)
    if reserve.reset is None:
        assert reserve.keep is not None
        _check_range(reserve.keep, 0, depth, '--keep-blocks')
        first, last = reserve.keep, depth
    else:
        first, last = reserve.reset[0] - 1, reserve.reset[1]
        _check_range(reserve.reset[0], 1, depth, '--reset-blocks')
        _check_range(reserve.reset[1], reserve.reset[0], depth, '--reset-blocks')
    _check_bounds((first, last), calls)
    if first == depth:
        return depth
    anew: set[nn.Module] = set(calls[first:last])
    if reserve.reset is None:
        anew |= _after(model, first)
    _copy(_names(model, anew), model, fresh)
    return depth


def _check_range(number: int, least: int, depth: int, option: str) -> None:
    if not least <= number <= depth:
        raise EvaluationError(f'{option}: the model has {depth} blocks; give a number from {least} to {depth}.')


def _check_bounds(bounds: tuple[int, int], calls: list[nn.Module]) -> None:
    """Refuse a bound between two calls that share a parameter."""
    allowed = _free_bounds(calls)
    inside = [bound for bound in bounds if bound not in allowed]
    if inside:
        raise EvaluationError(
            f'Blocks {inside[0]} and {inside[0] + 1} share weights, so one cannot stay while the other begins anew: '
            f'the bounds that groups of shared weights allow are after block {", ".join(map(str, allowed))}.'
        )


def _free_bounds(calls: list[nn.Module]) -> list[int]:
    """Numbers of blocks, from 0 to all, after which no parameter is used that was used before."""
    last = {parameter: i for i, block in enumerate(calls) for parameter in block.parameters()}
    bounds, furthest = [0], -1
    for i, block in enumerate(calls):
        furthest = max([furthest, i, *(last[parameter] for parameter in block.parameters())])
        if furthest == i:
            bounds.append(i + 1)
    return bounds


def _after(model: nn.Module, blocks: int) -> set[nn.Module]:
    """What begins after so many blocks outside of them, at least one: the stem stays; and the classifiers."""
    first = first_calls(model)
    found = {module for module, done in first.items() if done >= max(blocks, 1)}
    return found | set(_classifiers(model))


def _classifiers(model: Any) -> Iterator[nn.Module]:
    head = model.get_classifier() if hasattr(model, 'get_classifier') else ()
    for module in head if isinstance(head, tuple | list) else [head]:
        if isinstance(module, nn.Module):
            yield module


def _names(model: nn.Module, modules: Collection[nn.Module]) -> set[str]:
    """Names in the state dict of what lies in these modules."""
    prefixes = [f'{name}.' for name, module in model.named_modules(remove_duplicate=False) if module in modules]
    return {key for key in model.state_dict() if key.startswith(tuple(prefixes))}


def _copy(names: Collection[str], model: nn.Module, fresh: nn.Module) -> None:
    ours, theirs = model.state_dict(), fresh.state_dict()
    other = sorted(
        key for key in ours.keys() | theirs.keys()
        if key not in ours or key not in theirs or ours[key].shape != theirs[key].shape
    )  # fmt: skip
    if other:
        raise EvaluationError(f'The fresh model differs from the one with weights in {other[0]}: make both alike.')
    with torch.no_grad():
        for key in names:
            ours[key].copy_(theirs[key])
