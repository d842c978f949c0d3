"""What attention does otherwise on CUDA, and the table that says which of torch's kernels it runs there."""

import torch

__all__ = ['CUDA_SDPA', 'cuda_sdpa', 'runs_on_cuda', 'sdpa_bias']

CUDA_SDPA: tuple[tuple[int | None, str], ...] = ((196, 'memory-efficient'), (None, 'cuDNN'))
"""Kernel of windows with up to so many tokens (None: any number), for a learned bias in bfloat16 and float16.

* 49 and 196 tokens, the ten blocks of TinyViT-21M at 224, batch 256, bfloat16: memory-efficient 4.04 ms, cuDNN 4.60.
* 144 and 576 tokens: only whole models were measured. At 384 TinyViT-21M ran with cuDNN 1.11 times as fast as timm's
  with the memory-efficient kernel (3706 and 3329 images/s), at 224 only 0.96 times. At 384 nearly all of the products
  are at 576 tokens, so cuDNN stays there; 144 lies between the sizes that were measured.

One H200, torch 2.11.0+cu130, CUDA events. Not measured since the choice is made here; `benchmarks/gpu.py` does.
"""


def runs_on_cuda(x: torch.Tensor) -> bool:
    """Whether a layer that holds this tensor takes its CUDA form. A function, so that tests run that form elsewhere."""
    return x.is_cuda


@torch.jit.unused
def cuda_sdpa(tokens: int) -> str:
    """The kernel of `CUDA_SDPA` for windows of so many tokens."""
    return next(kernel for up_to, kernel in CUDA_SDPA if up_to is None or tokens <= up_to)


def sdpa_bias(bias: torch.Tensor, tokens: int, on_cuda: bool) -> torch.Tensor:
    """A bias (heads, N, N) as `scaled_dot_product_attention` should see it, for the kernel that is the fastest.

    For half precision torch takes cuDNN's kernel where it can, which is with masks in two or four dimensions. For one
    in three it goes on to the memory-efficient one (`check_attn_mask_shape` in its `sdp_utils_cpp.h`). The fused kernel
    of the CPU needs four, which TorchScript keeps on every device.

    Args:
        bias: (heads, N, N).
        tokens: N.
        on_cuda: `runs_on_cuda` of the layer.

    Returns:
        The bias, or (1, heads, N, N): the same values.
    """
    if not torch.jit.is_scripting() and on_cuda and cuda_sdpa(tokens) == 'memory-efficient':
        return bias
    return bias[None]
