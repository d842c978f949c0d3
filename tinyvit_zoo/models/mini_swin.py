"""Mini-Swin: Swin whose layers share their weights; each has its own head mixing and local convolution.

Paper: MiniViT: Compressing Vision Transformers with Weight Multiplexing, https://arxiv.org/abs/2204.07154
Released code and weights: https://github.com/microsoft/Cream/tree/main/MiniViT/Mini-Swin (MIT)

A block holds the shared weights once and runs `repeats` times in a row: logical layer = block * repeats + repeat,
and every second logical layer of a stage shifts its windows.

Shape legend: `B` batch, `H W` feature-map height and width, `C` channels, `h w` window height and width,
`N` = h * w tokens of a window, `nW` windows of an image, `heads` attention heads, `d` = C / heads (32 as released).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, cast

import torch
import torch.nn.functional as F
from timm.layers import (
    ClassifierHead,
    DropPath,
    PatchEmbed,
    calculate_drop_path_rates,
    get_act_layer,
    get_device_dtype,
    get_norm_layer,
    to_2tuple,
    to_ntuple,
    trunc_normal_,
)
from timm.models import checkpoint, generate_default_cfgs, register_model, register_notrace_module
from timm.models._features import feature_take_indices
from torch import nn

from ..checkpoints import MINI_SWIN_KEYS, check_swin_buffers, fit_to_model, stage_tables
from ..layers import (
    DeployLinear,
    FillsBuffers,
    HeadMix,
    Mlp,
    PerRepeat,
    TypedModuleList,
    TypedSequential,
    add_to_fresh,
    check_image_size,
    expand_signed_bias,
    gather_windows,
    gathers_windows,
    has_attention_kernel,
    in_sub_batches,
    is_exactly,
    known_class,
    per_stage_windows,
    resize_grid,
    return_windows,
    run_attention_kernel,
    scaled_windows,
    shifted_window_mask,
    signed_offset,
    stage_grids,
    window_partition,
    window_reverse,
)
from ..releases import FAMILIES, Release
from ._create import Family, create_zoo_model, record_input_size

__all__ = ['MiniSwin']

# Windows per side of each stage at 224 with windows of 7, and at 384 with windows of 12; kept at every other size.
NUM_WINDOWS = (8, 4, 2, 1)


@known_class
class PatchMerging(nn.Module):
    """Join 2x2 neighbors: concatenate, normalize, project. (B, H, W, C) -> (B, H/2, W/2, C')."""

    def __init__(self, dim: int, out_dim: int, norm_layer: Callable[..., nn.Module], device=None, dtype=None) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.norm = norm_layer(4 * dim, **dd)
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, H, W, C = x.shape
        x = F.pad(x, (0, 0, 0, W % 2, 0, H % 2))
        # Order of the neighbors (row, column): 00, 10, 01, 11.
        x = x.view(B, (H + 1) // 2, 2, (W + 1) // 2, 2, C).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(x))


@known_class
class MiniWindowAttention(FillsBuffers):
    """Attention within a window: projections and position bias shared, one head mixing per repeat (paper Eq. 6-7)."""

    row_offsets: torch.Tensor
    col_offsets: torch.Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: tuple[int, int],
        repeats: int,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        if dim % num_heads:
            raise ValueError(f'dim {dim} must be divisible by num_heads {num_heads}.')
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.window_size = window_size

        rows = (2 * window_size[0] - 1) * (2 * window_size[1] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.empty(rows, num_heads, **dd))
        self.qkv = nn.Linear(dim, dim * 3, **dd)
        self.proj_l = PerRepeat([HeadMix(num_heads, bias=True, **dd) for _ in range(repeats)])
        self.proj_w = PerRepeat([HeadMix(num_heads, bias=True, **dd) for _ in range(repeats)])
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def _register_offsets(self, device: torch.device | str | None) -> None:
        h, w = self.window_size
        self.register_buffer('row_offsets', signed_offset(h, device), persistent=False)
        self.register_buffer('col_offsets', signed_offset(w, device), persistent=False)

    def reset_parameters(self) -> None:
        """Initial values of the position bias: truncated normal with standard deviation 0.02 (released code)."""
        trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Fill the offset indices, which are not saved (after `to_empty`; transformers calls this too)."""
        self._register_offsets(self.relative_position_bias_table.device)

    def set_window_size(self, window_size: tuple[int, int]) -> None:
        """Change the window size; the bias table is resized, see `resize_grid`."""
        if window_size == self.window_size:
            return
        old = self.relative_position_bias_table
        table = _resized_table(old.detach(), _table_grid(self.window_size), _table_grid(window_size))
        self.window_size = window_size
        self.relative_position_bias_table = nn.Parameter(table, requires_grad=old.requires_grad)
        self._register_offsets(old.device)

    def reparameterize(self) -> None:
        """Deploy form: see `timm.models.reparameterize_model`."""
        self.qkv = DeployLinear.from_linear(self.qkv)
        self.proj = DeployLinear.from_linear(self.proj)

    @torch.jit.unused
    def _has_kernel(self, qkv: torch.Tensor, repeat: int, mask: torch.Tensor | None) -> bool:
        return has_attention_kernel(qkv, self.proj_l, self.proj_w, repeat, self.attn_drop, mask=mask)

    @torch.jit.unused
    def _run_kernel(
        self, qkv: torch.Tensor, repeat: int, bias: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        return run_attention_kernel(qkv, self.proj_l, self.proj_w, repeat, self.scale, position=bias, mask=mask)

    def _attend(self, qkv: torch.Tensor, repeat: int, bias: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """(B * nW, N, 3, heads, d) -> (B * nW, N, C)."""
        B, N, C = qkv.shape[0], qkv.shape[1], self.num_heads * self.head_dim
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attn = add_to_fresh((q * self.scale) @ k.transpose(-2, -1), bias)  # (B * nW, heads, N, N)
        # One step per line: each map is freed as soon as the next one exists.
        attn = self.proj_l(attn, repeat)
        if mask is not None:
            # After the mixing, which would spread the -100 over the heads, with any sign.
            attn = (attn.view(-1, mask.shape[0], self.num_heads, N, N) + mask[:, None]).view(B, self.num_heads, N, N)
        attn = attn.softmax(dim=-1)
        attn = self.proj_w(attn, repeat)
        attn = self.attn_drop(attn)
        return (attn @ v).transpose(1, 2).reshape(B, N, C)

    def forward(self, x: torch.Tensor, repeat: int, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B * nW, N, C) -> the same; `mask` (nW, N, N) is added to the logits."""
        B, N, _ = x.shape
        qkv = self.qkv(x).view(B, N, 3, self.num_heads, self.head_dim)
        bias = expand_signed_bias(self.relative_position_bias_table.to(qkv.dtype), self.row_offsets, self.col_offsets)
        if not torch.jit.is_scripting() and self._has_kernel(qkv, repeat, mask):
            x = self._run_kernel(qkv, repeat, bias, mask)
        else:
            x = self._attend(qkv, repeat, bias, mask)
        return self.proj_drop(self.proj(x))


@known_class
class MiniSwinBlock(nn.Module):
    """A Swin block that serves `repeats` layers: weights shared, norms and transformations one per repeat."""

    replace_residual: Final[bool]

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: tuple[int, int],
        mlp_ratio: float,
        local_conv_size: int,
        drop_path: Sequence[float],
        replace_residual: bool,
        attn_drop: float,
        proj_drop: float,
        act_layer: type[nn.Module],
        norm_layer: Callable[..., nn.Module],
        device=None,
        dtype=None,
    ) -> None:
        """
        Args:
            dim: Width C.
            num_heads: Attention heads.
            window_size: (h, w).
            mlp_ratio: Hidden width of the MLP over C.
            local_conv_size: Kernel of the depthwise convolution, the MLP's transformation (paper Eq. 8).
            drop_path: Rate of every repeat; their number is the number of repeats.
            replace_residual: See `MiniSwin`.
            attn_drop: Dropout of the attention maps.
            proj_drop: Dropout after the projections.
            act_layer: Activation of the MLP.
            norm_layer: All norms.
            device: Of the parameters.
            dtype: Of the parameters.
        """
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.repeats = len(drop_path)
        self.replace_residual = replace_residual
        self.norm1 = PerRepeat([norm_layer(dim, **dd) for _ in drop_path])
        self.attn = MiniWindowAttention(dim, num_heads, window_size, self.repeats, attn_drop, proj_drop, **dd)
        self.local_norm = PerRepeat([norm_layer(dim, **dd) for _ in drop_path])
        conv = partial(nn.Conv2d, dim, dim, local_conv_size, padding=local_conv_size // 2, groups=dim, **dd)
        self.local_conv = PerRepeat([conv() for _ in drop_path])
        self.norm2 = PerRepeat([norm_layer(dim, **dd) for _ in drop_path])
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer, proj_drop, **dd)
        self.drop_path = PerRepeat([DropPath(rate) if rate > 0.0 else nn.Identity() for rate in drop_path])

    def _window_attention(
        self, x: torch.Tensor, repeat: int, shift: tuple[int, int], mask: torch.Tensor | None
    ) -> torch.Tensor:
        B, H, W, _ = x.shape
        window = self.attn.window_size
        shifted = shift[0] > 0 or shift[1] > 0
        if shifted and not torch.jit.is_scripting() and gathers_windows(x, window):
            windows = self.attn(gather_windows(x, window, shift), repeat, mask)
            return return_windows(windows, window, shift, (B, H, W))
        if shifted:
            x = torch.roll(x, shifts=(-shift[0], -shift[1]), dims=(1, 2))
        x = window_reverse(self.attn(window_partition(x, window), repeat, mask), window, (B, H, W))
        if shifted:
            x = torch.roll(x, shifts=(shift[0], shift[1]), dims=(1, 2))
        return x

    def forward(
        self, x: torch.Tensor, repeat: int, shift: tuple[int, int], mask: torch.Tensor | None
    ) -> torch.Tensor:  # (B, H, W, C)
        attended = self._window_attention(self.norm1(x, repeat), repeat, shift, mask)
        x = x + self.drop_path(attended, repeat)
        y = self.local_norm(x, repeat)
        local = self.local_conv(y.permute(0, 3, 1, 2), repeat).permute(0, 2, 3, 1)
        # The released code continues with the normalized map: its norm is not in a branch but in the residual stream.
        x = (y if self.replace_residual else x) + local
        return x + self.drop_path(self.mlp(self.norm2(x, repeat)), repeat)


def _mask_of_size(
    x: torch.Tensor, stored: torch.Tensor, grid: tuple[int, int], window_size: tuple[int, int], shift: tuple[int, int]
) -> torch.Tensor:
    """Mask for the map x (B, H, W, C): the stored one, if the map has the size `grid` that this is for."""
    H, W = x.shape[1], x.shape[2]
    if is_exactly(H, W, grid):
        return stored
    return shifted_window_mask((H, W), window_size, shift, x.device, x.dtype)


@known_class
class MiniSwinStage(FillsBuffers):
    """Downsample, then shared blocks. (B, H, W, C) -> (B, H/2, W/2, C'); the first stage keeps its size."""

    mask_unshifted: Final[bool]
    attn_mask: torch.Tensor | None

    def __init__(
        self,
        dim: int,
        out_dim: int,
        downsample: bool,
        grid: tuple[int, int],
        window_size: tuple[int, int],
        repeats: int,
        drop_path: Sequence[float],
        mask_unshifted: bool,
        norm_layer: Callable[..., nn.Module],
        device=None,
        dtype=None,
        **block_args,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.grad_checkpointing = False
        self.mask_unshifted = mask_unshifted
        self.downsample = PatchMerging(dim, out_dim, norm_layer, **dd) if downsample else nn.Identity()
        self.blocks = TypedModuleList(
            [
                MiniSwinBlock(
                    out_dim,
                    window_size=window_size,
                    drop_path=drop_path[first : first + repeats],
                    norm_layer=norm_layer,
                    **block_args,
                    **dd,
                )
                for first in range(0, len(drop_path), repeats)
            ]
        )
        self._lay_out(grid, window_size, device, dtype)

    def _lay_out(
        self,
        grid: tuple[int, int],
        window_size: tuple[int, int],
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        """Set the size of map and windows, and from them the shift and the mask."""
        self.grid, self.window_size = grid, window_size
        # As in the released code, and unlike timm's Swin: where one axis has a single window, none is shifted.
        is_split = all(n > w for n, w in zip(grid, window_size, strict=True))
        self.shift = (window_size[0] // 2, window_size[1] // 2) if is_split else (0, 0)
        device = None if device is None else torch.device(device)
        mask = shifted_window_mask(grid, window_size, self.shift, device, dtype) if any(self.shift) else None
        self.register_buffer('attn_mask', mask, persistent=False)

    def init_non_persistent_buffers(self) -> None:
        """Fill the mask, which is not saved (after `to_empty`; transformers calls this too)."""
        weight = self.blocks[0].attn.qkv.weight
        self._lay_out(self.grid, self.window_size, weight.device, weight.dtype)

    def reset_parameters(self) -> None:
        """The stage's part of `MiniSwin.init_weights`."""
        self.init_non_persistent_buffers()

    def set_input_size(self, grid: tuple[int, int], window_size: tuple[int, int]) -> None:
        """Change the size of map and windows."""
        for block in self.blocks:
            block.attn.set_window_size(window_size)
        weight = self.blocks[0].attn.qkv.weight
        self._lay_out(grid, window_size, weight.device, weight.dtype)

    def _mask(self, x: torch.Tensor) -> torch.Tensor | None:
        """Mask for the map x (B, H, W, C); the stored one if it fits."""
        mask = self.attn_mask
        return None if mask is None else _mask_of_size(x, mask, self.grid, self.window_size, self.shift)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.downsample(x)
        if torch.jit.is_scripting():
            return self._run(x)
        else:  # noqa: RET505 (TorchScript would compile it without the else)
            return in_sub_batches(self, self._run, x)

    def _run(self, x: torch.Tensor) -> torch.Tensor:
        mask = self._mask(x)
        unshifted = (0, 0)
        layer = 0
        for block in self.blocks:
            for repeat in range(block.repeats):
                shift = self.shift if layer % 2 == 1 else unshifted
                # Released weights were trained with the mask in every layer of a stage, shifted or not.
                layer_mask = mask if self.mask_unshifted or layer % 2 == 1 else None
                if self.grad_checkpointing and not torch.jit.is_scripting():
                    x = checkpoint(block, x, repeat, shift, layer_mask)
                else:
                    x = block(x, repeat, shift, layer_mask)
                layer += 1
        return x


# What branches on the size of the input is a leaf of the graphs of torch.fx: for timm the stage, for a tracer that does
# not know timm's list (torchvision's) these functions alone, so that every layer inside has its name.
register_notrace_module(MiniSwinStage)
torch.fx.wrap('_mask_of_size')
torch.fx.wrap('window_partition')
torch.fx.wrap('window_reverse')


def _per_stage(repeats: int | tuple[int, ...], depths: Sequence[int]) -> tuple[int, ...]:
    """Layers that share their weights, for each stage.

    Raises:
        ValueError: If they do not divide the depths of the stages.
    """
    repeats_of: tuple[int, ...] = to_ntuple(len(depths))(repeats)
    if len(repeats_of) != len(depths) or any(r < 1 or d % r for d, r in zip(depths, repeats_of, strict=True)):
        raise ValueError(f'repeats must divide the depths {tuple(depths)}, got {repeats_of}.')
    return repeats_of


class MiniSwin(nn.Module):
    """Mini-Swin.

    Images must have the size that the model is laid out for, as in timm's Swin, unless `dynamic_img_size` is set.
    Windows follow the image size (7 at 224, 12 at 384), and their bias tables are resized with them (bicubic, as
    released).
    """

    dynamic_img_size: Final[bool]

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = 'avg',
        embed_dim: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        repeats: int | tuple[int, ...] = 2,
        window_size: int | Sequence | None = None,
        mlp_ratio: float = 4.0,
        local_conv_size: int = 7,
        mask_unshifted: bool = True,
        replace_residual: bool = True,
        always_partition: bool = True,
        strict_img_size: bool = True,
        dynamic_img_size: bool = False,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        act_layer: str | type[nn.Module] = nn.GELU,
        norm_layer: str | type[nn.Module] = nn.LayerNorm,
        device=None,
        dtype=None,
    ) -> None:
        """
        Args:
            img_size: Image size, int or (H, W).
            in_chans: Image channels.
            num_classes: Classes; 0 for none.
            global_pool: 'avg', or any other pooling of timm's `ClassifierHead`.
            embed_dim: Width of the first stage; doubles in every other.
            depths: Logical layers of each stage.
            num_heads: Attention heads of each stage.
            repeats: Adjacent layers of a stage that share their weights, one number or one per stage: 2, and in
                Mini-Swin-T all layers of a stage, as released; 1 shares nothing.
            window_size: Windows to use instead of those that follow from the size; see `per_stage_windows`.
            mlp_ratio: Hidden width of the MLP over C.
            local_conv_size: Kernel of the depthwise convolutions, odd. 7 as released, with windows of 12 too.
            mask_unshifted: Keep cells apart in unshifted layers as if windows were shifted, as the released weights
                need. False: in shifted layers only, as in Swin.
            replace_residual: The local norm replaces the residual stream, as the released weights need. False: it
                stays in the branch of its convolution.
            always_partition: Windows larger than a map stay as they are, and the map is padded. False, timm's default:
                they shrink to the map. Concerns `window_size` only: windows that follow from the size fit their maps.
            strict_img_size: Refuse images of another size than `img_size`; False as `dynamic_img_size=True`.
            dynamic_img_size: Accept images of every size; masks are computed as needed.
            drop_rate: Dropout before the classifier.
            proj_drop_rate: Dropout after the projections of attention and MLP.
            attn_drop_rate: Dropout of the attention maps.
            drop_path_rate: Stochastic depth of the last layer, rising linearly from 0 over the logical layers.
            act_layer: Activation of the MLPs.
            norm_layer: All norms; LayerNorm with eps 1e-5 as released.
            device: Of the parameters.
            dtype: Of the parameters.
        """
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        stages = len(depths)
        if stages != len(num_heads) or stages > len(NUM_WINDOWS):
            raise ValueError(f'depths and num_heads must have one entry per stage, at most 4: {depths}, {num_heads}.')
        act: type[nn.Module] = get_act_layer(act_layer)
        norm: Callable[..., nn.Module] = get_norm_layer(norm_layer)
        repeats_of = _per_stage(repeats, depths)
        if local_conv_size % 2 == 0:
            raise ValueError(f'local_conv_size must be odd, got {local_conv_size}.')
        dims = [embed_dim * 2**i for i in range(stages)]
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.global_pool = global_pool
        self.output_fmt = 'NHWC'
        self.embed_dim = embed_dim
        self.num_features = dims[-1]
        self.dynamic_img_size = dynamic_img_size or not strict_img_size
        self.always_partition = always_partition
        self.img_size, self.window_sizes = self._layout(img_size, window_size, stages, always_partition)
        grids = stage_grids(self.img_size, stages)

        self.patch_embed = PatchEmbed(
            self.img_size,
            4,
            in_chans,
            embed_dim,
            norm_layer=norm,
            strict_img_size=not self.dynamic_img_size,
            dynamic_img_pad=True,
            output_fmt='NHWC',
            **dd,
        )
        rates = cast(list[list[float]], calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True))
        self.stages = TypedSequential(
            *[
                MiniSwinStage(
                    dims[max(i - 1, 0)],
                    dims[i],
                    downsample=i > 0,
                    grid=grids[i],
                    window_size=self.window_sizes[i],
                    repeats=repeats_of[i],
                    drop_path=rates[i],
                    mask_unshifted=mask_unshifted,
                    norm_layer=norm,
                    num_heads=num_heads[i],
                    mlp_ratio=mlp_ratio,
                    local_conv_size=local_conv_size,
                    replace_residual=replace_residual,
                    attn_drop=attn_drop_rate,
                    proj_drop=proj_drop_rate,
                    act_layer=act,
                    **dd,
                )
                for i in range(stages)
            ]
        )
        self.feature_info = [
            dict(num_chs=dim, reduction=4 * 2**i, module=f'stages.{i}') for i, dim in enumerate(dims)
        ]  # fmt: skip
        self.norm = norm(self.num_features, **dd)
        self.head = ClassifierHead(
            self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, input_fmt=self.output_fmt, **dd
        )
        self.head_hidden_size = self.head.num_features
        self.init_weights(needs_reset=False)

    @staticmethod
    def _layout(
        img_size: int | tuple[int, int],
        window_size: int | Sequence | None,
        num_stages: int,
        always_partition: bool = True,
    ) -> tuple[tuple[int, int], tuple[tuple[int, int], ...]]:
        """Image size and the window (h, w) of every stage: the only place where a resolution becomes windows."""
        img_size = tuple(to_2tuple(img_size))
        if len(img_size) != 2 or min(img_size) < 32:
            raise ValueError(f'img_size must be at least 32 (an int or (H, W)), got {img_size}.')
        grids = stage_grids(img_size, num_stages)
        if window_size is None:
            return img_size, scaled_windows(grids, NUM_WINDOWS[:num_stages])
        windows = per_stage_windows(window_size, num_stages, conv_stage=False)
        if always_partition:
            return img_size, windows
        return img_size, tuple((min(h, H), min(w, W)) for (h, w), (H, W) in zip(windows, grids, strict=True))

    def init_weights(self, needs_reset: bool = True) -> None:
        """(Re-)initialize everything, buffers included, e.g. after `to_empty()`."""
        self.apply(partial(self._init_weights, needs_reset=needs_reset))

    def _init_weights(self, m: nn.Module, needs_reset: bool = True) -> None:
        if isinstance(m, nn.Linear):
            trunc_normal_(m.weight, std=0.02)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
        elif needs_reset and (reset := getattr(m, 'reset_parameters', None)):
            reset()

    def init_non_persistent_buffers(self) -> None:
        """Fill masks and indices, which no checkpoint holds."""
        for stage in self.stages:
            stage.init_non_persistent_buffers()
            for block in stage.blocks:
                block.attn.init_non_persistent_buffers()

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """As in the released training code, which does decay the head mixing; timm adds 1-D parameters by itself."""
        return {name for name, _ in self.named_parameters() if name.endswith('relative_position_bias_table')}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        """Layers for layer-wise learning rates: one a shared block, since its weights can have one rate only."""
        if coarse:
            return dict(stem=r'^patch_embed', blocks=r'^stages\.(\d+)')
        return dict(
            stem=r'^patch_embed',
            blocks=[
                (r'^stages\.(\d+)\.downsample', (0,)),
                (r'^stages\.(\d+)\.\w+\.(\d+)', None),
                (r'^norm', (99999,)),
            ],
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for stage in self.stages:
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """New classifier; `global_pool=None` keeps the pooling."""
        self.num_classes = num_classes
        self.head.reset(
            num_classes, pool_type=global_pool, in_features=self.num_features, **get_device_dtype(self)
        )  # fmt: skip
        self.head_hidden_size = self.head.num_features
        if global_pool is not None:
            self.global_pool = global_pool

    def set_input_size(
        self,
        img_size: int | tuple[int, int] | None = None,
        window_size: int | Sequence | None = None,
        window_ratio: int | Sequence[int] | None = None,
        always_partition: bool | None = None,
    ) -> None:
        """Change the image size, and with it maps and windows; bias tables are resized, everything else stays.

        Args:
            img_size: New image size, int or (H, W); None keeps the current one.
            window_size: Windows to use instead of those that follow from the size; see `per_stage_windows`.
            window_ratio: Divisor of the grid of patches, one or one per stage, that gives windows likewise, as in timm;
                `window_size` comes first.
            always_partition: As at creation; None keeps it.

        Raises:
            ValueError: On a bad size or windows; the model is then unchanged.
        """
        if always_partition is None:
            always_partition = self.always_partition
        if img_size is None and window_size is None and window_ratio is None:
            if always_partition == self.always_partition:
                return
            window_size = self.window_sizes  # the same windows, shrunk now where they are larger than their maps
        img_size = self.img_size if img_size is None else img_size
        if window_size is None and window_ratio is not None:
            window_size = self._divided(img_size, window_ratio)
        self.img_size, self.window_sizes = self._layout(img_size, window_size, len(self.stages), always_partition)
        self.always_partition = always_partition
        self.patch_embed.set_input_size(img_size=self.img_size)
        grids = stage_grids(self.img_size, len(self.stages))
        for stage, grid, window in zip(self.stages, grids, self.window_sizes, strict=True):
            stage.set_input_size(grid, window)
        record_input_size(
            self,
            self.img_size,
            grids[-1],
            window_size=window_size,
            always_partition=None if always_partition else False,
        )

    def _divided(self, img_size: int | tuple[int, int], ratio: int | Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Window (h, w) of every stage that divides the grid of patches by these ratios."""
        ratios: tuple[int, ...] = to_ntuple(len(self.stages))(ratio)
        if len(ratios) != len(self.stages) or any(r < 1 for r in ratios):
            raise ValueError(f'window_ratio must be one number of at least 1, or {len(self.stages)}, got {ratio!r}.')
        H, W = stage_grids(tuple(to_2tuple(img_size)), len(self.stages))[0]
        return tuple((max(1, H // r), max(1, W // r)) for r in ratios)

    def _embed(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) -> (B, H/4, W/4, C)."""
        if not self.dynamic_img_size:
            check_image_size(x, self.img_size)
        return self.patch_embed(x)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Outputs of the stages, each before the next downsample.

        Args:
            x: Images (B, in_chans, H, W).
            indices: Stages to return: the last n if an int, all if None, else those listed.
            norm: Apply the final norm to the output of the last stage, the only one that it fits.
            stop_early: Stop after the last stage asked for.
            output_fmt: 'NCHW' only.
            intermediates_only: Return the list alone.

        Returns:
            The final features (B, H, W, C) and the list of (B, C_i, H_i, W_i), or the list alone.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt must be 'NCHW', got '{output_fmt}'.")
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        intermediates = []
        x = self._embed(x)
        last = len(self.stages) - 1
        if torch.jit.is_scripting() or not stop_early:  # TorchScript cannot slice modules
            stages = self.stages
        else:
            stages = self.stages[: max_index + 1]
        i = 0
        for i, stage in enumerate(stages):
            x = stage(x)
            if i in take_indices:
                taken = self.norm(x) if norm and i == last else x
                intermediates.append(taken.permute(0, 3, 1, 2).contiguous())
        if intermediates_only:
            return intermediates
        return self.norm(x) if i == last else x, intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages after the last of `indices`; norm and head go with them, or if asked for."""
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        prune_end = max_index < len(self.stages) - 1
        self.stages = self.stages[: max_index + 1]
        if prune_norm or prune_end:
            self.norm = nn.Identity()  # made for the width of the last stage
        if prune_end:
            self.num_features = self.head_hidden_size = self.feature_info[max_index]['num_chs']
        if prune_head or prune_end:
            self.reset_classifier(0, '')
        return take_indices

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) -> (B, H/32, W/32, C), normalized."""
        return self.norm(self.stages(self._embed(x)))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """(B, H, W, C) -> (B, num_classes), or the pooled (B, C) with `pre_logits`."""
        return self.head(x, pre_logits=pre_logits) if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


def _table_grid(window_size: tuple[int, int]) -> tuple[int, int]:
    """Offsets (2h - 1, 2w - 1) that a bias table covers."""
    return 2 * window_size[0] - 1, 2 * window_size[1] - 1


def _resized_table(table: torch.Tensor, old: tuple[int, int], new: tuple[int, int]) -> torch.Tensor:
    """Bias table (offsets, heads) from one grid of offsets to another."""
    return resize_grid(table.T.reshape(-1, *old), new).flatten(1).T.contiguous()


def checkpoint_filter_fn(
    state_dict: dict[str, torch.Tensor],
    model: MiniSwin,
    source_img_size: tuple[int, int] | None = None,
    fresh_head: bool = False,
) -> dict[str, torch.Tensor]:
    """A checkpoint of either layout for this model: names mapped, every key accounted for, bias tables resized.

    Args:
        state_dict: Tensors of a checkpoint, already unwrapped (`checkpoints.read_checkpoint`).
        model: The model that will load the result.
        source_img_size: Image size that the checkpoint was saved at, where known. Needed only to
            distinguish non-square windows with equal numbers of offsets.
        fresh_head: Leave the checkpoint's classifier out; the model keeps its own.

    Raises:
        CheckpointError: On a key that is unknown, missing or of a wrong shape, or a stored index or mask with other
            values than the released code computes.
    """
    stored = state_dict
    state_dict, layout = MINI_SWIN_KEYS.to_ours(state_dict)
    leaf, axis = 'relative_position_bias_table', 0
    tables = stage_tables(state_dict, model, layout, source_img_size, leaf, axis, _table_grid)
    for key, source, target in tables:
        state_dict[key] = _resized_table(state_dict[key], source, target)
    state_dict = fit_to_model(state_dict, model, MINI_SWIN_KEYS, layout, fresh_head)
    if layout == 'official':
        check_swin_buffers(stored, model.window_sizes)
    return state_dict


def _cfg(release: Release) -> dict:
    return dict(
        **release.pretrained_cfg(),
        pool_size=stage_grids((release.img_size, release.img_size))[-1],
        fixed_input_size=True,
        first_conv='patch_embed.proj',
        classifier='head.fc',
    )


default_cfgs = generate_default_cfgs({release.name: _cfg(release) for release in FAMILIES['mini_swin']})


FAMILY = Family(
    MiniSwin,
    MINI_SWIN_KEYS,
    checkpoint_filter_fn,
    final_grid=lambda img_size: stage_grids(img_size)[-1],
    out_indices=(0, 1, 2, 3),
    feature_cfg=dict(flatten_sequential=True),
)


def _create_mini_swin(variant: str, pretrained: bool = False, **kwargs) -> MiniSwin:
    return create_zoo_model(FAMILY, variant, pretrained, **kwargs)


@register_model
def mini_swin_tiny_patch4_window7_224(pretrained: bool = False, **kwargs) -> MiniSwin:
    """Mini-Swin-T: the layers of every stage share their weights, 12.0M parameters."""
    args = dict(repeats=(2, 2, 6, 2), drop_path_rate=0.0)
    return _create_mini_swin('mini_swin_tiny_patch4_window7_224', pretrained, **{**args, **kwargs})


_SMALL = dict(depths=(2, 2, 18, 2))
_BASE = dict(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), drop_path_rate=0.2)


@register_model
def mini_swin_small_patch4_window7_224(pretrained: bool = False, **kwargs) -> MiniSwin:
    """Mini-Swin-S: every two layers share their weights, 26.5M parameters."""
    return _create_mini_swin('mini_swin_small_patch4_window7_224', pretrained, **{**_SMALL, **kwargs})


@register_model
def mini_swin_base_patch4_window7_224(pretrained: bool = False, **kwargs) -> MiniSwin:
    """Mini-Swin-B: every two layers share their weights, 46.4M parameters."""
    return _create_mini_swin('mini_swin_base_patch4_window7_224', pretrained, **{**_BASE, **kwargs})


@register_model
def mini_swin_base_patch4_window12_384(pretrained: bool = False, **kwargs) -> MiniSwin:
    """Mini-Swin-B, 384x384 (windows of 12)."""
    return _create_mini_swin('mini_swin_base_patch4_window12_384', pretrained, **{**_BASE, **kwargs})
