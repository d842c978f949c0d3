"""ViTDet's backbone as used by MAE-Lite on COCO: windows, four global blocks, decomposed relative positions.

ViTDet: Exploring Plain Vision Transformer Backbones for Object Detection, https://arxiv.org/abs/2203.16527
MAE-Lite: https://arxiv.org/abs/2205.14443, released configuration `projects/eval_tools/det` (detectron2's `ViT`).

Shape legend: `B` batch (or windows of it), `h w` grid of tokens, `N` = h * w, `C` width, `heads` attention heads,
`d` = C / heads.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import nn

from ..layers.bias_table import signed_offset
from ..layers.mlp import Mlp
from ..layers.window import is_exactly, window_partition, window_reverse
from .trunk import DenseTrunk, drop_path_rates, patch_grid

__all__ = ['VitDetTrunk', 'resize_offsets']


def resize_offsets(table: torch.Tensor, size: int) -> torch.Tensor:
    """Embeddings (2 old - 1, d) of the offsets along an axis of `old` cells -> (2 size - 1, d), linear, as released."""
    if is_exactly(table.shape[0], 1, (2 * size - 1, 1)):
        return table
    return F.interpolate(table.t()[None], size=2 * size - 1, mode='linear', align_corners=False)[0].t()


class DecomposedAttention(nn.Module):
    """Attention that adds q . r to its logits; r is an embedding of the row offset plus one of the column offset.

    MViTv2, https://arxiv.org/abs/2112.01526, Eq. 4. As released, the product uses q before scaling.

    Args:
        dim: C.
        num_heads: Heads.
        size: (h, w) that the offset embeddings are laid out for.
    """

    def __init__(self, dim: int, num_heads: int, size: tuple[int, int], device=None, dtype=None) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * size[0] - 1, self.head_dim, **dd))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * size[1] - 1, self.head_dim, **dd))

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """(B, N, C) of a grid `size` -> (B, N, C)."""
        B, N, C = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        rows, cols = (
            resize_offsets(table, n)[signed_offset(n, x.device)]  # n, n, d
            for table, n in zip((self.rel_pos_h, self.rel_pos_w), size, strict=True)
        )
        grid = q.unflatten(2, size)
        by_row = torch.einsum('bnhwd,hkd->bnhwk', grid, rows)
        by_col = torch.einsum('bnhwd,wkd->bnhwk', grid, cols)
        bias = (by_row[..., :, None] + by_col[..., None, :]).reshape(B, self.num_heads, N, N)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.proj(x.transpose(1, 2).reshape(B, N, C))


class VitDetBlock(nn.Module):
    """Pre-norm block with attention in windows or, with `window_size` 0, over the whole map.

    As released, maps are padded with zeros after the norm, and the padding is not masked: it takes part as keys.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        size: tuple[int, int],
        window_size: int = 0,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.window = (window_size, window_size) if window_size else None
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.attn = DecomposedAttention(dim, num_heads, self.window or size, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), nn.GELU, **dd)

    def _attend(self, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        if self.window is None:
            return self.attn(x, grid)
        windows = window_partition(x.unflatten(1, grid), self.window)
        return window_reverse(self.attn(windows, self.window), self.window, (x.shape[0], *grid)).flatten(1, 2)

    def forward(self, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """(B, N, C) of a grid (h, w) -> (B, N, C)."""
        x = x + self.drop_path(self._attend(self.norm1(x), grid))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class VitDetTrunk(DenseTrunk):
    """detectron2's `ViT`: no class token, though the position embedding keeps its row; no final norm.

    Offset embeddings of global blocks are laid out for `img_size`; at other sizes they are resized linearly in every
    forward pass, each axis separately, as released.

    Args:
        img_size: H, or (H, W), of the images in pixels.
        patch_size: Patch size in pixels.
        in_chans: Input channels.
        embed_dim: C.
        depth: Number of blocks.
        num_heads: Heads of every block.
        mlp_ratio: Hidden width of the MLP / C.
        window_size: Side of a window in tokens.
        global_blocks: Blocks without windows.
        drop_path_rate: Of the last block, growing linearly from 0.
        pretrain_img_size: Side in pixels of the square images that the position embedding is laid out for.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If whole patches do not fill the images.
    """

    official_names = (('simfp_', 'pyramid.simfp_'), ('net.', 'net.'))

    def __init__(
        self,
        img_size: int | tuple[int, int] = 640,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        window_size: int = 14,
        global_blocks: Sequence[int] = (2, 5, 8, 11),
        drop_path_rate: float = 0.0,
        pretrain_img_size: int = 224,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        size = patch_grid(img_size, patch_size)
        blocks = [
            VitDetBlock(embed_dim, num_heads, size, 0 if i in global_blocks else window_size, mlp_ratio, rate, **dd)
            for i, rate in enumerate(drop_path_rates(drop_path_rate, depth))
        ]
        grid = patch_grid(pretrain_img_size, patch_size)
        super().__init__(blocks, embed_dim, num_heads, patch_size, in_chans, grid, 0, 1, **dd)
        self.init_weights()
