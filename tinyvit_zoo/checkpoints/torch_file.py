"""The object in a torch file, zip or legacy, read without running any code and within the bounds of the file."""

import io
import pickle
import re
import shutil
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, BinaryIO

import torch

from ..common.text import shown
from .archive import RefusedError, check_archive
from .pickles import Pickle, follow

__all__ = ['ForeignNameError', 'read_torch']


class ForeignNameError(Exception):
    """A file wants to run or build what no weights need; the message is its name."""


class _Inert:
    """Replaces a number, dtype or path in a pickle, the value of which is not needed."""

    def __init__(self, *args: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class _Settings:
    """Replaces a configuration object in a pickle by a plain mapping; runs none of its code."""

    def __new__(cls, *args: Any) -> OrderedDict:  # type: ignore[misc]  # the restricted unpickler fills no other class
        return OrderedDict()


# The only names beyond tensors that a checkpoint may hold: configurations and numbers that training code saves with the
# weights (Cream's `config`, argparse's `args` with its paths, an accuracy). None of the real classes is built.
_STAND_INS: tuple[tuple[type, str], ...] = (
    (_Settings, 'yacs.config.CfgNode'),
    (_Settings, 'argparse.Namespace'),
    (_Settings, 'types.SimpleNamespace'),
    (_Settings, 'collections.defaultdict'),
    *((_Inert, f'builtins.{kind}') for kind in ('dict', 'float', 'int', 'list')),  # what defaultdicts begin with
    *((_Inert, f'pathlib{module}.{kind}Path') for module in ('', '._local') for kind in ('Posix', 'Windows')),
    (_Inert, 'numpy.dtype'),
    (_Inert, 'numpy.ndarray'),
    *(
        (_Inert, f'numpy.{core}.{name}')
        for core in ('core', '_core')
        for name in ('multiarray.scalar', 'multiarray._reconstruct', 'numeric._frombuffer')
    ),
    *((_Inert, f'datetime.{name}') for name in ('datetime', 'timedelta')),
    (_Inert, '_io.BytesIO'),  # the extra state of some modules
)

# The losses of a training by mmengine, whose pickled history refers to `getattr`. Only files with such a history may
# use that name, and get a stand-in for it.
_HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'
_HISTORY_STAND_INS: tuple[tuple[type, str], ...] = ((_Inert, _HISTORY), (_Inert, 'builtins.getattr'))

# Of those that torch allows, the ones that are not torch's own.
HARMLESS = {
    *('collections.OrderedDict', 'collections.Counter', '_codecs.encode'),
    *('builtins.set', 'builtins.bytearray', 'builtins.complex'),
}

# The number that each file of torch's old format begins with, as it is pickled.
_MARK = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)[2:-1]

# torch's allow-list is global to the process: one reader at a time may extend it.
_ALLOW_LIST = threading.Lock()


def read_torch(file: BinaryIO, size: int) -> Any:
    """The object in a torch file, on the CPU.

    Args:
        file: Open file.
        size: Its size in bytes.

    Raises:
        ForeignNameError: If it would run or build anything but tensors and plain containers.
        RefusedError: If it asks for more than a checkpoint of its size can hold, or is of another kind.
        Exception: Nearly any other, if it is damaged.
    """
    if file.read(2) == b'PK':
        return _read_zip(file, size)
    file.seek(0)
    return _read_legacy(file, size)


def _read_zip(file: BinaryIO, size: int) -> Any:
    with zipfile.ZipFile(file) as archive:
        check_archive(archive, file, size)
        names = archive.namelist()
        root = names[0].partition('/')[0]  # torch reads the folder of the first entry
        if f'{root}/constants.pkl' in names:
            raise RefusedError('it is a program (TorchScript): save the state dict of its model')
        if f'{root}/data.pkl' not in names:
            raise RefusedError('it is a zip archive, but not one that torch.save wrote')
        found = follow(io.BytesIO(archive.read(f'{root}/data.pkl')), size)
        stand_ins = _stand_ins([found])
        if found.old is not None:
            file = _replaced(archive, f'{root}/data.pkl', found.old)
    return _unpickle(file, stand_ins)


def _replaced(archive: zipfile.ZipFile, name: str, content: bytes) -> BinaryIO:
    """The archive with another content of one entry, in memory."""
    entries = archive.infolist()
    # What an entry takes beside its content: two headers with its name, and room to align it.
    copy = _buffer(len(content) + sum(entry.file_size + 2 * len(entry.filename) + 256 for entry in entries))
    with zipfile.ZipFile(copy, 'w') as new:
        for entry in entries:
            new.writestr(entry.filename, content if entry.filename == name else archive.read(entry))
    copy.truncate()
    return copy


def _read_legacy(file: BinaryIO, size: int) -> Any:
    """Five pickles (a mark, a version, facts of the machine, the object, keys of storages), then the storages."""
    start = file.read(32)
    file.seek(0)
    if _MARK not in start:
        with suppress(ValueError):  # names that want to run are worth a message of their own
            _stand_ins([follow(file, size)])
        raise RefusedError('it is a pickle, but not one that torch.save wrote: save its state dict with torch.save')
    starts, pickles = [0], [follow(file, size)]
    for _ in range(4):
        starts.append(file.tell())
        pickles.append(follow(file, size))
    stand_ins = _stand_ins(pickles)
    _check_storages(pickles[3].storages, pickles[4].content, size - file.tell())
    if any(found.old is not None for found in pickles):
        file = _rewritten(file, size, starts, pickles)
    return _unpickle(file, stand_ins)


def _check_storages(storages: dict[str, int], keys: Any, room: int) -> None:
    """Every storage must follow: torch leaves those that do not as they come from the memory."""
    if not isinstance(keys, list) or sorted(keys) != sorted(storages):
        raise ValueError('its tensors and its list of storages differ')
    if sum(storages.values()) + 8 * len(storages) > room:
        raise ValueError('its storages are cut off')


def _rewritten(file: BinaryIO, size: int, starts: list[int], pickles: list[Pickle]) -> BinaryIO:
    """The file with all pickles in protocol 2, in memory."""
    end = file.tell()
    copy = _buffer(size + sum(len(found.old) for found in pickles if found.old is not None))
    for found, start, stop in zip(pickles, starts, [*starts[1:], end], strict=True):
        file.seek(start)
        raw = file.read(stop - start)
        copy.write(raw if found.old is None else found.old)
    shutil.copyfileobj(file, copy)
    copy.truncate()
    return copy


def _buffer(size: int) -> io.BytesIO:
    """A file in memory with room for `size` bytes.

    One that grows is moved again and again, and leaves each of its earlier places behind where the heap has holes:
    that took up to six times the file.
    """
    buffer = io.BytesIO()
    buffer.seek(size)
    buffer.write(b'\0')
    buffer.seek(0)
    return buffer


def _stand_ins(pickles: Iterable[Pickle]) -> list[Any]:
    """Stand-ins and their names for what pickles name, after a look at all of the names."""
    names = [name for found in pickles for name in found.names]
    stand_ins = [*_STAND_INS, *(_HISTORY_STAND_INS if _HISTORY in names else ())]
    known = HARMLESS | {name for _, name in stand_ins}
    for name in names:
        if not (name.startswith('torch.') or name in known):
            raise ForeignNameError(shown(name))
    return stand_ins


def _unpickle(file: BinaryIO, stand_ins: list[Any]) -> Any:
    # An open file, not a path, since torch judges a path by its ending. The allow-list is global, hence the lock.
    file.seek(0)
    try:
        with _ALLOW_LIST, torch.serialization.safe_globals(stand_ins):
            return torch.load(file, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as e:
        found = re.search(r'GLOBAL ([\w.]+)', str(e))
        if found is None:
            raise RefusedError("torch's restricted reader does not accept it; nothing in it was run") from e
        raise ForeignNameError(found[1]) from e
