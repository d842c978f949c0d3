"""What `reproduce` prints beside its tables: the list, the commands of a figure, notes and ratios."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import typer

from .console import console, printer

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from ..downstream.reproduce.costs import Costs
    from ..downstream.reproduce.entries import Entry
    from ..downstream.reproduce.figures import Figure
    from ..downstream.reproduce.numbers import Number
    from ..downstream.reproduce.overview import Overview
    from ..downstream.reproduce.ratios import Ratios

LEGEND = (
    'measured here: counted by this command, without data or weights.',
    'no data: the weights are published, or a config here trains the detector; the data has to be fetched.',
    'quoted: neither this package nor timm has the model, or the text at hand lacks the number.',
    "data, weights: bytes of archives (+ where some sizes are not known) and of this package's releases.",
    'GPU-hours: of one V100, as published; ~ estimated from a published training of the same kind; most are not known.',
    '--list PAPER names the sources.',
)


def print_list(name: str | None) -> None:
    """Tables and figures of a paper, a table, or all; of fewer than all what their data is and what was published."""
    from ..downstream.reproduce.entries import entries_of
    from ..downstream.reproduce.figures import figures_of
    from ..downstream.reproduce.overview import overview

    figures = figures_of(name)
    found = [] if figures and figures[0].name == name else [(entry, overview(entry)) for entry in entries_of(name)]
    if found:
        console().print(_needs(found) if name is None else _states(found))
        if name is not None:
            console().print()
            console().print(_data(found))
            _say_sources(found)
    if figures:
        console().print()
        console().print(_figures(figures))
    say = printer()
    say('')
    for line in LEGEND:
        say(line)


def _table(*columns: tuple[str, bool]) -> 'Table':
    """An empty table; the second of each column says whether it holds numbers."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading, numbers in columns:
        table.add_column(heading, justify='right' if numbers else 'left', no_wrap=numbers or heading == 'table')
    return table


def _needs(found: Sequence[tuple['Entry', 'Overview']]) -> 'Table':
    table = _table(
        ('table', False), ('numbers', True), ('measured here', True), ('data', True), ('weights', True),
        ('GPU-hours', True), ('what it shows', False),
    )  # fmt: skip
    for entry, overview in found:
        costs = overview.costs
        table.add_row(
            entry.name, str(overview.numbers), str(overview.measured), _data_bytes(costs),
            _bytes(costs.weight_bytes), _hours(costs), entry.title,
        )  # fmt: skip
    return table


def _states(found: Sequence[tuple['Entry', 'Overview']]) -> 'Table':
    table = _table(
        ('table', False), ('numbers', True), ('measured here', True), ('no data', True), ('no weights', True),
        ('other hardware', True), ('quoted', True), ('what it shows', False),
    )  # fmt: skip
    for entry, x in found:
        counts = (x.numbers, x.measured, x.no_data, x.no_weights, x.other_hardware, x.quoted)
        table.add_row(entry.name, *map(str, counts), entry.title)
    return table


def _data(found: Sequence[tuple['Entry', 'Overview']]) -> 'Table':
    table = _table(
        ('table', False), ('data', True), ('weights', True), ('GPU-hours', True), ('what has to be fetched', False)
    )
    for entry, overview in found:
        costs = overview.costs
        table.add_row(
            entry.name, _data_bytes(costs), _bytes(costs.weight_bytes), _hours(costs), ', '.join(costs.archives) or '-'
        )
    return table


def _say_sources(found: Sequence[tuple['Entry', 'Overview']]) -> None:
    from ..downstream.reproduce.costs import ARCHIVES

    say = printer()
    costs = [overview.costs for _, overview in found]
    say('')
    for name in dict.fromkeys(name for x in costs for name in x.archives):
        archive = ARCHIVES[name]
        say(f'{name}: ' + (f'{_bytes(archive.bytes)} ({archive.source})' if archive.bytes else 'size not known'))
    for hours in dict.fromkeys(hours for x in costs for hours in x.hours):
        word = 'estimated ' if hours.estimated else ''
        say(f'{hours.training}: {word}{_number(hours.hours)} GPU-hours ({hours.source})')


def _figures(figures: Sequence['Figure']) -> 'Table':
    table = _table(('figure', False), ('commands', True), ('what it shows', False), ('data', False))
    for figure in figures:
        table.add_row(figure.name, str(len(figure.commands)), figure.title, ', '.join(figure.data))
    return table


def print_figure(figure: 'Figure') -> None:
    """The commands that draw a figure, and what they need."""
    say = printer()
    say(f'{figure.name}: {figure.title}. Nothing is run; these commands draw it:')
    _say_all(figure.commands)
    say(f'Needs the data of {", ".join(figure.sources)}')
    if figure.models:
        say(f'and the weights of {", ".join(figure.models)}.')
    if figure.lacks:
        say(figure.lacks)
    if any('FILE' in command for command in figure.commands):
        say('FILE: the file of an encoder, such as those weights.')


def print_notes(numbers: Sequence['Number']) -> None:
    """What contradicts numbers of a table."""
    from ..downstream.reproduce.notes import notes_of

    notes = notes_of(numbers)
    if notes:
        say = printer()
        say('Published numbers that contradict each other:')
        for note in notes:
            say(f'- {note.text} ({", ".join(note.ids)})')


def print_ratios(entry: 'Entry', numbers: Sequence['Number'], output: 'Path | None') -> 'Ratios':
    """Measure the speed of a table's models, or its training times, beside each other; print and write the ratios."""
    from ..downstream.reports.ratios import RATIO_HEADINGS, ratio_cells, write_ratios
    from ..downstream.reproduce.entries import ENTRIES
    from ..downstream.reproduce.ratios import TASK, measure_ratios
    from ..downstream.reproduce.training_costs import has_public_teacher, measure_training_costs

    if TASK in entry.jobs:
        ratios = measure_ratios(numbers)
    elif has_public_teacher(entry):
        ratios = measure_training_costs(numbers)
    else:
        names = [name for name, other in ENTRIES.items() if TASK in other.jobs or has_public_teacher(other)]
        raise typer.BadParameter(
            f'{entry.name} has neither images a second nor the time of a training with a public teacher; take '
            f'{", ".join(names)}.'
        )
    table = _table(*((heading, heading not in ('row', 'metric', 'remark')) for heading in RATIO_HEADINGS))
    for row in ratios.rows:
        table.add_row(*ratio_cells(row))
    console().print(table)
    say = printer()
    say(f'{ratios.rule}; none of them is a measured number of the table.')
    say(ratios.words)
    say('')
    if output is not None:
        write_ratios(output, entry, ratios, say)
    return ratios


def _say_all(lines: Iterable[str]) -> None:
    say = printer()
    for line in lines:
        say(f'  {line}')


# --- words


def _bytes(count: int) -> str:
    """'154.6 GB', '85 MB'; '-' for nothing."""
    if not count:
        return '-'
    if count < 1e9:
        return f'{count / 1e6:,.0f} MB'
    return f'{count / 1e9:,.1f} GB' if count < 1e11 else f'{count / 1e9:,.0f} GB'


def _data_bytes(costs: 'Costs') -> str:
    """With '+' where the size of an archive is not known."""
    if not costs.data_bytes and costs.unknown:
        return '?'
    return _bytes(costs.data_bytes) + ('+' if costs.unknown else '')


def _hours(costs: 'Costs') -> str:
    """'3,360', '~48', or both; '-' where none are known."""
    published, estimated = costs.gpu_hours(estimated=False), costs.gpu_hours(estimated=True)
    words = [] if published is None else [_number(published)]
    return ', '.join(words if estimated is None else [*words, f'~{_number(estimated)}']) or '-'


def _number(value: float) -> str:
    return f'{value:,.0f}' if value >= 10 else f'{value:.2g}'
