"""Plain ViTs as the released lightweight ones need them: timm's `VisionTransformer`, with two corrections.

timm resizes position embeddings with antialias, which the released code does not; and its checkpoint filter mistakes
any file with a `mask_token` for one of DINOv2. State-dict names and constructor arguments are timm's, which are the
released names. TinyMIM (`tinymim`) and MAE-Lite (`mae_lite`) build on this.

Shape legend: `B` batch, `P` prefix tokens (class, distillation), `N` = h * w patches, `C` width.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar, cast

import torch
from timm.layers import Attention, Mlp, get_device_dtype, to_2tuple
from timm.models import Beit, VisionTransformer, checkpoint
from timm.models.vision_transformer import Block
from torch import nn

from ..checkpoints import (
    PLAIN_VIT_KEYS,
    CheckpointError,
    Weights,
    check_beit_buffers,
    check_heads,
    find_heads,
    fit_to_model,
    heads_of,
    source_grid,
)
from ..layers import DeployLinear, check_patch_grid, linear_act, resize_beit_table, resize_position
from ..releases import Release
from ._create import Family, create_zoo_model, record_input_size

__all__ = [
    'PlainBlock',
    'PlainVit',
    'TwoHeadVit',
    'checkpoint_filter_fn',
    'create_plain_vit',
    'plain_vit_cfg',
    'resize_to_grid',
]

M = TypeVar('M', bound=nn.Module)
PlainModel = VisionTransformer | Beit
WeightInit = Literal['skip', 'reset', 'jax', 'jax_nlhb', 'moco', '']

FRESH = ('norm.', 'fc_norm.', 'dist_norm.', 'head.', 'head_dist.')
"""Modules that a training from an encoder does not take from it."""
BEIT_ONLY = ('relative_position_bias_table', 'gamma_1', 'gamma_2')
"""Parameters that a model with tables and LayerScale has and a plain encoder does not have."""


class DeployMlp(Mlp):
    """timm's `Mlp`, in deploy form: the first layer and its activation may run in one kernel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.fc1(x)) if torch.jit.is_scripting() else linear_act(self.fc1, self.act, x)
        return self.drop2(self.fc2(self.norm(self.drop1(x))))


class PlainBlock(Block):
    """timm's transformer block, with a deploy form."""

    def reparameterize(self) -> None:
        """Deploy form: see `timm.models.reparameterize_model`."""
        if type(self.attn) is Attention:
            self.attn.qkv = DeployLinear.from_linear(self.attn.qkv)
            self.attn.proj = DeployLinear.from_linear(self.attn.proj)
        if type(self.mlp) is Mlp:
            self.mlp.fc1 = DeployLinear.from_linear(self.mlp.fc1)
            self.mlp.fc2 = DeployLinear.from_linear(self.mlp.fc2)
            self.mlp.__class__ = DeployMlp  # the same layers under the same names


class PlainVit(VisionTransformer):
    """timm's ViT, whose position embedding is resized as in the released code: bicubic, no antialias."""

    def __init__(self, img_size: int | tuple[int, int] = 224, patch_size: int | tuple[int, int] = 16, **kwargs) -> None:
        """
        Args:
            img_size: Image size, int or (H, W), a multiple of the patch.
            patch_size: Patch size, int or (h, w).
            **kwargs: As in timm's `VisionTransformer`.
        """
        check_patch_grid(img_size, patch_size)
        kwargs.setdefault('block_fn', PlainBlock)
        super().__init__(img_size=img_size, patch_size=patch_size, **kwargs)

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Change the image (or patch) size; the position embedding is resized.

        Raises:
            ValueError: On a size that is not a multiple of the patch; the model is then unchanged.
        """
        old_grid = set_patch_grid(self, img_size, patch_size)
        if self.pos_embed is not None and self.patch_embed.grid_size != old_grid:
            resized = self._position(self.pos_embed.detach(), old_grid, self.patch_embed.grid_size)
            self.pos_embed = nn.Parameter(resized.contiguous(), requires_grad=self.pos_embed.requires_grad)

    def _position(self, pos_embed: torch.Tensor, old: tuple[int, int], new: tuple[int, int]) -> torch.Tensor:
        return resize_position(pos_embed, old, new, 0 if self.no_embed_class else self.num_prefix_tokens)

    def _embed(self, x: torch.Tensor) -> torch.Tensor:
        """Images -> tokens with their positions (B, P + N, C)."""
        return self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))

    def _run(
        self, block: nn.Module, x: torch.Tensor, attn_mask: torch.Tensor | None, is_causal: bool = False
    ) -> torch.Tensor:
        if self.grad_checkpointing:
            return checkpoint(block, x, attn_mask=attn_mask, is_causal=is_causal)
        return block(x, attn_mask=attn_mask, is_causal=is_causal)

    def _with_prefix(self, x: torch.Tensor) -> torch.Tensor:
        """Patches (B, N, C) -> all tokens (B, P + N, C)."""
        tokens = []
        if self.cls_token is not None:
            tokens.append(self.cls_token.expand(x.shape[0], -1, -1))
        if self.reg_token is not None:
            tokens.append(self.reg_token.expand(x.shape[0], -1, -1))
        return torch.cat(tokens + [x], dim=1)  # noqa: RUF005 (TorchScript has no unpacking)

    def _pos_embed(self, x: torch.Tensor) -> torch.Tensor:
        """Patches (B, N, C), or (B, h, w, C) with dynamic_img_size -> tokens with positions (B, P + N, C)."""
        pos_embed: torch.Tensor | None = self.pos_embed
        if self.dynamic_img_size:
            if pos_embed is not None:
                pos_embed = self._position(pos_embed, self.patch_embed.grid_size, (x.shape[1], x.shape[2]))
            x = x.flatten(1, 2)
        if pos_embed is None:
            return self.pos_drop(self._with_prefix(x))
        if self.no_embed_class:
            return self.pos_drop(self._with_prefix(x + pos_embed))
        return self.pos_drop(self._with_prefix(x) + pos_embed)


class TwoHeadVit(PlainVit):
    """A plain ViT with a second classifier `head_dist`, for distillation as in DeiT; evaluation averages the two.

    `set_distilled_training(True)` makes `forward` return the pair of logits in training mode, as in timm's DeiT.
    """

    def __init__(
        self, *args: Any, weight_init: WeightInit = '', fix_init: bool = False, device=None, dtype=None, **kwargs
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__(*args, weight_init='skip', device=device, dtype=dtype, **kwargs)
        self._check_pool(self.global_pool)
        if not self.has_class_token:
            raise ValueError('A model with two classifiers needs its class token: leave class_token out.')
        self._rescaled = fix_init
        self.distilled_training = False
        self._build_classifiers(**dd)
        self._finish(weight_init)

    def _build_classifiers(self, device=None, dtype=None) -> None:
        dd = {'device': device, 'dtype': dtype}
        width, classes = self.num_features, self.num_classes
        self.head = nn.Linear(width, classes, **dd) if classes > 0 else nn.Identity()
        self.head_dist = nn.Linear(width, classes, **dd) if classes > 0 else nn.Identity()

    def _finish(self, weight_init: WeightInit) -> None:
        """Initialize the weights, which `VisionTransformer` was asked to skip."""
        self.weight_init_mode = 'reset' if weight_init == 'skip' else weight_init
        if weight_init != 'skip':
            self.init_weights(needs_reset=False)
            if self._rescaled:
                self.fix_init_weight()

    @staticmethod
    def _check_pool(global_pool: str) -> None:
        if global_pool not in ('', 'avg'):
            raise ValueError(f"global_pool must be 'avg' or '' in a model with two classifiers, got {global_pool!r}.")

    @torch.jit.ignore
    def get_classifier(self) -> tuple[nn.Module, nn.Module]:
        return self.head, self.head_dist

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Two new classifiers; `global_pool=None` keeps the pooling."""
        if global_pool is not None:
            self._check_pool(global_pool)
        super().reset_classifier(num_classes, global_pool)
        self._build_classifiers(**get_device_dtype(self))
        self.head.train(self.training)
        self.head_dist.train(self.training)

    @torch.jit.ignore
    def set_distilled_training(self, enable: bool = True) -> None:
        self.distilled_training = enable

    def _pooled(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (B, P + N, C) -> the inputs of the two classifiers, (B, C) each."""
        raise NotImplementedError

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """(B, P + N, C) -> (B, num_classes), or the mean of the two pooled features (B, C) with `pre_logits`.

        Without pooling as timm's: all tokens (B, P + N, C) through `fc_norm` and the first classifier.
        """
        if self.global_pool == '':
            x = self.head_drop(self.fc_norm(x))
            return x if pre_logits else self.head(x)
        x, x_dist = self._pooled(x)
        x, x_dist = self.head_drop(x), self.head_drop(x_dist)
        if not pre_logits:
            x, x_dist = self.head(x), self.head_dist(x_dist)
            if self.distilled_training and self.training and not torch.jit.is_scripting():
                return cast(Any, (x, x_dist))  # the declared type is for TorchScript, which never comes here
        return (x + x_dist) / 2


def set_patch_grid(
    model: PlainModel, img_size: int | tuple[int, int] | None, patch_size: int | tuple[int, int] | None
) -> tuple[int, int]:
    """Set the size of a plain ViT's patch embedding, record it for timm, and return the previous grid.

    Raises:
        ValueError: On a size that is not a multiple of the patch; the model is then unchanged.
    """
    embed = model.patch_embed
    check_patch_grid(
        embed.img_size if img_size is None else img_size, embed.patch_size if patch_size is None else patch_size
    )
    old_grid = embed.grid_size
    embed.set_input_size(img_size=img_size, patch_size=patch_size)
    for info in model.feature_info:
        info['reduction'] = max(embed.patch_size)
    patch_args = {} if patch_size is None else {'patch_size': to_2tuple(patch_size)}
    record_input_size(model, embed.img_size, None, **patch_args)
    return old_grid


def checkpoint_filter_fn(
    state_dict: dict[str, torch.Tensor],
    model: PlainModel,
    source_img_size: tuple[int, int] | None = None,
    fresh_head: bool = False,
    as_init: bool = False,
    check: Callable[[tuple[int, ...]], None] | None = None,
) -> dict[str, torch.Tensor]:
    """A checkpoint for this model: leftovers of training dropped, every other key accounted for, position embedding and
    relative-position tables resized.

    Args:
        state_dict: Tensors of a checkpoint, already unwrapped (`checkpoints.read_checkpoint`).
        model: The model that will load the result.
        source_img_size: Image size that the checkpoint was saved at, where known. Needed only to
            distinguish non-square grids with equal numbers of patches.
        fresh_head: Leave the checkpoint's classifier out; the model keeps its own.
        as_init: The model also keeps its own norms after the last block, as a training from an encoder with another
            pooling does; and its tables and LayerScale where the checkpoint has none.
        check: Raises CheckpointError if the checkpoint cannot be of a model with these heads, see `check_heads`.

    Raises:
        CheckpointError: On a key that is unknown, missing or of a wrong shape, or a table of another order.
    """
    check_beit_buffers(state_dict)
    state_dict, layout = PLAIN_VIT_KEYS.to_ours(state_dict)
    own = model.state_dict()
    if as_init:
        state_dict = _as_init(state_dict, own)
    elif 'norm.weight' in state_dict and 'fc_norm.weight' in own and 'fc_norm.weight' not in state_dict:
        raise CheckpointError(
            'The checkpoint is an encoder (or reads its class token): it has the norm of all tokens, not the fc_norm '
            'of their mean that this model has. To start a training from it, pass as_init=True (`tinyvit-zoo convert '
            '--as-init`).'
        )
    resize_to_grid(state_dict, model, partial(source_grid, model=model, layout=layout, source_img_size=source_img_size))
    fitted = fit_to_model(state_dict, model, PLAIN_VIT_KEYS, layout, fresh_head)
    if check is not None:  # only of what fits by its shapes: other mismatches are not about heads
        check(heads_of(model))
    return fitted


def _as_init(state_dict: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Initial values of a training: the checkpoint's encoder, and the model's own values for everything else.

    A plain encoder can also initialize a model with tables and LayerScale, whose layers have other names in BEiT's
    code. The released code then drops the biases of queries and values; here they are kept. Those of the keys add the
    same to all logits of a query, so nothing is lost without them.
    """
    started = {k: v for k, v in state_dict.items() if not k.startswith(FRESH)}
    if not any(k.endswith(BEIT_ONLY) for k in started):
        for key in [k for k in started if k.endswith('attn.qkv.bias') and k not in own]:
            attn, third = key.removesuffix('qkv.bias'), len(started[key]) // 3
            bias = started.pop(key)
            started |= {f'{attn}q_bias': bias[:third], f'{attn}v_bias': bias[2 * third :]}
        started |= {k: v for k, v in own.items() if k.endswith(BEIT_ONLY)}
    return started | {k: v for k, v in own.items() if k.startswith(FRESH)}


def resize_to_grid(
    state_dict: dict[str, torch.Tensor], model: PlainModel, source: Callable[..., tuple[int, int] | None]
) -> None:
    """Resize position embedding and tables to the model's grid; `fit_to_model` reports those of an odd shape."""
    grid = tuple(model.patch_embed.grid_size)
    for key, value in state_dict.items():
        if key == 'pos_embed' and value.ndim == 3 and value.shape[0] == 1 and value.shape[2] > 0:
            prefix = 0 if getattr(model, 'no_embed_class', False) else model.num_prefix_tokens
            old = source(value.shape[1] - prefix)
            if old is not None:
                state_dict[key] = resize_position(value, old, grid, prefix)
        elif key.endswith('relative_position_bias_table') and value.ndim == 2:
            # One prefix token: the released classifiers with tables have a class token only.
            offsets = source(len(value) - 3, grid_of=lambda patches: (2 * patches[0] - 1, 2 * patches[1] - 1))
            if offsets is not None and offsets[0] % 2 and offsets[1] % 2:
                old = ((offsets[0] + 1) // 2, (offsets[1] + 1) // 2)
                state_dict[key] = resize_beit_table(value, old, grid)


def plain_vit_cfg(release: Release, **kwargs) -> dict:
    """timm's pretrained cfg of a release."""
    return dict(
        **release.pretrained_cfg(),
        pool_size=None,
        fixed_input_size=True,
        first_conv='patch_embed.proj',
        **{'classifier': 'head', **kwargs},
    )


def create_plain_vit(
    model_cls: type[M],
    variant: str,
    pretrained: bool,
    args: dict[str, Any],
    kwargs: dict[str, Any],
) -> M:
    """A model of these families, with its checkpoint checked for the number of heads.

    Args:
        model_cls: Model class.
        variant: Architecture name.
        pretrained: Load weights.
        args: Arguments that define the architecture.
        kwargs: Arguments of the caller of `timm.create_model`; they override `args`. With num_heads among them the
            caller vouches for the heads. With as_init=True the checkpoint is an encoder to start a training from:
            classifier and norms after the last block stay fresh, and other heads are not a mistake.
    """
    heads_given = 'num_heads' in kwargs
    kwargs = {**args, **kwargs}

    def filter_args(weights: Weights, as_init: bool) -> dict[str, Any]:
        check = None
        if weights.clues is not None and not heads_given and not as_init:
            check = partial(check_heads, evidence=find_heads(weights.clues, weights.state_dict), name=variant)
        return dict(as_init=as_init, check=check)

    family = Family(
        model_cls,
        PLAIN_VIT_KEYS,
        checkpoint_filter_fn,
        final_grid=lambda img_size: None,
        out_indices=3,
        feature_cfg=dict(feature_cls='getter'),
    )
    return create_zoo_model(family, variant, pretrained, filter_args_of=filter_args, **kwargs)
