"""Attention with head mixing on CUDA: when its kernels may run, and their formulas in plain torch.

    logits = scale * q k^T + relative keys
    u = first @ (logits + position) + first_bias + mask,  p = softmax(u),  maps = second @ p + second_bias
    result = maps v

where the matrices act on the head axis. As single operators these read and write the largest tensors of the model up to
ten times, and a product with 3 to 32 rows keeps no tensor core busy. One Triton kernel (`head_mix_triton`) goes from
logits to maps, which it reads once and writes once; two more (`mixed_attention_triton`) read queries, keys and values
where they lie. The backward pass keeps the logits alone and computes the rest again.

The kernels are taken on CUDA with Triton (which comes with torch's CUDA builds) where nobody can notice, see
`inference`; everywhere else, and on every CPU, the modules run as they are.

Shape legend: `B` images or windows, `H` heads, `N` queries, `M` keys, `d` width of a head, `windows` windows of an
image.
"""

import importlib
from functools import reduce

import torch
from torch import nn

from . import routes
from .head_mix import HeadMix
from .inference import is_plain_cuda, is_untouched
from .irpe import RelativeKeys
from .repeat import PerRepeat

__all__ = [
    'has_attention_kernel', 'in_one_dtype', 'mix_heads_gradients', 'mix_heads_plain', 'mixed_attention_plain',
    'run_attention_kernel',
]  # fmt: skip

MAX_HEADS = 32
MAX_TOKENS = 1024
MAX_WIDTH = 128
"""Of a head: registers for a tile of queries."""

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


def in_one_dtype(*inputs: torch.Tensor | None) -> list[torch.Tensor | None]:
    """Floating-point tensors in the widest of their dtypes, others as they are.

    The formulas in plain torch need it where the maps are those of autocast, which is off in a backward pass.
    """
    dtypes = [t.dtype for t in inputs if t is not None and t.is_floating_point()]
    widest = reduce(torch.promote_types, dtypes)
    return [t if t is None or not t.is_floating_point() else t.to(widest) for t in inputs]


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
def has_attention_kernel(
    qkv: torch.Tensor,
    first: PerRepeat,
    second: PerRepeat,
    repeat: int,
    drop: nn.Dropout,
    keys: nn.Module | None = None,
    mask: torch.Tensor | None = None,
) -> bool:
    """Whether `run_attention_kernel` computes what these modules would: first, mask, softmax, second, dropout.

    Args:
        qkv: (B, N, 3, H, d).
        first: `HeadMix` of each repeat, before the softmax.
        second: `HeadMix` of each repeat, after it.
        repeat: The repeat that runs.
        drop: Dropout of the maps.
        keys: Relative keys of the repeat.
        mask: (windows, N, N).
    """
    return (
        is_plain_cuda(qkv)
        and routes.SETTING != 'plain'
        and qkv.dtype in DTYPES
        and _fits(qkv, mask)
        and is_untouched(drop, nn.Dropout)
        and not (drop.training and drop.p > 0)
        and is_untouched(first, PerRepeat)
        and is_untouched(second, PerRepeat)
        and repeat < min(len(first), len(second))
        and _mixes(first[repeat], qkv)
        and _mixes(second[repeat], qkv)
        and (keys is None or (is_untouched(keys, RelativeKeys) and _takes_part(keys.table, qkv)))
        and _has_triton(qkv.get_device())
    )


def _fits(qkv: torch.Tensor, mask: torch.Tensor | None) -> bool:
    B, N, _, H, d = qkv.shape
    if H > MAX_HEADS or N > MAX_TOKENS or d > MAX_WIDTH:
        return False
    return mask is None or (
        type(mask) is torch.Tensor
        and mask.device == qkv.device
        and not mask.requires_grad
        and mask.shape[1:] == (N, N)
        and B % mask.shape[0] == 0
    )


def _mixes(mix: nn.Module, qkv: torch.Tensor) -> bool:
    return is_untouched(mix, HeadMix) and mix.weight.shape[0] == qkv.shape[3] and _takes_part(mix.weight, qkv)


def _takes_part(weight: torch.Tensor, qkv: torch.Tensor) -> bool:
    """Whether a weight meets these queries without an error, in a product that has their dtype."""
    if weight.device != qkv.device:
        return False
    kind = qkv.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind) == qkv.dtype
    return weight.dtype == qkv.dtype


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


@torch.jit.unused
def run_attention_kernel(
    qkv: torch.Tensor,
    first: PerRepeat,
    second: PerRepeat,
    repeat: int,
    scale: float,
    lookups: torch.Tensor | None = None,
    index: torch.Tensor | None = None,
    position: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """`mixed_attention_plain` by the kernels, only if `has_attention_kernel`. (B, N, H * d) in the dtype of qkv.

    Args:
        qkv: (B, N, 3, H, d).
        first: `HeadMix` of each repeat, before the softmax.
        second: `HeadMix` of each repeat, after it.
        repeat: The repeat that runs.
        scale: See `mixed_attention_plain`, as for the rest.
        lookups: See there.
        index: See there.
        position: See there.
        mask: See there.
    """
    before, after = first[repeat], second[repeat]
    weights = (before.weight, before.bias, after.weight, after.bias)
    return torch.ops.tinyvit_zoo.mixed_attention(qkv, lookups, index, *weights, position, mask, scale)[0]
