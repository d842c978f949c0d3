"""The number of attention heads of a checkpoint's model, which the shapes of a plain ViT do not show.

TinyMIM-T, its student and MAE-Lite's ViT-Tiny (3, 6 and 12 heads) load into each other without an error and compute
different outputs. So every clue in and around a file is used to detect a mismatch.
"""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import timm
import torch
from torch import nn

from ..common.errors import CheckpointError
from ..common.text import count_of
from ..releases import all_releases
from .read import Clues

__all__ = ['Evidence', 'check_heads', 'find_heads', 'heads_of']

_logger = logging.getLogger(__name__)

# TinyMIM's training scripts save their arguments: its names of models, and our architectures. (timm's scripts save its
# own names.)
TRAINED_AS = {
    **{f'tinymim_vit_{size}_patch16': f'tinymim_vit_{size}_student_patch16_224' for size in ('tiny', 'small', 'base')},
    **{f'vit_{size}_patch16': f'tinymim_vit_{size}_patch16_224' for size in ('tiny', 'small', 'base')},
}
# Prefixes of MAE-Lite's training wrappers, which it saves as part of the names; heads of its models and of Meta's MAE,
# by width.
MAE_LITE_PREFIXES = ('module.model.', 'module.base_encoder.', 'base_encoder.')
MAE_LITE_HEADS = {192: 12, 384: 12, 768: 12, 1024: 16}


class Evidence(NamedTuple):
    """Heads of every block, and the reason to believe it."""

    heads: tuple[int, ...]
    because: str


def heads_of(model: nn.Module) -> tuple[int, ...]:
    """Attention heads of every block of a plain ViT."""
    return tuple(block.attn.num_heads for block in cast(Any, model).blocks)


def find_heads(clues: Clues, state_dict: Mapping[str, torch.Tensor]) -> Evidence | None:
    """Heads of a checkpoint's model; None if nothing shows them.

    Args:
        clues: What the file reveals apart from its tensors.
        state_dict: Unwrapped, decoder included.
    """
    return _evidence_of_shapes(state_dict) or _evidence_of_file(clues) or _evidence_of_names(clues, state_dict)


def _evidence_of_shapes(state_dict: Mapping[str, torch.Tensor]) -> Evidence | None:
    """From tensors that no other model has; TinyMIM*-T may have been trained under the name of the plain one."""
    table = next((v for k, v in state_dict.items() if k.endswith('relative_position_bias_table')), None)
    if table is not None and table.ndim == 2:
        return Evidence((table.shape[1],) * _depth(state_dict), 'its relative-position tables have a column for each')
    if 'dist_token' in state_dict and 'conv1x1.1.weight' in state_dict:
        return Evidence((12,) * _depth(state_dict), 'it is of TinyMIM*-T')
    return None


def _evidence_of_file(clues: Clues) -> Evidence | None:
    """From the config.json next to the file, the model name saved by its training, or the name of the file."""
    if clues.config:
        heads = _heads_of_name(clues.config.get('architecture'), clues.config.get('model_args'))
        if heads:
            return Evidence(heads, f'the config.json next to it is of {clues.config["architecture"]}')
    trained_as = clues.trained_as and TRAINED_AS.get(clues.trained_as, clues.trained_as)
    heads = _heads_of_name(trained_as)
    if heads:
        return Evidence(heads, f'it was saved by a training of {clues.trained_as}')
    same_file = {release.architecture for release in all_releases() if release.has_file(clues.file)}
    if len(same_file) == 1:
        architecture = same_file.pop()
        heads = _heads_of_name(architecture)
        return Evidence(heads, f'its name is that of the file of {architecture}') if heads else None
    return None


def _evidence_of_names(clues: Clues, state_dict: Mapping[str, torch.Tensor]) -> Evidence | None:
    """From tensor names that only MAE and MAE-Lite use, at widths for which they have a single number of heads."""
    cls_token = state_dict.get('cls_token')
    heads = MAE_LITE_HEADS.get(cls_token.shape[-1]) if cls_token is not None and cls_token.ndim == 3 else None
    if heads is None:
        return None
    if clues.prefix in MAE_LITE_PREFIXES:
        return Evidence((heads,) * _depth(state_dict), f"its names begin with '{clues.prefix}', as MAE-Lite's do")
    if 'decoder_embed.weight' in state_dict:
        return Evidence((heads,) * _depth(state_dict), 'it holds the decoder of a pre-training by MAE')
    return None


def _depth(state_dict: Mapping[str, torch.Tensor]) -> int:
    return len({k.split('.')[1] for k in state_dict if k.startswith('blocks.')})


def _heads_of_name(architecture: Any, model_args: Any = None) -> tuple[int, ...] | None:
    """Heads of a registered architecture; None if it is not registered or not a plain ViT."""
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        return None
    try:
        args = {k: v for k, v in model_args.items() if k != 'num_classes'} if isinstance(model_args, dict) else {}
        return heads_of(timm.create_model(architecture, device='meta', **args))
    except Exception:  # a config.json may hold anything, and is only a clue here
        return None


def check_heads(heads: tuple[int, ...], evidence: Evidence | None, name: str) -> None:
    """Compare the heads of a model with the evidence for those of its checkpoint.

    Args:
        heads: Of every block of the model.
        evidence: See `find_heads`; None gives a warning, since a mismatch would go unnoticed.
        name: Name of the model.

    Raises:
        CheckpointError: If they differ.
    """
    if evidence is None:
        _logger.warning(
            'Nothing in the checkpoint shows its number of attention heads, and its shapes fit any: %s computes with '
            '%s. Released ViTs of equal shapes differ in it; pass num_heads= to timm.create_model to settle it.',
            name,
            _described(heads),
        )
    elif len(evidence.heads) == len(heads) and evidence.heads != heads:
        others = sorted(
            {r.architecture for r in all_releases() if _same_kind(r.architecture, evidence.heads, name)} - {name}
        )
        hint = f' Is it of {" or ".join(others)}?' if others else ''
        raise CheckpointError(
            f'The checkpoint has {_described(evidence.heads)} ({evidence.because}), {name} has {_described(heads)}: it '
            f'would load without an error and compute different outputs.{hint} To start a training from it all the '
            'same, pass as_init=True (`tinyvit-zoo convert --as-init`); num_heads= of timm.create_model overrules the '
            'file.'
        )


def _same_kind(architecture: str, heads: tuple[int, ...], name: str) -> bool:
    # Tables and the tokens of TinyMIM*-T are visible in the shapes, which were compared before.
    alike = all((mark in architecture) == (mark in name) for mark in ('_rpe_', '_star_'))
    return (
        '_vit_' in architecture
        and alike
        and _size(architecture) == _size(name)
        and (_heads_of_name(architecture) == heads)
    )


def _size(architecture: str) -> str:
    return next((size for size in ('tiny', 'small', 'base') if f'_{size}_' in architecture), '')


def _described(heads: tuple[int, ...]) -> str:
    """(6, ..., 6, 12) -> '6 heads, 12 in the last block'."""
    first, last = heads[0], heads[-1]
    words = count_of(first, 'head')
    return words if first == last else f'{words}, {last} in the last block'
