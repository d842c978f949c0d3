"""Speed of models in one process: each in turn, the order reversed every other round, all beside the first one.

CPU: one thread by default, and then process CPU time, which other work on the machine hardly moves; with several
threads wall-clock time. CUDA: events. Weights are random: what they are does not change the time.
"""

import csv
import gc
import io
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.models import reparameterize_model
from torch import nn
from tqdm import tqdm

from .build import build_model
from .common.errors import ModelError
from .common.files import write_whole
from .common.paired_timing import cpu_name
from .common.text import reason
from .layers import routes
from .version import __version__

__all__ = [
    'FORMS',
    'Row',
    'Settings',
    'bench',
    'bench_calls',
    'bench_variants',
    'call_of',
    'read_rows',
    'routes_of',
    'write_rows',
]

FORMS = ('created', 'deploy', 'compiled', 'graph', 'deploy+compiled', 'deploy+graph')
"""As created; `reparameterize_model` and channels_last; `torch.compile`; a CUDA graph of a static batch; the last two
of the deploy form."""
TRAINABLE = ('created', 'compiled')
WARM_UP = 2
GRAPH_WARM_UP = 3  # on a stream of its own, before a graph is captured
OUT_OF_MEMORY = ("can't allocate memory", 'not enough memory', 'out of memory', 'ALLOC_FAILED')


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


def bench(
    models: Sequence[str],
    batches: Sequence[int],
    forms: Sequence[str] = ('created',),
    settings: Settings = Settings(),
    csv_file: Path | None = None,
) -> list[Row]:
    """Measure models in all forms, batch by batch.

    Args:
        models: Any names that timm takes, `hf-hub:` and `local-dir:` included. The first one in the first form is what
            all ratios are to.
        batches: Images of a call.
        forms: Some of `FORMS`.
        settings: See `Settings`.
        csv_file: Rows are appended after each batch; batches that it has all rows of are not measured again.

    Returns:
        A row for each batch, model and form, those in the file included.

    Raises:
        ModelError: On an unknown model or form, or what the device cannot do, before anything is measured.
    """
    return bench_variants([(model, form) for model in models for form in forms], batches, settings, csv_file)


def bench_variants(
    variants: Sequence[tuple[str, str]],
    batches: Sequence[int],
    settings: Settings = Settings(),
    csv_file: Path | None = None,
) -> list[Row]:
    """`bench` for these pairs of a model and a form alone; the first one is what ratios are to.

    What is asked for twice is measured once.

    Raises:
        ModelError: As `bench`.
    """
    variants = list(dict.fromkeys(variants))
    models, forms = (list(dict.fromkeys(names)) for names in zip(*variants, strict=True))
    _check(models, forms, settings)
    torch.set_num_threads(settings.threads)
    known = _rows_in(csv_file)
    if csv_file:
        write_rows(csv_file, known)  # where that cannot be done, it is said before anything is measured
    rows = []
    for batch in dict.fromkeys(batches):
        wanted = [_blank(model, form, batch, *variants[0], settings) for model, form in variants]
        found = [_known(row, known) for row in wanted]
        done = [row for row in found if row is not None]
        if len(done) < len(wanted):
            done = _measure_batch(wanted, settings)
            if csv_file:
                new = {_key(row) for row in done}
                # Read again: another run may have added rows meanwhile.
                write_rows(csv_file, [row for row in _rows_in(csv_file) if _key(row) not in new] + done)
        rows += done
    return rows


def bench_calls(
    makers: Mapping[str, Callable[[], Callable[[], object]]], batch: int, settings: Settings = Settings()
) -> list[Row]:
    """Measure any calls as `bench` measures those of models.

    Args:
        makers: By name, in the place of a model's: makes the call. The first one is what ratios are to.
        batch: Images of a call.
        settings: See `Settings`; what the calls compute is up to them.

    Returns:
        A row for each call.
    """
    torch.set_num_threads(settings.threads)
    first = next(iter(makers))
    rows = [_blank(name, 'created', batch, first, 'created', settings) for name in makers]
    return _measure(rows, list(makers.values()), settings)


def call_of(model: str, form: str, batch: int, settings: Settings = Settings()) -> Callable[[], object]:
    """What `bench` times of a model in a form: one call, on random images.

    Raises:
        ModelError: As `bench`.
    """
    _check([model], [form], settings)
    return _variant(_blank(model, form, batch, model, form, settings), settings)


def routes_of(models: Sequence[str], batches: Sequence[int], settings: Settings = Settings()) -> list[dict[str, Any]]:
    """Which kernel each layer takes in a forward pass, as created and in deploy form; nothing is timed.

    Args:
        models: Any names that timm takes; models of other packages than this one make no choices.
        batches: Images of a call.
        settings: See `Settings`; a choice is made in inference without autocast only.

    Returns:
        A dictionary for each choice, in the order of the layers: model, form, batch, kind, rows, in and out features,
        whether GELU follows, the route (see `layers/routes.py`), and how often.

    Raises:
        ModelError: As `bench`.
    """
    _check(models, ('created',), settings)
    torch.set_num_threads(settings.threads)
    lines = []
    for model, batch, form in ((m, b, f) for m in models for b in batches for f in ('created', 'deploy')):
        call = call_of(model, form, batch, settings)
        with routes.recorded() as choices:
            call()
        for (choice, taken), calls in choices.items():
            line: dict[str, Any] = dict(model=model, form=form, batch=batch, kind=choice.kind, rows=choice.rows)
            line |= dict(in_features=choice.in_features, out_features=choice.out_features, gelu=choice.gelu)
            lines.append(line | dict(route=taken, calls=calls))
    return lines


def _check(models: Sequence[str], forms: Sequence[str], settings: Settings) -> None:
    routes.check_setting()
    for form in forms:
        if form not in FORMS:
            raise ModelError(f"There is no form '{form}': take some of {', '.join(FORMS)}.")
    if settings.device == 'cuda' and not torch.cuda.is_available():
        raise ModelError('There is no CUDA device here: leave --device cuda out.')
    if any('graph' in form for form in forms) and settings.device != 'cuda':
        raise ModelError('A CUDA graph needs --device cuda: leave graph out of --form.')
    if settings.train and not set(forms) <= set(TRAINABLE):
        raise ModelError(f'--train measures the forms {" and ".join(TRAINABLE)} only.')
    for model in models:
        _create(model, settings, 'meta')


def _create(name: str, settings: Settings, device: str) -> nn.Module:
    """A model with random weights; a ConvNet takes other image sizes as it is."""
    if settings.img_size is None:
        return build_model(name, device=device)
    try:
        return build_model(name, device=device, img_size=settings.img_size)
    except ModelError as e:
        if 'unexpected keyword argument' not in str(e) or "'img_size'" not in str(e):
            raise
    return build_model(name, device=device)


# --- one batch


def _measure_batch(rows: Sequence[Row], settings: Settings) -> list[Row]:
    """All variants of one batch in turn."""
    return _measure(rows, [partial(_variant, row, settings) for row in rows], settings)


def _measure(
    rows: Sequence[Row], makers: Sequence[Callable[[], Callable[[], object]]], settings: Settings
) -> list[Row]:
    """The calls of some rows in turn; what runs out of memory ends there."""
    torch.compiler.reset()  # else sizes of an earlier batch make the graphs of this one dynamic, and slow
    calls: dict[int, Callable[[], object]] = {}
    memory: dict[int, float | None] = {}
    for i, (row, make) in enumerate(zip(rows, makers, strict=True)):
        try:
            call = make()
            memory[i] = _warm_up(call, settings)
            calls[i] = call
        except (RuntimeError, MemoryError) as e:
            if not _is_out_of_memory(e):
                raise
            _free()
        except AssertionError as e:  # timm's, of the size of the images
            raise ModelError(f'{row.model}: {reason(e)} Choose another --img-size.') from e
    times, faults = _rounds(calls, settings)
    return [_filled(row, times.get(i), times.get(0), memory.get(i), faults.get(i)) for i, row in enumerate(rows)]


def _variant(row: Row, settings: Settings) -> Callable[[], object]:
    """A call of one model in one form."""
    torch.manual_seed(0)
    model = _create(row.model, settings, settings.device)
    cfg: Any = model.pretrained_cfg
    size = settings.img_size or tuple(cfg['input_size'][-2:])
    x = torch.randn(row.batch, cfg['input_size'][0], *size, device=settings.device)
    dtype = getattr(torch, settings.dtype)
    steps = row.form.split('+')
    if 'deploy' in steps:
        model = reparameterize_model(model)
    last = torch.channels_last if settings.channels_last or 'deploy' in steps else torch.preserve_format
    layout: dict[str, Any] = dict(dtype=dtype, memory_format=last)
    model, x = model.to(**layout), x.to(**layout)
    call = _training_step(model, x, settings) if settings.train else _inference(model, x, settings)
    if 'compiled' in steps:
        model.compile()
    return _graph_of(call) if 'graph' in steps else call


def _autocast(settings: Settings) -> Any:
    if settings.amp is None:
        return nullcontext()
    return torch.autocast(settings.device, getattr(torch, settings.amp))


def _inference(model: nn.Module, x: torch.Tensor, settings: Settings) -> Callable[[], object]:
    model.eval()

    def call() -> object:
        with torch.inference_mode(), _autocast(settings):
            return model(x)

    return call


def _training_step(model: nn.Module, x: torch.Tensor, settings: Settings) -> Callable[[], object]:
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-6)

    def call() -> None:
        optimizer.zero_grad()
        with _autocast(settings):
            loss = model(x).float().square().mean()
        loss.backward()
        optimizer.step()

    return call


def _graph_of(call: Callable[[], object]) -> Callable[[], object]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(GRAPH_WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()

    def replay() -> object:
        graph.replay()
        return kept

    return replay


def _warm_up(call: Callable[[], object], settings: Settings) -> float | None:
    """Run a variant a few times. Megabytes of the GPU at its peak; None on a CPU."""
    cuda = settings.device == 'cuda'
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(WARM_UP):
        call()
    if not cuda:
        return None
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**20


def _rounds(
    calls: Mapping[int, Callable[[], object]], settings: Settings
) -> tuple[dict[int, list[float]], dict[int, list[int]]]:
    """Seconds and page faults of each call in each round; no page faults where nobody counts them.

    What runs out of memory only now, beside the others, is left out.
    """
    timed, calls = _timer(settings), dict(calls)
    counts = sys.platform != 'win32' and settings.device == 'cpu'
    seconds: dict[int, list[float]] = {i: [] for i in calls}
    faults: dict[int, list[int]] = {i: [] for i in calls if counts}
    for number in tqdm(range(settings.rounds), unit='round', leave=False, disable=None):
        for i in list(calls)[:: 1 if number % 2 == 0 else -1]:
            before = _page_faults()
            try:
                seconds[i].append(timed(calls[i]))
            except (RuntimeError, MemoryError) as e:
                if not _is_out_of_memory(e):
                    raise
                del calls[i], seconds[i]
                _free()
                continue
            if counts:
                faults[i].append(_page_faults() - before)
    return seconds, faults


def _page_faults() -> int:
    """Of this process so far, without reading from a disk; 0 on Windows, which does not count them."""
    if sys.platform == 'win32':
        return 0
    import resource  # Unix alone has it

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _timer(settings: Settings) -> Callable[[Callable[[], object]], float]:
    clock = time.process_time if _clock(settings) == 'process CPU time' else time.perf_counter

    def on_cpu(call: Callable[[], object]) -> float:
        start = clock()
        call()
        return clock() - start

    def on_cuda(call: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    return on_cuda if settings.device == 'cuda' else on_cpu


def _clock(settings: Settings) -> str:
    if settings.device == 'cuda':
        return 'CUDA events'
    return 'process CPU time' if settings.threads == 1 else 'wall-clock time'


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# --- rows


def _blank(model: str, form: str, batch: int, first: str, first_form: str, settings: Settings) -> Row:
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
        clock=_clock(settings),
        state='oom',
    )


def _filled(
    row: Row,
    seconds: list[float] | None,
    first: list[float] | None,
    memory: float | None,
    faults: list[int] | None,
) -> Row:
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


def _key(row: Row) -> tuple[object, ...]:
    return tuple(value for name, value in asdict(row).items() if name not in (*WHEN, *FIGURES))


def _known(wanted: Row, rows: Iterable[Row]) -> Row | None:
    key = _key(wanted)
    return next((row for row in rows if _key(row) == key), None)


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


def _rows_in(path: Path | None) -> list[Row]:
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
