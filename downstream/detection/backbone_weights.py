"""Weights of a `ZooBackbone`: of classifiers and of detectors, in our, timm's, the released and mmdet's own layout.

mmengine loads what fits and logs the rest; timm stops comparing names as soon as there is no classifier. Here every
tensor is accounted for, so that nobody trains from a random backbone without knowing it.
"""

import logging
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import timm
import torch
from timm.models import PretrainedCfg, SwinTransformer

from tinyvit_zoo.checkpoints import (
    KEY_MAPS,
    CheckpointError,
    backbone_part,
    counted_by_part,
    find_key_map,
    find_weights,
    read_checkpoint,
)
from tinyvit_zoo.dense import load_dense
from tinyvit_zoo.releases import find_family

if TYPE_CHECKING:
    from .backbone import ZooBackbone

__all__ = ['load_weights', 'mmdet_swin_to_timm']

_logger = logging.getLogger(__name__)

Tensors = Mapping[str, torch.Tensor]

PAGES = ('hf-hub:', 'hf_hub:', 'local-dir:')
ADDRESSES = ('http://', 'https://')


def load_weights(backbone: 'ZooBackbone', source: bool | str | Path, prefix: str | None = None) -> None:
    """Fill a `ZooBackbone` in place; one log line says what was left out and what stays at its start values.

    Args:
        backbone: To be filled.
        source: True for the weights of the model's name; the name with another tag; 'hf-hub:OWNER/NAME' or
            'local-dir:FOLDER'; an http address; or a file or folder: of a classifier, of a `ZooBackbone`, or of a
            detector around one, or around mmdet's own backbone of the same architecture.
        prefix: Of the backbone's names in the file, where it is not 'backbone.'.

    Raises:
        CheckpointError: If the weights cannot be found, read or matched; the backbone is then unchanged.
    """
    source = source if source is True else str(source)
    if backbone.is_pyramid:
        _load_pyramid(backbone, source, prefix)
    elif source is True or source.startswith(PAGES) or _is_name(source):
        _load_named(backbone, backbone.model_name if source is True else source)
    else:
        state_dict = _read(source, prefix)
        try:
            _load_file(backbone, state_dict, source, is_file=not (prefix or source.startswith(ADDRESSES)))
        except CheckpointError as e:
            raise e if source in str(e) else CheckpointError(f'{source}: {e}') from e


def _is_name(source: str) -> bool:
    return timm.is_model(source.partition('.')[0]) and not Path(source).exists()


def _read(source: str, prefix: str | None) -> dict[str, torch.Tensor]:
    if source.startswith(ADDRESSES):
        state_dict = find_weights(PretrainedCfg(url=source)).state_dict
    elif '://' in source:
        raise CheckpointError(f'{source} is no file, http address, hf-hub: or local-dir: name.')
    else:
        state_dict = read_checkpoint(source)
    if prefix is None:
        return state_dict
    prefix = prefix if prefix.endswith('.') else prefix + '.'
    part = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    if not part:
        raise CheckpointError(
            f'{source} has no names that begin with {prefix!r}; its first is {next(iter(state_dict))}.'
        )
    return part


def _load_pyramid(backbone: 'ZooBackbone', source: bool | str, prefix: str | None) -> None:
    if source is True:
        raise CheckpointError(
            f'{backbone.model_name} has no weights of its own that a program could fetch: give a file, or the name of '
            "the encoder to start from, such as 'mae_lite_vit_tiny_encoder_patch16_224.mae_in1k'."
        )
    is_file = not (prefix or source.startswith(ADDRESSES))
    source = source.removeprefix('local-dir:') if is_file else _read(source, prefix)
    load_dense(backbone.net, source, as_init=backbone.as_init)


def _load_named(backbone: 'ZooBackbone', name: str) -> None:
    """The weights that timm finds for a name, in the sizes of the backbone."""
    net = backbone.new_net(name, pretrained=True)
    found = net.pretrained_cfg.get('architecture')
    if found != backbone.architecture:
        raise CheckpointError(f'{name} is {found}, not {backbone.architecture}.')
    _fill(backbone, net.state_dict(), {}, [])


def _load_file(backbone: 'ZooBackbone', state_dict: Tensors, source: str, is_file: bool) -> None:
    part, beside = backbone_part(state_dict)
    norms = {k: state_dict[k] for k in beside if re.match(r'(backbone\.)?norm\d+\.', k)}
    beside = [k for k in beside if k not in norms]
    norms = {k.removeprefix('backbone.'): v for k, v in norms.items()}
    own = backbone.net.state_dict()
    if part.keys() == own.keys() and all(part[k].shape == own[k].shape for k in own):
        state_dict = part
    elif 'patch_embed.projection.weight' in part and isinstance(backbone.net, SwinTransformer):
        state_dict, norms = mmdet_swin_to_timm(part)
    elif find_family(backbone.architecture):
        # By its path where it has one: the name and the other contents of a file tell more than its tensors.
        overlay = dict(file=source) if is_file else dict(state_dict=part)
        state_dict = backbone.new_net(backbone.model_name, pretrained=True, pretrained_cfg_overlay=overlay).state_dict()
    else:
        own_norms = [k for k in backbone.state_dict() if not k.startswith('net.')]
        norms |= {k: part.pop(k) for k in own_norms if k in part}  # Swin's released detectors have them there
        state_dict = _filtered_by_timm(backbone, part)
    _fill(backbone, state_dict, norms, beside)


def _filtered_by_timm(backbone: 'ZooBackbone', state_dict: Tensors) -> dict[str, torch.Tensor]:
    """What timm's own filter makes of a classifier's file; names that the classifier does not have are refused."""
    other = find_key_map(state_dict)
    if other is not None and other is not KEY_MAPS['tinymim']:  # its names are those of every plain ViT
        raise CheckpointError(f'These are {other.family} weights, not {backbone.architecture}.')
    whole = backbone.new_net(backbone.model_name)
    filter_fn = getattr(sys.modules[type(whole).__module__], 'checkpoint_filter_fn', lambda weights, model: weights)
    try:
        filtered = filter_fn(dict(state_dict), whole)
    except (AttributeError, KeyError, IndexError, TypeError, RuntimeError) as e:  # made for its own models only
        raise CheckpointError(f'The checkpoint is not of {backbone.architecture} ({type(e).__name__}: {e}).') from e
    heads = whole.pretrained_cfg.get('classifier') or ()
    heads = tuple(f'{head}.' for head in ((heads,) if isinstance(heads, str) else heads))
    unknown = [k for k in filtered if k not in whole.state_dict() and not k.startswith(heads)]
    if unknown:
        raise CheckpointError(
            f'{backbone.architecture} has no {_some(unknown)}. Is it the checkpoint of another model?'
        )
    return filtered


def _fill(backbone: 'ZooBackbone', state_dict: Tensors, norms: Tensors, beside: list[str]) -> None:
    """Load all or nothing.

    Args:
        backbone: To be filled.
        state_dict: Of the timm model, with what no map needs.
        norms: Of the maps; all that the backbone has, or none.
        beside: Names of what the file holds beside the backbone.
    """
    own = {f'net.{k}': v for k, v in backbone.net.state_dict().items()}
    own |= {k: v for k, v in backbone.state_dict().items() if norms and not k.startswith('net.')}
    found = {f'net.{k}': v for k, v in state_dict.items()} | dict(norms)
    missing = [k for k in own if k not in found]
    shapes = {k: (tuple(found[k].shape), tuple(v.shape)) for k, v in own.items() if k in found}
    wrong = [f'{k} {have}, not {want}' for k, (have, want) in shapes.items() if have != want]
    if missing or wrong:
        problems = [f'{len(k)} {what}: {_some(k)}' for k, what in ((missing, 'missing'), (wrong, 'misshapen')) if k]
        raise CheckpointError(
            f'The checkpoint does not fit {backbone.model_name}. Keys {"; ".join(problems)}. Is it of another model, '
            'or laid out for another img_size or window_sizes?'
        )
    backbone.load_state_dict({k: found[k] for k in own}, strict=False)
    _logger.info(
        '%s: loaded %d tensors; at their start values: %s; left out: %s.',
        backbone.model_name,
        len(own),
        counted_by_part(k for k in backbone.state_dict() if k not in own),
        counted_by_part([*beside, *(k.removeprefix('net.') for k in found if k not in own)]),
    )


def mmdet_swin_to_timm(state_dict: Tensors) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """mmdet's `SwinTransformer` under timm's names, and the norms of its maps.

    mmdet merges patches by `nn.Unfold`, whose channels come as (C, row, column) where Swin's and timm's come as
    (column, row, C).

    Args:
        state_dict: Of mmdet's backbone, without its prefix.
    """
    renamed, norms = {}, {}
    for key, value in state_dict.items():
        if re.match(r'norm\d+\.', key):
            norms[key] = value
            continue
        if key.endswith('relative_position_index'):
            continue
        if '.downsample.' in key:
            *outer, width = value.shape
            value = value.reshape(*outer, width // 4, 2, 2).transpose(-1, -3).reshape(*outer, width)
            key = re.sub(r'stages\.(\d+)', lambda m: f'stages.{int(m[1]) + 1}', key)
        for theirs, timms in (
            ('patch_embed.projection.', 'patch_embed.proj.'),
            ('stages.', 'layers.'),
            ('.attn.w_msa.', '.attn.'),
            ('.ffn.layers.0.0.', '.mlp.fc1.'),
            ('.ffn.layers.1.', '.mlp.fc2.'),
        ):
            key = key.replace(theirs, timms)
        renamed[key] = value
    return renamed, norms


def _some(keys: Iterable[str], most: int = 3) -> str:
    keys = list(keys)
    return ', '.join(keys[:most]) + (f' and {len(keys) - most} more' if len(keys) > most else '')
