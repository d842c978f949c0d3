"""What plain inference may do that training and graphs may not, such as a GELU that takes no new memory."""

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ['GELU', 'is_plain_inference']


@torch.jit.unused
def is_plain_inference(x: torch.Tensor) -> bool:
    """Whether x is a plain tensor in eager mode without autograd: no proxy, subclass, trace, export or compilation."""
    return (
        type(x) is torch.Tensor
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


class GELU(nn.GELU):
    """Exact GELU; in plain inference it overwrites its input, which here is always a layer's fresh result.

    On large maps the page faults of a second buffer cost more than the function itself.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting() and is_plain_inference(x):
            return torch.ops.aten.gelu_(x, approximate=self.approximate)
        return F.gelu(x, approximate=self.approximate)
