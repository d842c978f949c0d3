"""An ONNX file quantized by onnxruntime, with as many layers left in float32 as its agreement needs."""

import contextlib
import errno
import inspect
import json
import logging
import shutil
import statistics
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..common.errors import EvaluationError, ModelError
from ..common.extras import needs_extra
from ..common.files import new_file
from ..common.paired_timing import measure
from .check import Check, Comparison, Run
from .graph import QUANTIZED, fold_transposes, groups, kept_nodes, left_in_float

__all__ = ['Quantized', 'Step', 'check_onnxruntime', 'open_run', 'quantize_file']

INPUT = 'images'
COPIES = 6  # of the float32 file that lie in the temporary folder at once, at most
ROUNDS = 10  # forward passes of both files, in turn, for the median of their times


@dataclass(frozen=True)
class Step:
    """What leaving a group in float32 came to.

    Attributes:
        group: Blocks or layers that are in float32 from this step on; '' for none.
        agreement: On the images of the check.
        megabytes: Of the file.
    """

    group: str
    agreement: float
    megabytes: float


@dataclass(frozen=True)
class Quantized:
    """A quantized file that was written, beside its float32 form.

    Attributes:
        path: The file.
        megabytes: Of float32 and int8, 1e6 bytes each.
        calibrated: Images that activations were measured on.
        comparison: On images that calibration did not see.
        milliseconds: Median CPU time of a forward pass of one image, float32 and int8, one thread, in turn.
        in_float: How many nodes of each operator compute in float.
        steps: What was left in float32 to reach an agreement, in order; one step if none was asked for.
    """

    path: Path
    megabytes: tuple[float, float]
    calibrated: int
    comparison: Comparison
    milliseconds: tuple[float, float]
    in_float: Mapping[str, int]
    steps: tuple[Step, ...]


def check_onnxruntime() -> None:
    """Refuse an onnxruntime that measures the activations anew for every file.

    Raises:
        ModelError: If it is older than 1.27, the first one that keeps what it has measured.
    """
    with needs_extra('export'):
        import onnxruntime
        from onnxruntime.quantization import quantize_static
    if 'calibration_cache_path' not in inspect.signature(quantize_static).parameters:
        raise ModelError(
            f'int8 needs onnxruntime 1.27 or newer, not {onnxruntime.__version__}: '
            "pip install -U 'tinyvit-zoo[export]'."
        )


def open_run(path: Path, threads: int = 0) -> Run:
    """Runs an ONNX file of one input and one output on the processor; 0 threads: all cores."""
    with needs_extra('export'):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def quantize_file(
    source: Path,
    output: Path,
    calibration: Sequence[np.ndarray],
    check: Check,
    *,
    keep: Sequence[str] = (),
    min_agreement: float | None = None,
    reduce_range: bool = False,
) -> Quantized:
    """Quantize an exported file: QDQ, a scale per output channel of the weights, unsigned activations.

    The file appears whole or not at all. Its metadata is that of the source, with how it was quantized.

    Args:
        source: ONNX in float32, of one input and one output, folded.
        output: ONNX in int8.
        calibration: Inputs that activations are measured on.
        check: Compares with float32.
        keep: Patterns of names of modules that stay in float32.
        min_agreement: Leave groups in float32, those first that cost most on the calibration images, until the
            agreement on the images of the check is at least this. None leaves none but `keep`.
        reduce_range: Weights of 7 bits, for processors without VNNI, whose sums of products of 8 bits may saturate.

    Raises:
        ModelError: If a pattern of `keep` matches nothing, all of them match everything, or onnxruntime is missing or
            too old.
        EvaluationError: If only a file without int8 has the agreement, or a disk is full.
        OSError: If the file cannot be written.
    """
    with needs_extra('export'):
        import onnx
    check_onnxruntime()
    nodes = onnx.load(source, load_external_data=False).graph.node
    kept = kept_nodes(nodes, keep)
    parts = {group: left for group, names in groups(nodes).items() if (left := set(names) - kept)}
    if not parts:
        raise ModelError(f'--keep {",".join(keep)} leaves no layer that could become int8: name fewer.')
    with (
        tempfile.TemporaryDirectory(prefix='int8.') as folder,
        new_file(output) as new,
        _full_disk_is_said(source, new),
    ):
        quantizer = _Quantizer(source, Path(folder), calibration, reduce_range)
        steps = [_step('', quantizer, new, kept, check)]
        if min_agreement is not None and steps[-1][0].agreement < min_agreement:
            costly = Check(_Numbered(calibration), open_run(source), check.agreement)
            for group in _by_cost(quantizer, parts, costly)[:-1]:  # without the last one there would be no int8
                kept = kept | parts[group]
                steps.append(_step(group, quantizer, new, kept, check))
                if steps[-1][0].agreement >= min_agreement:
                    break
            else:
                raise EvaluationError(_unreachable(min_agreement, [step.agreement for step, _ in steps]))
        _note(new, source, len(calibration), reduce_range, keep, [step.group for step, _ in steps[1:]])
        in_float = left_in_float(onnx.load(new, load_external_data=False))
        sizes = (source.stat().st_size / 1e6, new.stat().st_size / 1e6)
        milliseconds = _milliseconds(source, new, calibration[0])
    return Quantized(
        output, sizes, len(calibration), steps[-1][1], milliseconds, in_float, tuple(step for step, _ in steps)
    )


def _unreachable(wanted: float, found: Sequence[float]) -> str:
    return (
        f'However few layers are int8, the agreement stays below {wanted:g}, the best was {max(found):.4f}: lower '
        '--min-agreement, or calibrate on more images.'
    )


@contextlib.contextmanager
def _full_disk_is_said(source: Path, new: Path) -> Iterator[None]:
    """Raise an EvaluationError where there was no room: onnx notices when it reads what it has written in part."""
    try:
        yield
    except (EvaluationError, ModelError):
        raise
    except Exception as e:
        folders = (Path(tempfile.gettempdir()), new.parent)
        free = [shutil.disk_usage(folder).free for folder in folders]
        if getattr(e, 'errno', None) != errno.ENOSPC and min(free) > COPIES * source.stat().st_size:
            raise
        rooms = ' and '.join(f'{room / 1e6:.0f} MB in {folder}' for room, folder in zip(free, folders, strict=True))
        raise EvaluationError(
            f'The disk seems to be full ({rooms} are free): make room, or name a larger folder for temporary files by '
            'the environment variable TMPDIR.'
        ) from e


class _Numbered(Iterable[tuple[int, np.ndarray]]):
    """Position and input of each image, any number of times."""

    def __init__(self, inputs: Sequence[np.ndarray]) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        return iter(enumerate(self.inputs))


class _Quantizer:
    """onnxruntime's quantizer of one file; activations are measured once, whatever is left in float32."""

    def __init__(self, source: Path, folder: Path, calibration: Sequence[np.ndarray], reduce_range: bool) -> None:
        import onnx
        from onnxruntime.quantization import quant_pre_process

        self.folder = folder
        self._calibration = calibration
        self._reduce_range = reduce_range
        self._shaped = folder / 'shaped.onnx'
        self._ranges = folder / 'ranges.json'
        # BatchNorm is folded already. What else onnxruntime merges would lose the names of the modules, and it writes
        # tables anew that the graph shares.
        quant_pre_process(source, self._shaped, skip_optimization=True, skip_symbolic_shape=True)
        model = onnx.load(self._shaped)
        fold_transposes(model)
        onnx.save(model, self._shaped)

    def __call__(self, target: Path, *, exclude: Collection[str] = (), only: Collection[str] = ()) -> None:
        """Write the file with some nodes left in float32, or with some alone in int8."""
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        with _quiet():
            quantize_static(
                self._shaped,
                target,
                _reader(self._calibration),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTIZED),
                per_channel=True,
                reduce_range=self._reduce_range,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=sorted(exclude),
                nodes_to_quantize=sorted(only),
                calibration_cache_path=self._ranges,
            )


def _reader(inputs: Sequence[np.ndarray]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        """Hands onnxruntime one input after the other."""

        def __init__(self) -> None:
            self.left = iter(tqdm(inputs, unit='image', desc='calibration', leave=False, disable=None))

        def get_next(self) -> dict[str, np.ndarray] | None:
            x = next(self.left, None)
            return None if x is None else {INPUT: x}

    return Reader()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime's quantizer warns on the root logger of what does not concern this model, once for every weight."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def _step(group: str, quantizer: _Quantizer, new: Path, kept: Collection[str], check: Check) -> tuple[Step, Comparison]:
    quantizer(new, exclude=kept)
    comparison = check.compare(open_run(new))
    return Step(group, comparison.agreement, new.stat().st_size / 1e6), comparison


def _by_cost(quantizer: _Quantizer, parts: Mapping[str, Collection[str]], check: Check) -> list[str]:
    """The groups, those first that alone in int8 cost most agreement on the calibration images, then most in logits."""
    costs: dict[str, tuple[float, float]] = {}
    target = quantizer.folder / 'alone.onnx'
    for group, names in tqdm(parts.items(), unit='group', desc='cost of groups', leave=False, disable=None):
        quantizer(target, only=names)
        found = check.compare(open_run(target))
        costs[group] = (found.agreement, -found.mean)
    return sorted(costs, key=costs.__getitem__)


def _note(
    new: Path, source: Path, calibrated: int, reduce_range: bool, keep: Sequence[str], groups: Sequence[str]
) -> None:
    """Write the metadata of the source, and how the file was quantized."""
    import onnx

    model = onnx.load(new)
    facts = dict(
        activations='uint8', weights='int8', bits=7 if reduce_range else 8, images=calibrated, float32=[*keep, *groups]
    )
    metadata = {entry.key: entry.value for entry in onnx.load(source, load_external_data=False).metadata_props}
    onnx.helper.set_model_props(model, metadata | dict(quantization=json.dumps(facts)))
    onnx.save(model, new)


def _milliseconds(source: Path, new: Path, x: np.ndarray) -> tuple[float, float]:
    runs = {name: open_run(path, threads=1) for name, path in (('float32', source), ('int8', new))}
    seconds = measure({name: partial(run, x) for name, run in runs.items()}, ROUNDS)
    float32, int8 = (1e3 * statistics.median(seconds[name]) for name in runs)
    return float32, int8
