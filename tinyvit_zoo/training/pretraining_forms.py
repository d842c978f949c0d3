"""The forms that pre-training trains, by size or name; teachers for them; and the encoder that results."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.layers import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ..build import build_model, load_model
from ..checkpoints import PLAIN_VIT_KEYS, CheckpointError, read_checkpoint
from ..common.errors import EvaluationError, ModelError
from ..distill.relation import RELATIONS
from ..names import resolve_name
from ..pretrain import (
    DMae,
    MaskedAutoencoder,
    MocoV3,
    RelationEncoder,
    TinyMim,
    load_pretraining,
    mae_lite_base,
    mae_lite_small,
    mae_lite_tiny,
    mocov3_tiny,
    tinymim_student,
    tinymim_teacher,
)
from ..pretrain.encoder import check_block
from ..pretrain.tinymim import TEACHERS
from ..soft_labels.transformers_teacher import Page, find_page
from .transformers_vit import load_transformers_vit

__all__ = ['Encoder', 'd_mae_form', 'encoder_of', 'load_teacher', 'mae_form', 'mocov3_form', 'tinymim_form']

MAES = dict(tiny=mae_lite_tiny, small=mae_lite_small, base=mae_lite_base)
STUDENT_HEADS = dict(tiny=(6, 12), small=(6, 12), base=(12, 16))  # of TinyMIM: all blocks but the last, and the last
# TinyMIM-S was trained with 12 heads in its last block, which its student has: see `tinymim_teacher`.
TEACHER_HEADS = dict(small=12)

Shape = dict[str, Any]
"""`img_size` and `patch_size` of a ViT, and whatever else its factory takes."""


@dataclass(frozen=True)
class Encoder:
    """A pre-trained encoder as a timm model.

    Attributes:
        model: With its heads among its arguments.
        name: Of its architecture.
        finetuned: Name of the architecture that fine-tuning gives its weights to.
        ready: That architecture with these weights, where no name alone stands for it: another patch size or depth, or
            heads that are kept. None where the name does.
        heads: Of all blocks but the last: in pre-training, and in fine-tuning.
    """

    model: nn.Module
    name: str
    finetuned: str
    ready: nn.Module | None
    heads: tuple[int, int]


def load_teacher(
    name: str,
    weights: Path | None = None,
    img_size: tuple[int, int] | None = None,
    *,
    block: int | None = None,
    drop_path: float = 0.0,
) -> RelationEncoder:
    """A frozen plain ViT as teacher, in evaluation mode.

    Args:
        name: 'small', 'base' or 'large' for TinyMIM's teachers with a file; or any timm name, or a folder that a
            pre-training wrote, of a plain ViT; or a folder or 'hf-hub:OWNER/NAME' with one of transformers.
        weights: A file of the encoder alone or with its decoder, which is left out: Meta's MAE, a pre-training form of
            this package. None for those of the name.
        img_size: (height, width) that it is to take; None for its own.
        block: Target block from 1; None for the released 12, 12 or 18, and the last one of other models.
        drop_path: Of its last block, rising from 0, while it teaches.

    Raises:
        EvaluationError: If it is not a plain ViT, fine-tuned, or has no such block.
        ModelError: On an unknown name, or a model of transformers that cannot be loaded.
        CheckpointError: If the weights cannot be found, read or matched.
        MissingExtraError: If it needs transformers, which is not installed.
    """
    try:
        page = None if name in TEACHERS else find_page(name)
        if name in TEACHERS:
            encoder = _sized_teacher(name, weights, block, drop_path)
        elif page is not None:
            encoder = _transformers_teacher(page, weights, img_size, block, drop_path)
        else:
            encoder = _named_teacher(name, weights, block, drop_path)
        vit: Any = encoder.vit
        if img_size is not None and tuple(vit.patch_embed.img_size) != tuple(img_size):
            vit.set_input_size(img_size)
    except ModelError:
        raise
    except (ValueError, AssertionError) as e:
        raise EvaluationError(f'{name} cannot teach here: {e}') from e
    return encoder


def _sized_teacher(size: Any, weights: Path | None, block: int | None, drop_path: float) -> RelationEncoder:
    if weights is None:
        released = dict(base='vit_base_patch16_224.mae', large='vit_large_patch16_224.mae').get(size)
        instead = f', or the name {released} instead of {size}' if released else ''
        raise EvaluationError(f'{size} is the size of a teacher without weights: give --teacher-weights FILE{instead}.')
    shape, _ = _look_into(weights)
    encoder = tinymim_teacher(size, block, TEACHER_HEADS.get(size), drop_path, **shape)
    load_pretraining(encoder, weights)
    return encoder


def _look_into(weights: Path) -> tuple[Shape, bool]:
    """Image and patch size of an encoder in a file or folder, and whether it has a decoder, too. Raises
    EvaluationError if it is fine-tuned.
    """
    whole = read_checkpoint(weights)
    with_decoder = 'decoder_embed.weight' in whole
    try:
        state_dict, _ = PLAIN_VIT_KEYS.to_ours(whole)
    except CheckpointError:  # for whoever loads it to report
        return {}, with_decoder
    state_dict = {key.removeprefix('vit.'): tensor for key, tensor in state_dict.items()}
    if 'head.weight' in state_dict or 'fc_norm.weight' in state_dict:
        raise EvaluationError(
            f'{weights} is a fine-tuned model, and a teacher is a pre-trained encoder: give the file that it was '
            'fine-tuned from, or another one.'
        )
    projection, position = state_dict.get('patch_embed.proj.weight'), state_dict.get('pos_embed')
    if projection is None or position is None or projection.ndim != 4:
        return {}, with_decoder  # for whoever loads it to report
    side = math.isqrt(position.shape[-2] - 1)
    if side**2 != position.shape[-2] - 1:
        return {}, with_decoder
    patch = (projection.shape[2], projection.shape[3])
    return dict(patch_size=patch, img_size=(side * patch[0], side * patch[1])), with_decoder


def _named_teacher(name: str, weights: Path | None, block: int | None, drop_path: float) -> RelationEncoder:
    own: dict[str, Any] = dict(drop_path_rate=drop_path) if drop_path else {}
    file, with_decoder = weights or _own_folder(name), False
    if file is not None:
        shape, with_decoder = _look_into(file)
        own |= shape if weights is not None else {}  # a folder says itself
    if with_decoder and weights is not None:
        vit = build_model(name, num_classes=0, **own)
    else:
        vit = load_model(name, None if weights is None else str(weights), num_classes=0, **own)
    if not isinstance(vit, VisionTransformer):
        raise EvaluationError(f'{name} is a {type(vit).__name__}, and only plain ViTs can teach here: choose one.')
    for layer in vit.blocks:
        check_block(layer)
    target = len(vit.blocks) if block is None else block
    encoder = RelationEncoder(vit, target, frozen=True, drop_path=drop_path > 0)
    if with_decoder and weights is not None:
        load_pretraining(encoder, weights)
    return encoder


def _own_folder(name: str) -> Path | None:
    """The folder that a name stands for, if it is one."""
    resolved = resolve_name(name)
    return Path(resolved.removeprefix('local-dir:')) if resolved.startswith('local-dir:') else None


def _transformers_teacher(
    page: Page, weights: Path | None, img_size: tuple[int, int] | None, block: int | None, drop_path: float
) -> RelationEncoder:
    if weights is not None:
        raise ModelError(
            f'{page.name} is a model of transformers, which has its weights beside it: leave {weights} out.'
        )
    vit = load_transformers_vit(page, img_size, drop_path)
    return RelationEncoder(vit, len(vit.blocks) if block is None else block, frozen=True, drop_path=drop_path > 0)


def tinymim_form(
    size: Any,
    teacher: RelationEncoder,
    *,
    target: Any = 'relation',
    relations: Sequence[Any] = RELATIONS,
    softmax: bool = True,
    mask_ratio: float = 0.0,
    reconstruct: bool = False,
    drop_path: float = 0.1,
    **shape: Any,
) -> TinyMim:
    """A TinyMIM student as released beside its teacher. The last block gets the heads of the teacher's target block.

    Args:
        size: 'tiny', 'small' or 'base'.
        teacher: See `load_teacher`.
        target: See `pretrain.tinymim_study.Target`; also for the next four.
        relations: Of the target 'relation'.
        softmax: Of the relations.
        mask_ratio: Fraction of the patches that is hidden.
        reconstruct: MAE's loss, too; the student then has a decoder as MAE-Lite's of its size has.
        drop_path: Of all blocks but the last.
        **shape: `img_size`, `patch_size` and whatever else of the student.

    Raises:
        EvaluationError: If student and teacher, or options, do not fit.
    """
    heads, last_heads = STUDENT_HEADS[size]
    shape = {key: value for key, value in shape.items() if value is not None}
    width = dict(tiny=192, small=384, base=768)[size]
    if target == 'relation':
        last_heads = teacher.heads
        if width % last_heads:
            raise EvaluationError(
                f'The teacher has {last_heads} heads in its block {teacher.block}, and the width {width} of the {size} '
                'student is not a multiple of them: choose another teacher, or another --target.'
            )
    try:
        if reconstruct:
            student = _student_with_decoder(size, heads, last_heads, drop_path, shape)
        else:
            student = tinymim_student(size, drop_path, last_heads=last_heads, **shape)
        return TinyMim(
            student, teacher, target=target, relations=relations, softmax=softmax, mask_ratio=mask_ratio,
            reconstruct=reconstruct,
        )  # fmt: skip
    except (ValueError, TypeError, AssertionError) as e:
        raise EvaluationError(str(e)) from e


def _student_with_decoder(size: str, heads: int, last_heads: int, drop_path: float, shape: Shape) -> RelationEncoder:
    vit = MAES[size](**{**shape, 'num_heads': heads})
    blocks: Any = vit.blocks
    for block in blocks[:-1] if drop_path else ():
        block.drop_path1, block.drop_path2 = DropPath(drop_path), DropPath(drop_path)
    blocks[-1].attn.num_heads = last_heads
    blocks[-1].attn.head_dim = vit.embed_dim // last_heads
    blocks[-1].attn.scale = blocks[-1].attn.head_dim ** -0.5
    return RelationEncoder(vit, len(blocks))


def mae_form(size: str, **shape: Any) -> MaskedAutoencoder:
    """MAE-Lite's masked autoencoder of a size, 'tiny' or 'small'. Raises: EvaluationError: If a size does not fit."""
    return _made(MAES[size], shape)


def d_mae_form(
    size: str, teacher: VisionTransformer, attention_blocks: Sequence[int], hidden_layers: Sequence[int], **shape: Any
) -> DMae:
    """A student as in `mae_form` beside a teacher, see `DMae`.

    Raises:
        EvaluationError: If depth, patches, prefix tokens or blocks do not fit.
    """
    student = mae_form(size, **shape)
    try:
        return DMae(student, teacher, attention_blocks, hidden_layers)
    except ValueError as e:
        raise EvaluationError(str(e)) from e


def mocov3_form(**shape: Any) -> MocoV3:
    """MoCo v3 on MAE-Lite's tiny encoder. Raises: EvaluationError: If a size does not fit."""
    return _made(mocov3_tiny, shape)


def _made(factory: Any, shape: Shape) -> Any:
    try:
        return factory(**{key: value for key, value in shape.items() if value is not None})
    except (ValueError, AssertionError) as e:
        raise EvaluationError(str(e)) from e


def encoder_of(form: nn.Module, size: str, keep_heads: bool = False) -> Encoder:
    """What is kept of a pre-training: the encoder, under the name of its architecture here.

    Args:
        form: `TinyMim`, `MaskedAutoencoder`, `DMae` or `MocoV3`, trained.
        size: 'tiny', 'small' or 'base', as it was made.
        keep_heads: Fine-tuning keeps the heads of TinyMIM's pre-training, see `Encoder.ready`.
    """
    vit: Any
    own: dict[str, Any] = {}
    if isinstance(form, TinyMim):
        encoder = form.student.encoder
        vit, family, kind = encoder.vit, 'tinymim_vit', 'student'
        own = dict(last_heads=encoder.heads)
        if form.student.reconstruct or form.target != 'relation':
            own['forward_depth'] = len(vit.blocks)  # all of it was trained
    elif isinstance(form, MocoV3):
        vit, family, kind, own = form.base_encoder, 'mae_lite_vit', 'encoder', dict(global_pool='token')
    else:
        vit = form.model if isinstance(form, DMae) else form
        family, kind = 'mae_lite_vit', 'encoder'
    patch, depth, heads = tuple(vit.patch_embed.patch_size), len(vit.blocks), vit.blocks[0].attn.num_heads
    shape: dict[str, Any] = dict(img_size=vit.patch_embed.img_size)
    shape |= dict(patch_size=patch) if patch != (16, 16) else {}
    shape |= dict(depth=depth) if depth != 12 else {}
    name, finetuned = f'{family}_{size}_{kind}_patch16_224', f'{family}_{size}_patch16_224'
    model = _filled(name, vit, **shape, **own, num_heads=heads)
    of_finetuning: Any = build_model(finetuned, device='meta')
    then = heads if keep_heads else of_finetuning.blocks[0].attn.num_heads
    ready = None
    if len(shape) > 1 or then != of_finetuning.blocks[0].attn.num_heads:
        ready = _filled(finetuned, vit, **shape, num_heads=then, num_classes=0)
    return Encoder(model, name, finetuned, ready, (heads, then))


def _filled(name: str, vit: nn.Module, **arguments: Any) -> nn.Module:
    """A model with the weights of an encoder, and its own where the encoder has none."""
    model = build_model(name, **arguments)
    state_dict = {key: tensor.detach().cpu() for key, tensor in vit.state_dict().items()}
    model.load_state_dict({key: state_dict.get(key, own) for key, own in model.state_dict().items()})
    return model.eval()
