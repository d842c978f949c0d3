"""`timm.create_model` with errors that a user can act upon."""

import difflib
import json
from pathlib import Path
from typing import Any

import timm
from timm.models import is_model, parse_model_name, split_model_name_tag
from torch import nn

from .checkpoints import CheckpointError, find_key_map, read_checkpoint
from .common.errors import ModelError
from .common.folders import read_settled
from .common.text import reason
from .releases import all_releases, find_release

__all__ = ['build_model', 'check_name', 'load_model']


def build_model(name: str, **kwargs: Any) -> nn.Module:
    """The model of that name, in eval mode.

    Args:
        name: 'architecture', 'architecture.tag', 'local-dir:FOLDER' or 'hf-hub:OWNER/NAME'; any name of timm.
        **kwargs: As in `timm.create_model`.

    Raises:
        ModelError: On an unknown name, an unreadable folder or page, or arguments that do not fit.
        CheckpointError: If weights were asked for and cannot be found, read or matched.
    """
    source = check_name(name)
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


def check_name(name: str) -> str | None:
    """The source of a name: 'hf-hub', 'local-dir' or None.

    Raises:
        ModelError: If timm does not know the name.
    """
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
