"""What a contraction measures of its candidates: kept on disk as soon as it is known, and ranked.

Any number of processes may ask for the same candidates. Each holds a lock while it is about one, which the system takes
from a process that dies, and the others leave that candidate alone.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from filelock import FileLock, Timeout

from ..common.errors import EvaluationError
from ..common.files import write_whole
from ..common.paired_accuracy import paired_interval
from ..common.paths import read_json
from ..common.plain import plain
from ..common.text import reason
from .contraction_factors import Candidate

__all__ = ['Outcome', 'Ranked', 'Trainer', 'outcome_of', 'outcome_words', 'rank']

RESULT, THROUGHPUT, CLAIM = 'result.json', 'throughput.json', '.claim'


@dataclass(frozen=True)
class Outcome:
    """What was measured of a candidate.

    Attributes:
        candidate: The model.
        throughput: Images a second as a multiple of the start model's, measured in turn with it.
        right: (N,) bool, whether it is right about each held-out image; None if it is too slow to be trained.
    """

    candidate: Candidate
    throughput: float
    right: np.ndarray | None

    @property
    def accuracy(self) -> float:
        """In %; NaN if it was not trained."""
        return math.nan if self.right is None else 100 * float(self.right.mean())


@dataclass(frozen=True)
class Ranked:
    """A candidate in the ranking of its step.

    Attributes:
        outcome: What was measured.
        difference: Its accuracy less that of the most accurate candidate, in percentage points.
        interval: 95 % interval of that difference, on the same images.
        tied: The interval holds 0.
    """

    outcome: Outcome
    difference: float
    interval: tuple[float, float]
    tied: bool


class Trainer(Protocol):
    """Measures candidates; the search itself knows nothing of images."""

    def throughput(self, candidate: Candidate) -> float:
        """Images a second as a multiple of the start model's."""

    def right(self, candidate: Candidate, folder: Path) -> np.ndarray:
        """(N,) bool, for each held-out image, after a short training that leaves its weights in the folder."""


def outcome_of(candidate: Candidate, least: float | None, trainer: Trainer, folder: Path) -> Outcome | None:
    """What is known of a candidate, after measuring it if nobody has; None if another process is about it.

    Args:
        candidate: The model.
        least: Throughput below which it is not trained; None for any.
        trainer: Measures what is not known.
        folder: Of the candidate.

    Raises:
        EvaluationError: If the folder cannot be written to, or holds a damaged file or another candidate.
    """
    known = _read_outcome(folder / RESULT, candidate)
    if known is not None:
        return known
    lock = FileLock(folder / CLAIM)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        return None
    except NotImplementedError:  # a file system without locks
        pass
    except OSError as e:
        raise EvaluationError(f'{folder} cannot be written to ({reason(e)}): choose another --output.') from e
    try:
        return _read_outcome(folder / RESULT, candidate) or _measured(candidate, least, trainer, folder)
    finally:
        lock.release()


def _measured(candidate: Candidate, least: float | None, trainer: Trainer, folder: Path) -> Outcome:
    """Throughput first: a candidate that is too slow is not trained."""
    known = _read_outcome(folder / THROUGHPUT, candidate)
    if known is None:
        known = Outcome(candidate, trainer.throughput(candidate), None)
        _write_outcome(folder / THROUGHPUT, known)
    if least is None or known.throughput >= least:
        known = Outcome(candidate, known.throughput, trainer.right(candidate, folder))
    _write_outcome(folder / RESULT, known)
    return known


def _write_outcome(path: Path, outcome: Outcome) -> None:
    right = None if outcome.right is None else ''.join('01'[int(value)] for value in outcome.right)
    content = dict(candidate=plain(outcome.candidate), throughput=outcome.throughput, right=right)
    write_whole(path, (json.dumps(content) + '\n').encode())


def _read_outcome(path: Path, candidate: Candidate) -> Outcome | None:
    """None if the file is not there."""
    if not path.exists():
        return None
    try:
        content = read_json(path)
        found, throughput, right = content['candidate'], float(content['throughput']), content['right']
        answers = None if right is None else np.array([{'0': False, '1': True}[value] for value in right])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise EvaluationError(f'{path} is damaged: remove it, and the candidate is measured again.') from e
    if found != plain(candidate):
        raise EvaluationError(f'{path} is of another candidate than {candidate.name} of this search: remove it.')
    return Outcome(candidate, throughput, answers)


def rank(outcomes: Sequence[Outcome]) -> list[Ranked]:
    """Trained candidates in order: first those that cannot be told from the most accurate one, the fastest of them
    first, then the others by accuracy.
    """

    def size(outcome: Outcome) -> tuple[int, str]:
        return outcome.candidate.parameters, outcome.candidate.name

    best = min(outcomes, key=lambda o: (-o.accuracy, -o.throughput, *size(o)))
    ranked = []
    for outcome in outcomes:
        right, highest = cast(np.ndarray, outcome.right), cast(np.ndarray, best.right)
        interval = (0.0, 0.0) if outcome is best else paired_interval(right, highest)
        tied = interval[0] <= 0 <= interval[1]
        ranked.append(Ranked(outcome, outcome.accuracy - best.accuracy, interval, tied))
    ties = sorted((r for r in ranked if r.tied), key=lambda r: (-r.outcome.throughput, *size(r.outcome)))
    rest = (r for r in ranked if not r.tied)
    return ties + sorted(rest, key=lambda r: (-r.outcome.accuracy, -r.outcome.throughput, *size(r.outcome)))


def outcome_words(outcome: Outcome) -> str:
    """Name, parameters, throughput and accuracy."""
    found = outcome.candidate
    words = f'{found.name}: {found.parameters:,} parameters, {outcome.throughput:.2f}x'
    return f'{words}, too slow' if outcome.right is None else f'{words}, {outcome.accuracy:.2f} % of held-out images'
