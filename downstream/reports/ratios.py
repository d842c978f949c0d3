"""Ratios of throughput or training time: CSV, JSON and Markdown beside the table that has them in a column, too."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinyvit_zoo.common.files import write_whole
from tinyvit_zoo.common.paths import read_json

from ..reproduce.entries import numbers_of
from ..reproduce.ratios import TASK, Ratio, Ratios
from ..reproduce.record import Entry
from .reproduce import check_folder

__all__ = ['RATIO_HEADINGS', 'ratio_cells', 'read_ratios', 'write_ratios']

RATIOS = 'ratios.json'

RATIO_HEADINGS = (
    'row', 'metric', 'pixels', 'paper', 'paper, ratio', 'here, ratio', '90 % of the rounds', 'remark',
)  # fmt: skip


def ratio_cells(row: Ratio) -> tuple[str, ...]:
    """A line under `RATIO_HEADINGS`."""
    published, here = ('' if ratio is None else f'{ratio:.2f}' for ratio in (row.published, row.here))
    rounds = '' if row.low is None or row.high is None else f'{row.low:.2f} to {row.high:.2f}'
    pixels = '' if row.pixels is None else str(row.pixels)
    number = row.number
    return number.row, number.metric, pixels, number.value, published, here, rounds, row.remark


def write_ratios(folder: Path, entry: Entry, ratios: Ratios, say: Callable[[str], None] = print) -> None:
    """Write ratios.csv, ratios.md and ratios.json; other files of the folder stay.

    Raises:
        EvaluationError: If the folder cannot be written to, or is that of another table.
    """
    check_folder(folder, entry)
    rows = [_plain(row) for row in ratios.rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    whole = dict(
        table=entry.name, task=ratios.task, first=ratios.first.id, paper_hardware=ratios.hardware,
        settings=dict(ratios.settings), machine=dict(ratios.machine), rows=rows,
    )  # fmt: skip
    write_whole(folder / 'ratios.csv', text.getvalue().encode())
    write_whole(folder / 'ratios.md', _markdown(entry, ratios).encode())
    write_whole(folder / RATIOS, (json.dumps(whole, indent=2) + '\n').encode())
    say(f'Written to {folder}: ratios.csv, ratios.md, ratios.json')


def read_ratios(folder: Path, entry: Entry, say: Callable[[str], None] = print) -> Ratios | None:
    """The ratios that were measured into the folder of a table; None if there are none. A damaged file is named."""
    path = folder / RATIOS
    if not path.exists():
        return None
    numbers = {number.id: number for number in numbers_of(entry)}
    try:
        found = read_json(path)
        rows = [{key: value for key, value in row.items() if key not in ('id', 'paper')} for row in found['rows']]
        ratios = Ratios(
            tuple(Ratio(numbers[old['id']], **row) for old, row in zip(found['rows'], rows, strict=True)),
            numbers[found['first']], found['paper_hardware'], found['settings'], found['machine'],
            str(found.get('task', TASK)),  # earlier versions had those of throughput alone
        )  # fmt: skip
        _check(ratios)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        say(f'{path} holds no ratios of {entry.name}: it is not used.')
        return None
    return ratios


def _check(ratios: Ratios) -> None:
    """Raise TypeError or KeyError on values that a table cannot print."""
    for row in ratios.rows:
        for value in (row.published, row.here, row.low, row.high):
            if value is not None and type(value) not in (int, float):
                raise TypeError(value)
    str(ratios.words)  # takes what it needs of settings and machine


def _plain(row: Ratio) -> dict[str, Any]:
    values = asdict(row)
    number = values.pop('number')
    return dict(id=number['id'], paper=number['value'], **values)


def _markdown(entry: Entry, ratios: Ratios) -> str:
    lines = [RATIO_HEADINGS, ('---',) * len(RATIO_HEADINGS), *map(ratio_cells, ratios.rows)]
    table = '\n'.join(f'| {" | ".join(cells)} |' for cells in lines)
    return f'# {entry.name}: {ratios.what} over that of {ratios.first.row}\n\n{ratios.words}\n\n{table}\n'
