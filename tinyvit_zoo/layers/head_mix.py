"""Linear transformations across attention heads, before and after softmax (MiniViT paper Eq. 6-7; talking heads).

Shape legend: `B` batch or windows, `heads` attention heads, `N M` queries and keys.
"""

import torch
from timm.layers import trunc_normal_
from torch import nn

from .inference import known_class

__all__ = ['HeadMix']


@known_class
class HeadMix(nn.Module):
    """Every head becomes a weighted sum of all heads. (B, heads, N, M) -> (B, heads, N, M).

    out[b, g] = sum_h weight[g, h] * x[b, h] + bias[g], as one batched product over the head axis: the attention maps
    are not moved. (The released code permutes to heads-last and back around a Linear, or takes a 1x1
    convolution.)
    """

    def __init__(self, num_heads: int, bias: bool = False, device=None, dtype=None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, num_heads, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(num_heads, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initial values of the released code: truncated normal with standard deviation 0.02; the bias is 0."""
        trunc_normal_(self.weight, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def init_identity(self) -> None:
        """Initialize as the identity, that is, as no transformation."""
        nn.init.eye_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = x.flatten(2)
        # expand() and bmm: `weight @ maps` would move the head axis to the end and back.
        weight = self.weight.expand(x.shape[0], -1, -1)
        if self.bias is None:
            mixed = torch.bmm(weight, maps)
        else:
            mixed = torch.baddbmm(self.bias[None, :, None], weight, maps)
        return mixed.view(x.shape)
