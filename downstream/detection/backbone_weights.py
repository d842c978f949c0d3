"""Weights of a `ZooBackbone`: from classifiers and detectors, in our, timm's, the released or mmdet's own layout.

mmengine loads what fits and only logs the rest; timm stops comparing names as soon as there is no classifier. Here
every tensor is accounted for, so that nobody trains from a random backbone without noticing.
"""

import logging
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import timm
import torch
from timm.models import PretrainedCfg, SwinTransformer
from torch import nn

from tinyvit_zoo.checkpoints import (
    KEY_MAPS,
    CheckpointError,
    backbone_part,
    counted_by_part,
    find_key_map,
    find_weights,
    read_checkpoint,
    with_counters,
)
from tinyvit_zoo.common.text import first_few
from tinyvit_zoo.dense import DenseBackbone, load_dense
from tinyvit_zoo.releases import find_family

from .net import NetSpec

__all__ = ['load_weights', 'mmdet_swin_to_timm']

_logger = logging.getLogger(__name__)

Tensors = Mapping[str, torch.Tensor]

PAGES = ('hf-hub:', 'hf_hub:', 'local-dir:')
ADDRESSES = ('http://', 'https://')


def load_weights(backbone: nn.Module, spec: NetSpec, source: bool | str | Path, prefix: str | None = None) -> None:
    """Fill a `ZooBackbone` in place; one log line reports what was left out and what stays at its initial values.

    Args:
        backbone: To be filled: its child `net` is the model, its children `norm{i}` are the norms of the maps.
        spec: How `net` was made.
        source: True for the weights of the model's name; the name with another tag; 'hf-hub:OWNER/NAME' or
            'local-dir:FOLDER'; an http address; or a file or folder: of a classifier, of a `ZooBackbone`, or of a
            detector with one, or with mmdet's own backbone of the same architecture.
        prefix: Of the backbone's names in the file, if it is not 'backbone.'.

    Raises:
        CheckpointError: If the weights cannot be found, read or matched; the backbone is then unchanged.
    """
    name = spec.name if source is True else str(source)
    if spec.is_pyramid:
        _load_pyramid(backbone, spec, None if source is True else name, prefix)
    elif source is True or name.startswith(PAGES) or _is_name(name):
        _load_named(backbone, spec, name)
    else:
        state_dict = _read(name, prefix)
        try:
            _load_file(backbone, spec, state_dict, name, is_file=not (prefix or name.startswith(ADDRESSES)))
        except CheckpointError as e:
            raise e if name in str(e) else CheckpointError(f'{name}: {e}') from e


def _is_name(source: str) -> bool:
    return timm.is_model(source.partition('.')[0]) and not Path(source).exists()


def _read(source: str, prefix: str | None) -> dict[str, torch.Tensor]:
    if source.startswith(ADDRESSES):
        state_dict = find_weights(PretrainedCfg(url=source)).state_dict
    elif '://' in source:
        raise CheckpointError(f'{source} is not a file, an http address, or a name with hf-hub: or local-dir:.')
    else:
        state_dict = read_checkpoint(source)
    if prefix is None:
        return state_dict
    prefix = prefix if prefix.endswith('.') else prefix + '.'
    part = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    if not part:
        raise CheckpointError(
            f'{source} has no names that begin with {prefix!r}; its first is {first_few(state_dict, most=1)}.'
        )
    return part


def _load_pyramid(backbone: nn.Module, spec: NetSpec, source: str | None, prefix: str | None) -> None:
    if source is None:
        raise CheckpointError(
            f'{spec.name} has no weights of its own that could be downloaded: give a file, or the name of '
            "the encoder to start from, such as 'mae_lite_vit_tiny_encoder_patch16_224.mae_in1k'."
        )
    is_file = not (prefix or source.startswith(ADDRESSES))
    weights = source.removeprefix('local-dir:') if is_file else _read(source, prefix)
    net = backbone.get_submodule('net')
    assert isinstance(net, DenseBackbone)
    load_dense(net, weights, as_init=spec.as_init)


def _load_named(backbone: nn.Module, spec: NetSpec, name: str) -> None:
    """The weights that timm finds for a name, in the sizes of the backbone."""
    net = backbone.get_submodule('net')
    whole = spec.with_classifier(net, name, pretrained=True)
    found = whole.pretrained_cfg.get('architecture')
    if found != spec.architecture(net):
        raise CheckpointError(f'{name} is {found}, not {spec.architecture(net)}.')
    _fill(backbone, spec.name, whole.state_dict(), {}, [])


def _load_file(backbone: nn.Module, spec: NetSpec, state_dict: Tensors, source: str, is_file: bool) -> None:
    net = backbone.get_submodule('net')
    part, rest = backbone_part(state_dict)
    norms = {k: state_dict[k] for k in rest if re.match(r'(backbone\.)?norm\d+\.', k)}
    rest = [k for k in rest if k not in norms]
    norms = {k.removeprefix('backbone.'): v for k, v in norms.items()}
    own = net.state_dict()
    part = with_counters(part, own)
    if part.keys() == own.keys() and all(part[k].shape == own[k].shape for k in own):
        state_dict = part
    elif 'patch_embed.projection.weight' in part and isinstance(net, SwinTransformer):
        state_dict, norms = mmdet_swin_to_timm(part)
    elif find_family(spec.architecture(net)):
        # By its path if it has one: the name and the other contents of a file say more than its tensors.
        overlay = dict(file=source) if is_file else dict(state_dict=part)
        state_dict = spec.with_classifier(net, pretrained=True, pretrained_cfg_overlay=overlay).state_dict()
    else:
        own_norms = [k for k in backbone.state_dict() if not k.startswith('net.')]
        norms |= {k: part.pop(k) for k in own_norms if k in part}  # Swin's released detectors have them there
        state_dict = _filtered_by_timm(net, spec, part)
    _fill(backbone, spec.name, state_dict, norms, rest)


def _filtered_by_timm(net: nn.Module, spec: NetSpec, state_dict: Tensors) -> dict[str, torch.Tensor]:
    """A classifier's file after timm's own filter; names that the classifier does not have are refused."""
    architecture = spec.architecture(net)
    other = find_key_map(state_dict)
    if other is not None and other is not KEY_MAPS['tinymim']:  # its names are those of every plain ViT
        raise CheckpointError(f'These are {other.family} weights, not {architecture}.')
    whole = spec.with_classifier(net)
    filter_fn = getattr(sys.modules[type(whole).__module__], 'checkpoint_filter_fn', lambda weights, model: weights)
    try:
        filtered = filter_fn(dict(state_dict), whole)
    except (AttributeError, KeyError, IndexError, TypeError, RuntimeError) as e:  # made for its own models only
        raise CheckpointError(f'The checkpoint is not of {architecture} ({type(e).__name__}: {e}).') from e
    heads = whole.pretrained_cfg.get('classifier') or ()
    heads = tuple(f'{head}.' for head in ((heads,) if isinstance(heads, str) else heads))
    unknown = [k for k in filtered if k not in whole.state_dict() and not k.startswith(heads)]
    if unknown:
        raise CheckpointError(f'{architecture} has no {first_few(unknown)}. Is it the checkpoint of another model?')
    return filtered


def _fill(backbone: nn.Module, model_name: str, state_dict: Tensors, norms: Tensors, left_out: Sequence[str]) -> None:
    """Load all or nothing.

    Args:
        backbone: To be filled.
        model_name: For messages.
        state_dict: Of the timm model, with what no map needs.
        norms: Of the maps; all that the backbone has, or none.
        left_out: Names in the file that are not of the backbone.
    """
    whole = backbone.state_dict()
    own = {k: v for k, v in whole.items() if norms or k.startswith('net.')}
    found = with_counters({f'net.{k}': v for k, v in state_dict.items()} | dict(norms), own)
    missing = [k for k in own if k not in found]
    shapes = {k: (tuple(found[k].shape), tuple(v.shape)) for k, v in own.items() if k in found}
    wrong = [f'{k} {have}, not {want}' for k, (have, want) in shapes.items() if have != want]
    if missing or wrong:
        problems = ((missing, 'missing'), (wrong, 'misshapen'))
        counted = '; '.join(f'{len(k)} {problem}: {first_few(k)}' for k, problem in problems if k)
        raise CheckpointError(
            f'The checkpoint does not fit {model_name}. Keys {counted}. Is it of another model, '
            'or laid out for another img_size or window_sizes?'
        )
    backbone.load_state_dict({k: found[k] for k in own}, strict=False)
    _logger.info(
        '%s: loaded %d tensors; at their initial values: %s; left out: %s.',
        model_name,
        len(own),
        counted_by_part(k for k in whole if k not in own),
        counted_by_part([*left_out, *(k.removeprefix('net.') for k in found if k not in own)]),
    )


def mmdet_swin_to_timm(state_dict: Tensors) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """mmdet's `SwinTransformer` under timm's names, and the norms of its maps.

    mmdet merges patches by `nn.Unfold`, which orders channels as (C, row, column) where Swin and timm order them as
    (column, row, C).

    Args:
        state_dict: Of mmdet's backbone, without its prefix.

    Returns:
        The weights of timm's model, and those of the norms of its maps.
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
