"""Base of the plain ViTs trained for dense prediction: patches, positions, and maps from any block.

Shape legend: `B` batch, `P` prefix tokens, `h w` grid of patches, `C` width.
"""

from collections.abc import Sequence
from typing import cast

import torch
from timm.layers import PatchEmbed, calculate_drop_path_rates, to_2tuple, trunc_normal_
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from torch import nn

from ..layers.image_size import check_patch_grid
from ..layers.position import resize_position

__all__ = ['DenseTrunk', 'drop_path_rates', 'patch_grid']


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Drop rate of each of `depth` blocks, growing linearly from 0 to `last`."""
    return cast(list[float], calculate_drop_path_rates(last, depth))  # nested only for a list of depths


def patch_grid(img_size: int | tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Grid (h, w) of patches of images of this size.

    Raises:
        ValueError: If whole patches do not fill the images.
    """
    check_patch_grid(img_size, patch_size)
    height, width = to_2tuple(img_size)
    return height // patch_size, width // patch_size


class DenseTrunk(nn.Module):
    """A plain ViT without final norm and head, with timm's interface for intermediate maps.

    Takes images of every size that is a multiple of the patch size: positions are resized in the forward pass
    (bicubic, no antialias; prefix tokens keep theirs).

    Args:
        blocks: Each called as `block(tokens (B, P + h * w, C), (h, w))`.
        embed_dim: C.
        num_heads: Attention heads of every block; kept as an attribute, not used in computing.
        patch_size: Patch size in pixels.
        in_chans: Input channels.
        grid: (h, w) that the position embedding is laid out for.
        prefix_tokens: P.
        position_prefix: Rows of the position embedding that precede those of the patches.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    official_names: tuple[tuple[str, str], ...] = ()
    """Pairs (released, ours) of prefixes of a `DenseBackbone` with this trunk; the first match applies."""

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        embed_dim: int,
        num_heads: int,
        patch_size: int,
        in_chans: int,
        grid: tuple[int, int],
        prefix_tokens: int,
        position_prefix: int,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.embed_dim = self.num_features = embed_dim
        self.num_heads = num_heads
        self.in_chans = in_chans
        self.patch_size = patch_size
        self.grid = grid
        self.num_prefix_tokens = prefix_tokens
        self.position_prefix = position_prefix
        self.grad_checkpointing = False
        self.feature_info = [
            dict(num_chs=embed_dim, reduction=patch_size, module=f'blocks.{i}') for i in range(len(blocks))
        ]

        self.patch_embed = PatchEmbed(None, patch_size, in_chans, embed_dim, strict_img_size=False, **dd)
        self.pos_embed = nn.Parameter(torch.zeros(1, position_prefix + grid[0] * grid[1], embed_dim, **dd))
        self.blocks = nn.ModuleList(blocks)

    def init_weights(self) -> None:
        """Initialize as released: truncated normal(0.02) for linear layers and positions, zero biases."""
        trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {'pos_embed'}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        """Layers for layer-wise learning rates: the embedding, then one per block; unmatched parameters come last."""
        return dict(stem=r'^cls_token|^pos_embed|^patch_embed', blocks=[(r'^blocks\.(\d+)', None)])

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def _prefix(self, batch: int) -> list[torch.Tensor]:
        """Tokens that precede the patches, (B, 1, C) each."""
        return []

    def _embed(self, images: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """Tokens with positions, and their grid."""
        H, W = images.shape[-2:]
        message = (
            f'Images must have a height and width that are multiples of {self.patch_size}: pad them at the bottom and '
            'right.'
        )
        torch._assert(H % self.patch_size == 0, message)
        torch._assert(W % self.patch_size == 0, message)
        grid = (H // self.patch_size, W // self.patch_size)
        position = resize_position(self.pos_embed, self.grid, grid, self.position_prefix)
        tokens = torch.cat([*self._prefix(images.shape[0]), self.patch_embed(images)], dim=1)
        return tokens + position[:, self.position_prefix - self.num_prefix_tokens :], grid

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Outputs of the blocks, without prefix tokens.

        Args:
            x: Images (B, in_chans, H, W).
            indices: Blocks to take: the last n if int, all if None, else these.
            norm: No effect: there is no final norm.
            stop_early: Stop after the last block requested.
            output_fmt: 'NCHW' or 'NLC'.
            intermediates_only: Return only the list.

        Returns:
            The last tokens (B, P + h * w, C) and the list of (B, C, h, w) or (B, h * w, C), or only the list.
        """
        if output_fmt not in ('NCHW', 'NLC'):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NLC', got '{output_fmt}'.")
        take, last = feature_take_indices(len(self.blocks), indices)
        x, grid = self._embed(x)
        intermediates = []
        for i, block in enumerate(self.blocks[: last + 1] if stop_early else self.blocks):
            x = checkpoint(block, x, grid) if self.grad_checkpointing else block(x, grid)
            if i in take:
                intermediates.append(x[:, self.num_prefix_tokens :])
        if output_fmt == 'NCHW':
            intermediates = [y.transpose(1, 2).unflatten(2, grid).contiguous() for y in intermediates]
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the blocks after the last of `indices`; there is no norm or head to remove. Returns the indices."""
        take, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        return take

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, in_chans, H, W) -> last map (B, C, h, w)."""
        return self.forward_intermediates(x, 1, intermediates_only=True)[0]
