"""Head mixing around the softmax as Triton kernels, both directions, and as operators of torch.

Imports Triton; `head_mix_cuda` imports this file when it first needs a kernel. Formulas: see there.

Shape legend: `B` images (or windows), `H` heads, `N` query rows of an image, `M` keys.

All heads of a query row are in one program, so that a map is read once and written once. Up to 8 heads are tensors of
their own, and mixing is multiply-adds in registers (`_forward_few`). More heads are the rows of one tile, mixed by
`tl.dot` (`_forward_many`). The backward pass (`_backward`) needs products over the keys for the gradients of the
matrices, hence tiles as well; the smallest that `tl.dot` takes has 16 rows, so that few heads share it between query
rows, under a block-diagonal matrix.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from .head_mix_cuda import in_one_dtype, mix_heads_gradients

__all__ = ['mix_heads', 'mix_heads_backward']

FEW_HEADS = 8
MIN_DOT = 16
"""Rows of the smallest tile that `tl.dot` takes."""

FORWARD_COLS = 256
BACKWARD_COLS = 32
"""Keys of a tile. (Tiles of all keys took minutes to compile in the backward pass, whose products over the keys are
unrolled; with 64 keys registers did not suffice.)"""

NO_POSITION, SHARED_POSITION, OWN_POSITION = 0, 1, 2

BACKWARD_PROGRAMS = 4096
"""At most so many partial sums: of the shape alone, so that every run adds the same numbers in the same order."""


@triton.jit
def _load_logits(logits, position, b, h, i, col, ok, H, N, M, POSITION: tl.constexpr):
    """Logits with their position part in float32, of the shape of `ok`; image b (int64), head h and row i fit it."""
    at = ((b * H + h) * N + i) * M + col
    x = tl.load(logits + at, mask=ok, other=0.0).to(tl.float32)
    if POSITION == 1:
        x += tl.load(position + (h * N + i) * M + col, mask=ok, other=0.0).to(tl.float32)
    if POSITION == 2:
        x += tl.load(position + at, mask=ok, other=0.0).to(tl.float32)
    return x


@triton.jit
def _masked(u, mask, b, i, col, ok, N, M, windows, MASK: tl.constexpr):
    """u + mask, and -inf beyond the last key."""
    if MASK:
        u += tl.load(mask + ((b % windows) * N + i) * M + col, mask=ok, other=0.0).to(tl.float32)
    return tl.where(col < M, u, float('-inf'))


@triton.jit
def _softmax(u):
    """Over the last axis."""
    e = tl.exp(u - tl.max(u, 1)[:, None])
    return e / tl.sum(e, 1)[:, None]


@triton.jit
def _raised(u, top):
    """The largest value so far, and what is subtracted before `exp`: 0 while every key is masked by -inf."""
    new = tl.maximum(top, tl.max(u, 1))
    return new, tl.where(new == float('-inf'), 0.0, new)


@triton.jit
def _forward_few(
    logits,
    position,
    first,
    first_bias,
    second,
    second_bias,
    mask,
    out,
    rows,
    N,
    M,
    windows,
    H: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    POSITION: tl.constexpr,
    MASK: tl.constexpr,
    FIRST_BIAS: tl.constexpr,
    SECOND_BIAS: tl.constexpr,
):
    """ROWS query rows, each head a tensor (ROWS, COLS): no program mixes rows, so NaN stays in its own."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.arange(0, COLS)[None, :]
    b = (row // N).to(tl.int64)
    i = row % N
    ok = (row < rows) & (col < M)
    x = ()
    for h in tl.static_range(H):
        xh = _load_logits(logits, position, b, h, i, col, ok, H, N, M, POSITION)
        x = x + (xh,)  # type: ignore[assignment]  # noqa: RUF005 (Triton has no *x)
    p = ()
    for g in tl.static_range(H):
        u = tl.zeros((ROWS, COLS), tl.float32)
        for h in tl.static_range(H):
            u += tl.load(first + g * H + h).to(tl.float32) * x[h]
        if FIRST_BIAS:
            u += tl.load(first_bias + g).to(tl.float32)
        p = p + (_softmax(_masked(u, mask, b, i, col, ok, N, M, windows, MASK)),)  # type: ignore[assignment]  # noqa: RUF005
    for g in tl.static_range(H):
        z = tl.zeros((ROWS, COLS), tl.float32)
        for h in tl.static_range(H):
            z += tl.load(second + g * H + h).to(tl.float32) * p[h]
        if SECOND_BIAS:
            z += tl.load(second_bias + g).to(tl.float32)
        tl.store(out + ((b * H + g) * N + i) * M + col, z.to(out.dtype.element_ty), mask=ok)


@triton.jit
def _matrix(weight, H: tl.constexpr, GROUP: tl.constexpr, TILE: tl.constexpr):
    """(TILE, TILE) in float32: GROUP times the (H, H) matrix along the diagonal, 0 elsewhere."""
    g = tl.arange(0, TILE)[:, None]
    h = tl.arange(0, TILE)[None, :]
    same = (g // H == h // H) & (g < GROUP * H) & (h < GROUP * H)
    return tl.load(weight + (g % H) * H + h % H, mask=same, other=0.0).to(tl.float32)


@triton.jit
def _bias(bias, H: tl.constexpr, GROUP: tl.constexpr, TILE: tl.constexpr):
    g = tl.arange(0, TILE)[:, None]
    return tl.load(bias + g % H, mask=g < GROUP * H, other=0.0).to(tl.float32)


@triton.jit
def _mixed_logits(
    logits,
    position,
    into,
    first_bias,
    mask,
    b,
    h,
    i,
    col,
    ok,
    mask_ok,
    N,
    M,
    windows,
    H: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    POSITION: tl.constexpr,
    MASK: tl.constexpr,
    FIRST_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of logits with their position part, and what the softmax sees of it."""
    x = _load_logits(logits, position, b, h, i, col, ok, H, N, M, POSITION)
    u = tl.dot(into, x, input_precision=PRECISION)
    if FIRST_BIAS:
        u += _bias(first_bias, H, GROUP, TILE)
    return x, _masked(u, mask, b, i, col, mask_ok, N, M, windows, MASK)


@triton.jit
def _forward_many(
    logits,
    position,
    first,
    first_bias,
    second,
    second_bias,
    mask,
    out,
    rows,
    N,
    M,
    windows,
    H: tl.constexpr,
    TILE: tl.constexpr,
    COLS: tl.constexpr,
    ONE_TILE: tl.constexpr,
    POSITION: tl.constexpr,
    MASK: tl.constexpr,
    FIRST_BIAS: tl.constexpr,
    SECOND_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One query row, its heads the rows of tiles (TILE, COLS). Where one tile is not enough, the logits are read twice:
    for the sum of the softmax, and again (from cache) for its values.
    """
    h = tl.arange(0, TILE)[:, None]
    row = tl.program_id(0)
    b = (row // N).to(tl.int64)
    i = row % N
    into = _matrix(first, H, 1, TILE)
    top = tl.full((TILE,), float('-inf'), tl.float32)
    total = tl.zeros((TILE,), tl.float32)
    if not ONE_TILE:
        for start in range(0, M, COLS):
            col = start + tl.arange(0, COLS)[None, :]
            ok = (h < H) & (col < M)
            _, u = _mixed_logits(
                logits, position, into, first_bias, mask, b, h, i, col, ok, col < M, N, M, windows,
                H, 1, TILE, POSITION, MASK, FIRST_BIAS, PRECISION,
            )  # fmt: skip
            new, less = _raised(u, top)
            total = total * tl.exp(top - less) + tl.sum(tl.exp(u - less[:, None]), 1)
            top = new
    outof = _matrix(second, H, 1, TILE)
    for start in range(0, M, COLS):
        col = start + tl.arange(0, COLS)[None, :]
        ok = (h < H) & (col < M)
        _, u = _mixed_logits(
            logits, position, into, first_bias, mask, b, h, i, col, ok, col < M, N, M, windows,
            H, 1, TILE, POSITION, MASK, FIRST_BIAS, PRECISION,
        )  # fmt: skip
        if ONE_TILE:
            p = _softmax(u)
        else:
            p = tl.exp(u - top[:, None]) / total[:, None]
        z = tl.dot(outof, p, input_precision=PRECISION)
        if SECOND_BIAS:
            z += _bias(second_bias, H, 1, TILE)
        tl.store(out + ((b * H + h) * N + i) * M + col, z.to(out.dtype.element_ty), mask=ok)


@triton.jit
def _backward(
    logits,
    position,
    first,
    first_bias,
    second,
    mask,
    grad,
    grad_logits,
    sums,
    rows,
    N,
    M,
    windows,
    steps,
    H: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    COLS: tl.constexpr,
    POSITION: tl.constexpr,
    MASK: tl.constexpr,
    FIRST_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`steps` times GROUP query rows: the gradient of their logits, and one partial sum (2, TILE, TILE + 1).

    Tiles are (TILE, COLS). All keys of a row are read twice: first for the sum of the softmax and for that of its
    gradient times its values, then for the rest.
    """
    slot = tl.arange(0, TILE)[:, None]
    h = slot % H
    into = _matrix(first, H, GROUP, TILE)
    into_t = tl.trans(into)
    outof_t = tl.trans(_matrix(second, H, GROUP, TILE))
    first_sum = tl.zeros((TILE, TILE), tl.float32)
    second_sum = tl.zeros((TILE, TILE), tl.float32)
    first_bias_sum = tl.zeros((TILE,), tl.float32)
    second_bias_sum = tl.zeros((TILE,), tl.float32)
    for step in range(steps):
        row = (tl.program_id(0) * steps + step) * GROUP + slot // H
        b = (row // N).to(tl.int64)
        i = row % N
        inside = (slot < GROUP * H) & (row < rows)
        top = tl.full((TILE,), float('-inf'), tl.float32)
        total = tl.zeros((TILE,), tl.float32)
        inner = tl.zeros((TILE,), tl.float32)
        for start in range(0, M, COLS):
            col = start + tl.arange(0, COLS)[None, :]
            ok = inside & (col < M)
            _, u = _mixed_logits(
                logits, position, into, first_bias, mask, b, h, i, col, ok, ok, N, M, windows,
                H, GROUP, TILE, POSITION, MASK, FIRST_BIAS, PRECISION,
            )  # fmt: skip
            dz = tl.load(grad + ((b * H + h) * N + i) * M + col, mask=ok, other=0.0).to(tl.float32)
            dp = tl.dot(outof_t, dz, input_precision=PRECISION)
            new, less = _raised(u, top)
            e = tl.exp(u - less[:, None])
            shrink = tl.exp(top - less)
            total = total * shrink + tl.sum(e, 1)
            inner = inner * shrink + tl.sum(e * dp, 1)
            top = new
        inner = inner / total
        for start in range(0, M, COLS):
            col = start + tl.arange(0, COLS)[None, :]
            ok = inside & (col < M)
            x, u = _mixed_logits(
                logits, position, into, first_bias, mask, b, h, i, col, ok, ok, N, M, windows,
                H, GROUP, TILE, POSITION, MASK, FIRST_BIAS, PRECISION,
            )  # fmt: skip
            at = ((b * H + h) * N + i) * M + col
            dz = tl.load(grad + at, mask=ok, other=0.0).to(tl.float32)
            dp = tl.dot(outof_t, dz, input_precision=PRECISION)
            p = tl.exp(u - top[:, None]) / total[:, None]
            du = p * (dp - inner[:, None])
            dx = tl.dot(into_t, du, input_precision=PRECISION)
            tl.store(grad_logits + at, dx.to(grad_logits.dtype.element_ty), mask=ok)
            second_sum += tl.dot(dz, tl.trans(p), input_precision=PRECISION)
            second_bias_sum += tl.sum(dz, 1)
            first_sum += tl.dot(du, tl.trans(x), input_precision=PRECISION)
            first_bias_sum += tl.sum(du, 1)
    g = tl.arange(0, TILE)
    to = sums + tl.program_id(0).to(tl.int64) * (2 * TILE * (TILE + 1)) + g * (TILE + 1)
    tl.store(to[:, None] + g[None, :], first_sum)
    tl.store(to + TILE, first_bias_sum)
    to += TILE * (TILE + 1)
    tl.store(to[:, None] + g[None, :], second_sum)
    tl.store(to + TILE, second_bias_sum)


def _precision(dtype: torch.dtype) -> str:
    """How `tl.dot` multiplies: bfloat16 has fewer digits than TF32; float16 has as many, which must be rounded."""
    return 'tf32' if dtype == torch.bfloat16 else 'tf32x3'


def _position_kind(position: torch.Tensor | None) -> int:
    if position is None:
        return NO_POSITION
    return SHARED_POSITION if position.ndim == 3 else OWN_POSITION


def _inputs(logits: torch.Tensor, position: torch.Tensor | None, *others: torch.Tensor | None) -> list[torch.Tensor]:
    """Contiguous tensors; the logits stand for what is not there."""
    logits = logits.contiguous()
    if position is not None:
        position = position.expand(logits.shape[4 - position.ndim :])
    return [logits, *(logits if t is None else t.contiguous() for t in (position, *others))]


def _warps(elements: int, each: int) -> int:
    """Warps of 32 lanes, a power of two, so that a lane has about `each` of so many elements of a tile."""
    return min(max(elements // (32 * each), 1), 16)


@triton_op('tinyvit_zoo::mix_heads', mutates_args=())
def mix_heads(
    logits: torch.Tensor,
    first: torch.Tensor,
    first_bias: torch.Tensor | None,
    second: torch.Tensor,
    second_bias: torch.Tensor | None,
    position: torch.Tensor | None,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """`head_mix_cuda.mix_heads_plain` in one kernel. See there."""
    B, H, N, M = logits.shape
    inputs = _inputs(logits, position, first, first_bias, second, second_bias, mask)
    out = torch.empty_like(inputs[0])
    if out.numel() == 0:
        return out
    sizes = (B * N, N, M, 1 if mask is None else mask.shape[0])
    flags: dict[str, Any] = dict(
        POSITION=_position_kind(position),
        MASK=mask is not None,
        FIRST_BIAS=first_bias is not None,
        SECOND_BIAS=second_bias is not None,
        num_stages=1,  # more need shared memory that not every GPU has
    )
    cols = max(triton.next_power_of_2(M), MIN_DOT)
    with torch.cuda.device_of(logits):
        if H <= FEW_HEADS:
            together = max(256 // cols, 1)
            flags |= dict(ROWS=together, COLS=cols, num_warps=_warps(together * cols, 4))
            wrap_triton(_forward_few)[(triton.cdiv(B * N, together),)](*inputs, out, *sizes, H=H, **flags)
        else:
            tile, cols = max(triton.next_power_of_2(H), MIN_DOT), min(cols, FORWARD_COLS)
            flags |= dict(TILE=tile, COLS=cols, ONE_TILE=M <= cols, num_warps=_warps(tile * cols, 32))
            flags |= dict(PRECISION=_precision(logits.dtype))
            wrap_triton(_forward_many)[(B * N,)](*inputs, out, *sizes, H=H, **flags)
    return out


@triton_op('tinyvit_zoo::mix_heads_backward', mutates_args=())
def mix_heads_backward(
    grad: torch.Tensor,
    logits: torch.Tensor,
    first: torch.Tensor,
    first_bias: torch.Tensor | None,
    second: torch.Tensor,
    position: torch.Tensor | None,
    mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of `mix_heads` from that of its result.

    Returns:
        Of the logits, (B, H, N, M) in their dtype; of the first and the second matrix and, in the last column, bias,
        (2, H, H + 1) in float32.
    """
    B, H, N, M = logits.shape
    inputs = _inputs(logits, position, first, first_bias, second, mask, grad)
    grad_logits = torch.empty_like(inputs[0])
    if logits.numel() == 0:
        return grad_logits, logits.new_zeros(2, H, H + 1, dtype=torch.float32)
    tile = max(triton.next_power_of_2(H), MIN_DOT)
    group = tile // H
    steps = max(triton.cdiv(triton.cdiv(B * N, group), BACKWARD_PROGRAMS), 4)
    programs = triton.cdiv(B * N, group * steps)
    sums = logits.new_empty(programs, 2, tile, tile + 1, dtype=torch.float32)
    with torch.cuda.device_of(logits):
        wrap_triton(_backward)[(programs,)](
            *inputs,
            grad_logits,
            sums,
            B * N,
            N,
            M,
            1 if mask is None else mask.shape[0],
            steps,
            H=H,
            GROUP=group,
            TILE=tile,
            COLS=BACKWARD_COLS,
            POSITION=_position_kind(position),
            MASK=mask is not None,
            FIRST_BIAS=first_bias is not None,
            PRECISION=_precision(logits.dtype),
            num_warps=tile // 8,
            num_stages=1,
        )
    total = sums.sum(0)
    blocks = [
        torch.cat([total[:, k : k + H, k : k + H], total[:, k : k + H, tile:]], 2) for k in range(0, group * H, H)
    ]
    return grad_logits, torch.stack(blocks).sum(0)


@mix_heads.register_fake
def _(
    logits: torch.Tensor,
    first: torch.Tensor,
    first_bias: torch.Tensor | None,
    second: torch.Tensor,
    second_bias: torch.Tensor | None,
    position: torch.Tensor | None,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


@mix_heads_backward.register_fake
def _(
    grad: torch.Tensor,
    logits: torch.Tensor,
    first: torch.Tensor,
    first_bias: torch.Tensor | None,
    second: torch.Tensor,
    position: torch.Tensor | None,
    mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    H = logits.shape[1]
    grad_logits = torch.empty_like(logits, memory_format=torch.contiguous_format)
    return grad_logits, logits.new_empty(2, H, H + 1, dtype=torch.float32)


def _keep(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    """Of the maps the logits alone, and a position part where every image has its own."""
    logits, first, first_bias, second, _, position, mask = inputs
    ctx.save_for_backward(logits, first, first_bias, second, position, mask)


def _gradients(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    logits, first, first_bias, second, position, mask = ctx.saved_tensors
    inputs: tuple[Any, ...] = (grad, logits, first, first_bias, second, position, mask)
    if torch.is_grad_enabled():  # with create_graph the gradients are differentiated themselves
        arguments: list[Any] = in_one_dtype(*inputs)
        grad_logits, sums = mix_heads_gradients(*arguments)
        grad_logits = grad_logits.to(logits.dtype)
    else:
        grad_logits, sums = mix_heads_backward(*inputs)
    sums = sums.to(first.dtype)
    grad_position = None
    if position is not None and ctx.needs_input_grad[5]:
        grad_position = grad_logits.sum_to_size(position.shape).to(position.dtype)
    biases = [sums[k, :, -1] if ctx.needs_input_grad[at] else None for k, at in ((0, 2), (1, 4))]
    return grad_logits, sums[0, :, :-1], biases[0], sums[1, :, :-1], biases[1], grad_position, None


mix_heads.register_autograd(_gradients, setup_context=_keep)
