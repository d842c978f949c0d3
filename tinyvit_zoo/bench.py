"""Speed of models in one process: each in turn, the order reversed every other round, all beside the first one.

CPU: one thread by default, and then process CPU time, which other work on the machine hardly moves; with several
threads wall-clock time. CUDA: events. Weights are random: what they are does not change the time.
"""

import gc
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.models import reparameterize_model
from torch import nn
from tqdm import tqdm

from .bench_rows import (
    DEFAULT,
    Row,
    Settings,
    blank_row,
    clock_of,
    filled_row,
    key_of,
    known_row,
    read_rows,
    rows_in,
    write_rows,
)
from .build import build_model
from .common.errors import ModelError
from .common.text import reason
from .layers import routes

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


def bench(
    models: Sequence[str],
    batches: Sequence[int],
    forms: Sequence[str] = ('created',),
    settings: Settings = DEFAULT,
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
    settings: Settings = DEFAULT,
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
    known = rows_in(csv_file)
    if csv_file:
        write_rows(csv_file, known)  # where that cannot be done, it is said before anything is measured
    rows = []
    for batch in dict.fromkeys(batches):
        wanted = [blank_row(model, form, batch, *variants[0], settings) for model, form in variants]
        found = [known_row(row, known) for row in wanted]
        done = [row for row in found if row is not None]
        if len(done) < len(wanted):
            done = _measure_batch(wanted, settings)
            if csv_file:
                new = {key_of(row) for row in done}
                # Read again: another run may have added rows meanwhile.
                write_rows(csv_file, [row for row in rows_in(csv_file) if key_of(row) not in new] + done)
        rows += done
    return rows


def bench_calls(
    makers: Mapping[str, Callable[[], Callable[[], object]]], batch: int, settings: Settings = DEFAULT
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
    rows = [blank_row(name, 'created', batch, first, 'created', settings) for name in makers]
    return _measure(rows, list(makers.values()), settings)


def call_of(model: str, form: str, batch: int, settings: Settings = DEFAULT) -> Callable[[], object]:
    """What `bench` times of a model in a form: one call, on random images.

    Raises:
        ModelError: As `bench`.
    """
    _check([model], [form], settings)
    return _variant(blank_row(model, form, batch, model, form, settings), settings)


def routes_of(models: Sequence[str], batches: Sequence[int], settings: Settings = DEFAULT) -> list[dict[str, Any]]:
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
    return [filled_row(row, times.get(i), times.get(0), memory.get(i), faults.get(i)) for i, row in enumerate(rows)]


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
    clock = time.process_time if clock_of(settings) == 'process CPU time' else time.perf_counter

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


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
