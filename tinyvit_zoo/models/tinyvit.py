"""TinyViT: a hierarchical vision transformer, MBConv stage first, then windows of attention with a local convolution.

Paper: TinyViT: Fast Pretraining Distillation for Small Vision Transformers, https://arxiv.org/abs/2207.10666
Released code and weights: https://github.com/microsoft/Cream/tree/main/TinyViT (MIT)

Module names follow the copies of the weights on the Hub (`timm/tiny_vit_*`), so that those load without renaming.

Shape legend: `B` batch, `H W` feature-map height and width, `C` channels, `h w` window height and width,
`N` = h * w tokens of a window, `nW` windows of an image, `heads` attention heads, `d` = C / heads (32 as released).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Final, cast

import torch
import torch.nn.functional as F
from timm.layers import (
    DropPath,
    LayerNorm2d,
    NormMlpClassifierHead,
    calculate_drop_path_rates,
    get_device_dtype,
    is_exporting,
    to_2tuple,
    trunc_normal_,
    use_fused_attn,
)
from timm.models import (
    generate_default_cfgs,
    register_model,
    register_notrace_module,
)
from timm.models._features import feature_take_indices
from torch import nn

from ..checkpoints import TINYVIT_KEYS, fit_to_model, stage_tables
from ..layers import (
    ConvNorm,
    DeployLinear,
    HeadMix,
    KeepsBias,
    Mlp,
    TypedSequential,
    abs_offset_index,
    activate,
    add_to_fresh,
    checkpoint_block,
    conv_act,
    expand_abs_bias,
    in_sub_batches,
    is_exactly,
    is_fx_proxy,
    known_class,
    per_stage_windows,
    resize_grid,
    runs_on_cuda,
    scaled_windows,
    sdpa_bias,
    stage_grids,
    window_partition,
    window_reverse,
)
from ..releases import FAMILIES, Release, get_release
from ._create import Family, create_zoo_model, record_input_size

__all__ = ['TinyViT']

# Windows per side of each stage at 224 (56/7, 28/7, 14/14, 7/7), kept at every other size; stage 0 has none in use.
NUM_WINDOWS = (8, 4, 1, 1)

# Images at a time in the stem, stage 0 and the first merge, see `in_sub_batches`: at 224 and batch 8 one map of stage 0
# has 38 MB, more than the allocator keeps, and every layer would have the system map it in anew.
FRONT_IMAGES = 2


@known_class
class PatchEmbed(nn.Module):
    """Two 3x3 stride-2 convolutions. (B, in_chans, 4H, 4W) -> (B, C, H, W) in channels_last memory format."""

    def __init__(self, in_chs: int, out_chs: int, act_layer: type[nn.Module], device=None, dtype=None) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.conv1 = ConvNorm(in_chs, out_chs // 2, 3, stride=2, **dd)
        self.act = act_layer()
        self.conv2 = ConvNorm(out_chs // 2, out_chs, 3, stride=2, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            return self._run(x)
        else:  # noqa: RET505 (TorchScript would compile it without the else)
            return in_sub_batches(self, self._run, x, FRONT_IMAGES)

    def _run(self, x: torch.Tensor) -> torch.Tensor:
        # Channels last from the first layer on: every later convolution keeps it, and the transformer stages read
        # the same memory as B,H,W,C without a copy. (`contiguous(memory_format=...)` does not work under vmap.)
        x = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        x = self.act(self.conv1(x)) if torch.jit.is_scripting() else conv_act(self.conv1, self.act, x)
        return self.conv2(x)


@known_class
class MBConv(nn.Module):
    """Inverted residual: 1x1 expand, 3x3 depthwise, 1x1 project; activation after the residual sum. (B, C, H, W)."""

    def __init__(
        self,
        dim: int,
        expand_ratio: float,
        act_layer: type[nn.Module],
        drop_path: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        mid_chs = int(dim * expand_ratio)
        self.conv1 = ConvNorm(dim, mid_chs, 1, **dd)
        self.act1 = act_layer()
        self.conv2 = ConvNorm(mid_chs, mid_chs, 3, groups=mid_chs, **dd)
        self.act2 = act_layer()
        self.conv3 = ConvNorm(mid_chs, dim, 1, bn_weight_init=0.0, **dd)
        self.act3 = act_layer()
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            return self._run(x)
        else:  # noqa: RET505 (TorchScript would compile it without the else)
            return in_sub_batches(self, self._run, x, FRONT_IMAGES)

    def _run(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x
        x = self.act1(self.conv1(x)) if torch.jit.is_scripting() else conv_act(self.conv1, self.act1, x)
        x = self.act2(self.conv2(x)) if torch.jit.is_scripting() else conv_act(self.conv2, self.act2, x)
        x = shortcut + self.drop_path(self.conv3(x))
        return self.act3(x) if torch.jit.is_scripting() else activate(self.act3, x, fresh=True)


@known_class
class PatchMerging(nn.Module):
    """Halve the map and change the width: 1x1, 3x3 stride-2 depthwise, 1x1. (B, C, H, W) -> (B, C', H/2, W/2).

    With `stride` 1 only the width changes.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        act_layer: type[nn.Module],
        in_parts: bool = False,
        stride: int = 2,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.in_parts = in_parts
        self.conv1 = ConvNorm(dim, out_dim, 1, **dd)
        self.act1 = act_layer()
        self.conv2 = ConvNorm(out_dim, out_dim, 3, stride=stride, groups=out_dim, **dd)
        self.act2 = act_layer()
        self.conv3 = ConvNorm(out_dim, out_dim, 1, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting() or not self.in_parts:
            return self._run(x)
        else:  # noqa: RET505 (TorchScript would compile it without the else)
            return in_sub_batches(self, self._run, x, FRONT_IMAGES)

    def _run(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act1(self.conv1(x)) if torch.jit.is_scripting() else conv_act(self.conv1, self.act1, x)
        x = self.act2(self.conv2(x)) if torch.jit.is_scripting() else conv_act(self.conv2, self.act2, x)
        return self.conv3(x)


@known_class
class ConvStage(nn.Module):
    """Stage 0: a sequence of MBConv blocks. (B, C, H, W)."""

    def __init__(
        self,
        dim: int,
        expand_ratio: float,
        act_layer: type[nn.Module],
        drop_path: Sequence[float],
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.grad_checkpointing = False
        self.blocks = nn.Sequential(*[MBConv(dim, expand_ratio, act_layer, rate, **dd) for rate in drop_path])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return _checkpoint_blocks(self.blocks, x)
        if torch.jit.is_scripting():
            return self.blocks(x)
        else:  # noqa: RET505 (TorchScript would compile it without the else)
            return in_sub_batches(self, self.blocks, x, FRONT_IMAGES)


class Attention(KeepsBias):
    """Attention within a window, with a learned bias per head and absolute offset (|dy|, |dx|) (paper Sec. 3.2).

    With talking heads the maps of all heads are mixed before softmax, their biases included, and after it, beginning as
    the identity. That is not fused: the maps of all heads are needed at once.
    """

    fused_attn: Final[bool]
    talking_heads: Final[bool]
    row_offsets: torch.Tensor
    col_offsets: torch.Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: tuple[int, int],
        talking_heads: bool = False,
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
        self.fused_attn = use_fused_attn()
        self.talking_heads = talking_heads

        self.norm = nn.LayerNorm(dim, **dd)
        self.qkv = nn.Linear(dim, dim * 3, **dd)
        if talking_heads:
            self.proj_l = HeadMix(num_heads, **dd)
            self.proj_w = HeadMix(num_heads, **dd)
            self._begin_with_identity()
        self.proj = nn.Linear(dim, dim, **dd)
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, window_size[0] * window_size[1], **dd))
        self._register_offsets(device)

    def _register_offsets(self, device: torch.device | str | None) -> None:
        h, w = self.window_size
        self.register_buffer('row_offsets', abs_offset_index(h, device), persistent=False)
        self.register_buffer('col_offsets', abs_offset_index(w, device), persistent=False)

    def _begin_with_identity(self) -> None:
        if self.talking_heads:
            self.proj_l.init_identity()
            self.proj_w.init_identity()

    def reset_parameters(self) -> None:
        """Initial values of the released code: no bias. Talking heads, which it lacks, begin as the identity."""
        nn.init.zeros_(self.attention_biases)
        self._begin_with_identity()
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Fill the offset indices, which no checkpoint holds (after `to_empty`; transformers calls this too)."""
        self._register_offsets(self.attention_biases.device)
        self.keep_bias()

    @torch.jit.unused
    def bias_table(self) -> torch.Tensor:
        return self.attention_biases

    def spread_bias(self, dtype: torch.dtype) -> torch.Tensor:
        # Cast before expanding: under autocast SDPA would cast the (N, N) bias instead of the small table.
        table, on_cuda = self.attention_biases.to(dtype), runs_on_cuda(self.row_offsets)
        return expand_abs_bias(table, self.row_offsets, self.col_offsets, on_cuda)

    @torch.jit.unused
    def can_spread_bias(self) -> bool:
        offsets = zip((self.row_offsets, self.col_offsets), self.window_size, strict=True)
        return all(torch.equal(index, abs_offset_index(size, index.device)) for index, size in offsets)

    def set_window_size(self, window_size: tuple[int, int], mode: str = 'bicubic') -> None:
        """Change the window size; the bias table is resized, see `resize_grid`."""
        if window_size == self.window_size:
            return
        old = self.attention_biases
        table = resize_grid(old.detach().view(self.num_heads, *self.window_size), window_size, mode)
        self.window_size = window_size
        self.attention_biases = nn.Parameter(table.flatten(1), requires_grad=old.requires_grad)
        self._register_offsets(old.device)

    def reparameterize(self) -> None:
        """Deploy form: see `timm.models.reparameterize_model`."""
        self.qkv = DeployLinear.from_linear(self.qkv)
        self.proj = DeployLinear.from_linear(self.proj)
        self.keeps_bias = True
        self.keep_bias()

    def _prefers_plain(self, q: torch.Tensor, bias: torch.Tensor) -> bool:
        """Whether attention in single steps is faster than the fused kernel.

        On CPU that kernel takes a 4-D bias that needs no gradient. With a gradient torch would decompose it into
        something slower than the single steps, and in bfloat16 two products on bf16 instructions are faster. A graph
        (trace, script, export, fx) has the fused kernel always: it must not depend on whether autograd was on when it
        was recorded.
        """
        if torch.jit.is_scripting() or torch.jit.is_tracing() or is_exporting():
            return False
        if not torch.jit.is_scripting() and is_fx_proxy(q):
            return False
        return q.device.type == 'cpu' and (bias.requires_grad or q.dtype == torch.bfloat16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B * nW, N, C)
        B, N, C = x.shape
        # The released layout keeps q, k and v of one head side by side: (heads, 3 * d), not (3, heads, d).
        # Split before the heads move: the backward then joins the three gradients in the layout that the linear layer
        # reads, without a copy.
        q, k, v = self.qkv(self.norm(x)).view(B, N, self.num_heads, 3 * self.head_dim).split(self.head_dim, dim=-1)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # each (B * nW, heads, N, d)
        bias = self.spread_bias(q.dtype) if torch.jit.is_scripting() else self.bias_for(q)
        bias = sdpa_bias(bias, self.window_size[0] * self.window_size[1], runs_on_cuda(self.row_offsets))

        if self.talking_heads:
            attn = self.proj_l(add_to_fresh((q * self.scale) @ k.transpose(-2, -1), bias))
            x = self.proj_w(attn.softmax(dim=-1)) @ v
        elif self.fused_attn and not self._prefers_plain(q, bias):
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            attn = add_to_fresh((q * self.scale) @ k.transpose(-2, -1), bias)
            x = attn.softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).reshape(B, N, C))


class TinyVitBlock(nn.Module):
    """Window attention, then a 3x3 depthwise convolution without residual, then MLP. (B, H, W, C)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: tuple[int, int],
        mlp_ratio: float,
        local_conv_size: int,
        act_layer: type[nn.Module],
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        talking_heads: bool = False,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.attn = Attention(dim, num_heads, window_size, talking_heads, **dd)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.local_conv = ConvNorm(dim, dim, local_conv_size, groups=dim, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer, proj_drop, norm=True, **dd)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def _window_attention(self, x: torch.Tensor) -> torch.Tensor:
        B, H, W, C = x.shape
        if is_exactly(H, W, self.attn.window_size):
            return self.attn(x.reshape(B, H * W, C)).view(B, H, W, C)
        # Padding comes before the attention's norm, so padded cells hold the norm's bias and take part as keys and
        # values: the released weights were trained that way.
        windows = self.attn(window_partition(x, self.attn.window_size))
        return window_reverse(windows, self.attn.window_size, (B, H, W))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path1(self._window_attention(x))
        # A B,H,W,C tensor seen as B,C,H,W is in channels_last format: no copy on either side of the convolution.
        x = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.drop_path2(self.mlp(x))


# What branches on the size of the input is a leaf of the graphs of torch.fx: for timm the block, for a tracer that does
# not know timm's list (torchvision's) the two functions alone, so that every layer inside has its name.
register_notrace_module(TinyVitBlock)
torch.fx.wrap('window_partition')
torch.fx.wrap('window_reverse')


class TinyVitStage(nn.Module):
    """Stages 1-3: patch merging, then transformer blocks. (B, C, H, W) -> (B, C', H/2, W/2); (.., H, W) at stride 1."""

    def __init__(
        self,
        dim: int,
        out_dim: int,
        num_heads: int,
        window_size: tuple[int, int],
        mlp_ratio: float,
        local_conv_size: int,
        act_layer: type[nn.Module],
        proj_drop: float,
        drop_path: Sequence[float],
        merge_in_parts: bool = False,
        merge_stride: int = 2,
        talking_heads: bool = False,
        share_blocks: bool = False,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = PatchMerging(dim, out_dim, act_layer, merge_in_parts, merge_stride, **dd)
        self.blocks = TypedSequential(
            *[
                TinyVitBlock(
                    out_dim,
                    num_heads,
                    window_size,
                    mlp_ratio,
                    local_conv_size,
                    act_layer,
                    proj_drop,
                    rate,
                    talking_heads,
                    **dd,
                )
                for rate in drop_path
            ]
        )
        if share_blocks and len(self.blocks) > 1:
            from ..compress.share import keep_each_once_in, tie  # only for those who use it

            tie(list(self.blocks))
            keep_each_once_in(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_block(self.downsample, x).permute(0, 2, 3, 1)
            return _checkpoint_blocks(self.blocks, x).permute(0, 3, 1, 2)
        x = self.downsample(x).permute(0, 2, 3, 1)
        return self.blocks(x).permute(0, 3, 1, 2)


def _checkpoint_blocks(blocks: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    for block in blocks:
        x = checkpoint_block(block, x)
    return x


def _per_stage(setting: bool | Sequence[bool], num_stages: int, name: str) -> list[bool]:
    """A setting of the stages of attention for each stage; stage 0 has none.

    Raises:
        ValueError: If there is not one value a stage, or stage 0 is asked for.
    """
    if isinstance(setting, Sequence):
        each = [bool(value) for value in setting]
    else:
        each = [False] + [bool(setting)] * (num_stages - 1)
    if len(each) != num_stages or each[0]:
        raise ValueError(
            f'{name} is True, False, or one of them for each of the {num_stages} stages, the first of which has no '
            f'attention: False; got {setting!r}.'
        )
    return each


def _one_of(window_sizes: int | Sequence | None, window_size: int | Sequence | None) -> int | Sequence | None:
    """The windows under either of their names.

    Raises:
        ValueError: If both are given.
    """
    if window_sizes is not None and window_size is not None:
        raise ValueError('window_size is another name for window_sizes: pass one of them.')
    return window_size if window_sizes is None else window_sizes


def _checked_stride(output_stride: int) -> int:
    """The stride itself, as an int.

    Raises:
        ValueError: If it is neither 32 nor 16.
    """
    if output_stride not in (16, 32):
        raise ValueError(f'output_stride must be 32 or 16, got {output_stride!r}: TinyViT has no other.')
    return int(output_stride)


class TinyViT(nn.Module):
    """TinyViT.

    Args:
        img_size: Image size, int or (H, W), that the attention windows are laid out for. The forward pass accepts any
            H, W >= 32.
        in_chans: Input channels.
        num_classes: Classes of the head; 0 for none.
        global_pool: Pooling before the head ('avg', 'max', '' for none).
        embed_dims: Width of each of the four stages.
        depths: Blocks of each stage.
        num_heads: Heads of each stage (stage 0 has no attention).
        window_sizes: Windows to use instead of those that follow from `img_size`; see `per_stage_windows`.
        window_size: timm's name for `window_sizes`; one of the two.
        output_stride: 32 as released, or 16: the last patch merging then has stride 1, and the last map has the size
            of the one before it. The windows stay those of stride 32, and so do all weights.
        bias_interpolation: Mode of resizing bias tables: 'bicubic' (released code and weights) or
            'bilinear' (the paper's sentence).
        mlp_ratio: Hidden width of the MLP over the block's width.
        mbconv_expand_ratio: Hidden width of MBConv over the stage's width.
        local_conv_size: Kernel of the convolution between attention and MLP.
        talking_heads: Mix the heads before and after softmax (Supplement C): in all stages of attention, or as each
            stage says.
        share_blocks: The blocks of a stage share the matrices of attention and MLP, with their biases, as in MiniViT
            (Supplement C); norms, head mixing, tables of attention biases and local convolutions are each block's own.
            As `talking_heads`.
        drop_rate: Dropout before the classifier.
        proj_drop_rate: Dropout in the MLP.
        drop_path_rate: Stochastic depth, rising linearly to this rate over all blocks.
        act_layer: Activation; every release uses the exact GELU.

    Raises:
        ValueError: On a size below 32, windows that do not fit the number of stages, windows under both names, or
            another output stride; `talking_heads` or `share_blocks` for stage 0, or for another number of stages.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = 'avg',
        embed_dims: Sequence[int] = (64, 128, 160, 320),
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (2, 4, 5, 10),
        window_sizes: int | Sequence | None = None,
        window_size: int | Sequence | None = None,
        output_stride: int = 32,
        bias_interpolation: str = 'bicubic',
        mlp_ratio: float = 4.0,
        mbconv_expand_ratio: float = 4.0,
        local_conv_size: int = 3,
        talking_heads: bool | Sequence[bool] = False,
        share_blocks: bool | Sequence[bool] = False,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        act_layer: type[nn.Module] = nn.GELU,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        if bias_interpolation not in ('bicubic', 'bilinear'):
            raise ValueError(f"bias_interpolation must be 'bicubic' or 'bilinear', got {bias_interpolation!r}.")
        self.output_stride = _checked_stride(output_stride)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.num_features = embed_dims[-1]
        self.bias_interpolation = bias_interpolation
        windows = _one_of(window_sizes, window_size)
        self.img_size, self.window_sizes = self._layout(img_size, windows, len(depths))

        self.patch_embed = PatchEmbed(in_chans, embed_dims[0], act_layer, **dd)
        talking = _per_stage(talking_heads, len(depths), 'talking_heads')
        sharing = _per_stage(share_blocks, len(depths), 'share_blocks')
        dpr = cast(list[list[float]], calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True))
        stages: list[ConvStage | TinyVitStage] = [
            ConvStage(embed_dims[0], mbconv_expand_ratio, act_layer, dpr[0], **dd)
        ]
        strides = [min(4 * 2**i, output_stride) for i in range(len(depths))]
        for i in range(1, len(depths)):
            stages.append(
                TinyVitStage(
                    embed_dims[i - 1],
                    embed_dims[i],
                    num_heads[i],
                    self.window_sizes[i],
                    mlp_ratio,
                    local_conv_size,
                    act_layer,
                    proj_drop_rate,
                    dpr[i],
                    merge_in_parts=i == 1,
                    merge_stride=strides[i] // strides[i - 1],
                    talking_heads=talking[i],
                    share_blocks=sharing[i],
                    **dd,
                )
            )
        self.stages = TypedSequential(*stages)
        self.feature_info = [
            dict(num_chs=dim, reduction=strides[i], module=f'stages.{i}') for i, dim in enumerate(embed_dims)
        ]
        self.head = NormMlpClassifierHead(
            self.num_features,
            num_classes,
            pool_type=global_pool,
            norm_layer=partial(LayerNorm2d, eps=1e-5),
            drop_rate=drop_rate,
            **dd,
        )
        self.head_hidden_size = self.head.num_features
        self._limit_kept_biases()
        self.init_weights(needs_reset=False)

    def _limit_kept_biases(self) -> None:
        """Let the deploy form on CUDA keep its biases spread while all of them are smaller than the weights."""
        layers = [m for m in self.modules() if isinstance(m, Attention)]
        spread = sum(layer.num_heads * (layer.window_size[0] * layer.window_size[1]) ** 2 for layer in layers)
        smaller = spread < sum(p.numel() for p in self.parameters())
        for layer in layers:
            layer.may_keep_bias = smaller
            layer.keep_bias()

    @staticmethod
    def _layout(
        img_size: int | tuple[int, int],
        window_sizes: int | Sequence | None,
        num_stages: int,
        always_partition: bool = True,
    ) -> tuple[tuple[int, int], tuple[tuple[int, int], ...]]:
        """Image size and the window (h, w) of every stage: the only place where a resolution becomes windows.

        The windows do not depend on the output stride: at 16 the last map has twice as many a side, so the tables of
        released weights fit as they are. `always_partition` is Mini-Swin's: here windows larger than a map always stay
        as they are.
        """
        img_size = tuple(to_2tuple(img_size))
        if len(img_size) != 2 or min(img_size) < 32:
            raise ValueError(f'img_size must be at least 32 (an int or (H, W)), got {img_size}.')
        if window_sizes is not None:
            return img_size, per_stage_windows(window_sizes, num_stages)
        return img_size, scaled_windows(stage_grids(img_size, num_stages), NUM_WINDOWS[:num_stages])

    def init_weights(self, needs_reset: bool = True) -> None:
        """(Re-)initialize everything, buffers included, e.g. after `to_empty()`."""
        self.apply(partial(self._init_weights, needs_reset=needs_reset))

    def _init_weights(self, m: nn.Module, needs_reset: bool = True) -> None:
        if isinstance(m, nn.Linear):
            trunc_normal_(m.weight, std=0.02)
            nn.init.zeros_(m.bias)
        elif needs_reset and (reset := getattr(m, 'reset_parameters', None)):
            reset()

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """The bias tables, as in the released training code; timm adds 1-D parameters by itself."""
        return {name for name, _ in self.named_parameters() if name.endswith('attention_biases')}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        """Layers for layer-wise learning rates: the 12 blocks of the released fine-tuning recipe.

        The stem goes with block 0, each downsample with the last block before it (in the released code it closes
        that stage), the head with the last block.
        """
        if coarse:
            return dict(stem=r'^patch_embed', blocks=r'^stages\.(\d+)')
        join_previous = 99999
        return dict(
            blocks=[
                (r'^patch_embed', (0, 0)),
                (r'^stages\.(\d+)\.blocks\.(\d+)', None),
                (r'^stages\.(\d+)\.downsample', (-1, join_previous)),
                (r'^head', (join_previous,)),
            ]
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for stage in self.stages:
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        """New classifier; `global_pool=None` keeps the pooling, `reset_other` also removes the head's norm."""
        self.num_classes = num_classes
        self.head.reset(
            num_classes,
            pool_type=global_pool,
            reset_other=reset_other,
            in_features=self.num_features,
            **get_device_dtype(self),
        )
        self.head_hidden_size = self.head.num_features

    @torch.jit.ignore
    def set_input_size(
        self,
        img_size: int | tuple[int, int] | None = None,
        window_sizes: int | Sequence | None = None,
        window_size: int | Sequence | None = None,
    ) -> None:
        """Change the image size, and with it the windows; bias tables are resized, everything else stays.

        Args:
            img_size: New image size, int or (H, W); None keeps the current one.
            window_sizes: Windows to use instead of those that follow from the size; see `per_stage_windows`.
            window_size: timm's name for `window_sizes`; one of the two.

        Raises:
            ValueError: On a bad size or windows; the model is then unchanged.
        """
        window_sizes = _one_of(window_sizes, window_size)
        if img_size is None and window_sizes is None:
            return
        self.img_size, self.window_sizes = self._layout(
            self.img_size if img_size is None else img_size, window_sizes, len(self.stages)
        )
        for stage, window in zip(self.stages[1:], self.window_sizes[1:], strict=True):
            for block in cast(TinyVitStage, stage).blocks:
                block.attn.set_window_size(window, self.bias_interpolation)
        self._limit_kept_biases()
        grid = stage_grids(self.img_size, len(self.stages), output_stride=self.output_stride)[-1]
        record_input_size(self, self.img_size, grid, window_sizes=window_sizes, window_size=None)

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
            norm: No effect: TinyViT has no norm before pooling.
            stop_early: Stop after the last stage asked for.
            output_fmt: 'NCHW' only.
            intermediates_only: Return the list alone.

        Returns:
            The final features and the list of (B, C_i, H_i, W_i), or the list alone.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt must be 'NCHW', got '{output_fmt}'.")
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        intermediates = []
        x = self.patch_embed(x)
        if torch.jit.is_scripting() or not stop_early:  # TorchScript cannot slice modules
            stages = self.stages
        else:
            stages = self.stages[: max_index + 1]
        for i, stage in enumerate(stages):
            x = stage(x)
            if i in take_indices:
                intermediates.append(x)
        if intermediates_only:
            return intermediates
        return x, intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages after the last of `indices`; the head goes with them, or if `prune_head` is set."""
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        prune_end = max_index < len(self.stages) - 1
        self.stages = self.stages[: max_index + 1]
        if prune_end:
            # The features now end at the last stage kept; the head was made for wider ones, so it goes too.
            self.num_features = self.head_hidden_size = self.feature_info[max_index]['num_chs']
        if prune_head or prune_end:
            self.reset_classifier(0, '', reset_other=True)
        return take_indices

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) -> (B, C, H / output_stride, W / output_stride), before the norm, which follows the
        pooling.
        """
        return self.stages(self.patch_embed(x))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """(B, C, H, W) -> (B, num_classes), or the pooled and normalized (B, C) with `pre_logits`."""
        return self.head(x, pre_logits=pre_logits) if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


def checkpoint_filter_fn(
    state_dict: dict[str, torch.Tensor],
    model: TinyViT,
    source_img_size: tuple[int, int] | None = None,
    fresh_head: bool = False,
) -> dict[str, torch.Tensor]:
    """A checkpoint of either layout for this model: names mapped, every key accounted for, bias tables resized.

    Args:
        state_dict: Tensors of a checkpoint, already unwrapped (`checkpoints.read_checkpoint`).
        model: The model that will load the result.
        source_img_size: Image size that the checkpoint was saved at, where known. Needed only to
            distinguish non-square windows with equal numbers of cells.
        fresh_head: Leave the checkpoint's classifier out; the model keeps its own.

    Raises:
        CheckpointError: On a key that is unknown, missing or of a wrong shape.
    """
    state_dict, layout = TINYVIT_KEYS.to_ours(state_dict)
    tables = stage_tables(state_dict, model, layout, source_img_size, 'attention_biases', 1)
    for key, source, target in tables:
        grid = state_dict[key].reshape(-1, *source)
        state_dict[key] = resize_grid(grid, target, model.bias_interpolation).flatten(1)
    return fit_to_model(state_dict, model, TINYVIT_KEYS, layout, fresh_head)


def _cfg(release: Release) -> dict:
    return dict(
        **release.pretrained_cfg(),
        pool_size=stage_grids((release.img_size, release.img_size))[-1],
        first_conv='patch_embed.conv1.conv',
        classifier='head.fc',
    )


def _unreleased_cfg(like: str) -> dict:
    """As of another release, without what is said of its weights."""
    of_weights = ('url', 'hf_hub_id', 'license', 'origin_url', 'notes')
    return {key: value for key, value in _cfg(get_release(like)).items() if key not in of_weights}


default_cfgs = generate_default_cfgs(
    {
        **{release.name: _cfg(release) for release in FAMILIES['tinyvit']},
        'tinyvit_21m_talking_heads_224': _unreleased_cfg('tinyvit_21m_224.in1k'),
    }
)


def _final_grid(img_size: tuple[int, int], output_stride: int = 32) -> tuple[int, int]:
    return stage_grids(img_size, output_stride=output_stride)[-1]


FAMILY = Family(
    TinyViT,
    TINYVIT_KEYS,
    checkpoint_filter_fn,
    final_grid=_final_grid,
    out_indices=(0, 1, 2, 3),
    feature_cfg=dict(flatten_sequential=True),
)


def _create_tinyvit(variant: str, pretrained: bool = False, **kwargs) -> TinyViT:
    final_grid = partial(_final_grid, output_stride=_checked_stride(kwargs.get('output_stride', 32)))
    return create_zoo_model(replace(FAMILY, final_grid=final_grid), variant, pretrained, **kwargs)


@register_model
def tinyvit_5m_224(pretrained: bool = False, **kwargs) -> TinyViT:
    """TinyViT-5M, 224x224."""
    args = dict(embed_dims=(64, 128, 160, 320), num_heads=(2, 4, 5, 10), drop_path_rate=0.0)
    return _create_tinyvit('tinyvit_5m_224', pretrained, **{**args, **kwargs})


@register_model
def tinyvit_11m_224(pretrained: bool = False, **kwargs) -> TinyViT:
    """TinyViT-11M, 224x224."""
    args = dict(embed_dims=(64, 128, 256, 448), num_heads=(2, 4, 8, 14), drop_path_rate=0.1)
    return _create_tinyvit('tinyvit_11m_224', pretrained, **{**args, **kwargs})


_TINYVIT_21M = dict(embed_dims=(96, 192, 384, 576), num_heads=(3, 6, 12, 18))


@register_model
def tinyvit_21m_224(pretrained: bool = False, **kwargs) -> TinyViT:
    """TinyViT-21M, 224x224."""
    return _create_tinyvit('tinyvit_21m_224', pretrained, **{**_TINYVIT_21M, 'drop_path_rate': 0.2, **kwargs})


@register_model
def tinyvit_21m_talking_heads_224(pretrained: bool = False, **kwargs) -> TinyViT:
    """The variant of TinyViT-21M of Supplement C, 224x224: its last stage has talking heads and shares its blocks.

    The supplement says no more than that, its code and weights were not published. Taken here: both in the last stage
    only, the matrices shared as in MiniViT, by authors of this paper; 17.2M parameters.
    """
    last = (False, False, False, True)
    args = dict(_TINYVIT_21M, drop_path_rate=0.2, talking_heads=last, share_blocks=last)
    return _create_tinyvit('tinyvit_21m_talking_heads_224', pretrained, **{**args, **kwargs})


@register_model
def tinyvit_21m_384(pretrained: bool = False, **kwargs) -> TinyViT:
    """TinyViT-21M, 384x384 (windows 12, 24, 12)."""
    return _create_tinyvit('tinyvit_21m_384', pretrained, **{**_TINYVIT_21M, 'drop_path_rate': 0.1, **kwargs})


@register_model
def tinyvit_21m_512(pretrained: bool = False, **kwargs) -> TinyViT:
    """TinyViT-21M, 512x512 (windows 16, 32, 16)."""
    return _create_tinyvit('tinyvit_21m_512', pretrained, **{**_TINYVIT_21M, 'drop_path_rate': 0.1, **kwargs})
