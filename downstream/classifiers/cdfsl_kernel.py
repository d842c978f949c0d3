"""The steps of `cdfsl` in C++, compiled once per machine and cached, if there is a compiler."""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
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
        library = ctypes.CDLL(str(_built()))
    except (OSError, subprocess.SubprocessError) as e:
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


def _built() -> Path:
    """Path of the library for this source, compiler and processor; built if it is missing."""
    compiler = os.environ.get('CXX') or next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        raise FileNotFoundError('there is no C++ compiler.')
    key = hashlib.sha256(repr((SOURCE.read_bytes(), compiler, FLAGS, _processor())).encode()).hexdigest()[:16]
    path = home() / 'kernels' / f'cdfsl-{key}.so'
    if not path.exists():
        with new_file(path) as new:
            command = [compiler, *FLAGS, str(SOURCE), '-o', str(new)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    return path


def _processor() -> str:
    """A description of the processor that the code is compiled for: several machines may share a cache."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    return repr((platform.platform(), platform.processor(), sorted({x for x in lines if x.startswith(CPU_FIELDS)})))
