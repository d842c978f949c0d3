"""The steps of `cdfsl` in C++, compiled once per machine and cached, if there is a compiler.

Code that was compiled earlier is run only if nobody but the user can have written it: file and folder are the user's
own, others cannot write to them, and the file has the hash that was noted beside it when it was built.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from tinyvit_zoo.common.files import home, new_file
from tinyvit_zoo.common.text import reason

__all__ = ['Settings', 'load']

SOURCE = Path(__file__).with_suffix('.cpp')
FLAGS = ('-std=c++17', '-O3', '-march=native', '-fopenmp-simd', '-fPIC', '-shared')
COMPILERS = ('c++', 'g++', 'clang++')
CPU_FIELDS = ('model', 'flags', 'CPU', 'Features')  # beginnings of the lines of /proc/cpuinfo that identify a processor
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
NAMES = {torch.float32: 'train_float32', torch.float64: 'train_float64'}
_log = logging.getLogger(__name__)

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, 'Settings'], None]
"""Takes products (E, N, M), orders (E, EPOCHS, N), factors (E, C, M) to change in place, and settings."""


class Settings(ctypes.Structure):
    """Settings of the optimizer and the loop in the layout of the C++ code."""

    _fields_ = (
        ('learning_rate', ctypes.c_double),
        ('momentum', ctypes.c_double),
        ('dampening', ctypes.c_double),
        ('weight_decay', ctypes.c_double),
        ('epochs', ctypes.c_int64),
    )


@functools.cache
def load() -> Kernel | None:
    """The compiled code, or None if it cannot be built; one log line then gives the reason."""
    try:
        library = _load()
    except (OSError, ValueError, subprocess.SubprocessError) as e:
        first, *_ = str(getattr(e, 'stderr', None) or e).strip().splitlines() or [reason(e)]
        _log.warning('Few-shot is computed in PyTorch alone, which takes longer: %s', first)
        return None
    return functools.partial(_train, library)


def _train(
    library: ctypes.CDLL, products: torch.Tensor, orders: torch.Tensor, factors: torch.Tensor, settings: Settings
) -> None:
    function = getattr(library, NAMES[products.dtype])
    function.argtypes, function.restype = [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 4 + [ctypes.c_void_p] * 2, None
    E, C, M = factors.shape
    N = products.shape[1]

    def part(start: int, stop: int) -> None:  # ctypes releases the GIL
        function(
            products[start].data_ptr(), orders[start].data_ptr(), stop - start, N, C, M, ctypes.addressof(settings),
            factors[start].data_ptr(),
        )  # fmt: skip

    threads = min(E, torch.get_num_threads())
    bounds = [E * i // threads for i in range(threads + 1)]
    if threads == 1:
        part(0, E)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, bounds[:-1], bounds[1:]))


def _load() -> ctypes.CDLL:
    """The library for this source, compiler and processor; built if it is missing, cut short or changed.

    Raises:
        OSError: If it cannot be built, or the cache is not the user's alone.
        ValueError: If `CXX` has unbalanced quotes.
        subprocess.SubprocessError: If the compiler fails.
    """
    if os.name != 'posix':
        raise OSError('the steps are compiled on Linux and macOS only.')
    command = [*_compiler(), *FLAGS]
    key = hashlib.sha256(repr((SOURCE.read_bytes(), command, _processor())).encode()).hexdigest()[:16]
    folder = home() / 'kernels'
    _make_private(folder)
    path = folder / f'cdfsl-{key}.so'
    if not _is_as_built(path):
        with new_file(_note(path), private=True) as note, new_file(path, private=True) as new:
            subprocess.run(
                [*command, str(SOURCE), '-o', str(new)], check=True, capture_output=True, timeout=120, text=True,
                errors='replace',
            )  # fmt: skip
            note.write_text(hashlib.sha256(new.read_bytes()).hexdigest())
    descriptor = _opened(path)
    if sys.platform != 'linux':  # elsewhere the loader takes no descriptor
        os.close(descriptor)
        return ctypes.CDLL(str(path))
    # It stays open: the loader takes a name that it knows for the library that it loaded by it, and a file opened later
    # would get the number of one that was closed.
    return ctypes.CDLL(f'/proc/self/fd/{descriptor}')


def _compiler() -> list[str]:
    """The compiler and its own arguments, as in `CXX='ccache g++'`."""
    command = shlex.split(os.environ.get('CXX', '')) or [found for c in COMPILERS if (found := shutil.which(c))][:1]
    if not command:
        raise FileNotFoundError('there is no C++ compiler.')
    return command


def _note(path: Path) -> Path:
    return path.with_suffix('.sha256')


def _make_private(folder: Path) -> None:
    """A folder that the user alone can write to. Raises: OSError: If it is a link or somebody else's."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(f'{folder} is a link or of another user, so that code in it is not run: remove it.')
    if found.st_mode & OTHERS_WRITE:
        folder.chmod(0o700)


def _is_as_built(path: Path) -> bool:
    """Whether the library is there with the bytes that the compiler wrote; False also where others could change it."""
    try:
        with open(_opened(path), 'rb') as library, open(_opened(_note(path)), 'rb') as note:
            return hashlib.sha256(library.read()).hexdigest().encode() == note.read()
    except OSError:
        return False


def _opened(path: Path) -> int:
    """The descriptor of a file that only the user can have written.

    Raises:
        OSError: If it is missing, a link, somebody else's, or others can write to it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    found = os.fstat(descriptor)
    if found.st_uid != os.geteuid() or found.st_mode & OTHERS_WRITE:
        os.close(descriptor)
        raise PermissionError(f'{path} belongs to another user, or others can write to it: remove it.')
    return descriptor


def _processor() -> str:
    """A description of the processor that the code is compiled for: several machines may share a cache."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    return repr((platform.platform(), platform.processor(), sorted({x for x in lines if x.startswith(CPU_FIELDS)})))
