"""Shortcuts for plain inference on a CPU, and the checks that no hook, graph or gradient can observe them."""

from collections.abc import Callable
from typing import TypeGuard, TypeVar

import torch
from torch import nn
from torch.nn.modules import module as hooks

__all__ = ['activate', 'has_listeners', 'in_sub_batches', 'is_plain_inference', 'is_untouched']

# Measured on a server CPU: fewer tokens slow the matrix products down, more tokens cause page faults.
SUB_BATCH_TOKENS = 800

M = TypeVar('M', bound=nn.Module)


@torch.jit.unused
def is_plain_inference(x: torch.Tensor) -> bool:
    """Whether x is a plain tensor in eager mode without autograd: no proxy, subclass, trace, export or compilation."""
    return (
        type(x) is torch.Tensor
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def is_untouched(layer: nn.Module, kind: type[M]) -> TypeGuard[M]:
    """Whether a layer is exactly of class `kind`: no subclass, no hook, no pruned or otherwise computed weight.

    Only then can its arithmetic be done elsewhere without an observable difference.
    """
    return (
        type(layer) is kind
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and not (hooks._global_forward_hooks or hooks._global_forward_pre_hooks)
        and ('weight' in layer._parameters or not hasattr(layer, 'weight'))
    )


def has_listeners(module: nn.Module) -> bool:
    """Whether any forward hook, global ones included, would see a call of the module or of one of its submodules."""
    return bool(hooks._global_forward_hooks or hooks._global_forward_pre_hooks) or any(
        m._forward_hooks or m._forward_pre_hooks for m in module.modules()
    )


def in_sub_batches(module: nn.Module, run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """`run(x)`; in evaluation on a CPU without autograd a few images at a time, if no hook listens inside `module`.

    The attention maps then stay in cache and reuse each other's memory. For a large batch the system would map fresh
    memory and release it again at every layer, which costs more than head mixing itself.

    Args:
        module: The module whose forward pass this is.
        run: Computes every image of a batch independently of the others.
        x: Tokens (B, ..., C).

    Returns:
        The result of `run`, (B, ...).
    """
    # Training mode draws random numbers, and checkpointing must draw the same ones when it recomputes a batch.
    if module.training or not is_plain_inference(x) or x.device.type != 'cpu':
        return run(x)
    size = max(1, SUB_BATCH_TOKENS // max(1, x[0].numel() // x.shape[-1])) if x.shape[0] > 1 else 1
    if size >= x.shape[0] or has_listeners(module):
        return run(x)
    return torch.cat([run(part) for part in x.split(size)])


def activate(act: nn.Module, x: torch.Tensor, fresh: bool) -> torch.Tensor:
    """`act(x)`; in plain inference on a CPU an exact GELU works in place if x is `fresh`, that is, referenced nowhere
    else.

    On large maps the page faults of a second buffer cost more than the function itself.
    """
    if fresh and is_plain_inference(x) and x.device.type == 'cpu' and is_untouched(act, nn.GELU):
        return torch.ops.aten.gelu_(x, approximate=act.approximate)
    return act(x)
