"""Shortcuts for plain inference on a CPU, and the one check that nobody can notice them.

A shortcut computes what a layer computes without calling it, or calls it otherwise: batch norms folded into their
convolutions, fused kernels, GELU in place, a batch in parts. It is taken where three things hold, and nowhere else:

* `is_plain_inference`: the input is a plain CPU tensor, no gradient is recorded, no graph is, and nothing watches every
  operation or call;
* `is_untouched`: the layer is of the class that the shortcut knows, runs the code of that class and nothing else, and
  holds plain tensors;
* the shortcut's own conditions.

Whatever else is in place is called as it is, once, with the whole batch: hooks, a `forward` put on the instance
(accelerate's offloading, recorders) or on the class, pruned or otherwise computed weights, adapters (peft), tensor
subclasses (torchao, DTensor).
"""

from collections.abc import Callable
from typing import Any, TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm, is_exporting
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules import module as hooks
from torch.utils._device import DeviceContext

__all__ = [
    'activate',
    'add_to_fresh',
    'in_sub_batches',
    'is_observed',
    'is_plain_cuda',
    'is_plain_inference',
    'is_untouched',
    'known_class',
]

# Measured on a server CPU: fewer tokens slow the matrix products down, more tokens cause page faults.
SUB_BATCH_TOKENS = 800

M = TypeVar('M', bound=nn.Module)

CALL = nn.Module.__call__
FUNCTIONS = {name: getattr(F, name) for name in ('linear', 'conv2d', 'batch_norm', 'gelu')}
"""What the shortcuts stand in for, as imported: some profilers put their own functions in place of these."""

FORWARD: dict[type[nn.Module], Callable] = {}
"""By class that shortcuts know: its `forward` as imported."""
REPLACED: dict[type[nn.Module], frozenset[str]] = {}
"""By class that shortcuts know: names that replace a part of it when they are set on an instance: methods, and a
weight, which then is not a parameter but computed from some (pruning)."""
PER_IMAGE: set[type[nn.Module]] = set()
"""Classes that treat every image of a batch alone in evaluation mode."""


def known_class(kind: type[M], per_image: bool = True) -> type[M]:
    """Make a class known to `is_untouched`; a decorator for classes whose images do not depend on each other."""
    FORWARD[kind] = kind.forward
    bases = [base for base in kind.__mro__ if base not in (nn.Module, object)]
    methods = {name for base in bases for name, value in vars(base).items() if callable(value)}
    REPLACED[kind] = frozenset(methods | {'_call_impl', '_compiled_call_impl', 'weight'})
    if per_image:
        PER_IMAGE.add(kind)
    return kind


TORCHS: tuple[type[nn.Module], ...] = (
    *(nn.Conv2d, nn.Dropout, nn.GELU, nn.Identity, nn.LayerNorm, nn.Linear, nn.ModuleList, nn.ReLU, nn.SiLU),
    nn.Sequential,
    *(DropPath, LayerNorm),  # timm's
)
for _kind in TORCHS:
    known_class(_kind)
known_class(nn.BatchNorm2d, per_image=False)  # without running statistics it mixes the images


@torch.jit.unused
def is_plain_inference(x: torch.Tensor) -> bool:
    """Whether x is a plain CPU tensor in eager mode without autograd, and nothing watches what is done with it: no
    proxy, subclass, trace, export or compilation, see also `is_observed`.
    """
    return (
        not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and type(x) is torch.Tensor
        and x.is_cpu
        and x.layout is torch.strided
        and not torch.jit.is_tracing()
        and not is_observed()
    )


@torch.jit.unused
def is_plain_cuda(x: torch.Tensor) -> bool:
    """Whether x is a plain CUDA tensor, with or without autograd, and nothing watches what is done with it: no proxy,
    subclass, trace or export, see also `is_observed`. `torch.compile` is not an observer.
    """
    return (
        type(x) is torch.Tensor
        and _is_on_cuda(x)
        and x.layout is torch.strided
        and (not is_exporting() if torch.compiler.is_compiling() else not torch.jit.is_tracing() and not is_observed())
    )


def _is_on_cuda(x: torch.Tensor) -> bool:
    return x.is_cuda


def is_observed() -> bool:
    """Whether something follows every operation or every call in this thread, and would see a shortcut.

    Modes of `__torch_dispatch__` and `__torch_function__` (counters, `make_fx`), function transforms (vmap, jvp),
    forward-mode differentiation, which `torch.no_grad` leaves on, global hooks, replaced functions of torch.
    """
    return bool(
        hooks._global_forward_hooks
        or hooks._global_forward_pre_hooks
        or nn.Module.__call__ is not CALL
        or torch._C._len_torch_dispatch_stack()
        or (torch._C._len_torch_function_stack() and not _only_default_device())
        or torch._C._functorch.maybe_current_level() is not None
        or forward_ad._current_level >= 0
        or F.linear is not FUNCTIONS['linear']
        or F.conv2d is not FUNCTIONS['conv2d']
        or F.batch_norm is not FUNCTIONS['batch_norm']
        or F.gelu is not FUNCTIONS['gelu']
    )


def _only_default_device() -> bool:
    """Whether the modes are those of `torch.set_default_device`, which concern new tensors alone."""
    depth = torch._C._len_torch_function_stack()
    return all(type(torch._C._get_function_stack_at(i)) is DeviceContext for i in range(depth))


def is_untouched(layer: nn.Module, kind: type[M]) -> TypeGuard[M]:
    """Whether a layer is exactly of class `kind`, runs nothing but the code of that class, and holds plain tensors.

    No subclass; no hook; no `forward` or other method put on the instance or on the class; no pruned, parametrised or
    quantized weight; all parameters and buffers in the same place. Only then can its arithmetic be done elsewhere
    without an observable difference.
    """
    return type(layer) is kind and _is_unhooked(layer) and _runs_its_class(layer) and _holds_plain_tensors(layer)


def _is_unhooked(module: nn.Module) -> bool:
    return not (
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _runs_its_class(module: nn.Module) -> bool:
    """Whether the code of the module's class is run, a known one, as it was imported."""
    kind = type(module)
    if torch.compiler.is_compiling():  # dynamo follows what was replaced; it cannot read what comes next
        return True
    return FORWARD.get(kind) is kind.forward and (
        module.__dict__.keys().isdisjoint(REPLACED[kind]) or _only_restored(module, kind)
    )


def _only_restored(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether the one replaced method is a `forward` that was put back, as accelerate does when it removes hooks."""
    own: Any = module.__dict__.get('forward')
    restored = getattr(own, '__self__', None) is module and getattr(own, '__func__', None) is kind.forward
    return restored and module.__dict__.keys() & REPLACED[kind] == {'forward'}


def _holds_plain_tensors(module: nn.Module) -> bool:
    """Whether its own parameters and buffers are plain dense tensors on one device."""
    device = None
    for tensors in (module._parameters, module._buffers):
        for t in tensors.values():
            if t is None:
                continue
            if (type(t) is not nn.Parameter and type(t) is not torch.Tensor) or t.layout is not torch.strided:
                return False
            if device is None:
                device = t.device
            elif t.device != device:
                return False
    return True


def in_sub_batches(
    module: nn.Module, run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, images: int | None = None
) -> torch.Tensor:
    """`run(x)`; in plain inference on a CPU a few images at a time, if everything inside `module` treats each image
    alone and is untouched.

    The maps inside then stay in cache and reuse each other's memory. For a large batch the system would map fresh
    memory and release it again at every layer, which costs more than head mixing or a convolution itself.

    Args:
        module: The module whose forward pass this is; hooks on it see the whole batch, before and after.
        run: Computes every image of a batch independently of the others.
        x: Tokens (B, ..., C), or with `images` any (B, ...).
        images: How many at a time with one thread; with several, which share a large map better, all of them. None
            for as many as have `SUB_BATCH_TOKENS` tokens, whatever the threads.

    Returns:
        The result of `run`, (B, ...).
    """
    if not is_plain_inference(x) or x.shape[0] < 2:
        return run(x)
    size = max(1, SUB_BATCH_TOKENS // max(1, x[0].numel() // x.shape[-1])) if images is None else images
    if size >= x.shape[0] or (images and torch.get_num_threads() > 1) or not _treats_images_alone(module):
        return run(x)
    return torch.cat([run(part) for part in x.split(size)])


def _treats_images_alone(module: nn.Module) -> bool:
    """Whether nothing inside a module depends on which images are in a batch, or would see how many there are.

    In training mode random numbers are drawn for a batch, and a quantized weight may scale the whole of its input.
    Hooks on the module itself do not count: they are called outside its forward pass.
    """
    return all(
        (
            type(m) in PER_IMAGE
            or (type(m) is nn.BatchNorm2d and m.running_mean is not None and m.running_var is not None)
        )
        and not m.training
        and (_is_unhooked(m) or m is module)
        and _runs_its_class(m)
        and _holds_plain_tensors(m)
        for m in module.modules()
    )


def add_to_fresh(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """x + y, where x is referenced nowhere else: in place, since a fresh map of tens of MB costs page faults.

    Not under a function transform, which may map over y alone: then the sum is larger than x.
    """
    if not torch.jit.is_scripting() and _is_transformed():
        return x + y
    x += y
    return x


@torch.jit.unused
def _is_transformed() -> bool:
    return not torch.compiler.is_compiling() and torch._C._functorch.maybe_current_level() is not None


def activate(act: nn.Module, x: torch.Tensor, fresh: bool) -> torch.Tensor:
    """`act(x)`; in plain inference on a CPU a GELU works in place if x is `fresh`, that is, referenced nowhere else.

    On large maps the page faults of a second buffer cost more than the function itself.
    """
    if fresh and is_plain_inference(x) and is_untouched(act, nn.GELU):
        return torch.ops.aten.gelu_(x, approximate=act.approximate)
    return act(x)
