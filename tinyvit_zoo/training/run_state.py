"""The state of a training on disk: whole or not there, for the same run only, of tensors and plain values only."""

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..common.errors import EvaluationError
from ..common.files import new_file

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ['alone_in', 'read_state', 'read_weights', 'write_state']

STATE, BEST = 'state.pt', 'best.pt'
PATIENCE = 10.0  # seconds: the workers of a run that was killed hold its lock until they see that it is gone


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make a folder and keep other runs out of it, where the file system has locks. The system ends a dead run's lock.

    Raises:
        EvaluationError: If another run is in it, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as e:
        raise EvaluationError(f'{folder} cannot be written to ({e}): choose another --output.') from e
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            if time.monotonic() > end:
                raise EvaluationError(f'Another run is writing to {folder}: choose another --output.') from e
            time.sleep(0.1)
        except OSError:
            return None  # a file system without locks


def write_state(
    folder: Path, identity: Mapping[str, str], state: Mapping[str, Any], best: Mapping[str, torch.Tensor] | None
) -> None:
    """Write `state.pt`, and `best.pt` before it: a run that is killed between the two writes the same one again.

    Args:
        folder: Made if it is missing.
        identity: What has to be the same for the run to be gone on with.
        state: Tensors and plain values.
        best: The weights that result so far; None to keep those that are there.

    Raises:
        EvaluationError: If there is no room or no right to write.
    """
    if best is not None:
        _write(best, folder / BEST)
    _write(dict(state, identity=dict(identity)), folder / STATE)


def read_state(folder: Path, identity: Mapping[str, str]) -> dict[str, Any] | None:
    """The state in a folder, tensors on the CPU; None if there is none.

    Raises:
        EvaluationError: If it is that of another run, or damaged.
    """
    path = folder / STATE
    if not path.exists():
        return None
    state = _read(path)
    theirs = state.get('identity', {}) if isinstance(state, dict) else {}
    other = sorted(key for key in identity.keys() | theirs.keys() if identity.get(key) != theirs.get(key))
    if other:
        raise EvaluationError(
            f'{folder} holds the state of another run, which differs in: {", ".join(other)}. Choose another --output, '
            f'or remove {path}.'
        )
    return state


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights in `best.pt`. Raises: EvaluationError: If they are missing or damaged."""
    return _read(folder / BEST)


def _write(value: Any, path: Path) -> None:
    try:
        with new_file(path) as new:
            torch.save(value, new)
    except (OSError, RuntimeError) as e:  # torch reports a full disk as the latter
        raise EvaluationError(f'{path} cannot be written ({e}): choose another --output, or make room.') from e


def _read(path: Path) -> Any:
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as e:  # torch raises whatever a damaged file leads to
        raise EvaluationError(f'{path} is missing or damaged: remove {path.parent / STATE} to begin anew.') from e
