"""Bias and exact GELU after a convolution as one Triton kernel. `bias_gelu` imports this file when it needs it."""

import torch
import triton
import triton.language as tl

__all__ = ['add_bias_gelu_']

BLOCK = 1024
"""Elements of a program."""


@triton.jit
def _add_bias_gelu(x, bias, n, channels, inner, GELU: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = at < n
    y = tl.load(x + at, mask=ok, other=0.0).to(tl.float32)
    y += tl.load(bias + (at // inner) % channels, mask=ok, other=0.0).to(tl.float32)
    if GELU:
        y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
    tl.store(x + at, y.to(x.dtype.element_ty), mask=ok)


def add_bias_gelu_(x: torch.Tensor, bias: torch.Tensor, gelu: bool) -> torch.Tensor:
    """See `bias_gelu.add_bias_gelu_`."""
    inner = 1 if x.is_contiguous(memory_format=torch.channels_last) else x.shape[2] * x.shape[3]
    grid = (triton.cdiv(x.numel(), BLOCK),)
    with torch.cuda.device_of(x):  # Triton launches on the current device; no change for a tensor on the CPU
        _add_bias_gelu[grid](x, bias, x.numel(), x.shape[1], inner, GELU=gelu, BLOCK=BLOCK)
    return x
