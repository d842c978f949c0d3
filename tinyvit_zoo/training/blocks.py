"""The blocks of a model in the order of their calls: a block that runs twice is two logical layers."""

from collections.abc import Iterator

import torch
from torch import nn

from ..common.errors import EvaluationError
from ..data.transforms import data_config

__all__ = ['block_calls', 'find_blocks', 'first_calls']

LISTS = (nn.Sequential, nn.ModuleList)


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks, each object once: what lies in timm's lists called `blocks`, and in lists within those.

    Lists of a block's own, as CrossViT's have them, are part of the block.

    Raises:
        EvaluationError: If there are none.
    """
    found: dict[nn.Module, None] = {}
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if name.rpartition('.')[2].startswith('blocks') and isinstance(module, LISTS) and module not in inside:
            blocks = list(_items(module))
            found |= dict.fromkeys(blocks)
            inside.update(part for block in blocks for part in block.modules())
    if not found:
        raise EvaluationError(
            f'{type(model).__name__} has no list of modules called blocks: choose a model that is made of blocks, such '
            'as a ViT, a Swin or a TinyViT.'
        )
    return list(found)


def _items(blocks: nn.Module) -> Iterator[nn.Module]:
    for child in blocks.children():
        if type(child) in LISTS:
            yield from _items(child)
        elif not isinstance(child, nn.Identity):
            yield child


def block_calls(model: nn.Module) -> list[nn.Module]:
    """The block that each logical layer runs, in order, found by running the model once.

    Raises:
        EvaluationError: If it has no blocks, or does not take RGB images.
    """
    calls: list[nn.Module] = []
    handles = [block.register_forward_hook(lambda module, *_: calls.append(module)) for block in find_blocks(model)]
    _run(model, handles)
    return calls


def first_calls(model: nn.Module) -> dict[nn.Module, int]:
    """How many calls of blocks are over when a module outside the blocks first begins, by running the model once.

    Modules that are not called are left out. Raises: As `block_calls`.
    """
    blocks = find_blocks(model)
    inside = {module for block in blocks for module in block.modules()}
    done, first = 0, dict[nn.Module, int]()

    def over(*_: object) -> None:
        nonlocal done
        done += 1

    def begin(module: nn.Module, *_: object) -> None:
        first.setdefault(module, done)

    handles = [block.register_forward_hook(over) for block in blocks]
    handles += [module.register_forward_pre_hook(begin) for module in model.modules() if module not in inside]
    _run(model, handles)
    return first


def _run(model: nn.Module, handles: list[torch.utils.hooks.RemovableHandle]) -> None:
    """Run a model on an image in evaluation mode, and remove the hooks."""
    height, width = data_config(model)['input_size'][-2:]
    parameter = next(model.parameters())
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, height, width, device=parameter.device, dtype=parameter.dtype))
    finally:
        for handle in handles:
            handle.remove()
        # To train() and back: timm's TinyViT keeps what it made of its biases in evaluation mode.
        model.train().train(training)
