"""Files that are there whole or not at all: written under a temporary name, then renamed."""

import errno
import glob
import hashlib
import os
import re
import socket
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from .errors import EvaluationError
from .text import reason

__all__ = [
    'check_writable',
    'give_ordinary_rights',
    'home',
    'new_file',
    'new_files',
    'remove_leftovers',
    'resumed_file',
    'write_together',
    'write_whole',
]


def home() -> Path:
    """The folder of imported weights and compiled kernels: `TINYVIT_ZOO_HOME`, or one in the user's cache."""
    folder = os.environ.get('TINYVIT_ZOO_HOME')
    return Path(folder) if folder else Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')).expanduser() / 'tinyvit_zoo'


def check_writable(path: Path, is_folder: bool = False, grows: bool = False) -> None:
    """See that a file or folder can be written, before the work whose result it will be. Leaves nothing behind.

    Args:
        path: Final place; missing parents are no obstacle.
        is_folder: What it will be.
        grows: Files are added to the folder that is there; else it is replaced, in the folder around it.

    Raises:
        OSError: If it cannot; the message says so in a sentence.
    """
    try:
        if path.exists() and path.is_dir() != is_folder:
            raise OSError(errno.EEXIST, f'it is a {"file" if is_folder else "folder"}')
        place = path if grows else path.parent
        while not place.exists() and place != place.parent:
            place = place.parent
        tempfile.TemporaryFile(dir=place).close()
    except OSError as e:
        raise OSError(f'{path} cannot be written ({e.strerror or e}): choose another place.') from e


@contextmanager
def new_file(path: Path, private: bool = False) -> Iterator[Path]:
    """A temporary file to write to, which takes the place of `path` when the block ends without an error.

    Missing parents are made. What a killed process left of the same file is taken away first.

    Args:
        path: Final place.
        private: Let nobody else read or write it, whatever rights new files have.

    Raises:
        OSError: If it cannot be written; nothing is left of it then, and `path` is as before.
    """
    with _temporary(path) as new:
        yield new
        if private:
            new.chmod(0o600)
        else:
            give_ordinary_rights(new)
        _rename_whole(new, path)


@contextmanager
def new_files(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Temporary files for those that belong together, see `new_file`: all are renamed when the block ends.

    A process that is killed between the renames leaves some of the files, old or new, or none, but no old one beside a
    new one.

    Raises:
        OSError: If one cannot be written or renamed; nothing is left of any then, and all are as before.
    """
    with ExitStack() as files:
        new = tuple(files.enter_context(_temporary(path)) for path in paths)
        yield new
        for file in new:  # what may fail for lack of room comes before the first rename
            give_ordinary_rights(file)
            _flush(file)
        _rename_together(new, paths)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """An empty file beside `path`, which is gone when the block ends unless it has another name by then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
    new = _beside(path)
    try:
        new.touch()
        yield new
    finally:
        with suppress(OSError):
            new.unlink()


def _beside(path: Path) -> Path:
    """A temporary name."""
    return path.with_name(f'.{path.name}.{process_mark()}.part{path.suffix}')


def _rename_together(new: Sequence[Path], paths: Sequence[Path]) -> None:
    """Give files their final names; after an error every path is as before. A single one is never missing."""
    if len(paths) == 1:
        new[0].replace(paths[0])
        return
    aside: dict[Path, Path] = {}
    renamed: list[Path] = []
    try:
        for path in reversed(paths):  # so that none of the others is ever without the first
            if path.is_file():
                aside[path] = path.rename(_beside(path))
        for file, path in zip(new, paths, strict=True):
            renamed.append(file.replace(path))
    except BaseException:
        with suppress(OSError):
            for path in renamed:  # all of them before the first old one is back
                path.unlink()
        for path, old in aside.items():
            with suppress(OSError):
                old.rename(path)
        raise
    for old in aside.values():
        with suppress(OSError):
            old.unlink()


@contextmanager
def resumed_file(path: Path) -> Iterator[Path]:
    """A file to append to, which takes the place of `path` when the block ends without an error.

    After an error it stays, and the next call yields it again, with what it holds by then. One writer at a time: the
    caller holds a lock.

    Raises:
        OSError: If it cannot be written; `path` is then as before.
    """
    part = path.with_name(path.name + '.part')
    yield part
    _rename_whole(part, path)


def _rename_whole(new: Path, path: Path) -> None:
    """Give a file its final name once it is on the disk."""
    _flush(new)
    new.replace(path)


def _flush(path: Path) -> None:
    """See that a file is on the disk."""
    with path.open('rb') as file:
        os.fsync(file.fileno())


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, then rename it.

    Raises:
        EvaluationError: If it cannot be written; nothing is left of it then.
    """
    write_together({path: data})


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write files that belong together: all or none, see `new_files`.

    Raises:
        EvaluationError: If one cannot be written; all are then as before.
    """
    try:
        with new_files(*files) as temporary:
            for new, data in zip(temporary, files.values(), strict=True):
                new.write_bytes(data)
    except OSError as e:
        raise EvaluationError(
            f'{" and ".join(map(str, files))} cannot be written ({reason(e)}): make room or choose another '
            'folder; nothing was lost.'
        ) from e


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files of killed processes of this machine from a folder: all, or those of one file."""
    start = '*' if name is None else glob.escape(name)
    for path in folder.glob(f'.{start}.{_this_machine()}.*.part*'):
        if is_left_over(path.name):
            with suppress(OSError):
                path.unlink()


def process_mark() -> str:
    """Part of a temporary name from which the next run knows whether what it finds is still being written."""
    return f'{_this_machine()}.{os.getpid()}.{uuid.uuid4().hex[:8]}'


def is_left_over(name: str) -> bool:
    """Whether a temporary name with a `process_mark` is that of a process of this machine that has ended."""
    process = re.search(rf'\.{_this_machine()}\.(\d+)\.[0-9a-f]{{8}}(\.|$)', name)
    return process is not None and not _is_running(int(process[1]))


def _this_machine() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _is_running(process: int) -> bool:
    if os.name != 'posix':  # there, asking would end the process; an open file cannot be removed anyway
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def give_ordinary_rights(new: Path) -> None:
    """Give what was made for the owner alone the rights that any new file or folder has."""
    mask = os.umask(0)
    os.umask(mask)
    new.chmod((0o777 if new.is_dir() else 0o666) & ~mask)
