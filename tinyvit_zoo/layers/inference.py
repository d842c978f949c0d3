"""What plain inference may do that training and graphs may not, and how to tell that nobody can notice."""

import torch
from torch import nn
from torch.nn.modules import module as _hooks

__all__ = ['activate', 'is_plain_inference', 'is_untouched']


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


def activate(act: nn.Module, x: torch.Tensor, fresh: bool) -> torch.Tensor:
    """`act(x)`; in plain inference on a CPU an exact GELU overwrites x, if x is `fresh`: nobody else holds it.

    On large maps the page faults of a second buffer cost more than the function itself.
    """
    if fresh and is_plain_inference(x) and x.device.type == 'cpu' and is_untouched(act, nn.GELU):
        return torch.ops.aten.gelu_(x, approximate=act.approximate)
    return act(x)
