"""Which kernel a layer takes for plain inference, from device, dtype, processor, threads and shape.

`route` is one table. Its entries were measured (docs/speed.md); what nobody measured is `plain`, torch's own layer.
The environment variable `TINYVIT_ZOO_ROUTES` chooses between the table and two other ways, see `SETTINGS`.
"""

import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch

from ..common.errors import ModelError

__all__ = [
    'KINDS',
    'ROUTES',
    'Choice',
    'Kind',
    'Route',
    'check_setting',
    'choose',
    'device_name',
    'is_capturing',
    'may_be_onednn',
    'recorded',
    'route',
]

Kind = Literal['linear', 'conv1x1', 'depthwise', 'conv', 'folded1x1']
"""`linear`, `conv1x1`, `depthwise` (every grouped convolution) and `conv` (dense, larger than 1x1) are layers of the
deploy form; `folded1x1` is a 1x1 convolution of a model as created, with its BatchNorm folded for this call."""
Route = Literal['plain', 'linear', 'onednn', 'triton']
"""`plain`: the layer as torch has it, then its activation. `linear`: `F.linear`, for convolutions on the B,H,W,C view,
then GELU in place. `onednn`: oneDNN's fused kernel, bias and GELU included. `triton`: the convolution without bias,
then one kernel for bias and GELU."""
KINDS: tuple[Kind, ...] = get_args(Kind)
ROUTES: tuple[Route, ...] = get_args(Route)

SETTINGS = ('table', 'measure', 'plain')
"""`table`: as `route` has it. `measure`: the fastest, timed once for each kind and shape. `plain`: torch's own."""
SETTING = os.environ.get('TINYVIT_ZOO_ROUTES', 'table')
ISA = torch.backends.cpu.get_cpu_capability()

X86 = ('AVX2', 'AVX512')
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


class _Entry(NamedTuple):
    kinds: tuple[Kind, ...]
    device: str
    isas: tuple[str, ...]  # of the CPU; on other devices it does not matter
    dtypes: tuple[torch.dtype, ...]
    taken: Route
    one_thread: bool = False  # with one thread only
    min_rows: int = 1


TABLE = (
    # The first entry that fits. On wide maps GELU inside the kernel outweighs the slower product of the next entry.
    _Entry(('conv1x1',), 'cpu', ('AVX2',), (F32,), 'onednn', min_rows=56 * 56),
    # MKL's products are at the limit of AVX2, and faster than oneDNN's.
    _Entry(('linear', 'conv1x1'), 'cpu', ('AVX2',), (F32,), 'linear'),
    _Entry(('depthwise', 'conv'), 'cpu', ('AVX2',), (F32,), 'onednn'),
    # oneDNN uses AVX-512 also on processors where MKL does not.
    _Entry(('linear', 'conv1x1', 'depthwise', 'conv'), 'cpu', ('AVX512',), (F32, BF16), 'onednn'),
    # With one thread torch keeps 1x1 convolutions from oneDNN, and unfolds the map instead.
    _Entry(('folded1x1',), 'cpu', X86, (F32,), 'linear', one_thread=True),
    # cuBLASLt adds the bias in its epilogue; after a convolution torch adds it in a slow kernel of its own.
    _Entry(('linear', 'conv1x1'), 'cuda', (), (F32, BF16, F16), 'linear'),
    _Entry(('depthwise', 'conv'), 'cuda', (), (F32, BF16, F16), 'triton'),
)

ONEDNN = frozenset(
    (kind, isa, dtype)
    for entry in TABLE
    for kind, isa, dtype in itertools.product(entry.kinds, entry.isas, entry.dtypes)
    if entry.taken == 'onednn'
)
"""Where the table has oneDNN's kernel for some number of rows."""

CANDIDATES: Mapping[Kind, tuple[Route, ...]] = {
    'linear': ('linear', 'onednn'),
    'conv1x1': ('linear', 'onednn', 'plain'),
    'depthwise': ('onednn', 'triton', 'plain'),
    'conv': ('onednn', 'triton', 'plain'),
    'folded1x1': ('linear', 'plain'),
}


def route(
    kind: Kind,
    device: str,
    dtype: torch.dtype,
    isa: str,
    threads: int,
    rows: int,
    in_features: int,
    out_features: int,
    gelu: bool,
) -> Route:
    """The route of one call by the table; a pure function, so that every processor's choices can be tested on any.

    Args:
        kind: See `Kind`.
        device: 'cpu', 'cuda', or any other, see `device_name`.
        dtype: Of input and weights.
        isa: `torch.backends.cpu.get_cpu_capability()`.
        threads: `torch.get_num_threads()`.
        rows: Of the product, for convolutions pixels of the output; without any there is nothing to be faster at.
        in_features: Width of the input, for convolutions its channels.
        out_features: Width of the output. The table does not distinguish the widths, nor whether GELU follows: no
            measured one had a route of its own. They are what `measure` keeps its choices by.
        gelu: Whether an exact GELU follows.

    Returns:
        The route; 'plain' wherever the table has no entry.
    """
    if min(rows, in_features, out_features) < 1:
        return 'plain'
    for entry in TABLE:
        if (
            kind in entry.kinds
            and device == entry.device
            and (not entry.isas or isa in entry.isas)
            and dtype in entry.dtypes
            and (threads == 1 or not entry.one_thread)
            and rows >= entry.min_rows
        ):
            return entry.taken
    return 'plain'


def device_name(device: torch.device) -> str:
    """What the table calls a device: ROCm's, which torch calls 'cuda', is 'rocm'."""
    return 'rocm' if device.type == 'cuda' and torch.version.hip else device.type


# --- the route of this call


@dataclass(frozen=True)
class Choice:
    """One layer's call: what `route` is asked."""

    kind: Kind
    device: str
    dtype: torch.dtype
    threads: int
    rows: int
    in_features: int
    out_features: int
    gelu: bool


MEASURE_SECONDS = 1.0
"""What timing candidates may take in a process, all together."""
TIMED_CALLS = 3
CAN_MEASURE = ('cpu', 'cuda')

_measured: dict[Choice, Route] = {}
_seconds = {'spent': 0.0, 'longest call': 0.0}
_recorders: list[Counter[tuple[Choice, Route]]] = []


def check_setting() -> None:
    """Raise if `TINYVIT_ZOO_ROUTES` has a value that does not exist.

    Raises:
        ModelError: If so.
    """
    if SETTING not in SETTINGS:
        raise ModelError(f"TINYVIT_ZOO_ROUTES must be {', '.join(SETTINGS[:-1])} or {SETTINGS[-1]}, not '{SETTING}'.")


def may_be_onednn(kind: Kind, x: torch.Tensor) -> bool:
    """Whether `choose` may say so: a cheap question before its dear ones, where every other route is the same call."""
    if type(x) is not torch.Tensor:
        return False
    if SETTING != 'table' or (_recorders and not torch.compiler.is_compiling()):
        return True
    return x.is_cpu and (kind, ISA, x.dtype) in ONEDNN


def choose(
    kind: Kind,
    x: torch.Tensor,
    rows: int,
    in_features: int,
    out_features: int,
    gelu: bool,
    run: Callable[[Route], object],
    allowed: tuple[Route, ...] = ROUTES,
) -> Route:
    """The route of this call, by the setting.

    Args:
        kind: See `Kind`.
        x: The input.
        rows: See `route`.
        in_features: See `route`.
        out_features: See `route`.
        gelu: See `route`.
        run: Computes the layer by a route, for the setting `measure`.
        allowed: Routes that this build of torch and this input admit; 'plain' is taken instead of any other.

    Raises:
        ModelError: If `TINYVIT_ZOO_ROUTES` has a value that does not exist.
    """
    check_setting()
    if SETTING == 'plain':
        return 'plain'
    device = device_name(x.device)
    if torch.compiler.is_compiling():  # one graph for any number of threads and, where sizes are dynamic, of rows
        taken = route(kind, device, x.dtype, ISA, 1, 1, in_features, out_features, gelu)
        return taken if taken in allowed else 'plain'
    threads = torch.get_num_threads()
    taken = route(kind, device, x.dtype, ISA, threads, rows, in_features, out_features, gelu)
    if taken not in allowed:
        taken = 'plain'
    if SETTING == 'measure' or _recorders:
        choice = Choice(kind, device, x.dtype, threads, rows, in_features, out_features, gelu)
        if SETTING == 'measure' and device in CAN_MEASURE and not is_capturing(x.device):
            taken = _fastest(choice, taken, run, allowed)
        for recorder in _recorders:
            recorder[choice, taken] += 1
    return taken


def _fastest(choice: Choice, first: Route, run: Callable[[Route], object], allowed: tuple[Route, ...]) -> Route:
    """The fastest of the candidates, timed at the first call of this shape; `first`, the table's, without time left."""
    if choice not in _measured:
        candidates = [first, *(r for r in CANDIDATES[choice.kind] if r in allowed and r != first)]
        wait = torch.cuda.synchronize if choice.device == 'cuda' else _no_wait
        best = dict.fromkeys(candidates, float('inf'))
        for number in range(1 + TIMED_CALLS):  # the first one warms up
            seconds = {}
            for candidate in candidates:
                if _seconds['spent'] + _seconds['longest call'] > MEASURE_SECONDS:
                    break
                wait()
                start = time.perf_counter()
                run(candidate)
                wait()
                seconds[candidate] = time.perf_counter() - start
                _seconds['spent'] += seconds[candidate]
                _seconds['longest call'] = max(_seconds['longest call'], seconds[candidate])
            if len(seconds) < len(candidates):
                break
            if number:
                best = {candidate: min(best[candidate], seconds[candidate]) for candidate in candidates}
        _measured[choice] = min(candidates, key=best.__getitem__)  # the first one among equals
    return _measured[choice]


def _no_wait() -> None:
    return


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured: waiting would break it, and what is made then has no values yet."""
    return device.type == 'cuda' and torch.cuda.is_current_stream_capturing()


@contextmanager
def recorded() -> Iterator[Counter[tuple[Choice, Route]]]:
    """Count the choices that are made inside, in the order in which they first occur."""
    counter: Counter[tuple[Choice, Route]] = Counter()
    _recorders.append(counter)
    try:
        yield counter
    finally:
        _recorders[:] = [recorder for recorder in _recorders if recorder is not counter]
