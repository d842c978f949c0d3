"""TinyMIM's segmentation backbones: plain ViTs with BEiT's relative-position tables and LayerScale in every block.

Paper: TinyMIM: An Empirical Study of Distilling MIM Pre-trained Models, https://arxiv.org/abs/2301.01296
Released code: https://github.com/OliverRensu/TinyMIM, `Segmentation/TinyMIM` (B) and `Segmentation/TinyMIMstar-T`.

Shape legend: `B` batch, `P` prefix tokens, `h w` grid of patches, `N` = P + h * w, `C` width, `heads` attention heads,
`d` = C / heads.
"""

import torch
import torch.nn.functional as F
from timm.layers import DropPath, trunc_normal_
from torch import nn

from ..layers.beit_table import beit_table_rows, expand_beit_bias, resize_beit_table
from ..layers.mlp import Mlp
from .trunk import DenseTrunk, drop_path_rates, patch_grid

__all__ = ['TinyMimTrunk']


class TableAttention(nn.Module):
    """Attention with its own BEiT table, see `layers.beit_table`; for other grids the table is resized."""

    def __init__(
        self, dim: int, num_heads: int, grid: tuple[int, int], prefix_tokens: int, device=None, dtype=None
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.grid = grid
        self.prefix_tokens = prefix_tokens
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros(beit_table_rows(grid, prefix_tokens), num_heads, **dd)
        )
        self.qkv = nn.Linear(dim, 3 * dim, **dd)
        self.proj = nn.Linear(dim, dim, **dd)

    def forward(self, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """(B, N, C) of a grid (h, w) -> (B, N, C)."""
        B, N, C = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        table = resize_beit_table(self.relative_position_bias_table, self.grid, grid, self.prefix_tokens)
        bias = expand_beit_bias(table, grid, self.prefix_tokens).to(q.dtype)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        return self.proj(x.transpose(1, 2).reshape(B, N, C))


class TableBlock(nn.Module):
    """Pre-norm block with LayerScale; the factors have their released names (`gamma_1`, `gamma_2`)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: tuple[int, int],
        prefix_tokens: int,
        mlp_ratio: float = 4.0,
        init_values: float = 1.0,
        drop_path: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.gamma_1 = nn.Parameter(torch.full((dim,), init_values, **dd))
        self.gamma_2 = nn.Parameter(torch.full((dim,), init_values, **dd))
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.attn = TableAttention(dim, num_heads, grid, prefix_tokens, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), nn.GELU, **dd)

    def forward(self, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """(B, N, C) of a grid (h, w) -> (B, N, C)."""
        x = x + self.drop_path(self.gamma_1 * self.attn(self.norm1(x), grid))
        return x + self.drop_path(self.gamma_2 * self.mlp(self.norm2(x)))


class TinyMimTrunk(DenseTrunk):
    """The plain ViT inside TinyMIM's segmentation backbones (released class `MAE`).

    Positions and tables are laid out for `img_size` and learned there. The released model takes only that size
    (crops in training, a sliding window in testing); at other sizes, positions and tables are resized in every forward
    pass in the same way as when loading. The resizing spline depends on the size, so `torch.export` takes one size.

    Weight decay follows what the released code does, not what it intends: positions and tokens are decayed, because
    the names that it exempts lack the prefix `backbone.`. So `no_weight_decay` is empty. The distillation token is not
    among its first-layer names either and learns at the full rate, as the last layer does.

    Args:
        img_size: H, or (H, W), of the images in pixels.
        patch_size: Patch size in pixels.
        in_chans: Input channels.
        embed_dim: C.
        depth: Number of blocks.
        num_heads: Heads of every block. 12 in both released models, even where pre-training used another number.
        mlp_ratio: Hidden width of the MLP / C.
        distilled: Add a distillation token after the class token (TinyMIM*).
        init_values: Initial value of LayerScale.
        drop_path_rate: Of the last block, growing linearly from 0.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If whole patches do not fill the images.
    """

    # The widening layer of TinyMIM*-T acts on the last map only: a part of the neck.
    official_names = (('fpn', 'pyramid.fpn'), ('conv1x1.', 'pyramid.conv1x1.'), ('', 'net.'))

    def __init__(
        self,
        img_size: int | tuple[int, int] = 512,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        distilled: bool = False,
        init_values: float = 1.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        grid = patch_grid(img_size, patch_size)
        prefix = 2 if distilled else 1
        blocks = [
            TableBlock(embed_dim, num_heads, grid, prefix, mlp_ratio, init_values, rate, **dd)
            for rate in drop_path_rates(drop_path_rate, depth)
        ]
        super().__init__(blocks, embed_dim, num_heads, patch_size, in_chans, grid, prefix, prefix, **dd)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim, **dd))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, embed_dim, **dd)) if distilled else None
        self.init_weights()

    def init_weights(self) -> None:
        """Initialize as `DenseTrunk`, then divide the last layer of each residual branch of block l by sqrt(2 (l + 1)).

        The distillation token starts at zero, as released.
        """
        super().init_weights()
        trunc_normal_(self.cls_token, std=0.02)
        with torch.no_grad():
            for i, block in enumerate(self.blocks):
                assert isinstance(block, TableBlock)
                for layer in (block.attn.proj, block.mlp.fc2):
                    layer.weight.div_((2.0 * (i + 1)) ** 0.5)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return set()

    def _prefix(self, batch: int) -> list[torch.Tensor]:
        tokens = (self.cls_token, self.dist_token)
        return [token.expand(batch, -1, -1) for token in tokens if token is not None]
