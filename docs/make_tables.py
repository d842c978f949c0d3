"""Make the pages of the papers' tables again, `docs/tables/*.md`: `python docs/make_tables.py`.

What is counted from the models is kept in `docs/tables/counted.json`, each number with the hash of what was counted: a
test compares pages and hashes without building a model, and a slow one counts everything again. `--keep` takes the kept
counts whose hash is right, which takes seconds instead of half a minute.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tinyvit_zoo.common.hashes import json_hash  # noqa: E402
from tinyvit_zoo.downstream.reports.reproduce import digits, states_in_words  # noqa: E402
from tinyvit_zoo.downstream.reproduce.entries import PAPERS, numbers_of  # noqa: E402
from tinyvit_zoo.downstream.reproduce.figures import figures_of  # noqa: E402
from tinyvit_zoo.downstream.reproduce.jobs import Line, State, run_rows  # noqa: E402
from tinyvit_zoo.downstream.reproduce.measure import Measurement, measure, plan  # noqa: E402
from tinyvit_zoo.downstream.reproduce.notes import notes_of  # noqa: E402
from tinyvit_zoo.downstream.reproduce.numbers import Number, read_numbers  # noqa: E402
from tinyvit_zoo.downstream.reproduce.record import Entry, Need, Paper, need_of  # noqa: E402

PAGES = ROOT / 'docs' / 'tables'
COUNTED = PAGES / 'counted.json'
HEAD = ('number', 'paper', 'measured', 'state')

Counts = Mapping[str, tuple[str, float]]
"""By id of a number: hash of what was counted, and the count in the unit of its metric."""


def main() -> None:
    kept = read_counts() if '--keep' in sys.argv[1:] else {}
    counts = count(kept)
    lines = [f'  {json.dumps(i)}: {json.dumps(value)}' for i, value in counts.items()]
    COUNTED.write_text('{\n' + ',\n'.join(lines) + '\n}\n', encoding='utf-8')
    for name, text in pages(counts).items():
        (PAGES / name).write_text(text, encoding='utf-8')


def planned() -> dict[str, Measurement]:
    """What is counted, by id of the number."""
    found = {}
    for number in read_numbers():
        if number.value and need_of(number.task, number.dataset) is Need.NOTHING:
            measurement = plan(number)
            if isinstance(measurement, Measurement):
                found[number.id] = measurement
    return found


def hash_of(measurement: Measurement) -> str:
    """What was counted, in twelve digits; versions are none of it, as they do not change what a model is."""
    return json_hash(json.loads(json.dumps(measurement.facts())))[:12]


def count(kept: Counts) -> Counts:
    """All counts; those that are kept of exactly this measurement are not made again."""
    found: dict[str, tuple[str, float]] = {}
    for i, measurement in planned().items():
        key = hash_of(measurement)
        same = i in kept and kept[i][0] == key
        found[i] = (key, kept[i][1] if same else float(measure(measurement)))
    return found


def read_counts() -> Counts:
    return {i: (key, value) for i, (key, value) in json.loads(COUNTED.read_text(encoding='utf-8')).items()}


# --- pages


def pages(counts: Counts) -> dict[str, str]:
    """Name of each page and its text."""
    return {f'{paper.name}.md': page(paper, counts) for paper in PAPERS.values()}


def page(paper: Paper, counts: Counts) -> str:
    lines = {entry.name: _lines(numbers_of(entry), counts) for entry in paper.entries}
    everything = [line for part in lines.values() for line in part]
    parts = [
        f'<!-- Written by docs/make_tables.py. -->\n\n# {_short(paper)}: tables',
        f"{paper.title}. Numbers of the paper, its running text and its authors' pages, beside what is counted here "
        f'without data and weights. The id of a number is the name of its table, a slash and the first column; '
        f'[what the states mean](../reproduce.md#the-states). `tinyvit-zoo reproduce TABLE` prints a table with the '
        f'command of each row.',
        f'{states_in_words(everything)}.',
        *(section(entry, lines[entry.name]) for entry in paper.entries),
    ]
    figures = figures_of(paper.name)
    if figures:
        rows = [(f'`{figure.name}`', figure.title, str(len(figure.commands))) for figure in figures]
        parts.append('## Figures')
        parts.append('`tinyvit-zoo reproduce FIGURE` prints the commands that draw one, and what they need.')
        parts.append(_table(('figure', 'what it shows', 'commands'), rows))
    return '\n\n'.join(parts) + '\n'


def section(entry: Entry, lines: Sequence[Line]) -> str:
    """A table of the paper: its numbers, and notes on those that contradict others."""
    parts = [f'## {entry.name}: {entry.title}', f'{states_in_words(lines)}.', _table(HEAD, map(_cells, lines))]
    notes = notes_of([line.number for line in lines])
    if notes:
        parts.append('Contradictions:')
        parts.append('\n'.join(f'- {note.text} {", ".join(f"`{i}`" for i in note.ids)}' for note in notes))
    return '\n\n'.join(parts)


def _lines(numbers: Sequence[Number], counts: Counts) -> list[Line]:
    """Lines of a table with the counts in place."""
    return [
        replace(line, state=State.MEASURED, measured=counts[line.number.id][1])
        if line.state is State.TO_MEASURE and line.number.id in counts
        else line
        for line in run_rows(numbers, dry=True)
    ]


def _cells(line: Line) -> tuple[str, ...]:
    measured, _ = digits(line)
    state = str(line.state) + ('' if line.agrees in (None, True) else ', differs')
    return f'{line.number.row}/{line.number.cell}', line.number.value, measured, state


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    right = {'paper', 'measured', 'commands'}
    rule = ['---:' if heading in right else '---' for heading in head]
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in (head, rule, *rows))


def _short(paper: Paper) -> str:
    return {'tinyvit': 'TinyViT', 'minivit': 'MiniViT', 'tinymim': 'TinyMIM', 'mae_lite': 'MAE-Lite'}[paper.name]


if __name__ == '__main__':
    main()
