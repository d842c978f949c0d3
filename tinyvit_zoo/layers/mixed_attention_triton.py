"""Attention with head mixing as Triton kernels, both directions, and as operators of torch.

Imports Triton; `head_mix_cuda` imports this file when it first needs a kernel. Formulas: see there.

Queries, keys and values are read where the linear layer wrote them, and their gradients are written where its backward
pass reads them; as operands of a batched product they would be copied. Relative keys: the lookups of a query are
spread over the keys, by the index of their buckets, while the logits are written.

Shape legend: `B` images (or windows), `H` heads, `N` tokens, `d` width of a head, `K` buckets of relative keys.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from .head_mix_cuda import in_one_dtype, mixed_attention_plain
from .head_mix_triton import mix_heads, mix_heads_backward

__all__ = ['mixed_attention', 'mixed_attention_backward']

BLOCK = 64
"""Tokens of a tile; a window of 7x7 is one."""


@triton.jit
def _rows(x, offset, stride, b, h, token, e, N, d):
    """Tile (tokens, D) of head h of image b: of queries, keys or values, or of the result."""
    at = (b * N + token[:, None]) * stride + offset + h * d + e[None, :]
    return x + at, (token[:, None] < N) & (e[None, :] < d)


@triton.jit
def _products(
    x,
    y,
    lookups,
    index,
    out,
    x_offset,
    x_stride,
    y_offset,
    y_stride,
    scale,
    H,
    N,
    d,
    K,
    tiles,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    SPREAD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out[b, h, i, j] = scale * x[b, i, h] . y[b, j, h] + lookups[b, i, h, bucket of i and j]: a tile of it."""
    tile = tl.program_id(0) % (tiles * tiles)
    group = tl.program_id(0) // (tiles * tiles)
    b = (group // H).to(tl.int64)
    h = group % H
    i = tile // tiles * BLOCK + tl.arange(0, BLOCK)
    j = tile % tiles * BLOCK + tl.arange(0, BLOCK)
    e = tl.arange(0, D)
    at, ok = _rows(x, x_offset, x_stride, b, h, i, e, N, d)
    left = tl.load(at, mask=ok, other=0.0)
    at, ok = _rows(y, y_offset, y_stride, b, h, j, e, N, d)
    right = tl.load(at, mask=ok, other=0.0)
    s = tl.dot(left, tl.trans(right), input_precision=PRECISION) * scale
    ok = (i[:, None] < N) & (j[None, :] < N)
    if SPREAD:
        bucket = tl.load(index + i[:, None] * N + j[None, :], mask=ok, other=0) - i[:, None] * K
        at = ((b * N + i[:, None]) * H + h) * K + bucket
        s += tl.load(lookups + at, mask=ok, other=0.0).to(tl.float32)
    at = ((b * H + h) * N + i[:, None]) * N + j[None, :]
    tl.store(out + at, s.to(out.dtype.element_ty), mask=ok)


@triton.jit
def _sums(
    maps,
    x,
    out,
    x_offset,
    x_stride,
    out_offset,
    out_stride,
    scale,
    H,
    N,
    d,
    tiles,
    TRANSPOSED: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out[b, i, h] = scale * sum over j of maps[b, h, i, j] (or maps[b, h, j, i]) * x[b, j, h]: a tile of it."""
    group = tl.program_id(0) // tiles
    b = (group // H).to(tl.int64)
    h = group % H
    i = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    e = tl.arange(0, D)
    total = tl.zeros((BLOCK, D), tl.float32)
    for start in range(0, N, BLOCK):
        j = start + tl.arange(0, BLOCK)
        if TRANSPOSED:
            at = ((b * H + h) * N + j[None, :]) * N + i[:, None]
        else:
            at = ((b * H + h) * N + i[:, None]) * N + j[None, :]
        weight = tl.load(maps + at, mask=(i[:, None] < N) & (j[None, :] < N), other=0.0)
        at, ok = _rows(x, x_offset, x_stride, b, h, j, e, N, d)
        total += tl.dot(weight, tl.load(at, mask=ok, other=0.0), input_precision=PRECISION)
    at, ok = _rows(out, out_offset, out_stride, b, h, i, e, N, d)
    tl.store(at, (total * scale).to(out.dtype.element_ty), mask=ok)


def _settings(d: int) -> dict[str, Any]:
    """float32 is multiplied in three TF32 products; bfloat16 and float16 as they are, summed in float32."""
    D = max(triton.next_power_of_2(d), 16)
    return dict(D=D, BLOCK=BLOCK, PRECISION='tf32x3', num_warps=4, num_stages=1)


def _logits(
    x: torch.Tensor,
    x_part: int,
    y: torch.Tensor,
    y_part: int,
    scale: float,
    lookups: torch.Tensor | None = None,
    index: torch.Tensor | None = None,
) -> torch.Tensor:
    """Products of two parts of tensors (B, N, parts, H, d). (B, H, N, N)."""
    B, N, x_parts, H, d = x.shape
    out = x.new_empty(B, H, N, N)
    tiles = triton.cdiv(N, BLOCK)
    K = 1 if lookups is None else lookups.shape[-1]
    with torch.cuda.device_of(x):
        wrap_triton(_products)[(B * H * tiles * tiles,)](
            x,
            y,
            x if lookups is None else lookups,
            x if index is None else index,
            out,
            x_part * H * d,
            x_parts * H * d,
            y_part * H * d,
            y.shape[2] * H * d,
            scale,
            H,
            N,
            d,
            K,
            tiles,
            SPREAD=lookups is not None,
            **_settings(d),
        )
    return out


def _weighted(
    maps: torch.Tensor, x: torch.Tensor, x_part: int, out: torch.Tensor, out_part: int, scale: float, transposed: bool
) -> None:
    """Write sums of a part of x (B, N, parts, H, d), weighted by maps (B, H, N, N), into a part of `out`."""
    B, N, x_parts, H, d = x.shape
    tiles = triton.cdiv(N, BLOCK)
    with torch.cuda.device_of(x):
        wrap_triton(_sums)[(B * H * tiles,)](
            maps,
            x,
            out,
            x_part * H * d,
            x_parts * H * d,
            out_part * H * d,
            out.shape[2] * H * d,
            scale,
            H,
            N,
            d,
            tiles,
            TRANSPOSED=transposed,
            **_settings(d),
        )


@triton_op('tinyvit_zoo::mixed_attention', mutates_args=())
def mixed_attention(
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
) -> tuple[torch.Tensor, torch.Tensor]:
    """`head_mix_cuda.mixed_attention_plain`, and the logits (B, H, N, N), which its backward pass needs."""
    B, N, _, H, d = qkv.shape
    out = qkv.new_empty(B, N, 1, H, d)
    if out.numel() == 0:
        return out.view(B, N, H * d), qkv.new_empty(B, H, N, N)
    qkv = qkv.contiguous()
    lookups = None if lookups is None else lookups.contiguous()
    logits = _logits(qkv, 0, qkv, 1, scale, lookups, index)
    maps = mix_heads(logits, first, first_bias, second, second_bias, position, mask)
    _weighted(maps, qkv, 2, out, 0, 1.0, False)
    return out.view(B, N, H * d), logits


@triton_op('tinyvit_zoo::mixed_attention_backward', mutates_args=())
def mixed_attention_backward(
    grad: torch.Tensor,
    qkv: torch.Tensor,
    logits: torch.Tensor,
    first: torch.Tensor,
    first_bias: torch.Tensor | None,
    second: torch.Tensor,
    second_bias: torch.Tensor | None,
    position: torch.Tensor | None,
    mask: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of `mixed_attention` from that of its result.

    Returns:
        Of qkv, (B, N, 3, H, d); of the logits, (B, H, N, N); of matrices and biases, (2, H, H + 1) in float32.
    """
    B, N, _, H, d = qkv.shape
    if qkv.numel() == 0:
        return torch.empty_like(qkv), torch.empty_like(logits), qkv.new_zeros(2, H, H + 1, dtype=torch.float32)
    qkv = qkv.contiguous()
    grad = grad.contiguous().view(B, N, 1, H, d)
    grad_qkv = torch.empty_like(qkv)
    maps = mix_heads(logits, first, first_bias, second, second_bias, position, mask)
    _weighted(maps, grad, 0, grad_qkv, 2, 1.0, True)
    grad_maps = _logits(grad, 0, qkv, 2, 1.0)
    grad_logits, sums = mix_heads_backward(grad_maps, logits, first, first_bias, second, position, mask)
    _weighted(grad_logits, qkv, 1, grad_qkv, 0, scale, False)
    _weighted(grad_logits, qkv, 0, grad_qkv, 1, scale, True)
    return grad_qkv, grad_logits, sums


@mixed_attention.register_fake
def _(
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
) -> tuple[torch.Tensor, torch.Tensor]:
    B, N, _, H, d = qkv.shape
    return qkv.new_empty(B, N, H * d), qkv.new_empty(B, H, N, N)


@mixed_attention_backward.register_fake
def _(
    grad: torch.Tensor,
    qkv: torch.Tensor,
    logits: torch.Tensor,
    first: torch.Tensor,
    first_bias: torch.Tensor | None,
    second: torch.Tensor,
    second_bias: torch.Tensor | None,
    position: torch.Tensor | None,
    mask: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    H = qkv.shape[3]
    contiguous = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    return contiguous, torch.empty_like(logits), qkv.new_empty(2, H, H + 1, dtype=torch.float32)


def _gathered(grad_logits: torch.Tensor, index: torch.Tensor, lookups: torch.Tensor) -> torch.Tensor:
    """Gradient of the lookups (B, N, H, K): sums over the keys of each bucket, as one product for every query.

    `index_add` would need atomics, in another order in every run.
    """
    B, N, H, K = lookups.shape
    bucket = index.view(N, N) - torch.arange(N, device=index.device)[:, None] * K
    member = F.one_hot(bucket, K).to(grad_logits.dtype)
    sums = torch.bmm(grad_logits.view(B * H, N, N).transpose(0, 1), member)  # (N, B * H, K)
    return sums.view(N, B, H, K).transpose(0, 1).to(lookups.dtype)


def _keep(ctx: Any, inputs: tuple, output: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Of the maps the logits alone."""
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad: torch.Tensor | None, _: None) -> tuple[torch.Tensor | None, ...]:
    *inputs, logits = ctx.saved_tensors
    if grad is None:
        return (None,) * (len(inputs) + 1)
    if torch.is_grad_enabled():  # with create_graph the gradients are differentiated themselves
        return (*_differentiable(ctx, inputs, grad), None)
    qkv, lookups, index, first, first_bias, second, second_bias, position, mask = inputs
    grad_qkv, grad_logits, sums = mixed_attention_backward(
        grad, qkv, logits, first, first_bias, second, second_bias, position, mask, ctx.scale
    )
    sums = sums.to(first.dtype)
    wanted = ctx.needs_input_grad
    return (
        grad_qkv,
        _gathered(grad_logits, index, lookups) if wanted[1] else None,
        None,
        sums[0, :, :-1],
        sums[0, :, -1] if wanted[4] else None,
        sums[1, :, :-1],
        sums[1, :, -1] if wanted[6] else None,
        grad_logits.sum_to_size(position.shape).to(position.dtype) if wanted[7] else None,
        None,
        None,
    )


def _differentiable(ctx: Any, inputs: list[torch.Tensor], grad: torch.Tensor) -> list[torch.Tensor | None]:
    wanted = [t for t, needed in zip(inputs, ctx.needs_input_grad, strict=False) if needed]
    arguments: tuple[Any, ...] = (*in_one_dtype(*inputs), ctx.scale)
    result = mixed_attention_plain(*arguments).to(grad.dtype)
    grads = iter(torch.autograd.grad(result, wanted, grad, create_graph=True))
    return [next(grads) if needed else None for _, needed in zip(inputs, ctx.needs_input_grad, strict=False)]


mixed_attention.register_autograd(_gradients, setup_context=_keep)
