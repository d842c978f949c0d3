"""torch's own file format, written whole or not at all, with the disk's own words where it cannot be."""

from pathlib import Path
from typing import Any

import torch

from .files import new_file
from .text import reason

__all__ = ['save_torch', 'write_torch']


def save_torch(value: Any, path: Path) -> None:
    """`write_torch` under a temporary name, then renamed.

    Raises:
        OSError: If it cannot be written, such as on a full disk; `path` is then as before.
    """
    with new_file(path) as new:
        write_torch(value, new)


def write_torch(value: Any, path: Path) -> None:
    """Write what `torch.load` reads, the same bytes for the same value: given a path, torch would write its name, too.

    Raises:
        OSError: If it cannot be written, such as on a full disk.
    """
    with path.open('wb') as file:
        try:
            torch.save(value, file)
        except RuntimeError as e:  # torch's writer says where it stopped, not why: that is the error before its own
            raise _of_disk(e) from e


def _of_disk(error: BaseException) -> OSError:
    """The error of the disk that led to this one; one with its words if there is none."""
    at: BaseException | None = error
    while at is not None and not isinstance(at, OSError):
        at = at.__cause__ or at.__context__
    return at or OSError(reason(error))
