"""What plain inference may do that training and graphs may not, and how to tell that nobody can notice."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules import module as _hooks

__all__ = ['activate', 'has_listeners', 'in_sub_batches', 'is_plain_inference', 'is_untouched']

# Measured on a server CPU: fewer tokens cost speed in the matrix products, more of them in page faults.
SUB_BATCH_TOKENS = 800


@torch.jit.unused
def is_plain_inference(x: torch.Tensor) -> bool:
    """Whether x is a plain tensor in eager mode without autograd: no proxy, subclass, trace, export or compilation."""
    return (
        type(x) is torch.Tensor
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def is_untouched(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer is just what `kind` makes: no subclass, no hook, no pruning or other computed weight.

    Only then may its arithmetic be done elsewhere without anybody seeing or missing it.
    """
    return (
        type(layer) is kind
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and not (_hooks._global_forward_hooks or _hooks._global_forward_pre_hooks)
        and ('weight' in layer._parameters or not hasattr(layer, 'weight'))
    )


def has_listeners(module: nn.Module) -> bool:
    """Whether a forward hook of anyone would see a call of the module or of one inside it."""
    return bool(_hooks._global_forward_hooks or _hooks._global_forward_pre_hooks) or any(
        m._forward_hooks or m._forward_pre_hooks for m in module.modules()
    )


def in_sub_batches(module: nn.Module, run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """`run(x)`; in evaluation on a CPU without autograd a few images at a time, if nobody listens inside `module`.

    The maps between the layers then stay in cache and reuse each other's memory; for a large batch the system would
    map them in and take them back at every layer, which costs more than head mixing itself.

    Args:
        module: Whose forward this is.
        run: Treats every image of a batch by itself.
        x: Tokens (B, ..., C).

    Returns:
        What `run` returns, (B, ...).
    """
    # Training mode draws random numbers: a batch that checkpointing runs again with gradients must draw the same.
    if module.training or not is_plain_inference(x) or x.device.type != 'cpu':
        return run(x)
    size = max(1, SUB_BATCH_TOKENS // max(1, x[0].numel() // x.shape[-1])) if x.shape[0] > 1 else 1
    if size >= x.shape[0] or has_listeners(module):
        return run(x)
    return torch.cat([run(part) for part in x.split(size)])


def activate(act: nn.Module, x: torch.Tensor, fresh: bool) -> torch.Tensor:
    """`act(x)`; in plain inference on a CPU an exact GELU overwrites x, if x is `fresh`: nobody else holds it.

    On large maps the page faults of a second buffer cost more than the function itself.
    """
    if fresh and is_plain_inference(x) and x.device.type == 'cpu' and is_untouched(act, nn.GELU):
        return torch.ops.aten.gelu_(x, approximate=act.approximate)
    return act(x)
