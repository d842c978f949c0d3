"""What `bench` measures with, what it finds, and the CSV file of it."""

import csv
import io
import os
import statistics
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from .common.errors import ModelError
from .common.files import write_whole
from .common.paired_timing import cpu_name
from .version import __version__

__all__ = [
    'DEFAULT',
    'Row',
    'Settings',
    'blank_row',
    'clock_of',
    'filled_row',
    'key_of',
    'known_row',
    'read_rows',
    'rows_in',
    'write_rows',
]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How models are measured.

    Attributes:
        device: 'cpu' or 'cuda'.
        threads: Of the CPU.
        rounds: Calls of each variant.
        channels_last: Memory format of weights and images; the deploy form has it always.
        amp: Type of `torch.autocast`; None for none.
        dtype: Of weights and images.
        img_size: (H, W); None for each model's own.
        train: A step of training (forward, mean square, backward, SGD) instead of inference.
    """

    device: str = 'cpu'
    threads: int = 1
    rounds: int = 11
    channels_last: bool = False
    amp: str | None = None
    dtype: str = 'float32'
    img_size: tuple[int, int] | None = None
    train: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured of one model in one form with one batch, and where. Figures of a row that failed are None.

    Attributes:
        state: 'ok', or 'oom' where memory ran out.
        clock: 'process CPU time', 'wall-clock time' or 'CUDA events'.
        images_per_second: From the median.
        median_ms: Of a call.
        p95_ms: 95th percentile of the calls.
        memory_mb: Peak of what torch allocates on the GPU, weights included; None on a CPU, where nobody counts it.
        ratio: Median over the rounds of the first variant's time divided by this one's: above 1, this one is faster.
        ratio_low: 5th percentile of the rounds' ratios.
        ratio_high: 95th percentile of the rounds' ratios.
        page_faults: Median over the rounds of the pages (usually of 4 KiB) that the system maps in for a call on the
            CPU; None on CUDA, where nobody tells, and in rows written before they were counted.
    """

    model: str
    form: str
    batch: int
    first: str
    mode: str
    device: str
    dtype: str
    amp: str
    channels_last: bool
    img_size: str
    threads: int
    rounds: int
    processor: str
    isa: str
    gpu: str
    torch: str
    timm: str
    tinyvit_zoo: str
    commit: str
    date: str
    load: float
    clock: str
    state: str
    images_per_second: float | None = None
    median_ms: float | None = None
    p95_ms: float | None = None
    memory_mb: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    page_faults: float | None = None


WHEN = ('date', 'load', 'clock')
FIGURES = (
    'state', 'images_per_second', 'median_ms', 'p95_ms', 'memory_mb', 'ratio', 'ratio_low', 'ratio_high', 'page_faults',
)  # fmt: skip
"""Fields that another run of the same command has other values of."""

DEFAULT = Settings()


def clock_of(settings: Settings) -> str:
    """What times are taken with, see `Row`."""
    if settings.device == 'cuda':
        return 'CUDA events'
    return 'process CPU time' if settings.threads == 1 else 'wall-clock time'


def blank_row(model: str, form: str, batch: int, first: str, first_form: str, settings: Settings) -> Row:
    """A row without figures: what is to be measured, and where it is now. It stays so where memory runs out."""
    cuda = settings.device == 'cuda'
    return Row(
        model=model,
        form=form,
        batch=batch,
        first=f'{first} {first_form}',
        mode='training' if settings.train else 'inference',
        device=settings.device,
        dtype=settings.dtype,
        amp=settings.amp or '',
        channels_last=settings.channels_last,
        img_size='x'.join(map(str, settings.img_size)) if settings.img_size else '',
        threads=settings.threads,
        rounds=settings.rounds,
        processor=cpu_name(),
        isa=torch.backends.cpu.get_cpu_capability(),
        gpu=torch.cuda.get_device_name() if cuda else '',
        torch=torch.__version__,
        timm=timm.__version__,
        tinyvit_zoo=__version__,
        commit=_commit(),
        date=datetime.now(UTC).strftime('%Y-%m-%d'),
        load=round(os.getloadavg()[0], 2) if hasattr(os, 'getloadavg') else 0.0,
        clock=clock_of(settings),
        state='oom',
    )


def filled_row(
    row: Row,
    seconds: list[float] | None,
    first: list[float] | None,
    memory: float | None,
    faults: list[int] | None,
) -> Row:
    """A row with its figures.

    Args:
        row: Of `blank_row`.
        seconds: Of each round; None where memory ran out, and the row stays as it is.
        first: Likewise, of the variant that ratios are to.
        memory: Megabytes.
        faults: Pages of each round.
    """
    if seconds is None:
        return row
    figures: dict[str, Any] = dict(
        state='ok',
        images_per_second=row.batch / statistics.median(seconds),
        median_ms=1e3 * statistics.median(seconds),
        p95_ms=1e3 * float(np.percentile(seconds, 95)),
        memory_mb=memory,
        page_faults=None if faults is None else float(statistics.median(faults)),
    )
    if first is not None:
        ratios = [one / own for one, own in zip(first, seconds, strict=True)]
        low, high = np.percentile(ratios, [5, 95]).tolist()
        figures |= dict(ratio=statistics.median(ratios), ratio_low=low, ratio_high=high)
    return Row(**{**asdict(row), **figures})


def key_of(row: Row) -> tuple[object, ...]:
    """All that is the same in two rows of the same command on the same machine."""
    return tuple(value for name, value in asdict(row).items() if name not in (*WHEN, *FIGURES))


def known_row(wanted: Row, rows: Iterable[Row]) -> Row | None:
    """The first of some rows that has the key of the one that is wanted."""
    key = key_of(wanted)
    return next((row for row in rows if key_of(row) == key), None)


def _commit() -> str:
    """The commit of a checkout, with '+' where the package has changes; '' outside of one."""
    root = Path(__file__).parent
    with suppress(OSError, subprocess.SubprocessError):
        changed = _git(root, 'status', '--porcelain', '-uno', '--', '.')
        return _git(root, 'rev-parse', '--short=10', 'HEAD') + ('+' if changed else '')
    return ''


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(['git', *words], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def rows_in(path: Path | None) -> list[Row]:
    """`read_rows`, or none where there is no file yet."""
    return read_rows(path) if path and path.exists() else []


def read_rows(path: Path) -> list[Row]:
    """The rows of a file that `bench` wrote.

    Raises:
        ModelError: If it is not such a file, or a line of it is not whole.
    """
    refusal = f'{path} is not a file of `tinyvit-zoo bench`, or damaged: choose another --csv.'
    try:
        text = path.read_bytes().decode()
        lines = csv.DictReader(io.StringIO(text, newline=''))
        names = {one.name for one in fields(Row)}
        given = set(lines.fieldnames or ())
        if text and not names - {'page_faults'} <= given <= names:  # it would be overwritten
            raise ModelError(refusal)
        return [_row(line) for line in lines]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as e:
        raise ModelError(refusal) from e


def _row(line: Mapping[Any, Any]) -> Row:
    if None in line or None in line.values():  # more or fewer values than the first line has names
        raise ValueError('a line is not whole')
    read: dict[Any, Callable[[str], Any]] = {str: str, int: int, float: float, bool: lambda text: text == 'True'}
    line = {'page_faults': ''} | dict(line)  # not in rows written before they were counted
    values: dict[str, Any] = {one.name: read.get(one.type, _number)(line[one.name]) for one in fields(Row)}
    return Row(**values)


def _number(text: str) -> float | None:
    return float(text) if text else None


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write all rows, whole or not at all."""
    names = [field.name for field in fields(Row)]
    lines = [names, *([_text(getattr(row, name)) for name in names] for row in rows)]
    out = io.StringIO()
    csv.writer(out, lineterminator='\n').writerows(lines)
    write_whole(path, out.getvalue().encode())


def _text(value: object) -> str:
    if value is None:
        return ''
    return f'{value:.6g}' if isinstance(value, float) else str(value)
