"""Head mixing around the softmax in one kernel on CUDA: when it may run, and its formulas in plain torch.

    u = first @ (logits + position) + first_bias + mask,  p = softmax(u),  result = second @ p + second_bias

where the matrices act on the head axis. As single operators these read and write the largest tensors of the model up to
ten times, and a product with 3 to 32 rows keeps no tensor core busy; one Triton kernel (`head_mix_triton`) reads the
logits once and writes the result once. Its backward pass keeps the logits and computes the rest again.

The kernel is taken on CUDA with Triton (which comes with torch's CUDA builds) where nobody can notice, see `inference`;
everywhere else, and on every CPU, the modules run as they are.

Shape legend: `B` images or windows, `H` heads, `N` queries, `M` keys, `windows` windows of an image.
"""

import importlib

import torch
from torch import nn

from .head_mix import HeadMix
from .inference import is_plain_cuda, is_untouched
from .repeat import PerRepeat

__all__ = ['has_mix_kernel', 'mix_heads_gradients', 'mix_heads_plain', 'run_mix_kernel']

MAX_HEADS = 32
MAX_TOKENS = 1024
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MIN_CAPABILITY = (8, 0)
"""Of the oldest GPUs that Triton supports in full: bfloat16 and TF32."""

_CAPABLE: dict[int, bool] = {}
"""By CUDA device, once it was asked for."""


def mix_heads_plain(
    logits: torch.Tensor,
    first: torch.Tensor,
    first_bias: torch.Tensor | None,
    second: torch.Tensor,
    second_bias: torch.Tensor | None,
    position: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """What the kernel computes, in plain torch.

    Args:
        logits: (B, H, N, M).
        first: Matrix (H, H) before the softmax.
        first_bias: (H,).
        second: Matrix (H, H) after it.
        second_bias: (H,).
        position: Position part of the logits, (H, N, M) or (B, H, N, M).
        mask: (windows, N, M), added after the first matrix; image b has mask b % windows.

    Returns:
        (B, H, N, M).
    """
    p = _softmax(logits, first, first_bias, position, mask)[1]
    return _mixed(p, second, second_bias)


def _mixed(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    mixed = torch.einsum('gh,bhij->bgij', weight, x)
    return mixed if bias is None else mixed + bias[:, None, None]


def _softmax(
    logits: torch.Tensor,
    first: torch.Tensor,
    first_bias: torch.Tensor | None,
    position: torch.Tensor | None,
    mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits with their position part, and the softmax of what the first matrix makes of them."""
    x = logits if position is None else logits + position
    u = _mixed(x, first, first_bias)
    if mask is not None:
        u = (u.unflatten(0, (-1, mask.shape[0])) + mask[:, None]).flatten(0, 1)
    return x, u.softmax(-1)


def mix_heads_gradients(
    grad: torch.Tensor,
    logits: torch.Tensor,
    first: torch.Tensor,
    first_bias: torch.Tensor | None,
    second: torch.Tensor,
    position: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel's backward pass in plain torch, which autograd can differentiate once more.

    Args:
        grad: Gradient of the result, (B, H, N, M).
        logits: As in `mix_heads_plain`, like the others.
        first: See there.
        first_bias: See there.
        second: See there.
        position: See there.
        mask: See there.

    Returns:
        Gradients of the logits, (B, H, N, M); of both matrices and, in the last column, biases, (2, H, H + 1).
    """
    x, p = _softmax(logits, first, first_bias, position, mask)
    grad_p = _mixed(grad, second.T, None)
    grad_u = p * (grad_p - (grad_p * p).sum(-1, keepdim=True))
    sums = [
        torch.cat([torch.einsum('bgij,bhij->gh', g, y), g.sum((0, 2, 3))[:, None]], 1)
        for g, y in ((grad_u, x), (grad, p))
    ]
    return _mixed(grad_u, first.T, None), torch.stack(sums)


def mixed_attention_plain(
    qkv: torch.Tensor,
    lookups: torch.Tensor | None,
    index: torch.Tensor | None,
    first: torch.Tensor,
    first_bias: torch.Tensor | None,
    second: torch.Tensor,
    second_bias: torch.Tensor | None,
    position: torch.Tensor | None,
    mask: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """What the attention kernels compute, in plain torch.

    Args:
        qkv: Queries, keys and values (B, N, 3, H, d).
        lookups: Products of each query with the K relative keys, (B, N, H, K), added to the logits by `index`.
        index: int64 (N * N,), i * K + bucket of (i, j), see `irpe_index`.
        first: As in `mix_heads_plain`, like the next.
        first_bias: See there.
        second: See there.
        second_bias: See there.
        position: See there.
        mask: See there.
        scale: Of the products of queries and keys.

    Returns:
        (B, N, H * d).
    """
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    logits = q @ k.transpose(-2, -1) * scale
    if lookups is not None and index is not None:
        logits = logits + lookups.transpose(1, 2).flatten(2).index_select(2, index).view(logits.shape)
    maps = mix_heads_plain(logits, first, first_bias, second, second_bias, position, mask)
    return (maps @ v).transpose(1, 2).flatten(2)


@torch.jit.unused
def has_mix_kernel(
    logits: torch.Tensor,
    first: PerRepeat,
    second: PerRepeat,
    repeat: int,
    drop: nn.Dropout,
    mask: torch.Tensor | None = None,
) -> bool:
    """Whether `run_mix_kernel` computes what these modules would: first, mask, softmax, second, dropout.

    Args:
        logits: (B, H, N, M).
        first: `HeadMix` of each repeat, before the softmax.
        second: `HeadMix` of each repeat, after it.
        repeat: The repeat that runs.
        drop: Dropout of the result.
        mask: (windows, N, M).
    """
    return (
        is_plain_cuda(logits)
        and logits.dtype in DTYPES
        and _fits(logits, mask)
        and is_untouched(drop, nn.Dropout)
        and not (drop.training and drop.p > 0)
        and is_untouched(first, PerRepeat)
        and is_untouched(second, PerRepeat)
        and repeat < min(len(first), len(second))
        and _takes_part(first[repeat], logits)
        and _takes_part(second[repeat], logits)
        and _has_triton(logits.get_device())
    )


@torch.compiler.assume_constant_result
def _has_triton(device: int) -> bool:
    """Whether Triton has kernels for a CUDA device; registers the operators if so."""
    if device not in _CAPABLE:
        new_enough = torch.version.hip is None and torch.cuda.get_device_capability(device) >= MIN_CAPABILITY
        _CAPABLE[device] = new_enough and load_operators()
    return _CAPABLE[device]


def load_operators() -> bool:
    """Register `mix_heads` and `mixed_attention` in `torch.ops.tinyvit_zoo`; whether there is a Triton to do so."""
    try:
        importlib.import_module(f'{__package__}.mixed_attention_triton')
    except ImportError:
        return False
    return True


def _fits(logits: torch.Tensor, mask: torch.Tensor | None) -> bool:
    B, H, N, M = logits.shape
    if H > MAX_HEADS or N > MAX_TOKENS or M > MAX_TOKENS:
        return False
    return mask is None or (
        type(mask) is torch.Tensor
        and mask.device == logits.device
        and not mask.requires_grad
        and mask.shape[1:] == (N, M)
        and B % mask.shape[0] == 0
    )


def _takes_part(mix: nn.Module, logits: torch.Tensor) -> bool:
    """Whether a mixing is untouched, fits the logits, and would return their dtype."""
    if not is_untouched(mix, HeadMix) or mix.weight.shape[0] != logits.shape[1] or mix.weight.device != logits.device:
        return False
    kind = logits.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind) == logits.dtype
    return mix.weight.dtype == logits.dtype


@torch.jit.unused
def run_mix_kernel(
    logits: torch.Tensor,
    first: PerRepeat,
    second: PerRepeat,
    repeat: int,
    position: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """The maps (B, H, N, M) after the second mixing, in the dtype of the logits. Only if `has_mix_kernel`.

    Args:
        logits: (B, H, N, M), without their position part.
        first: `HeadMix` of each repeat, before the softmax.
        second: `HeadMix` of each repeat, after it.
        repeat: The repeat that runs.
        position: Position part of the logits, (H, N, M) or (B, H, N, M).
        mask: (windows, N, M), added between the first mixing and the softmax.
    """
    before, after = first[repeat], second[repeat]
    return torch.ops.tinyvit_zoo.mix_heads(logits, before.weight, before.bias, after.weight, after.bias, position, mask)
