"""The state of a training run on disk: complete or absent, for the same run only, tensors and plain values only."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from ..common.errors import EvaluationError
from ..common.files import remove_leftovers
from ..common.text import first_few, reason
from ..common.torch_file import save_torch

__all__ = ['BEST', 'STATE', 'alone_in', 'read_state', 'read_weights', 'write_state']

WORDS = {'recipe: source', 'recipe: notes'}  # in the states of earlier versions
STATE, BEST, LOCK = 'state.pt', 'best.pt', '.lock'
PATIENCE = 10.0  # seconds: the workers of a run that was killed may hold its lock until they see that it is gone


@contextmanager
def alone_in(folder: Path, option: str = '--output') -> Iterator[None]:
    """Make a folder and keep other runs out of it, where the file system has locks. A run that dies leaves none behind.

    An empty file `.lock` stays in the folder: removed, it could be locked by two runs, one before and one after.

    Args:
        folder: Of the run.
        option: What chooses the folder, for messages.

    Raises:
        EvaluationError: If another run is in it, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as e:
        raise EvaluationError(f'{folder} cannot be written to ({reason(e)}): choose another {option}.') from e
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(folder / LOCK).acquire(timeout=PATIENCE, poll_interval=0.1))
        except Timeout as e:
            raise EvaluationError(
                f'Another run is writing to {folder}: choose another {option}, or wait for it.'
            ) from e
        except (OSError, NotImplementedError):  # a file system without locks
            pass
        remove_leftovers(folder)
        yield


def write_state(
    folder: Path, identity: Mapping[str, str], state: Mapping[str, Any], best: Mapping[str, torch.Tensor] | None
) -> None:
    """Write `state.pt`, and `best.pt` before it: a run that is killed between the two writes the same one again.

    Args:
        folder: Made if it is missing.
        identity: Everything that must be the same for a later run to resume this one.
        state: Tensors and plain values.
        best: The weights that result so far; None to keep those in the folder.

    Raises:
        EvaluationError: If there is no room or no permission to write.
    """
    if best is not None:
        _write(best, folder / BEST)
    _write(dict(state, identity=dict(identity)), folder / STATE)


def read_state(folder: Path, identity: Mapping[str, str]) -> dict[str, Any] | None:
    """The state in a folder, tensors on the CPU; None if there is none.

    Raises:
        EvaluationError: If it belongs to another run or is damaged.
    """
    path = folder / STATE
    if not path.exists():
        return None
    state = _read(path)
    theirs = state.get('identity', {}) if isinstance(state, dict) else {}
    # A setting of None stands for one that an earlier version did not have.
    keys = (identity.keys() | theirs.keys()) - WORDS
    other = sorted(key for key in keys if identity.get(key, 'None') != theirs.get(key, 'None'))
    if other:
        other.sort(key=lambda key: key.startswith('recipe: '))  # of another recipe or command, the rest says more
        raise EvaluationError(
            f'{folder} holds the state of another run, which differs in: {first_few(other, 8)}. Choose another '
            f'--output, or remove {path}.'
        )
    return state


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights in `best.pt`. Raises: EvaluationError: If they are missing or damaged."""
    return _read(folder / BEST)


def _write(value: Any, path: Path) -> None:
    try:
        save_torch(value, path)
    except OSError as e:
        raise EvaluationError(
            f'{path} cannot be written ({reason(e)}): make room and give the same command again, which '
            'resumes from the last state that is on the disk.'
        ) from e


def _read(path: Path) -> Any:
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as e:  # torch has no error of its own for damaged files
        raise EvaluationError(f'{path} is missing or damaged: remove {path.parent / STATE} to start again.') from e
