"""Throughput as ratios between models: the paper's on its hardware beside the same on this machine's processor.

A rate on another machine says nothing of a published one, a ratio a little: which of two models is faster, and about by
how much. So a ratio has a column of its own and is never a measured number of the table. `training_costs` has those of
the time of a training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import timm

from tinyvit_zoo.bench import Row, Settings, bench_variants
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.text import count_of

from .entries import subject_of
from .jobs import Line
from .numbers import Number

__all__ = [
    'BATCH', 'ROUNDS', 'TASK', 'Ratio', 'Ratios', 'machine_of', 'measure_ratios', 'runnable', 'side_of', 'with_ratios',
]  # fmt: skip

BATCH, ROUNDS = 4, 5
SETTINGS = Settings(rounds=ROUNDS)
TASK = 'throughput'


@dataclass(frozen=True)
class Ratio:
    """A row's speed, or time of training, over that of the first one.

    Attributes:
        number: The published images a second, or cost of a training.
        published: That over the first row's, on the paper's hardware; None for a cost that is no time.
        here: The same ratio on this machine, median of the rounds; None if it was not measured.
        low: 5th percentile of the rounds.
        high: 95th percentile of the rounds.
        model: What was measured; of a training with a live teacher, the teacher.
        pixels: Side of its images.
        images_per_second: On this machine.
        remark: Why it was not measured; empty if it was.
    """

    number: Number
    published: float | None
    here: float | None = None
    low: float | None = None
    high: float | None = None
    model: str = ''
    pixels: int | None = None
    images_per_second: float | None = None
    remark: str = ''


@dataclass(frozen=True)
class Ratios:
    """Ratios of one table.

    Attributes:
        rows: In the table's order; the first of them that is the paper's own model and runs here has the ratio 1.
        hardware: The paper's, in its words.
        settings: Of the measurement here.
        machine: Processor, versions and load.
        task: 'throughput', or 'training_cost' for times of training.
    """

    rows: tuple[Ratio, ...]
    first: Number
    hardware: str
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    task: str

    @property
    def what(self) -> str:
        """What the ratios are of."""
        return 'speed' if self.task == TASK else 'training time'

    @property
    def rule(self) -> str:
        """How to read them: 'Ratios of speed are over ROW, above 1 is faster'."""
        above = 'is faster' if self.task == TASK else 'takes longer'
        return f'Ratios of {self.what} are over {self.first.row}, above 1 {above}'

    @property
    def words(self) -> str:
        """Where and how it was measured, in one line."""
        s, m = self.settings, self.machine
        call = 'a call' if self.task == TASK else 'an update without reading images and stored labels'
        return (
            f'{m["processor"]} ({m["isa"]}), {count_of(s["threads"], "thread")}, {s["dtype"]}, '
            f'{count_of(s["batch"], "image")} {call}, {count_of(s["rounds"], "round")} in turn, {m["clock"]}, torch '
            f'{m["torch"]}; paper: {self.hardware}'
        )


def with_ratios(lines: Sequence[Line], ratios: Ratios) -> list[Line]:
    """Lines of a table with the ratios of its models in their column."""
    of = {ratio.number.id: ratio for ratio in ratios.rows}
    return [_with(line, of[line.number.id]) if line.number.id in of else line for line in lines]


def _with(line: Line, ratio: Ratio) -> Line:
    rounds = None if ratio.low is None or ratio.high is None else (ratio.low, ratio.high)
    remark = f'{line.remark}; no ratio: {ratio.remark}' if ratio.remark else line.remark
    return replace(line, paper_ratio=ratio.published, ratio=ratio.here, ratio_rounds=rounds, remark=remark)


def runnable(number: Number) -> str:
    """The model of a throughput as timm builds it; empty if there is none at the paper's size."""
    subject = subject_of(number)
    if subject is None or not subject.name:
        return ''
    return subject.name.partition('.')[0] if number.pixels in (None, side_of(subject.name)) else ''


def measure_ratios(
    numbers: Sequence[Number],
    models: Mapping[str, str] | None = None,
    *,
    batch: int = BATCH,
    settings: Settings = SETTINGS,
) -> Ratios:
    """Measure the models of a table beside each other, in one process, with random weights.

    Args:
        numbers: Of one table; others than images a second are left out.
        models: Models by row, as timm names them; those of `runnable` if None.
        batch: Images of a call.
        settings: See `bench`.

    Raises:
        EvaluationError: If fewer than two rows have images a second on the same hardware and a model here.
        ModelError: If a model cannot be built.
    """
    speeds = [number for number in numbers if number.task == TASK and number.value]
    known = {number.row: runnable(number) for number in speeds} if models is None else models
    run = [number for number in speeds if known.get(number.row)]
    own = [number for number in run if 'baseline' not in number.note] or run
    if len(run) < 2:
        raise EvaluationError('Ratios need two rows in images per second whose models are available here.')
    first = own[0]
    ordered = dict.fromkeys([known[first.row], *(known[number.row] for number in run)])
    rows = {row.model: row for row in bench_variants([(name, 'created') for name in ordered], [batch], settings)}
    found = tuple(_ratio(number, first, rows.get(known.get(number.row, ''))) for number in speeds)
    return Ratios(
        tuple(row for row in found if _hardware(row.number) == _hardware(first)),
        first,
        _hardware(first),
        dict(asdict(settings), batch=batch),
        machine_of(rows[known[first.row]]),
        TASK,
    )


def machine_of(row: Row) -> dict[str, Any]:
    """Where a row was measured, and with what."""
    return {key: getattr(row, key) for key in ('processor', 'isa', 'clock', 'load', 'torch', 'timm', 'date', 'commit')}


def _ratio(number: Number, first: Number, row: Row | None) -> Ratio:
    published = float(number.value) / float(first.value)
    if row is None:
        subject = subject_of(number)
        known = subject is not None and bool(subject.name)
        remark = f'timm has the model at {side_of(subject.name)} px' if subject and known else 'no model here'
        return Ratio(number, published, remark=remark)
    if row.state != 'ok':
        return Ratio(number, published, model=row.model, remark='out of memory')
    side = side_of(row.model)
    return Ratio(number, published, row.ratio, row.ratio_low, row.ratio_high, row.model, side, row.images_per_second)


def side_of(name: str) -> int:
    """Side of the images that a model is made for."""
    cfg: Any = timm.get_pretrained_cfg(name)
    return cfg.input_size[-1]


def _hardware(number: Number) -> str:
    """'V100, LeViT script': numbers on different hardware are not compared."""
    return number.note.partition(';')[0]
