"""Bias and exact GELU after a convolution in one pass over the map, on CUDA.

cuDNN's convolution has no bias there; torch adds it in a kernel that is not vectorised in channels_last and costs more
than the BatchNorm that it comes from, and GELU is one more pass. Triton comes with torch's CUDA builds; without it the
convolution is torch's own.
"""

from functools import cache

import torch

__all__ = ['add_bias_gelu_', 'computes', 'is_one_block', 'works_on']

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Others would lose digits: the kernel computes in float32."""


def computes(x: torch.Tensor) -> bool:
    """Whether the kernel runs for a map of this dtype on this device."""
    return x.dtype in DTYPES and works_on(x.device)


@cache
def works_on(device: torch.device) -> bool:
    """Whether the kernel runs on a device, tried once: Triton needs a recent GPU, and a C compiler at run time."""
    try:
        add_bias_gelu_(torch.zeros(1, 1, 1, 1, device=device), torch.zeros(1, device=device), True)
    except Exception:  # whatever Triton, its compiler or the driver raises, torch's own kernels are there
        return False
    return True


def is_one_block(x: torch.Tensor) -> bool:
    """Whether the elements of a map (B, C, H, W) lie side by side, in either memory format."""
    return x.ndim == 4 and (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last))


def add_bias_gelu_(x: torch.Tensor, bias: torch.Tensor, gelu: bool) -> torch.Tensor:
    """x + bias per channel, then exact GELU if `gelu` is set, in place and computed in float32.

    Args:
        x: (B, C, H, W), contiguous or in channels_last (`is_one_block`); float32, bfloat16 or float16. Overwritten.
        bias: (C,) of x's device and dtype.
        gelu: Whether GELU follows.

    Returns:
        x.
    """
    from .bias_gelu_triton import add_bias_gelu_ as run  # not at the top: it imports Triton

    return run(x, bias, gelu)
