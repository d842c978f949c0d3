"""Folders that are there whole or not at all: written under a temporary name, then put in place in one step."""

import ctypes
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from .files import check_writable, give_ordinary_rights, is_left_over, process_mark

__all__ = ['check_replaceable', 'read_settled', 'swap_in']

T = TypeVar('T')

# Arguments of Linux's renameat2.
AT_FDCWD, RENAME_EXCHANGE = -100, 2


@contextmanager
def swap_in(folder: Path, replaces: Sequence[str] | Callable[[], Sequence[str]] = ()) -> Iterator[Path]:
    """A new folder to write to, which takes the place of `folder` when the block ends without an error.

    Several processes may do so at once: each writes a folder of its own, and the last one to end stays. What killed
    processes left of the same folder is taken away, or put back where the folder itself is missing.

    Args:
        folder: Final place; missing parents are made. Of a symbolic link, what it points to is replaced.
        replaces: File names that may be lost with an existing folder, or a function that tells them. Any other content
            is a reason to refuse.

    Raises:
        FileExistsError: If `folder` is a file, holds something else, or has no name of its own, as `.` has not.
        OSError: If it cannot be written; nothing is left of it then, and `folder` is as before.
    """
    if folder.name in ('', '..'):
        raise FileExistsError(f'{folder} cannot be replaced as a whole: give the name of a folder to be made.')
    folder = _own_place(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent):
        _clear_up(folder)
        refuse_others(folder, replaces)
    new = folder.with_name(f'.{folder.name}.{process_mark()}.new')
    new.mkdir(mode=0o700)
    try:
        yield new
        give_ordinary_rights(new)
        with _locked(folder.parent):
            refuse_others(folder, replaces)
            _put_in_place(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def read_settled(folder: Path, read: Callable[[], T]) -> T:
    """`read()`; if `folder` was replaced meanwhile, once more, with writers kept out.

    Files of two versions do not belong together.
    """
    folder = _own_place(folder)
    with _held(folder) as before:
        try:
            result = read()
            if _identity(folder) == before:
                return result
        except Exception:
            if _identity(folder) == before is not None:
                raise
    with _locked(folder.parent):
        return read()


def _own_place(folder: Path) -> Path:
    """Where a folder itself lies: names are exchanged there, and a link would be exchanged in place of the folder."""
    return folder.resolve() if folder.is_symlink() else folder


@contextmanager
def _held(folder: Path) -> Iterator[tuple[int, int] | None]:
    """The identity of a folder, which no other gets meanwhile: the number of one that is gone may be given anew."""
    try:
        descriptor = os.open(folder, os.O_RDONLY) if os.name == 'posix' else None
    except OSError:
        descriptor = None
    try:
        yield _identity(folder if descriptor is None else descriptor)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _identity(folder: Path | int) -> tuple[int, int] | None:
    try:
        found = os.stat(folder)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _put_in_place(new: Path, folder: Path) -> None:
    """Give `new` the name of `folder`; what was there is then called `new`, or has gone."""
    if not folder.exists():
        new.rename(folder)
    elif not _exchanged(new, folder):
        old = new.with_suffix('.old')
        folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Let two folders change names in one step, so that no reader finds neither; False where the system cannot."""
    if sys.platform != 'linux':
        return False
    try:
        rename = ctypes.CDLL(None).renameat2
    except AttributeError:  # an old C library
        return False
    return rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0


@contextmanager
def _locked(parent: Path) -> Iterator[None]:
    """Keep other writers of this folder's children out, where the system can lock a folder; leaves no file behind."""
    if os.name != 'posix' or not parent.is_dir():
        yield
        return
    import fcntl

    descriptor = os.open(parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems lock no folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _clear_up(folder: Path) -> None:
    """Remove what killed processes left of a folder; put the old one back if they were killed between two renames."""
    prefix = f'.{folder.name}.'
    for path in sorted(folder.parent.glob('.*')):
        # Three dots in the rest: the folder `a` takes nothing of the folder `a.b`.
        if not (path.name.startswith(prefix) and path.name.removeprefix(prefix).count('.') == 3):
            continue
        if path.suffix not in ('.new', '.old') or not is_left_over(path.name):
            continue
        if path.suffix == '.old' and not folder.exists():
            path.rename(folder)
        else:
            shutil.rmtree(path, ignore_errors=True)


def check_replaceable(folder: Path, replaces: Sequence[str] | Callable[[], Sequence[str]]) -> None:
    """See that `swap_in` can write a folder, before the work whose result it will be. Leaves nothing behind.

    Raises:
        FileExistsError: If it is a file or holds something else.
        OSError: If it cannot be written.
    """
    refuse_others(folder, replaces)
    check_writable(folder, is_folder=True)


def refuse_others(folder: Path, replaces: Sequence[str] | Callable[[], Sequence[str]]) -> None:
    """Raises: FileExistsError: If a folder holds files that replacing it would lose, see `swap_in`."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f'{folder} is a file; a folder was to be written there.')
    lost = replaces() if callable(replaces) else replaces
    others = sorted(p.name for p in folder.iterdir() if p.name not in lost)
    if others:
        raise FileExistsError(
            f'{folder} holds other files ({", ".join(others[:3])}{", ..." if len(others) > 3 else ""}), which would '
            'be lost: choose a new folder.'
        )
