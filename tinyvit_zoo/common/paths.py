"""Paths and JSON files that users give."""

import json
from pathlib import Path
from typing import Any

from .errors import ModelError
from .text import reason, shown

__all__ = ['MAX_PATH', 'packaged_folder', 'read_json', 'user_path']

PACKAGE = Path(__file__).parents[1]

MAX_PATH = 260
"""Characters of a path that a message shows."""


def packaged_folder(name: str) -> Path:
    """A folder of the repository that wheels carry: inside an installed package, or next to the package in a checkout.

    Raises:
        FileNotFoundError: If there is neither.
    """
    for folder in (PACKAGE / name, PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f'{name}/ is missing: neither inside the package nor next to it.')


def user_path(path: str | Path, error: type[Exception] = ModelError) -> Path:
    """A path with '~' replaced, that the system can at least look up.

    Args:
        path: As the user wrote it.
        error: What is raised; takes a message.

    Raises:
        ModelError: Or `error`, if '~name' is not a user here, or the path is too long or holds a character that no path
            can.
    """
    try:
        expanded = Path(path).expanduser()
        expanded.lstat()
    except (FileNotFoundError, NotADirectoryError):  # nothing is there, which is for the caller to judge
        return expanded
    except (OSError, RuntimeError, ValueError) as e:  # a name too long, no such user, a null character
        raise error(f'{shown(str(path), MAX_PATH)} cannot be a path here ({reason(_words(e))}).') from e
    return expanded


def _words(error: Exception) -> object:
    return (error.strerror if isinstance(error, OSError) else None) or error


def read_json(path: Path) -> Any:
    """What a JSON file of somebody else holds.

    Raises:
        ValueError: If it is not JSON, not UTF-8, or nested too deeply.
        OSError: If it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding='utf-8-sig'))
    except RecursionError as e:
        raise ValueError('it is nested too deeply') from e
