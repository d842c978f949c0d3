"""All entries of the four papers, by name, and what belongs to a row."""

import difflib
from collections.abc import Sequence
from functools import cache

from tinyvit_zoo.common.errors import EvaluationError

from . import mae_lite, minivit, tinymim, tinyvit
from .figures import FIGURES
from .numbers import Number, read_numbers
from .record import Entry, Paper, Subject

__all__ = ['ENTRIES', 'PAPERS', 'entries_of', 'find_entry', 'find_rows', 'numbers_of', 'paper_of', 'subject_of']

PAPERS = {module.PAPER.name: module.PAPER for module in (tinyvit, minivit, tinymim, mae_lite)}
ENTRIES = {entry.name: entry for paper in PAPERS.values() for entry in paper.entries}


def find_entry(name: str) -> Entry:
    """The entry of that name.

    Raises:
        EvaluationError: If there is none; the message has the nearest names.
    """
    if name in ENTRIES:
        return ENTRIES[name]
    raise EvaluationError(f"No table is called '{name}': {_nearest(name, [*ENTRIES, *FIGURES])}.")


def entries_of(name: str | None) -> list[Entry]:
    """Those of a paper, the one of a name, or all.

    Raises:
        EvaluationError: If it is neither; the message has the nearest names.
    """
    if name is None:
        return list(ENTRIES.values())
    if name in PAPERS:
        return list(PAPERS[name].entries)
    if name in ENTRIES:
        return [ENTRIES[name]]
    raise EvaluationError(f"No paper or table is called '{name}': {_nearest(name, [*PAPERS, *ENTRIES, *FIGURES])}.")


def find_rows(entry: Entry, rows: Sequence[str] = ()) -> list[Number]:
    """The numbers of an entry, or of some of its rows, in the table's order.

    Raises:
        EvaluationError: If a row is unknown; the message has the nearest names.
    """
    numbers = numbers_of(entry)
    known = list(dict.fromkeys(number.row for number in numbers))
    for row in rows:
        if row not in known:
            raise EvaluationError(f"{entry.name} has no row '{row}': {_nearest(row, known)}.")
    return [number for number in numbers if not rows or number.row in rows]


def numbers_of(entry: Entry) -> tuple[Number, ...]:
    """The numbers of an entry."""
    return _by_entry()[entry.name]


@cache
def _by_entry() -> dict[str, tuple[Number, ...]]:
    found: dict[str, list[Number]] = {name: [] for name in ENTRIES}
    for number in read_numbers():
        found[number.entry].append(number)
    return {name: tuple(numbers) for name, numbers in found.items()}


def paper_of(number: Number) -> Paper:
    """The paper that a number is from."""
    return PAPERS[number.paper]


def subject_of(number: Number) -> Subject | None:
    """The model of a row; None for one that is quoted."""
    subjects = paper_of(number).subjects
    return subjects.get(f'{number.model} @ {number.dataset}') or subjects.get(number.model)


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.3)
    return f'the nearest {"names are" if len(near) > 1 else "name is"} {", ".join(near)}' if near else 'see --list'
