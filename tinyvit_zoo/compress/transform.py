"""Weight transformation: the parameters that each logical layer keeps to itself (MiniViT paper Sec. 3.1.1).

Head mixing before and after softmax for the attention, a depthwise convolution for the MLP. Both are initialized to
identity, so inserting them changes no output.

Shape legend: `B` batch, `nW` windows, `N` tokens, `C` channels, `H W` grid of tokens, `heads` attention heads.
"""

from typing import TYPE_CHECKING, Any

import torch
from timm.layers import (
    Attention,
    HybridEmbed,
    PatchEmbed,
    maybe_add_mask,
    resize_rel_pos_bias_table,
    resolve_self_attn_mask,
)
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention
from timm.models.vision_transformer import Block
from torch import nn

from ..layers import FillsBuffers, HeadMix
from ..layers.bias_table import expand_signed_bias, signed_offset

__all__ = [
    'EMBEDDINGS',
    'TRANSFORMATIONS',
    'GridConv',
    'MixedAttention',
    'MixedWindowAttention',
    'MultiplexedSwinBlock',
    'MultiplexedVitBlock',
    'RelativePositionBias',
    'TokenConv',
]


class IdentityHeadMix(HeadMix):
    """Head mixing initialized to identity, also by `init_weights()`; the released Mini models initialize near zero."""

    def reset_parameters(self) -> None:
        self.init_identity()


class MixedAttention(nn.Module):
    """timm's `Attention` with head mixing before and after softmax (paper Eq. 6-7). (B, N, C) -> (B, N, C).

    Not fused: the maps of all heads are needed at once. Masks are added after the first mixing, as in the released
    Mini-Swin (a mixed -inf would be NaN); masked pairs stay masked because the second mixing is linear. No biases:
    softmax would ignore the one before it, and the paper has none.
    """

    def __init__(self, attn: Attention) -> None:
        """Take over the layers of `attn` unchanged."""
        super().__init__()
        self.num_heads = attn.num_heads
        self.head_dim = attn.head_dim
        self.attn_dim = attn.attn_dim
        self.scale = attn.scale
        self.fused_attn = False

        self.qkv = attn.qkv
        self.q_norm = attn.q_norm
        self.k_norm = attn.k_norm
        like: dict[str, Any] = dict(device=attn.qkv.weight.device, dtype=attn.qkv.weight.dtype)
        self.mix_logits = IdentityHeadMix(attn.num_heads, **like)
        self.mix_probs = IdentityHeadMix(attn.num_heads, **like)
        self.attn_drop = attn.attn_drop
        self.norm = attn.norm
        self.gate = attn.gate
        self.proj = attn.proj
        self.proj_drop = attn.proj_drop

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False) -> torch.Tensor:
        B, N, _ = x.shape
        gate = self.gate(x).sigmoid() if self.gate is not None else None
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)

        attn = self.mix_logits((q * self.scale) @ k.transpose(-2, -1))
        attn = maybe_add_mask(attn, resolve_self_attn_mask(N, attn, attn_mask, is_causal))
        attn = self.attn_drop(self.mix_probs(attn.softmax(dim=-1)))
        x = self.norm((attn @ v).transpose(1, 2).reshape(B, N, self.attn_dim))
        if gate is not None:
            x = x * gate
        return self.proj_drop(self.proj(x))


class RelativePositionBias(FillsBuffers):
    """Swin's bias table as a module, so that layers can share it as they share a Linear.

    timm keeps the table in the attention itself, which here has its own head mixing.
    """

    row_offsets: torch.Tensor
    col_offsets: torch.Tensor

    def __init__(self, attn: WindowAttention) -> None:
        """Take over the table of `attn`: ((2h - 1) * (2w - 1), heads)."""
        super().__init__()
        self.window_size = attn.window_size  # timm's loader asks the owner of a table for its window
        self.relative_position_bias_table = attn.relative_position_bias_table
        self._register_offsets()

    def _register_offsets(self) -> None:
        device = self.relative_position_bias_table.device
        self.register_buffer('row_offsets', signed_offset(self.window_size[0], device), persistent=False)
        self.register_buffer('col_offsets', signed_offset(self.window_size[1], device), persistent=False)

    def reset_parameters(self) -> None:
        """Initialize as Swin does."""
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self._register_offsets()

    def init_non_persistent_buffers(self) -> None:
        """Fill the offsets after `to_empty`; no checkpoint holds them."""
        self._register_offsets()

    @torch.jit.ignore
    def set_window_size(self, window_size: tuple[int, int]) -> None:
        """Change the window; the table is resized as timm does it. Layers that share it may all call this."""
        if tuple(window_size) == tuple(self.window_size):
            return
        h, w = window_size
        old = self.relative_position_bias_table
        table = resize_rel_pos_bias_table(
            old.detach(),
            new_window_size=(h, w),
            new_bias_shape=((2 * h - 1) * (2 * w - 1), old.shape[1]),
            old_window_size=self.window_size,
        )
        self.window_size = (h, w)
        self.relative_position_bias_table = nn.Parameter(table, requires_grad=old.requires_grad)
        self._register_offsets()

    def forward(self) -> torch.Tensor:  # (heads, N, N)
        return expand_signed_bias(self.relative_position_bias_table, self.row_offsets, self.col_offsets)


class MixedWindowAttention(nn.Module):
    """Swin's `WindowAttention` with head mixing before and after softmax. (B * nW, N, C) -> (B * nW, N, C).

    In the order of the released Mini-Swin: bias, first mixing, mask, softmax, second mixing.
    """

    def __init__(self, attn: WindowAttention) -> None:
        """Take over the layers of `attn` unchanged."""
        super().__init__()
        self.num_heads = attn.num_heads
        self.scale = attn.scale
        self.fused_attn = False

        self.qkv = attn.qkv
        self.rel_pos_bias = RelativePositionBias(attn)
        like: dict[str, Any] = dict(device=attn.qkv.weight.device, dtype=attn.qkv.weight.dtype)
        self.mix_logits = IdentityHeadMix(attn.num_heads, **like)
        self.mix_probs = IdentityHeadMix(attn.num_heads, **like)
        self.attn_drop = attn.attn_drop
        self.proj = attn.proj
        self.proj_drop = attn.proj_drop

    @torch.jit.ignore
    def set_window_size(self, window_size: tuple[int, int]) -> None:
        """Change the window, as in timm's `WindowAttention`."""
        self.rel_pos_bias.set_window_size(window_size)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:  # mask (nW, N, N): 0, -100
        B, N, _ = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attn = self.mix_logits((q * self.scale) @ k.transpose(-2, -1) + self.rel_pos_bias())
        if mask is not None:
            attn = attn.view(-1, mask.shape[0], self.num_heads, N, N) + mask[None, :, None]
            attn = attn.view(-1, self.num_heads, N, N)
        attn = self.attn_drop(self.mix_probs(attn.softmax(dim=-1)))
        x = (attn @ v).transpose(1, 2).reshape(B, N, -1)
        return self.proj_drop(self.proj(x))


class GridConv(nn.Module):
    """The MLP transformation: adds a depthwise convolution over the grid of tokens to the MLP's input.

    The paper's Y' = C y for every channel (before Eq. 8) with C = I + this convolution, which is initialized to zero.
    The released Mini-Swin transforms the residual stream instead and inserts a LayerNorm, which is not an identity: a
    trained layer could not be taken over there.
    """

    def __init__(self, dim: int, kernel_size: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        # Created on the meta device first: random initial values would only advance the user's generator.
        conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, device='meta', dtype=dtype)
        self.conv = conv.to_empty(device=device)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize to identity. Defined here, because timm's `init_weights` has its own values for Conv2d."""
        for parameter in self.conv.parameters():
            nn.init.zeros_(parameter)

    def convolve(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        # Permuted to (B, C, H, W) it is in channels_last format: no copy before or after.
        return x + self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, H, W, C)
        return self.convolve(x)


class TokenConv(GridConv):
    """`GridConv` for the tokens of a plain ViT. (B, N, C) -> (B, N, C).

    Class, distillation and register tokens lie on no grid and stay as they are. The paper says nothing of them: its own
    Mini-DeiT has none, and no MLP transformation.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int,
        grid_size: tuple[int, int],
        num_prefix_tokens: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(dim, kernel_size, device, dtype)
        self.grid_size = grid_size
        self.num_prefix_tokens = num_prefix_tokens

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, N, C = x.shape
        height, width = self.grid_size
        prefix = self.num_prefix_tokens
        grid = self.convolve(x[:, prefix:].reshape(B, height, width, C)).reshape(B, N - prefix, C)
        return torch.cat((x[:, :prefix], grid), dim=1) if prefix else grid


TRANSFORMATIONS = (HeadMix, GridConv)
"""What every layer keeps to itself, whatever it shares."""


class MultiplexedSwinBlock(SwinTransformerBlock, FillsBuffers):
    """timm's block with a `GridConv` named `mlp_conv` before its MLP. (B, H, W, C)."""

    if TYPE_CHECKING:  # TorchScript rejects annotations of submodules at run time
        mlp_conv: GridConv

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, H, W, C = x.shape
        x = x + self.drop_path1(self._attn(self.norm1(x)))
        y = self.mlp_conv(self.norm2(x)).reshape(B, H * W, C)
        return x + self.drop_path2(self.mlp(y)).view(B, H, W, C)


class MultiplexedVitBlock(Block):
    """timm's block with a `TokenConv` named `mlp_conv` before its MLP. (B, N, C)."""

    if TYPE_CHECKING:
        mlp_conv: TokenConv

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False) -> torch.Tensor:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal)))
        return x + self.drop_path2(self.ls2(self.mlp(self.mlp_conv(self.norm2(x)))))


class _TellsGrid:
    """A patch embedding that tells the convolutions of the blocks its grid, which the blocks do not see.

    timm's `set_input_size` changes the embedding only.
    """

    if TYPE_CHECKING:
        grid_size: tuple[int, int]
        grid_convs: tuple[TokenConv, ...]

    def set_input_size(self, *args: Any, **kwargs: Any) -> None:
        super().set_input_size(*args, **kwargs)  # type: ignore[misc]
        for conv in self.grid_convs:
            conv.grid_size = self.grid_size


class GridPatchEmbed(_TellsGrid, PatchEmbed):
    """timm's `PatchEmbed` that tells its grid."""


class GridHybridEmbed(_TellsGrid, HybridEmbed):
    """timm's `HybridEmbed` that tells its grid."""


EMBEDDINGS: dict[type[nn.Module], type[nn.Module]] = {PatchEmbed: GridPatchEmbed, HybridEmbed: GridHybridEmbed}
"""By the class of a patch embedding: the one that tells its grid."""
