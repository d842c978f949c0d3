"""What a table needs and what of it is measured here, without measuring anything."""

from dataclasses import dataclass

from .costs import Costs, costs_of
from .entries import numbers_of, subject_of
from .jobs import State, count_states, run_rows
from .record import Entry

__all__ = ['Overview', 'overview']


@dataclass(frozen=True)
class Overview:
    """Numbers of a table by what becomes of them.

    Attributes:
        numbers: All of them.
        measured: Measured by this package without data and weights.
        no_data: Weights are published; the data has to be fetched.
        no_weights: Nobody has published the weights.
        other_hardware: Throughput and training cost.
        quoted: No model here, or lost in the text.
        data: Data sets of the table, in its order.
        costs: Bytes and GPU-hours.
    """

    numbers: int
    measured: int
    no_data: int
    no_weights: int
    other_hardware: int
    quoted: int
    data: tuple[str, ...]
    costs: Costs


def overview(entry: Entry) -> Overview:
    """Counts of a table."""
    lines = run_rows(numbers_of(entry), dry=True)
    counts = count_states(lines)
    subjects = [subject for subject in map(subject_of, numbers_of(entry)) if subject is not None]
    return Overview(
        numbers=len(lines),
        measured=counts.get(State.TO_MEASURE, 0),
        no_data=counts.get(State.NO_DATA, 0),
        no_weights=counts.get(State.NO_WEIGHTS, 0),
        other_hardware=counts.get(State.OTHER_HARDWARE, 0),
        quoted=counts.get(State.QUOTED, 0) + counts.get(State.LOST, 0),
        data=tuple(dict.fromkeys(line.number.dataset for line in lines if line.number.dataset != '-')),
        costs=costs_of(lines, [subject.name for subject in subjects if subject.weights]),
    )
