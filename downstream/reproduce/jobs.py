"""The rows of a table as jobs: what is measured, kept and read again, and what stands in its place."""

import json
import math
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from tinyvit_zoo.common.errors import CheckpointError, ModelError, WeightsNotFoundError
from tinyvit_zoo.common.files import remove_leftovers, write_whole
from tinyvit_zoo.common.hashes import json_hash
from tinyvit_zoo.common.paths import read_json
from tinyvit_zoo.common.text import as_sentence, reason

from .digits import digits_plan, replaced
from .entries import ENTRIES, subject_of
from .full import full_plan, other_resolution
from .measure import Measurement, measure, plan
from .numbers import Number
from .plans import Plan, Scale, versions
from .protocol import read_number
from .record import DATA, Need, Subject, need_of
from .running import Busy, Jobs

__all__ = ['JOBS', 'Job', 'Line', 'State', 'count_states', 'job_of', 'may_be_measured', 'run_rows']

JOBS = 'jobs'
"""Folder of finished jobs within that of the results."""

FAILURES = (ArithmeticError, AttributeError, CheckpointError, LookupError, ModelError, OSError, RuntimeError, TypeError)
"""What building and running a model may raise; a row that fails does not stop the others."""

TOLERANCE = 1e-9  # of float64 beside a difference of exactly half a unit


class State(StrEnum):
    """Why a row has its number, or why it has none."""

    MEASURED = 'measured'
    ON_DIGITS = 'digits'
    TO_MEASURE = 'to measure'
    FAILED = 'failed'
    NOT_ON_DIGITS = 'not on digits'
    NO_DATA = 'no data'
    NO_WEIGHTS = 'no weights'
    OTHER_HARDWARE = 'other hardware'
    QUOTED = 'quoted'
    LOST = 'lost in the text'


@dataclass(frozen=True)
class Job:
    """A measurement of one number, in plain values: two jobs with one key give one number.

    Attributes:
        id: Of the number.
        command: That does it again.
        measurement: See `Measurement.facts`.
        versions: Of this package, torch and timm.
    """

    id: str
    command: str
    measurement: dict[str, Any]
    versions: dict[str, str]
    weights: None = None  # sizes and dimensions do not depend on them
    data: None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What the job is, as JSON holds it."""
        return json.loads(json.dumps(vars(self)))

    @property
    def key(self) -> str:
        """sha256 (hex) of command, measurement, weights, data and versions."""
        return json_hash(self.facts)

    def path(self, folder: Path) -> Path:
        """Where its result is kept."""
        return folder / JOBS / f'{self.id.replace("/", ".")}.json'


@dataclass(frozen=True)
class Line:
    """A row of the table: the paper's number and what is here beside it.

    Attributes:
        number: The published one.
        state: Why `measured` is there or is not.
        measured: In the unit of the metric, in full; None unless the state is `MEASURED`.
        remark: The source of missing data, the reason of a failure, or what a quoted row lacks.
        command: That measures it, given what is missing; empty if there is none.
        job: Key of the job; empty if there is none.
        digits: What the job on digits or textures gives, in the same unit; None unless the state is `ON_DIGITS`.
        interval: 95 % interval of `measured` or `digits`, where the evaluator gives one.
        replaced: What the job on digits has in place of the full one's.
        paper_ratio: The published speed or training time over that of the first model of `Ratios`; None without ratios.
        ratio: The same on this machine; None if it was not measured.
        ratio_rounds: 5th and 95th percentile of the rounds of `ratio`.
    """

    number: Number
    state: State
    measured: float | None = None
    remark: str = ''
    command: str = ''
    job: str = ''
    digits: float | None = None
    interval: tuple[float, float] | None = None
    replaced: str = ''
    paper_ratio: float | None = None
    ratio: float | None = None
    ratio_rounds: tuple[float, float] | None = None

    @property
    def difference(self) -> float | None:
        """Measured minus published."""
        return None if self.measured is None else self.measured - float(self.number.value)

    @property
    def agrees(self) -> bool | None:
        """Whether the published number is within half a unit of its last digit of the interval, or of the number that
        has none.
        """
        if self.measured is None:
            return None
        low, high = self.interval or (self.measured, self.measured)
        room = self.number.half_unit + TOLERANCE
        return low - room <= float(self.number.value) <= high + room

    @property
    def state_in_words(self) -> str:
        """The state, with the source of missing data, or what digits cannot stand for."""
        in_full = self.remark and self.state in (State.NO_DATA, State.NOT_ON_DIGITS)
        return f'{self.state} ({self.remark})' if in_full else str(self.state)


def job_of(number: Number) -> Job | None:
    """The job that measures a number without data; None if there is none."""
    measurement = _measurement(number)
    return None if measurement is None else _job(number, measurement)


def run_rows(
    numbers: Sequence[Number],
    folder: Path | None = None,
    *,
    dry: bool = False,
    say: Callable[[str], None] = print,
    scale: Scale | None = None,
    jobs: Jobs | None = None,
) -> list[Line]:
    """Measure those of some numbers that need nothing, run evaluators and trainers for others, and say of the rest why
    they have no measured value.

    A finished job is read if it is exactly this one: same command, models, protocol, weights, versions, whole and
    unchanged. A failed job does not stop the others; it is tried again by the next call. A job that another process
    has claimed is left for the end, and then waited for.

    Args:
        numbers: Of one table.
        folder: Keeps finished measurements; None keeps nothing.
        dry: Measure nothing, write nothing.
        say: Prints a line.
        scale: Which evaluators and trainers run; None for none.
        jobs: Where they run and are kept; without it, or a command to run with, they are not looked for.

    Raises:
        EvaluationError: If the folder cannot be written to.
    """
    if folder is not None and not dry:
        remove_leftovers(folder / JOBS)
    own = jobs if jobs is None or not dry else replace(jobs, run=None)
    lines: dict[int, Line] = {}
    waiting = []
    for i, number in enumerate(numbers):
        try:
            lines[i] = _line(number, folder, dry, say, scale, own)
        except Busy:
            waiting.append(i)
    for i in waiting:
        say(f'{numbers[i].id}: another process is running it.')
        lines[i] = _line(numbers[i], folder, dry, say, scale, own, wait=True)
    return [lines[i] for i in range(len(numbers))]


def _line(
    number: Number,
    folder: Path | None,
    dry: bool,
    say: Callable[[str], None],
    scale: Scale | None,
    jobs: Jobs | None,
    wait: bool = False,
) -> Line:
    measurement = _measurement(number)
    if measurement is None:
        line = _unmeasured(number)
        if scale is None or line.state not in (State.NO_DATA, State.NO_WEIGHTS):
            return line
        planned = _PLANS[scale](number)
        return _not_run(line, scale, planned) if isinstance(planned, str) else _run(line, scale, planned, jobs, wait)
    job = _job(number, measurement)
    kept = _kept(job, folder, say)
    if kept is not None:
        return Line(number, State.MEASURED, kept, command=job.command, job=job.key)
    if dry:
        return Line(number, State.TO_MEASURE, command=job.command, job=job.key)
    try:
        measured = float(measure(measurement))
    except FAILURES as e:
        why = reason(as_sentence(e) or e)
        say(f'{number.id} failed: {why}')
        return Line(number, State.FAILED, remark=why, command=job.command, job=job.key)
    if folder is not None:
        _keep(job, measured, folder)
    return Line(number, State.MEASURED, measured, command=job.command, job=job.key)


def may_be_measured(number: Number) -> bool:
    """Whether anything counts, evaluates or trains the model of a number, given what it needs."""
    waiting = (State.NO_DATA, State.NO_WEIGHTS)
    return _measurement(number) is not None or _unmeasured(number).state in waiting


_PLANS: dict[Scale, Callable[[Number], Plan | str]] = {Scale.FULL: full_plan, Scale.DIGITS: digits_plan}


def _not_run(line: Line, scale: Scale, why: str) -> Line:
    """A row without a job at this scale. What the full one lacks stays its state."""
    if scale is Scale.DIGITS:
        return replace(line, state=State.NOT_ON_DIGITS, remark=why, command='')
    if other_resolution(line.number):
        return replace(line, state=State.QUOTED, remark=why)
    detector = need_of(line.number.task, line.number.dataset) in (Need.COCO, Need.ADE20K)
    return replace(line, remark=f'{line.remark}; {why}') if detector else line


def _run(line: Line, scale: Scale, plan: Plan, jobs: Jobs | None, wait: bool) -> Line:
    """A row with the result of its job, which is run if it has to be and can."""
    number, full = line.number, scale is Scale.FULL
    line = replace(line, command=_command_of(plan), job=plan.key, replaced='' if full else replaced(number))
    if full and (jobs is None or jobs.data_folder(plan.data) is None):
        return replace(line, state=State.NO_DATA, remark=DATA[number.dataset].url)
    to_run = replace(line, state=State.TO_MEASURE, remark='')
    if jobs is None:
        return to_run
    try:
        results = jobs.results_of(plan) if jobs.run is None else jobs.finish(plan, wait)
        if results is None:
            return to_run
        value, interval = read_number(results, number.metric, number.dataset)
    except WeightsNotFoundError as e:
        jobs.say(f'{number.id}: {reason(e, 1000)}')
        return replace(line, state=State.NO_WEIGHTS, remark=reason(e, 1000))
    except (CheckpointError, LookupError, OSError, TypeError, ValueError) as e:  # EvaluationError among them
        jobs.say(f'{number.id} failed: {reason(e, 1000)}')
        return replace(line, state=State.FAILED, remark=reason(e, 1000))
    if full:
        return replace(line, state=State.MEASURED, remark='', measured=value, interval=interval)
    return replace(line, state=State.ON_DIGITS, remark='', digits=value, interval=interval)


def _command_of(plan: Plan) -> str:
    """All commands of a job, those that come before it first."""
    return ' && '.join(dict.fromkeys(each.command for each in plan.chain()))


def _measurement(number: Number) -> Measurement | None:
    if not number.value or need_of(number.task, number.dataset) is not Need.NOTHING:
        return None
    planned = plan(number)
    return None if isinstance(planned, str) else planned


def _job(number: Number, measurement: Measurement) -> Job:
    command = shlex.join(['tinyvit-zoo', 'reproduce', number.entry, '--only', number.row, '-o', 'OUT'])
    return Job(number.id, command, measurement.facts(), versions())


def _kept(job: Job, folder: Path | None, say: Callable[[str], None]) -> float | None:
    """The result of exactly this job, or None. Anything else under its name is said and measured again."""
    if folder is None or not job.path(folder).is_file():
        return None
    try:
        found = read_json(job.path(folder))
        checksum = json_hash({name: value for name, value in found.items() if name != 'sha256'})
        value = found['measured']
        whole = found['sha256'] == checksum and type(value) is float and math.isfinite(value)
        if whole and found['key'] == job.key and {name: found.get(name) for name in job.facts} == job.facts:
            return value
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    say(f'{job.path(folder)} holds no result of this job, these models and these versions: it is not used.')
    return None


def _keep(job: Job, measured: float, folder: Path) -> None:
    result = dict(job.facts, key=job.key, measured=measured)
    text = json.dumps(dict(result, sha256=json_hash(result)), indent=2) + '\n'
    write_whole(job.path(folder), text.encode())


def _unmeasured(number: Number) -> Line:
    """The row of a number that is not measured here, and why."""
    if not number.value:
        return Line(number, State.LOST, remark='the text at hand lacks the number')
    need, subject = need_of(number.task, number.dataset), subject_of(number)
    command = _command(number, subject)
    if need is Need.HARDWARE:
        return Line(number, State.OTHER_HARDWARE, remark='measured on other machines', command=command)
    if need is Need.NOTHING:
        planned = plan(number)
        return Line(number, State.QUOTED, remark=planned if isinstance(planned, str) else '')
    if number.task == 'dataset_stats' and number.dataset in DATA and number.metric in ('images_m', 'classes'):
        return Line(number, State.NO_DATA, remark=DATA[number.dataset].url)
    if subject is None or number.metric == 'top1_delta':
        return Line(number, State.QUOTED, remark='neither this package nor timm has the weights')
    if not subject.weights:
        remark = 'nobody has published them' if subject.name else 'nobody has published them, nothing here builds it'
        return Line(number, State.NO_WEIGHTS, remark=remark, command=command)
    if need in (Need.COCO, Need.ADE20K) and not subject.config:
        return Line(number, State.NO_WEIGHTS, remark='no config here trains it')
    return Line(number, State.NO_DATA, remark=DATA[number.dataset].url, command=command)


def _command(number: Number, subject: Subject | None) -> str:
    """The evaluator or trainer of a row with its arguments; empty if there is none."""
    job = ENTRIES[number.entry].jobs[number.task]
    if subject is None or not subject.name:
        return ''
    if not subject.weights and number.task != 'throughput':
        return ' '.join(f'tinyvit-zoo {subject.trainer}'.split()) if subject.trainer else ''
    places = dict(
        name=subject.name,
        data=DATA[number.dataset].name if number.dataset in DATA else '',
        finetune=subject.finetune,
        evaluate=subject.evaluate or ' ',  # nothing more than the model's own
        config=subject.config,
    )
    if not job or any(f'{{{place}}}' in job and not value for place, value in places.items()):
        return ''
    return ' '.join(f'tinyvit-zoo {job.format(**places)}'.split())


def count_states(lines: Iterable[Line]) -> dict[State, int]:
    """How many rows are in each state, in the order of `State`; states without rows are left out."""
    states = [line.state for line in lines]
    return {state: states.count(state) for state in State if state in states}
