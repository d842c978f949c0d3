"""A plain ViT of transformers, such as ViT, MAE, DINOv2, CLIP and BEiT, as timm's with the same weights.

Pre-training reads queries, keys and values, and runs teachers on visible patches or up to a block: of timm's modules.

Shape legend: `N` tokens, `H` heads.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from timm.layers import Attention
from torch import nn

from ..build import asking_once
from ..common.errors import EvaluationError
from ..common.extras import needs_extra
from ..common.text import first_few, reason
from ..models import PlainVit
from ..names import resolve_name
from ..pretrain.encoder import block_inputs, embed
from ..soft_labels.transformers_teacher import Page, image_size, normalization
from .feature_teacher import load_vision_model

__all__ = ['BiasedAttention', 'as_plain_vit', 'load_transformers_vit']

BLOCK = r'(?:encoder\.)?layers?\.(\d+)\.'
ATTENTION = BLOCK + r'(?:attention|self_attn)\.(?:attention\.)?'
NAMES = (
    (r'embeddings\.(?:cls_token|class_embedding)', 'cls_token'),
    (r'embeddings\.position_embeddings?(?:\.weight)?', 'pos_embed'),
    (r'embeddings\.patch_embeddings?(?:\.projection)?', 'patch_embed.proj'),
    (r'pre_layrnorm', 'norm_pre'),
    (r'(?:post_)?layernorm', 'norm'),
    (BLOCK + r'(?:layernorm_before|layer_norm1|norm1)', 'norm1'),
    (ATTENTION + r'(?:q_proj|query)', 'q'),
    (ATTENTION + r'(?:k_proj|key)', 'k'),
    (ATTENTION + r'(?:v_proj|value)', 'v'),
    (BLOCK + r'(?:attention\.o_proj|self_attn\.out_proj|attention\.output\.dense)', 'attn.proj'),
    (BLOCK + r'(?:lambda_1|layer_scale1\.lambda1)', 'ls1.gamma'),
    (BLOCK + r'(?:layernorm_after|layer_norm2|norm2)', 'norm2'),
    (BLOCK + r'(?:mlp\.fc1|intermediate\.dense)', 'mlp.fc1'),
    (BLOCK + r'(?:mlp\.fc2|output\.dense)', 'mlp.fc2'),
    (BLOCK + r'(?:lambda_2|layer_scale2\.lambda1)', 'ls2.gamma'),
)
"""Names of transformers, and timm's; those of blocks after the number of the block."""
NOT_READ = r'embeddings\.(?:mask_token|position_ids)|pooler\..*|head\..*|.*relative_position_bias_table'
NEEDED = ('norm1.weight', 'q.weight', 'k.weight', 'v.weight', 'attn.proj.weight', 'norm2.weight', 'mlp.fc1.weight')
TOLERANCE = 1e-3  # of the largest token, in float32; what is misread is off by some tenths


class BiasedAttention(Attention):
    """timm's attention with relative positions: `relative_bias` (1, H, N, N) is added to its logits."""

    needs_all_patches = True
    relative_bias: torch.Tensor

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False) -> torch.Tensor:
        """(B, N, C) -> (B, N, C), N being that of the size that it was made for."""
        return super().forward(x, attn_mask=self.relative_bias.to(x.dtype))


def load_transformers_vit(page: Page, size: tuple[int, int] | None = None, drop_path: float = 0.0) -> PlainVit:
    """A plain ViT of transformers by its own weights, as timm's; it says itself how it takes images.

    Args:
        page: Where it lies.
        size: (H, W) of its images; None for its own.
        drop_path: Of its last block, rising from 0.

    Raises:
        EvaluationError: If it is not a plain ViT, or takes no such images.
        ModelError: If it cannot be loaded, or its preprocessing cannot be followed.
        MissingExtraError: If transformers is not installed.
    """
    with asking_once(resolve_name(page.name), {}):
        model, processor = load_vision_model(page)
    mean, std = normalization(page.name, processor)
    vit: Any = as_plain_vit(model, page.name, size or image_size(page.name, processor, model.config), drop_path)
    vit.pretrained_cfg = dict(mean=mean, std=std)
    return vit


def as_plain_vit(model: nn.Module, name: str, size: tuple[int, int], drop_path: float = 0.0) -> PlainVit:
    """timm's ViT with the weights of a vision model of transformers, compared with it on an image of noise.

    Args:
        model: In float32 and evaluation mode; of a model with several towers the one that sees.
        name: For messages.
        size: (H, W) of its images.
        drop_path: Of its last block, rising from 0.

    Raises:
        EvaluationError: If it is not a plain ViT, or takes no such images.
    """
    tensors = _as_ours(model, name)
    try:
        vit = _like(model, tensors, drop_path)
        vit.load_state_dict(tensors)
        if vit.patch_embed.img_size != size:
            vit.set_input_size(size)
    except (RuntimeError, ValueError, AssertionError) as e:
        raise _none(name, model, f'has weights that are not laid out as those of one ({reason(e)})') from e
    _compare(vit.eval(), model, name, size)
    return vit


def _none(name: str, model: nn.Module, why: str) -> EvaluationError:
    return EvaluationError(f'{name} cannot teach here, where teachers are plain ViTs: {type(model).__name__} {why}.')


def _as_ours(model: nn.Module, name: str) -> dict[str, torch.Tensor]:
    """Its tensors under timm's names, queries, keys and values fused."""
    tensors, others = {}, []
    for key, tensor in model.state_dict().items():
        ours = _name(key)
        if ours is not None:
            tensors[ours] = tensor
        elif not re.fullmatch(NOT_READ, key):
            others.append(key)
    blocks = {key.split('.')[1] for key in tensors if key.startswith('blocks.')}
    lacks = [key for key in ('cls_token', 'patch_embed.proj.weight') if key not in tensors]
    lacks += [part for part in NEEDED if not blocks or any(f'blocks.{i}.{part}' not in tensors for i in blocks)]
    if lacks:
        raise _none(name, model, f'lacks the {first_few([key.removesuffix(".weight") for key in lacks])} of one')
    if others:
        raise _none(name, model, f'has {first_few(others)} besides')
    tensors['cls_token'] = tensors['cls_token'].reshape(1, 1, -1)
    if 'pos_embed' in tensors:
        tensors['pos_embed'] = tensors['pos_embed'].reshape(1, -1, tensors['cls_token'].shape[-1])
    for i in blocks:
        _fuse(tensors, f'blocks.{i}.')
    return tensors


def _name(key: str) -> str | None:
    for pattern, ours in NAMES:
        found = re.fullmatch(rf'{pattern}(\.weight|\.bias)?', key)
        if found:
            *number, suffix = found.groups()
            return ''.join([*(f'blocks.{i}.' for i in number), ours, suffix or ''])
    return None


def _fuse(tensors: dict[str, torch.Tensor], block: str) -> None:
    """Queries, keys and values as one projection; BEiT's keys have no bias."""
    own = {key: tensors.pop(block + key) for key in _projections() if block + key in tensors}
    tensors[f'{block}attn.qkv.weight'] = torch.cat([own[f'{part}.weight'] for part in 'qkv'])
    biases = [own.get(f'{part}.bias', torch.zeros(len(own[f'{part}.weight']))) for part in 'qkv']
    if any(key.endswith('bias') for key in own):
        tensors[f'{block}attn.qkv.bias'] = torch.cat(biases)


def _projections() -> Iterator[str]:
    return (f'{part}.{what}' for part in 'qkv' for what in ('weight', 'bias'))


def _like(model: Any, tensors: Mapping[str, torch.Tensor], drop_path: float) -> PlainVit:
    """A ViT that these tensors fit."""
    with needs_extra('transformers'):
        from transformers.activations import ACT2FN
    width, hidden = tensors['cls_token'].shape[-1], len(tensors['blocks.0.mlp.fc1.weight'])
    height_of_patch, width_of_patch = tensors['patch_embed.proj.weight'].shape[-2:]
    return PlainVit(
        img_size=model.config.image_size,
        patch_size=(height_of_patch, width_of_patch),
        num_classes=0,
        global_pool='token',
        embed_dim=width,
        depth=len({key.split('.')[1] for key in tensors if key.startswith('blocks.')}),
        num_heads=model.config.num_attention_heads,
        mlp_ratio=(hidden + 0.5) / width,  # timm rounds the product down
        qkv_bias='blocks.0.attn.qkv.bias' in tensors,
        init_values=1.0 if 'blocks.0.ls1.gamma' in tensors else None,
        pos_embed='learn' if 'pos_embed' in tensors else 'none',
        pre_norm='norm_pre.weight' in tensors,
        final_norm='norm.weight' in tensors,
        norm_layer=partial(nn.LayerNorm, eps=model.config.layer_norm_eps),
        act_layer=lambda: ACT2FN[model.config.hidden_act],
        drop_path_rate=drop_path,
        weight_init='skip',
    )


@torch.no_grad()
def _compare(vit: PlainVit, model: nn.Module, name: str, size: tuple[int, int]) -> None:
    """Run both on an image, give the ViT the relative positions that the model has there, and compare their tokens."""
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    blocks: dict[int, torch.Tensor] = {}
    biases: dict[int | None, torch.Tensor] = {}
    with ExitStack() as hooks:
        for key, module in model.named_modules():
            block = re.fullmatch(BLOCK, f'{key}.')
            if block:
                into: Any = partial(_keep, blocks, int(block[1]))
            elif hasattr(module, 'relative_position_bias_table'):
                of = re.match(BLOCK, key)
                into = partial(_keep, biases, int(of[1]) if of else None)
            else:
                continue
            hooks.callback(module.register_forward_hook(into).remove)
        try:
            _run(model, image, vit.patch_embed.num_patches)
        except Exception as e:  # models of others fail in any way
            raise _none(name, model, f'takes no images of {size[0]}x{size[1]} pixels ({reason(e)})') from e
    for i, layer in enumerate(vit.blocks):
        own = [biases[key] for key in (None, i) if key in biases]
        if own:
            attn: Any = layer.attn
            attn.__class__ = BiasedAttention  # the same layers under the same names
            attn.register_buffer('relative_bias', torch.stack(own).sum(0))
    last = len(vit.blocks)
    theirs = blocks[last - 1]
    ours = block_inputs(vit, embed(vit, image), {last})[last]
    if ours.shape != theirs.shape or (ours - theirs).abs().max() > TOLERANCE * theirs.abs().max():
        raise _none(name, model, 'computes something else from the same weights')


def _keep(kept: dict[Any, torch.Tensor], key: int | None, module: nn.Module, args: Any, output: Any) -> None:
    kept[key] = output[0] if isinstance(output, tuple) else output


def _run(model: Any, image: torch.Tensor, patches: int) -> None:
    parameters = inspect.signature(model.forward).parameters
    settings: dict[str, Any] = {}
    if 'interpolate_pos_encoding' in parameters:
        settings['interpolate_pos_encoding'] = True
    if 'noise' in parameters:  # MAE: all patches in their order
        model.config.mask_ratio = 0.0
        settings['noise'] = torch.arange(patches)[None].float()
    model(pixel_values=image, **settings)
