"""Mini-DeiT: DeiT whose layers share their weights; each has its own head mixing and relative keys.

Paper: MiniViT: Compressing Vision Transformers with Weight Multiplexing, https://arxiv.org/abs/2204.07154
Released code and weights: https://github.com/microsoft/Cream/tree/main/MiniViT/Mini-DeiT (Apache-2.0)

A block holds the shared weights once and runs `repeats` times in a row: logical layer = block * repeats + repeat.
There is no class token; the classifier reads the mean of the normalized tokens.

Shape legend: `B` batch, `N` = h * w patches, `C` channels, `heads` attention heads, `d` = C / heads (64 as released).
"""

from collections.abc import Callable
from functools import partial
from typing import Final, cast

import torch
from timm.layers import (
    DropPath,
    PatchEmbed,
    calculate_drop_path_rates,
    get_act_layer,
    get_device_dtype,
    get_norm_layer,
    to_2tuple,
    trunc_normal_,
)
from timm.models import checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import nn

from ..checkpoints import MINI_DEIT_KEYS, fit_to_model, source_grid
from ..layers import (
    DeployLinear,
    FillsBuffers,
    HeadMix,
    Mlp,
    PerRepeat,
    RelativeKeys,
    TypedModuleList,
    check_image_size,
    check_patch_grid,
    has_attention_kernel,
    in_sub_batches,
    irpe_index,
    is_exactly,
    known_class,
    resize_position,
    run_attention_kernel,
)
from ..releases import FAMILIES, Release
from ._create import Family, create_zoo_model, record_input_size

__all__ = ['MiniDeit']


@known_class
class MiniAttention(nn.Module):
    """Attention with shared projections; each repeat has its own relative keys and head mixing (paper Eq. 6-7)."""

    rpe_scaled_q: Final[bool]

    def __init__(
        self,
        dim: int,
        num_heads: int,
        repeats: int,
        rpe_scaled_q: bool = True,
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
        self.rpe_scaled_q = rpe_scaled_q

        self.qkv = nn.Linear(dim, dim * 3, **dd)
        self.rpe_k = TypedModuleList([RelativeKeys(self.head_dim, **dd) for _ in range(repeats)])
        self.proj_l = PerRepeat([HeadMix(num_heads, **dd) for _ in range(repeats)])
        self.proj_w = PerRepeat([HeadMix(num_heads, **dd) for _ in range(repeats)])
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def reparameterize(self) -> None:
        """Deploy form: see `timm.models.reparameterize_model`."""
        self.qkv = DeployLinear.from_linear(self.qkv)
        self.proj = DeployLinear.from_linear(self.proj)

    def _relative(self, q: torch.Tensor, index: torch.Tensor, repeat: int) -> torch.Tensor:
        for i, keys in enumerate(self.rpe_k):
            if i == repeat:
                return keys(q, index, self.scale if self.rpe_scaled_q else 1.0)
        raise IndexError('There is no such repeat.')

    @torch.jit.unused
    def _has_kernel(self, qkv: torch.Tensor, repeat: int) -> bool:
        keys = self.rpe_k[repeat] if 0 <= repeat < len(self.rpe_k) else None
        return keys is not None and has_attention_kernel(
            qkv, self.proj_l, self.proj_w, repeat, self.attn_drop, keys=keys
        )

    @torch.jit.unused
    def _run_kernel(self, qkv: torch.Tensor, repeat: int, index: torch.Tensor) -> torch.Tensor:
        lookups = self.rpe_k[repeat].lookups(qkv[:, :, 0], self.scale if self.rpe_scaled_q else 1.0)
        return run_attention_kernel(qkv, self.proj_l, self.proj_w, repeat, self.scale, lookups=lookups, index=index)

    def _attend(self, qkv: torch.Tensor, repeat: int, rpe_index: torch.Tensor) -> torch.Tensor:
        """(B, N, 3, heads, d) -> (B, N, C)."""
        B, N, C = qkv.shape[0], qkv.shape[1], self.num_heads * self.head_dim
        q, k, v = qkv.permute(2, 0, 3, 1, 4).flatten(1, 2).unbind(0)  # (B * heads, N, d)
        attn = self._relative(q, rpe_index, repeat)
        attn = torch.baddbmm(attn, q, k.transpose(1, 2), alpha=self.scale).view(B, self.num_heads, N, N)
        # One step per line: each map is freed as soon as the next one exists.
        attn = self.proj_l(attn, repeat)
        attn = attn.softmax(dim=-1)
        attn = self.proj_w(attn, repeat)
        attn = self.attn_drop(attn)
        x = torch.bmm(attn.flatten(0, 1), v).view(B, self.num_heads, N, self.head_dim)
        return x.transpose(1, 2).reshape(B, N, C)

    def forward(self, x: torch.Tensor, repeat: int, rpe_index: torch.Tensor) -> torch.Tensor:  # (B, N, C)
        B, N, _ = x.shape
        qkv = self.qkv(x).view(B, N, 3, self.num_heads, self.head_dim)
        if not torch.jit.is_scripting() and self._has_kernel(qkv, repeat):
            x = self._run_kernel(qkv, repeat, rpe_index)
        else:
            x = self._attend(qkv, repeat, rpe_index)
        return self.proj_drop(self.proj(x))


@known_class
class MiniBlock(nn.Module):
    """A transformer block that serves `repeats` layers: weights shared, norms and transformations one per repeat."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        drop_path: list[float],
        rpe_scaled_q: bool,
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
            mlp_ratio: Hidden width of the MLP over C.
            drop_path: Rate of every repeat; their number is the number of repeats.
            rpe_scaled_q: See `MiniDeit`.
            attn_drop: Dropout of the attention maps.
            proj_drop: Dropout after the projections.
            act_layer: Activation of the MLP.
            norm_layer: Norm before attention and MLP.
            device: Of the parameters.
            dtype: Of the parameters.
        """
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.repeats = len(drop_path)
        self.norm1 = PerRepeat([norm_layer(dim, **dd) for _ in drop_path])
        self.attn = MiniAttention(dim, num_heads, self.repeats, rpe_scaled_q, attn_drop, proj_drop, **dd)
        self.norm2 = PerRepeat([norm_layer(dim, **dd) for _ in drop_path])
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer, proj_drop, **dd)
        self.drop_path = PerRepeat([DropPath(rate) if rate > 0.0 else nn.Identity() for rate in drop_path])

    def keep(self, repeats: int) -> None:
        """Serve only the first `repeats` layers from now on."""
        self.repeats = repeats
        for part in (self.norm1, self.norm2, self.drop_path, self.attn.rpe_k, self.attn.proj_l, self.attn.proj_w):
            del part[repeats:]

    def _run(self, x: torch.Tensor, repeat: int, rpe_index: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x, repeat), repeat, rpe_index), repeat)
        return x + self.drop_path(self.mlp(self.norm2(x, repeat)), repeat)

    def forward(self, x: torch.Tensor, repeat: int, rpe_index: torch.Tensor) -> torch.Tensor:  # (B, N, C)
        if torch.jit.is_scripting():
            return self._run(x, repeat, rpe_index)
        else:  # noqa: RET505 (TorchScript would compile it without the else)
            return in_sub_batches(self, partial(self._run, repeat=repeat, rpe_index=rpe_index), x)


def _restore_index(model: 'MiniDeit', incompatible_keys: object) -> None:
    """After weights were assigned to a model built on the meta device: fill the index, which no checkpoint holds."""
    if model.rpe_index.is_meta and not model.pos_embed.is_meta:
        model.init_non_persistent_buffers()


class MiniDeit(FillsBuffers):
    """Mini-DeiT.

    Images must have the size that the model is laid out for, as in timm's ViT, unless `dynamic_img_size` is set. The
    position embedding is resized with the image (bicubic, as released); relative keys fit every grid unchanged.
    """

    dynamic_img_size: Final[bool]
    rpe_index: torch.Tensor

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = 'avg',
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        repeats: int = 2,
        mlp_ratio: float = 4.0,
        rpe_scaled_q: bool = True,
        dynamic_img_size: bool = False,
        dynamic_img_pad: bool = False,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        act_layer: str | type[nn.Module] = nn.GELU,
        norm_layer: str | type[nn.Module] | None = None,
        device=None,
        dtype=None,
    ) -> None:
        """
        Args:
            img_size: Image size, int or (H, W).
            patch_size: Patch size, int or (h, w).
            in_chans: Image channels.
            num_classes: Classes; 0 for none.
            global_pool: 'avg' over the tokens, or '' for none.
            embed_dim: Width C.
            depth: Logical layers.
            num_heads: Attention heads.
            repeats: Adjacent layers that share their weights: 2 as released; `depth` for the paper's single-layer
                model (9M parameters at width 768, no released weights); 1 shares nothing.
            mlp_ratio: Hidden width of the MLP over C.
            rpe_scaled_q: Relative keys are multiplied by queries that are already scaled by d^-0.5, as the released
                weights need. False: by unscaled queries, as in iRPE's formula.
            dynamic_img_size: Accept images of every size that is a multiple of the patch.
            dynamic_img_pad: Of every other size too, padded to whole patches at the bottom and right.
            drop_rate: Dropout before the classifier.
            pos_drop_rate: Dropout after the position embedding.
            proj_drop_rate: Dropout after the projections of attention and MLP.
            attn_drop_rate: Dropout of the attention maps.
            drop_path_rate: Stochastic depth of the last layer, rising linearly from 0 over the logical layers.
            act_layer: Activation of the MLPs.
            norm_layer: Norm; default LayerNorm with eps 1e-6, as the released weights need (1e-5 moves their logits by
                1e-5).
            device: Of the parameters.
            dtype: Of the parameters.
        """
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        if repeats < 1 or depth % repeats:
            raise ValueError(f'repeats must divide the depth {depth}, got {repeats}.')
        act: type[nn.Module] = get_act_layer(act_layer)
        norm: Callable[..., nn.Module] = get_norm_layer(norm_layer) or partial(nn.LayerNorm, eps=1e-6)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.global_pool = global_pool
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.num_prefix_tokens = 0
        self.depth = depth
        self.dynamic_img_size = dynamic_img_size
        self.grad_checkpointing = False

        check_patch_grid(img_size, patch_size)
        self.patch_embed = PatchEmbed(
            img_size,
            to_2tuple(patch_size),
            in_chans,
            embed_dim,
            strict_img_size=not dynamic_img_size,
            dynamic_img_pad=dynamic_img_pad,
            output_fmt='NHWC',
            **dd,
        )
        self.pos_embed = nn.Parameter(torch.empty(1, self.patch_embed.num_patches, embed_dim, **dd))
        self._register_index(device)
        self.pos_drop = nn.Dropout(pos_drop_rate)
        rates = cast(list[float], calculate_drop_path_rates(drop_path_rate, depth))
        self.blocks = TypedModuleList(
            [
                MiniBlock(
                    embed_dim,
                    num_heads,
                    mlp_ratio,
                    rates[first : first + repeats],
                    rpe_scaled_q,
                    attn_drop_rate,
                    proj_drop_rate,
                    act,
                    norm,
                    **dd,
                )
                for first in range(0, depth, repeats)
            ]
        )
        self.norm = norm(embed_dim, **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes, **dd) if num_classes > 0 else nn.Identity()
        # transformers distinguishes layers by these names. Layers share blocks, so each is named after a module that it
        # does not share.
        modules = [f'blocks.{layer // repeats}.drop_path.{layer % repeats}' for layer in range(depth)]
        reduction = max(self.patch_embed.patch_size)
        self.feature_info = [dict(num_chs=embed_dim, reduction=reduction, module=module) for module in modules]
        self._check_pool(global_pool)
        self.init_weights(needs_reset=False)
        self.register_load_state_dict_post_hook(_restore_index)

    @staticmethod
    def _check_pool(global_pool: str) -> None:
        if global_pool not in ('', 'avg'):
            raise ValueError(f"global_pool must be 'avg' or '' (Mini-DeiT has no class token), got {global_pool!r}.")

    def _register_index(self, device: torch.device | str | None) -> None:
        device = None if device is None else torch.device(device)
        self.register_buffer('rpe_index', irpe_index(self.patch_embed.grid_size, device), persistent=False)

    def init_weights(self, needs_reset: bool = True) -> None:
        """(Re-)initialize everything, buffers included, e.g. after `to_empty()`."""
        trunc_normal_(self.pos_embed, std=0.02)
        self.init_non_persistent_buffers()
        self.apply(partial(self._init_weights, needs_reset=needs_reset))

    def _init_weights(self, m: nn.Module, needs_reset: bool = True) -> None:
        if isinstance(m, nn.Linear):
            trunc_normal_(m.weight, std=0.02)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
        elif needs_reset and (reset := getattr(m, 'reset_parameters', None)):
            reset()

    def init_non_persistent_buffers(self) -> None:
        """Fill the index of the relative keys, which no checkpoint holds."""
        self._register_index(self.pos_embed.device)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """As in the released training code, which does decay relative keys and head mixing."""
        return {'pos_embed'}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        """Layers for layer-wise learning rates: one a shared block, since its weights can have one rate only."""
        return dict(stem=r'^pos_embed|^patch_embed', blocks=[(r'^blocks\.(\d+)', None), (r'^norm', (99999,))])

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """New classifier; `global_pool=None` keeps the pooling."""
        if global_pool is not None:
            self._check_pool(global_pool)
            self.global_pool = global_pool
        self.num_classes = num_classes
        head = nn.Linear(self.embed_dim, num_classes, **get_device_dtype(self)) if num_classes > 0 else nn.Identity()
        self.head = head.train(self.training)

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Change the image (or patch) size; the position embedding is resized.

        Raises:
            ValueError: On a size that is not a multiple of the patch; the model is then unchanged.
        """
        embed = self.patch_embed
        check_patch_grid(
            embed.img_size if img_size is None else img_size, embed.patch_size if patch_size is None else patch_size
        )
        old_grid = self.patch_embed.grid_size
        self.patch_embed.set_input_size(img_size=img_size, patch_size=patch_size)
        grid = self.patch_embed.grid_size
        if grid != old_grid:
            resized = resize_position(self.pos_embed.detach(), old_grid, grid, prefix_tokens=0).contiguous()
            self.pos_embed = nn.Parameter(resized, requires_grad=self.pos_embed.requires_grad)
            self._register_index(self.pos_embed.device)
        for info in self.feature_info:
            info['reduction'] = max(self.patch_embed.patch_size)
        patch_args = {} if patch_size is None else {'patch_size': to_2tuple(patch_size)}
        record_input_size(self, self.patch_embed.img_size, None, **patch_args)

    def _embed(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (B, in_chans, H, W) -> tokens with their positions (B, N, C), and the index of their grid."""
        if not self.dynamic_img_size:
            check_image_size(x, self.patch_embed.img_size)
        x = self.patch_embed(x)
        pos_embed: torch.Tensor = self.pos_embed
        index = self.rpe_index
        if self.dynamic_img_size:
            grid = (x.shape[1], x.shape[2])
            if not is_exactly(grid[0], grid[1], self.patch_embed.grid_size):
                pos_embed = resize_position(pos_embed, self.patch_embed.grid_size, grid, prefix_tokens=0)
                index = irpe_index(grid, x.device)
        return self.pos_drop(x.flatten(1, 2) + pos_embed), index

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Outputs of the logical layers.

        Args:
            x: Images (B, in_chans, H, W).
            indices: Layers to return: the last n if an int, all if None, else those listed.
            return_prefix_tokens: No effect: there are none.
            norm: Apply the final norm to each.
            stop_early: Stop after the last layer asked for.
            output_fmt: 'NCHW' or 'NLC'.
            intermediates_only: Return the list alone.

        Returns:
            The final features and the list of (B, C, h, w) or (B, N, C), or the list alone.
        """
        if output_fmt not in ('NCHW', 'NLC'):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NLC', got '{output_fmt}'.")
        take_indices, max_index = feature_take_indices(self.depth, indices)
        height, width = self.patch_embed.dynamic_feat_size((x.shape[-2], x.shape[-1]))
        x, rpe_index = self._embed(x)
        intermediates = []
        layer = 0
        for block in self.blocks:
            for repeat in range(block.repeats):
                if not stop_early or layer <= max_index:
                    if self.grad_checkpointing and not torch.jit.is_scripting():
                        x = checkpoint(block, x, repeat, rpe_index)
                    else:
                        x = block(x, repeat, rpe_index)
                    if layer in take_indices:
                        intermediates.append(self.norm(x) if norm else x)
                layer += 1
        if output_fmt == 'NCHW':
            intermediates = [
                y.transpose(1, 2).reshape(y.shape[0], y.shape[2], height, width) for y in intermediates
            ]  # fmt: skip
        if intermediates_only:
            return intermediates
        return self.norm(x), intermediates

    def get_intermediate_layers(
        self,
        x: torch.Tensor,
        n: int | list[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
    ) -> list[torch.Tensor]:
        """Outputs of the last `n` layers, or of those listed; the interface of DINO, see `forward_intermediates`."""
        fmt = 'NCHW' if reshape else 'NLC'
        outputs = self.forward_intermediates(x, n, norm=norm, output_fmt=fmt, intermediates_only=True)
        assert isinstance(outputs, list)
        return outputs

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the layers after the last of `indices`; a shared block keeps the repeats still in use."""
        take_indices, max_index = feature_take_indices(self.depth, indices)
        left = max_index + 1
        for i, block in enumerate(self.blocks):
            if left <= block.repeats:
                block.keep(left)
                self.blocks = self.blocks[: i + 1]
                break
            left -= block.repeats
        self.depth = max_index + 1
        self.feature_info = self.feature_info[: self.depth]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, '')
        return take_indices

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) -> (B, N, C), normalized."""
        x, rpe_index = self._embed(x)
        for block in self.blocks:
            for repeat in range(block.repeats):
                if self.grad_checkpointing and not torch.jit.is_scripting():
                    x = checkpoint(block, x, repeat, rpe_index)
                else:
                    x = block(x, repeat, rpe_index)
        return self.norm(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """(B, N, C) -> (B, num_classes), or the pooled (B, C) with `pre_logits`."""
        if self.global_pool == 'avg':
            x = x.mean(dim=1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


def checkpoint_filter_fn(
    state_dict: dict[str, torch.Tensor],
    model: MiniDeit,
    source_img_size: tuple[int, int] | None = None,
    fresh_head: bool = False,
) -> dict[str, torch.Tensor]:
    """A checkpoint of either layout for this model: names mapped, keys accounted for, position embedding resized.

    Args:
        state_dict: Tensors of a checkpoint, already unwrapped (`checkpoints.read_checkpoint`).
        model: The model that will load the result.
        source_img_size: Image size that the checkpoint was saved at, where known. Needed only to
            distinguish non-square grids with equal numbers of patches.
        fresh_head: Leave the checkpoint's classifier out; the model keeps its own.

    Raises:
        CheckpointError: On a key that is unknown, missing or of a wrong shape.
    """
    state_dict, layout = MINI_DEIT_KEYS.to_ours(state_dict)
    pos_embed = state_dict.get('pos_embed')
    if pos_embed is not None and pos_embed.ndim == 3 and pos_embed.shape[0] == 1 and pos_embed.shape[2] > 0:
        source = source_grid(pos_embed.shape[1], model, layout, source_img_size)
        if source is not None:
            state_dict['pos_embed'] = resize_position(pos_embed, source, model.patch_embed.grid_size, prefix_tokens=0)
    return fit_to_model(state_dict, model, MINI_DEIT_KEYS, layout, fresh_head)


def _cfg(release: Release) -> dict:
    return dict(
        **release.pretrained_cfg(),
        pool_size=None,
        fixed_input_size=True,
        first_conv='patch_embed.proj',
        classifier='head',
    )


default_cfgs = generate_default_cfgs({release.name: _cfg(release) for release in FAMILIES['mini_deit']})


FAMILY = Family(
    MiniDeit,
    MINI_DEIT_KEYS,
    checkpoint_filter_fn,
    final_grid=lambda img_size: None,
    out_indices=3,
    feature_cfg=dict(feature_cls='getter'),
)


def _create_mini_deit(variant: str, pretrained: bool = False, **kwargs) -> MiniDeit:
    if kwargs.get('feature_cls', 'getter') != 'getter':
        raise ValueError("Mini-DeiT's layers share modules, so features are taken by feature_cls='getter' only.")
    return create_zoo_model(FAMILY, variant, pretrained, **kwargs)


@register_model
def mini_deit_tiny_patch16_224(pretrained: bool = False, **kwargs) -> MiniDeit:
    """Mini-DeiT-Ti: 12 layers in 6 shared blocks, 3.1M parameters."""
    args = dict(embed_dim=192, num_heads=3)
    return _create_mini_deit('mini_deit_tiny_patch16_224', pretrained, **{**args, **kwargs})


@register_model
def mini_deit_small_patch16_224(pretrained: bool = False, **kwargs) -> MiniDeit:
    """Mini-DeiT-S: 12 layers in 6 shared blocks, 11.5M parameters."""
    args = dict(embed_dim=384, num_heads=6)
    return _create_mini_deit('mini_deit_small_patch16_224', pretrained, **{**args, **kwargs})


@register_model
def mini_deit_base_patch16_224(pretrained: bool = False, **kwargs) -> MiniDeit:
    """Mini-DeiT-B: 12 layers in 6 shared blocks, 44.1M parameters."""
    args = dict(embed_dim=768, num_heads=12, drop_path_rate=0.1)
    return _create_mini_deit('mini_deit_base_patch16_224', pretrained, **{**args, **kwargs})


@register_model
def mini_deit_base_patch16_384(pretrained: bool = False, **kwargs) -> MiniDeit:
    """Mini-DeiT-B, 384x384."""
    args = dict(embed_dim=768, num_heads=12, drop_path_rate=0.1)
    return _create_mini_deit('mini_deit_base_patch16_384', pretrained, **{**args, **kwargs})
