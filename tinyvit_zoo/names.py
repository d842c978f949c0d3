"""What the name of a model stands for: an architecture, a folder, or a page of the Hub."""

import difflib
import os
from pathlib import Path

from timm.models import is_model, parse_model_name, split_model_name_tag

from .common.errors import ModelError
from .common.paths import user_path
from .common.text import shown
from .releases import all_releases, find_release

__all__ = ['CONFIG', 'check_name', 'model_folder', 'resolve_name']

FINETUNED = 'model'
"""Folder of the model in one that `finetune` wrote."""

CONFIG = 'config.json'


def resolve_name(name: str) -> str:
    """A name as timm takes it: that of a folder with a model becomes 'local-dir:FOLDER', any other stays as it is.

    Args:
        name: As in `build.build_model`. A folder has config.json and weights, or is one that `finetune` wrote, whose
            model is in its folder `model`. The name of a model goes before a folder that is called so.

    Raises:
        ModelError: If it is a folder without a model, or a file.
    """
    place = name.removeprefix('local-dir:')
    marked = place != name
    if not marked and is_model(split_model_name_tag(name)[0]):
        return name
    folder = user_path(place)
    if model_folder(folder):
        return f'local-dir:{model_folder(folder)}'
    if marked:
        return name
    if folder.is_file():
        raise ModelError(f'{name} is a file: give the name of its model, and the file as --weights.')
    if (folder / 'state.pt').is_file():
        raise ModelError(f'{name} holds a training run that has not ended: run the same `finetune` command again.')
    if folder.is_dir():
        raise ModelError(f'{name} is a folder without a model: it needs a config.json beside the weights.')
    if '/' in name and ':' not in name:
        raise ModelError(f'{name} is neither a folder nor a model: a page of the Hub would be hf-hub:OWNER/NAME.')
    return name


def model_folder(folder: Path) -> Path | None:
    """The folder with config.json: this one, or that of the model in what `finetune` wrote; None if neither has it."""
    return next((place for place in (folder, folder / FINETUNED) if os.path.isfile(place / CONFIG)), None)


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
        raise ModelError(f"Unknown model '{shown(name)}'. {hint}`tinyvit-zoo list` shows all models.")
    if find_release(architecture) and find_release(model_id) is None:
        tags = ', '.join(r.tag for r in all_releases() if r.architecture == architecture)
        raise ModelError(f"{architecture} has no weights called '{tag}', it has: {tags}.")
    return None
