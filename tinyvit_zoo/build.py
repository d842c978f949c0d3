"""`timm.create_model` with errors that a user can act upon."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from timm.layers import to_2tuple
from timm.models import parse_model_name, split_model_name_tag
from timm.models._hub import download_from_hf
from torch import nn

from .checkpoints import (
    CheckpointError,
    backbone_part,
    counted_by_part,
    find_key_map,
    read_checkpoint,
    warn_nonfinite,
)
from .checkpoints.hub_silence import cache_if_silent
from .common.bounds import check_sizes
from .common.errors import ModelError, WeightsNotFoundError
from .common.folders import read_settled
from .common.paths import MAX_PATH, read_json
from .common.text import reason, shown
from .names import CONFIG, check_name, model_folder, resolve_name
from .releases import find_family

__all__ = ['asking_once', 'build_model', 'load_model']

_logger = logging.getLogger(__name__)


def build_model(name: str, **kwargs: Any) -> nn.Module:
    """The model of that name, in eval mode.

    Args:
        name: 'architecture', 'architecture.tag', 'local-dir:FOLDER' or 'hf-hub:OWNER/NAME'; any name of timm; a folder,
            see `names.resolve_name`.
        **kwargs: As in `timm.create_model`.

    Raises:
        ModelError: On an unknown name, an unreadable folder or page, or arguments that do not fit.
        CheckpointError: If weights were asked for and cannot be found, read or matched.
    """
    name = resolve_name(name)
    source = check_name(name)
    with asking_once(name, kwargs):
        model = _create(name, source, kwargs)
    if kwargs.get('img_size') is not None:
        _check_patches(model, name, kwargs['img_size'])
    return model


def _check_patches(model: nn.Module, name: str, img_size: int | Sequence[int]) -> None:
    """Refuse a size of no whole number of patches where timm would at the first image: in models that take any."""
    embed: Any = getattr(model, 'patch_embed', None)
    patch = getattr(embed, 'patch_size', None)
    if getattr(embed, 'strict_img_size', True) or getattr(embed, 'dynamic_img_pad', True) or patch is None:
        return
    size = to_2tuple(img_size)
    if any(side % step for side, step in zip(size, patch, strict=True)):
        sides, steps = ('x'.join(map(str, numbers)) for numbers in (size, patch))
        raise ModelError(f'{name} cuts images into patches of {steps} pixels: give multiples of them, not {sides}.')


@contextmanager
def asking_once(name: str, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """A block in which timm makes a model: if the Hub does not answer, its cache is all there is, at once.

    Args:
        name: As in `build_model`.
        kwargs: Of `timm.create_model`.

    Raises:
        WeightsNotFoundError: If the weights are not in the cache of a silent Hub.
        ModelError: If a whole page is not in it.
    """
    source = parse_model_name(name)[0]
    page = _asked_by_timm(name, source, kwargs)
    if page is None:
        yield
        return
    with cache_if_silent(page, 'config.json' if source else 'model.safetensors') as silence:
        try:
            yield
        except (ModelError, LocalEntryNotFoundError) as e:
            missing = isinstance(e, LocalEntryNotFoundError) or isinstance(e.__cause__, LocalEntryNotFoundError)
            if silence is None or not missing:
                raise
            place = f'the Hub page {page} is not in the cache and not reachable ({reason(silence)})'
            if source:
                raise ModelError(f'No model {name}: {place}, so give the name of its architecture or a folder.') from e
            raise WeightsNotFoundError(f'No weights for {name}: {place}.') from e


def _asked_by_timm(name: str, source: str | None, kwargs: Mapping[str, Any]) -> str | None:
    """The page of the Hub that timm itself asks; models of this package look for their weights by `find_weights`."""
    if source == 'hf-hub':
        return parse_model_name(name)[1]
    given = kwargs.get('pretrained_cfg') or {'file', 'state_dict'} & (kwargs.get('pretrained_cfg_overlay') or {}).keys()
    if source or given or not kwargs.get('pretrained') or find_family(split_model_name_tag(name)[0]):
        return None
    cfg = timm.get_pretrained_cfg(name)
    return (cfg and cfg.hf_hub_id) or None


def _create(name: str, source: str | None, kwargs: Mapping[str, Any]) -> nn.Module:
    # Files and pages of others fail in any way, and the Hub client raises errors of several libraries.
    expected = Exception if source else (OSError, ValueError, RuntimeError, KeyError, TypeError)
    try:
        if source:
            _check_config(name, source, kwargs.get('cache_dir'))
        if source == 'local-dir':
            return read_settled(Path(parse_model_name(name)[1]), lambda: timm.create_model(name, **kwargs)).eval()
        return timm.create_model(name, **kwargs).eval()
    except (CheckpointError, ModelError):
        raise
    except json.JSONDecodeError as e:
        raise ModelError(f'{name}: config.json is not valid JSON ({e}).') from e
    except expected as e:
        raise ModelError(f'{name}: {reason(e, longest=1000)}') from e


def _check_config(name: str, source: str, cache_dir: str | Path | None) -> None:
    """Raise ModelError if the config.json of a folder or page cannot be read, or asks for a model beyond any size."""
    place = parse_model_name(name)[1]
    path = Path(place) / CONFIG if source == 'local-dir' else Path(download_from_hf(place, CONFIG, cache_dir=cache_dir))
    try:
        config = read_json(path)
    except ValueError as e:
        raise ModelError(f'{name}: {CONFIG} is not valid JSON ({reason(e)}).') from e
    if not isinstance(config, dict):
        raise ModelError(f'{name}: {CONFIG} is not the configuration of a model.')
    of_model = {key: config.get(key) for key in ('num_classes', 'model_args')}
    cfg = config.get('pretrained_cfg')
    sizes = {key: cfg.get(key) for key in ('input_size', 'num_classes')} if isinstance(cfg, dict) else {}
    check_sizes([of_model, sizes], f'{name}: {CONFIG}')


def load_model(name: str, weights: str | Path | None = None, part: str | None = None, **kwargs: Any) -> nn.Module:
    """The model with its pretrained weights, or with those of a file, which then determines the number of classes.

    Also a model that is timm's own loads a file whole, or not at all: only its classifier is a fresh one where
    `num_classes` asks for other classes than the file has, and that is said.

    Args:
        name: As in `build_model`.
        weights: Checkpoint file or folder in any known layout; None for the weights of the name.
        part: Which of several models in the file, see `checkpoints.read_checkpoint`.
        **kwargs: As in `timm.create_model`.

    Raises:
        ModelError: See `build_model`.
        CheckpointError: If the weights cannot be found, read or matched.
    """
    name = resolve_name(name)
    check_part(weights, part)
    if weights is None:
        return build_model(name, pretrained=True, **kwargs)
    weights = model_folder(Path(weights)) or weights
    source = check_name(name)
    architecture = _blank(name, {}).pretrained_cfg['architecture'] if source else name
    state_dict = read_checkpoint(weights, part=part)
    if find_family(architecture) is None:
        return _load_timms(name, state_dict, shown(str(weights), MAX_PATH), kwargs)
    backbone, _ = backbone_part(state_dict)
    key_map = find_key_map(backbone)
    classes = key_map and key_map.head_classes(backbone)
    if classes is not None:
        kwargs.setdefault('num_classes', classes)
    if part is not None:
        kwargs['part'] = part
    # Not the state dict: the file's name and its other contents show more about the model than its tensors do.
    return build_model(name, pretrained=True, pretrained_cfg_overlay=dict(file=str(weights)), **kwargs)


def check_part(weights: str | Path | None, part: str | None) -> None:
    """Raises: ModelError: On the part of a file without a file."""
    if part is not None and weights is None:
        raise ModelError('--part (part=) names a model in a file: give the file (--weights FILE), too.')


def _load_timms(name: str, state_dict: dict[str, torch.Tensor], origin: str, kwargs: dict[str, Any]) -> nn.Module:
    """A model of timm's own with all weights of a checkpoint.

    timm compares names only while the numbers of classes agree, so the model is first made with those of the file.
    """
    state_dict, rest = backbone_part(state_dict)
    if rest:
        _logger.info('%s: using the backbone, without %s.', origin, counted_by_part(rest))
    warn_nonfinite(state_dict, origin)
    heads = _blank(name, kwargs).pretrained_cfg.get('classifier') or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    have, want = _classes(state_dict, heads), kwargs.get('num_classes')
    overlay = dict(state_dict=state_dict, source='', num_classes=have, label_offset=0)
    try:
        model: Any = build_model(
            name, pretrained=True, pretrained_cfg_overlay=overlay, **(kwargs | {'num_classes': have})
        )
    except ModelError as e:  # the arguments fit, so it is the checkpoint
        raise CheckpointError(
            f'{origin} is not a checkpoint of {name}: {str(e).removeprefix(f"{name}: ")[:400]}'
        ) from e
    cfg = {k: v for k, v in model.pretrained_cfg.items() if k != 'state_dict'}
    if want not in (None, have):
        if want:
            _logger.warning(
                '%s has %s classes, the model %d: fresh classifier, everything else loaded.', origin, have or 'no', want
            )
        loaded, model = model.state_dict(), build_model(name, **kwargs)
        of_head = tuple(f'{head}.' for head in heads)
        own = {k: v for k, v in model.state_dict().items() if k not in loaded or k.startswith(of_head)}
        model.load_state_dict({**{k: v for k, v in loaded.items() if not k.startswith(of_head)}, **own})
    model.pretrained_cfg = model.default_cfg = cfg
    return model


def _blank(name: str, kwargs: dict[str, Any]) -> Any:
    """The model without numbers."""
    return build_model(name, device='meta', **kwargs)


def _classes(state_dict: Mapping[str, torch.Tensor], heads: tuple[str, ...]) -> int:
    """Classes of a checkpoint by its classifier, under timm's name or one that released files have; 0 without one."""
    for head in (*heads, *(head.rpartition('.')[0] for head in heads), 'head', 'fc', 'classifier'):
        weight = state_dict.get(f'{head}.weight')
        if weight is not None and weight.ndim > 1:
            return weight.shape[0]
    return 0
