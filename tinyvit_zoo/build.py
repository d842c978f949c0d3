"""`timm.create_model` with errors that a user can act upon."""

import difflib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
from huggingface_hub.errors import LocalEntryNotFoundError
from timm.models import is_model, parse_model_name, split_model_name_tag
from torch import nn

from .checkpoints import CheckpointError, find_key_map, read_checkpoint
from .checkpoints.hub_silence import cache_if_silent
from .common.errors import ModelError, WeightsNotFoundError
from .common.folders import read_settled
from .common.text import reason
from .releases import all_releases, find_family, find_release

__all__ = ['asking_once', 'build_model', 'check_name', 'load_model', 'resolve_name']

FINETUNED = 'model'
"""Folder of the model in one that `finetune` wrote."""


def build_model(name: str, **kwargs: Any) -> nn.Module:
    """The model of that name, in eval mode.

    Args:
        name: 'architecture', 'architecture.tag', 'local-dir:FOLDER' or 'hf-hub:OWNER/NAME'; any name of timm; a folder,
            see `resolve_name`.
        **kwargs: As in `timm.create_model`.

    Raises:
        ModelError: On an unknown name, an unreadable folder or page, or arguments that do not fit.
        CheckpointError: If weights were asked for and cannot be found, read or matched.
    """
    name = resolve_name(name)
    source = check_name(name)
    with asking_once(name, kwargs):
        return _create(name, source, kwargs)


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
    # The Hub client raises errors of several libraries, which have no common base class.
    expected = Exception if source == 'hf-hub' else (OSError, ValueError, RuntimeError, KeyError, TypeError)
    try:
        if source == 'local-dir':
            return read_settled(Path(parse_model_name(name)[1]), lambda: timm.create_model(name, **kwargs)).eval()
        return timm.create_model(name, **kwargs).eval()
    except CheckpointError:
        raise
    except json.JSONDecodeError as e:
        raise ModelError(f'{name}: config.json is not valid JSON ({e}).') from e
    except expected as e:
        raise ModelError(f'{name}: {reason(e, longest=1000)}') from e


def load_model(name: str, weights: str | None = None, **kwargs: Any) -> nn.Module:
    """The model with its pretrained weights, or with those of a file, which then determines the number of classes.

    Args:
        name: As in `build_model`.
        weights: Checkpoint file or folder in any known layout; None for the weights of the name.
        **kwargs: As in `timm.create_model`.

    Raises:
        ModelError: See `build_model`.
        CheckpointError: If the weights cannot be found, read or matched.
    """
    name = resolve_name(name)
    if weights is None:
        return build_model(name, pretrained=True, **kwargs)
    check_name(name)
    state_dict = read_checkpoint(weights)
    key_map = find_key_map(state_dict)
    classes = key_map and key_map.head_classes(state_dict)
    if classes is not None:
        kwargs.setdefault('num_classes', classes)
    # Not the state dict: the file's name and its other contents show more about the model than its tensors do.
    return build_model(name, pretrained=True, pretrained_cfg_overlay=dict(file=str(weights)), **kwargs)


def resolve_name(name: str) -> str:
    """A name as timm takes it: that of a folder with a model becomes 'local-dir:FOLDER', any other stays as it is.

    Args:
        name: As in `build_model`. A folder has config.json and weights, or is one that `finetune` wrote, whose model is
            in its folder `model`. The name of a model goes before a folder that is called so.

    Raises:
        ModelError: If it is a folder without a model, or a file.
    """
    place = name.removeprefix('local-dir:')
    marked = place != name
    if not marked and is_model(split_model_name_tag(name)[0]):
        return name
    folder = Path(place).expanduser()
    for candidate in (folder, folder / FINETUNED):
        if (candidate / 'config.json').is_file():
            return f'local-dir:{candidate}'
    if marked:
        return name
    if folder.is_file():
        raise ModelError(f'{name} is a file: give the name of its model, and the file as --weights.')
    if (folder / 'state.pt').is_file():
        raise ModelError(f'{name} holds a training run that has not ended: run the same `finetune` command again.')
    if folder.is_dir():
        raise ModelError(f'{name} is a folder without a model: it needs a config.json beside the weights.')
    return name


def check_name(name: str) -> str | None:
    """The source of a name, see `resolve_name`: 'hf-hub', 'local-dir' or None.

    Raises:
        ModelError: If timm does not know the name.
    """
    name = resolve_name(name)
    try:
        source, model_id = parse_model_name(name)
    except ValueError as e:
        raise ModelError(str(e)) from e
    if source:
        return source
    architecture, tag = split_model_name_tag(model_id)
    if not is_model(architecture):
        known = [r.name for r in all_releases()] + list({r.architecture: None for r in all_releases()})
        close = difflib.get_close_matches(name, known, n=1)
        hint = f'Did you mean {close[0]}? ' if close else ''
        raise ModelError(f"Unknown model '{name}'. {hint}`tinyvit-zoo list` shows all models.")
    if find_release(architecture) and find_release(model_id) is None:
        tags = ', '.join(r.tag for r in all_releases() if r.architecture == architecture)
        raise ModelError(f"{architecture} has no weights called '{tag}', it has: {tags}.")
    return None
