"""A table of a paper beside what is measured here: CSV, JSON, Markdown and a figure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.files import write_whole
from tinyvit_zoo.common.paths import read_json
from tinyvit_zoo.common.text import count_of, shown

from ..reproduce.jobs import Line, State, count_states
from ..reproduce.notes import notes_of
from ..reproduce.order import paper_order
from ..reproduce.ratios import Ratios
from ..reproduce.record import DATA, Entry
from ..results import RESULTS, record, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    'HEADINGS', 'check_folder', 'digits', 'headings', 'missing_in_words', 'ratios_in_words', 'replaced_in_words',
    'states_in_words', 'table_rows', 'write_table',
]  # fmt: skip

HEADINGS = ('row', 'metric', 'paper', 'measured', 'difference', 'state')
INTERVAL, DIGITS = '95 % interval', 'digits'
PAPER_RATIO, RATIO = 'ratio, paper', 'ratio, here'


def digits(line: Line) -> tuple[str, str]:
    """Measured value and difference in words: two digits more than the paper, so that rounding is seen."""
    if line.measured is None or line.difference is None:
        return '', ''
    places = len(line.number.value.partition('.')[2])
    # Numbers that are whole by nature, such as a window, need no decimals.
    more = 0 if line.measured.is_integer() and not places else places + 2
    return f'{line.measured:.{more}f}', f'{line.difference:+.{more}f}'


def headings(lines: Sequence[Line]) -> tuple[str, ...]:
    """`HEADINGS`, with columns of their own for digits, intervals and ratios, where there are any."""
    more = [DIGITS] if any(line.digits is not None for line in lines) else []
    more += [INTERVAL] if any(line.interval for line in lines) else []
    more += [PAPER_RATIO, RATIO] if any(line.paper_ratio is not None for line in lines) else []
    return (*HEADINGS[:-1], *more, HEADINGS[-1])


def table_rows(lines: Sequence[Line]) -> list[tuple[str, ...]]:
    """Cells of the table under its `headings`: a difference that does not agree says so."""
    columns = headings(lines)
    rows: list[tuple[str, ...]] = []
    for line in lines:
        measured, difference = digits(line)
        state = line.state_in_words + ('' if line.agrees in (None, True) else ', differs')
        more = [_on_digits(line)] if DIGITS in columns else []
        more += [_interval(line)] if INTERVAL in columns else []
        more += [_two_digits(line.paper_ratio), _two_digits(line.ratio)] if RATIO in columns else []
        rows.append((line.number.row, line.number.cell, line.number.value, measured, difference, *more, state))
    return rows


def _on_digits(line: Line) -> str:
    return '' if line.digits is None else f'{line.digits:.1f}'


def _interval(line: Line) -> str:
    return '' if line.interval is None else '{:.1f} to {:.1f}'.format(*line.interval)


def _two_digits(ratio: float | None) -> str:
    return '' if ratio is None else f'{ratio:.2f}'


def ratios_in_words(lines: Sequence[Line], ratios: Ratios | None) -> list[str]:
    """What the ratios of a table are over, and where they were measured: a line, or none without ratios."""
    if ratios is None or all(line.paper_ratio is None for line in lines):
        return []
    return [f'{ratios.rule}; here: {ratios.words}.']


def missing_in_words(lines: Sequence[Line], root: Path | None) -> list[str]:
    """Which folders the jobs of the full protocol did not find: a line, or none if they found all."""
    waiting = [line for line in lines if line.job and line.state is State.NO_DATA]
    names = ', '.join(dict.fromkeys(DATA[line.number.dataset].name for line in waiting))
    if not names:
        return []
    where = f'{root} has none of the folders' if root else 'Data sets are looked for in --root DIR, in the folders'
    return [f'{where} {names}.']


def replaced_in_words(lines: Sequence[Line]) -> list[str]:
    """What the jobs on digits have in place of the full ones', a line for each kind, and what order they give."""
    kinds = list(dict.fromkeys(line.replaced for line in lines if line.replaced))
    order = paper_order(lines).words
    return [f'On digits, {kind}.' for kind in kinds] + ([order] if order else [])


def states_in_words(lines: Sequence[Line]) -> str:
    """How many rows are measured, how many of them agree, and what became of the others."""
    counts = count_states(lines)
    words = [f'{count} {state}' for state, count in counts.items()]
    if State.MEASURED in counts:
        agreeing = sum(line.agrees is True for line in lines)
        words[0] += f' ({agreeing} {_agreement(lines)})'
    return f'{count_of(len(lines), "number")}: {", ".join(words)}'


def _agreement(lines: Sequence[Line]) -> str:
    """What it takes to agree, in words."""
    unit = 'within half a unit of the last printed digit'
    some = any(line.interval and line.measured is not None for line in lines)
    return f'{unit}, or of the 95 % interval' if some else unit


def check_folder(folder: Path, entry: Entry) -> None:
    """Raise if a folder has the results of another table, which would be lost.

    Raises:
        EvaluationError: If so.
    """
    path = folder / RESULTS
    if not path.exists():
        return
    try:
        table = read_json(path)['table']
    except (OSError, ValueError, KeyError, TypeError):
        table = 'something else'
    if table != entry.name:
        raise EvaluationError(f'{folder} has the results of {shown(table)}: choose another folder for {entry.name}.')


def write_table(
    folder: Path,
    entry: Entry,
    lines: Sequence[Line],
    *,
    only: Sequence[str] = (),
    scale: str | None = None,
    ratios: Ratios | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Write table.csv, table.md, results.json and, where something is measured, table.png.

    Args:
        folder: That of the jobs, too.
        entry: The table.
        lines: Its rows.
        only: Names of the rows asked for; empty for all.
        scale: Of the evaluators and trainers that ran; None for none.
        ratios: Those that the lines have; None for none.
        say: Prints a line.

    Returns:
        Path of results.json.

    Raises:
        EvaluationError: If the folder cannot be written to, or is that of another table.
    """
    check_folder(folder, entry)
    rows = [_plain(line) for line in lines]
    write_whole(folder / 'table.md', _markdown(entry, lines, ratios).encode())
    measured = [line for line in lines if line.measured is not None]
    return write(
        folder,
        record(
            'reproduce',
            model=None,
            dataset=None,
            seed=None,
            table=entry.name,
            only=list(only),
            scale=scale,
            order=asdict(paper_order(lines)),
            ratios=ratios and dict(first=ratios.first.id, settings=ratios.settings, machine=ratios.machine),
            rows=rows,
            notes=[vars(note) for note in notes_of([line.number for line in lines])],
        ),
        tables=dict(table=rows),
        figures=dict(table=_figure(entry, measured)) if measured else {},
        say=lambda text: say(f'{text}, table.md'),
    )


def _plain(line: Line) -> Mapping[str, Any]:
    number = line.number
    low, high = line.interval or (None, None)
    ratio_low, ratio_high = line.ratio_rounds or (None, None)
    return dict(
        id=number.id, model=number.model, dataset=number.dataset, metric=number.metric, paper=number.value,
        measured=line.measured, difference=line.difference, agrees=line.agrees, digits=line.digits, low=low, high=high,
        paper_ratio=line.paper_ratio, ratio=line.ratio, ratio_low=ratio_low, ratio_high=ratio_high,
        state=str(line.state), remark=line.remark, command=line.command, job=line.job, replaced=line.replaced,
        source=number.source, note=number.note,
    )  # fmt: skip


def _markdown(entry: Entry, lines: Sequence[Line], ratios: Ratios | None) -> str:
    def cells(values: Sequence[str]) -> str:
        return f'| {" | ".join(value.replace("|", chr(92) + "|") for value in values)} |'

    columns = headings(lines)
    table = [cells(columns), cells(['---'] * len(columns)), *map(cells, table_rows(lines))]
    notes = [f'- {line.number.row}, {line.number.cell}: {line.number.note}' for line in lines if line.agrees is False]
    parts = [f'# {entry.name}: {entry.title}', states_in_words(lines) + '.', '\n'.join(table)]
    if below := [*replaced_in_words(lines), *ratios_in_words(lines, ratios)]:
        parts.append('\n'.join(f'- {words}' for words in below))
    if notes:
        parts.append('Numbers that differ, with what is known of their source:\n\n' + '\n'.join(notes))
    contradictions = [f'- {note.text} ({", ".join(note.ids)})' for note in notes_of([line.number for line in lines])]
    if contradictions:
        parts.append('Published numbers that contradict each other:\n\n' + '\n'.join(contradictions))
    return '\n\n'.join(parts) + '\n'


def _figure(entry: Entry, lines: Sequence[Line]) -> 'Figure':
    """Differences in units of the last printed digit: within the band the two numbers round alike."""
    from . import plots

    names = [f'{line.number.row}, {line.number.cell}' for line in lines]
    units = [(line.difference or 0.0) / (2 * line.number.half_unit) for line in lines]
    return plots.units_apart(names, units, title=f'{entry.name}: measured minus published')
