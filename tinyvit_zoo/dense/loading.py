"""Weights of the dense-prediction forms: from encoders, from classifiers, and from their own released layout."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from math import isqrt
from pathlib import Path

import timm
import torch

from ..checkpoints import (
    PLAIN_VIT_KEYS,
    CheckpointError,
    Evidence,
    backbone_part,
    check_heads,
    clues_of,
    find_heads,
    heads_of,
    read_with_clues,
    unwrap,
    with_counters,
)
from ..common.text import first_few
from ..layers.beit_table import beit_offset_index, resize_beit_table
from ..layers.position import resize_position
from .backbone import DenseBackbone
from .trunk import DenseTrunk
from .vitdet import resize_offsets

__all__ = ['load_dense', 'official_state_dict']

_logger = logging.getLogger(__name__)

TABLE, INDEX = 'relative_position_bias_table', 'relative_position_index'
# Parts of the trained model after its blocks: neither form has a norm or a head there.
LEFT_OUT = ('norm.', 'fc_norm.', 'dist_norm.', 'head.', 'head_dist.')
# Parts that an encoder or classifier may lack; all but the pyramid are initialized to have no effect.
MAY_START_FRESH = re.compile(r'pyramid\.|.*\.(relative_position_bias_table|gamma_[12]|rel_pos_[hw])$')


def load_dense(
    model: DenseBackbone, source: str | Path | Mapping, as_init: bool = False, part: str | None = None
) -> None:
    """Fill a dense-prediction form in place.

    A classification or pre-training checkpoint (TinyMIM, MAE-Lite, or any plain ViT with their names) provides the
    encoder. Left out by name: heads and the norms before them, decoder, teacher and projector; for ViTDet the class
    token, whose row of the position embedding stays. Pyramid, relative-position tables and LayerScale keep their
    initial values unless the file has them; one log line counts what was left out and what stays. A dense checkpoint
    (released names, ours, or a whole detector or segmentor with the prefix `backbone.`) must be complete and is loaded
    in full.

    Position embeddings are resized as released (bicubic, no antialias, prefix rows kept), and so are tables, see
    `resize_beit_table`, and ViTDet's offset embeddings (linear). A grid that differs from the model's must be square.

    TinyMIM's segmentation models start from pre-training files whose models had other heads in the last block (B: 16,
    here 12): pass `as_init=True`. In that block those files hold trained weights for `norm1` and `qkv` only; the
    released segmentors start from all of it nonetheless, and so does this.

    Args:
        model: With a trunk of this package. (Load the weights of other ViTs before they get a pyramid.)
        source: A file or folder, a loaded checkpoint, or `architecture.tag` of a plain ViT of the zoo.
        as_init: Load the weights even if their model had other attention heads, to initialize a training.
        part: Which of several models in the checkpoint, see `checkpoints.read_checkpoint`.

    Raises:
        CheckpointError: If the checkpoint cannot be found or read, has an unknown key, lacks one, or has one of a
            wrong shape; or if its model had other heads. The model is then unchanged.
        TypeError: If the ViT inside the model is not one of this package's trunks.
    """
    trunk = model.net
    if not isinstance(trunk, DenseTrunk):
        raise TypeError(
            f'load_dense fills {DenseTrunk.__name__}s; load the weights of a {type(trunk).__name__} before it gets a '
            'pyramid.'
        )
    state_dict, evidence, origin = _read(source, part)
    try:
        _check_indices(state_dict, trunk)
        state_dict = {k: v for k, v in _backbone_part(state_dict).items() if not k.endswith(INDEX)}
        dense = any(k.startswith(('pyramid.', 'simfp_', 'fpn')) for k in state_dict)
        left_out: list[str]
        if dense:
            taken, left_out = _dense_to_ours(state_dict, trunk), []
        else:
            taken, left_out = _encoder_to_ours(state_dict, trunk)
        taken = with_counters(taken, model.state_dict())
        _resize(taken, model)
        fresh = _check(taken, model, may_start_fresh=not dense)
        if not dense and not as_init:
            check_heads((trunk.num_heads,) * len(trunk.blocks), evidence, 'the dense form')
    except CheckpointError as e:
        raise CheckpointError(f'{origin}: {e}') from e
    model.load_state_dict(taken, strict=False)
    _logger.info(
        '%s: loaded %d tensors; at their initial values: %s; left out: %s.',
        origin,
        len(taken),
        _counted(fresh),
        _counted(left_out),
    )


def official_state_dict(model: DenseBackbone) -> dict[str, torch.Tensor]:
    """State dict of a dense form under the released names, with the indices that the released code stores with tables.

    The inverse of `load_dense` for such a state dict.

    Args:
        model: With a trunk of this package.

    Raises:
        CheckpointError: If the pyramid is not the one released with this trunk.
    """
    official = {}
    for key, value in model.state_dict().items():
        pair = next((p for p in model.net.official_names if key.startswith(p[1])), None)
        if pair is None:
            raise CheckpointError(f'No released name for {key}: the released model has another pyramid.')
        name = pair[0] + key.removeprefix(pair[1])
        official[name] = value
        if name.endswith(TABLE):
            official[name.removesuffix(TABLE) + INDEX] = beit_offset_index(
                model.net.grid, model.net.num_prefix_tokens, value.device
            )
    return official


def _read(source: str | Path | Mapping, part: str | None) -> tuple[dict[str, torch.Tensor], Evidence | None, str]:
    """State dict, the evidence of its model's heads, and its name in messages."""
    if isinstance(source, Mapping):
        state_dict = unwrap(source, 'the state dict given', part=part)
        return state_dict, find_heads(clues_of(source), state_dict), 'the state dict given'
    if timm.is_model(str(source).partition('.')[0]) and not Path(source).exists():
        model = timm.create_model(str(source), pretrained=True)
        heads = heads_of(model) if hasattr(model, 'cls_token') else None  # others are refused by their names
        return model.state_dict(), Evidence(heads, f'it is {source}') if heads else None, str(source)
    state_dict, clues = read_with_clues(source, part)
    return state_dict, find_heads(clues, state_dict), str(source)


def _backbone_part(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The backbone of a whole detector or segmentor; everything where there is none."""
    part, rest = backbone_part(state_dict)
    if rest:
        _logger.info('Using the backbone alone; left out %d other tensors.', len(rest))
    return part


def _dense_to_ours(state_dict: Mapping[str, torch.Tensor], trunk: DenseTrunk) -> dict[str, torch.Tensor]:
    if any(k.startswith('pyramid.') for k in state_dict):
        return dict(state_dict)
    renamed = {}
    for key, value in state_dict.items():
        official, ours = next((p for p in trunk.official_names if key.startswith(p[0])), ('', ''))
        renamed[ours + key.removeprefix(official)] = value
    return renamed


def _encoder_to_ours(
    state_dict: dict[str, torch.Tensor], trunk: DenseTrunk
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The encoder under our names, and the names left out."""
    kept, _ = PLAIN_VIT_KEYS.to_ours(state_dict)
    unused = LEFT_OUT if trunk.num_prefix_tokens else (*LEFT_OUT, 'cls_token')
    left_out = [k for k in state_dict if k not in kept or k.startswith(unused)]
    taken = {
        ('pyramid.' if key.startswith('conv1x1.') else 'net.') + key: value
        for key, value in kept.items()
        if not key.startswith(unused)
    }
    return taken, left_out


def _check_indices(state_dict: Mapping[str, torch.Tensor], trunk: DenseTrunk) -> None:
    """Require that the index stored with a table is the one used here to read it.

    A table whose grid cannot be determined is left to `_check`, which will find its shape wrong.
    """
    prefix = max(1, trunk.num_prefix_tokens)
    checked: dict[tuple[int, int], torch.Tensor] = {}
    for key, index in state_dict.items():
        if not key.endswith(INDEX):
            continue
        rows = len(state_dict.get(key.removesuffix(INDEX) + TABLE, ()))
        grid = _grid_of(rows - 3 * prefix, trunk.grid, offsets=True)
        if grid is None:
            continue
        if grid not in checked:
            checked[grid] = beit_offset_index(grid, prefix)
        if not torch.equal(index.to(torch.int64), checked[grid]):
            raise CheckpointError(
                f'{key} is not the index of its table ({rows} rows) with {prefix} prefix tokens: the table has another '
                'order than the released one.'
            )


def _grid_of(entries: int, own: tuple[int, int], offsets: bool = False) -> tuple[int, int] | None:
    """Grid (h, w) of a number of patches, or of offsets between them: the model's own, else a square; None if neither.

    Args:
        entries: Patches h * w, or offsets (2h - 1) * (2w - 1).
        own: (h, w) of the model.
        offsets: Which of the two.
    """
    side = isqrt(max(entries, 0))
    square = (side + 1) // 2 if offsets else side
    for h, w in (own, (square, square)):
        if entries == ((2 * h - 1) * (2 * w - 1) if offsets else h * w) and h > 0:
            return h, w
    return None


def _resize(state_dict: dict[str, torch.Tensor], model: DenseBackbone) -> None:
    """Resize positions, tables and offset embeddings to the model's grid; unexpected shapes are left to `_check`."""
    own, trunk = model.state_dict(), model.net
    for key, value in state_dict.items():
        if key not in own or value.ndim != own[key].ndim or value.shape[-1:] != own[key].shape[-1:]:
            continue
        if key == 'net.pos_embed':
            old = _grid_of(value.shape[1] - trunk.position_prefix, trunk.grid)
            if old is not None:
                state_dict[key] = resize_position(value, old, trunk.grid, trunk.position_prefix)
        elif key.endswith(TABLE):
            old = _grid_of(len(value) - 3 * trunk.num_prefix_tokens, trunk.grid, offsets=True)
            if old is not None:
                state_dict[key] = resize_beit_table(value, old, trunk.grid, trunk.num_prefix_tokens)
        elif key.endswith(('rel_pos_h', 'rel_pos_w')):
            state_dict[key] = resize_offsets(value, (len(own[key]) + 1) // 2)


def _check(state_dict: Mapping[str, torch.Tensor], model: DenseBackbone, may_start_fresh: bool) -> list[str]:
    """Names that the checkpoint lacks and may lack.

    Raises:
        CheckpointError: If another is missing, one is unknown, or one has a wrong shape.
    """
    own = model.state_dict()
    absent = [k for k in own if k not in state_dict]
    fresh = [k for k in absent if may_start_fresh and MAY_START_FRESH.match(k)]
    problems = {
        'unknown': [k for k in state_dict if k not in own],
        'missing': [k for k in absent if k not in fresh],
        'of a wrong shape': [
            f'{k} {tuple(v.shape)}, not {tuple(own[k].shape)}'
            for k, v in state_dict.items()
            if k in own and v.shape != own[k].shape
        ],
    }
    if any(problems.values()):
        counted = '; '.join(f'{len(keys)} {problem}: {first_few(keys)}' for problem, keys in problems.items() if keys)
        raise CheckpointError(f'The checkpoint does not fit the dense form. Keys {counted}. Is it of another model?')
    return fresh


def _counted(keys: Iterable[str]) -> str:
    """'pyramid (24), blocks.*.gamma_1 (12)'."""
    kinds = Counter(
        re.sub(r'\.\d+\.', '.*.', k.removeprefix('net.')) if k.startswith('net.') else k.partition('.')[0] for k in keys
    )
    return first_few((f'{kind} ({n})' for kind, n in kinds.items()), most=12) or 'nothing'
