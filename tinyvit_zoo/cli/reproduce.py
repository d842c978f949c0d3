"""`reproduce`: the published tables beside what is measured here."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from .console import command, console, printer, quiet_logs
from .options import OutputFolder, Words, make_output, read_words
from .reproduce_lists import print_figure, print_list, print_notes, print_ratios

if TYPE_CHECKING:
    from ..downstream.reproduce.jobs import Line
    from ..downstream.reproduce.record import Entry


def register(app: typer.Typer, panel: str) -> None:
    app.command('reproduce', rich_help_panel=panel)(command(reproduce))


def reproduce(
    *,
    table: Annotated[
        str | None,
        typer.Argument(
            help='A table such as tinyvit/table4, or a figure such as mae_lite/figure1; with --list a paper, too.',
            metavar='[TABLE]',
        ),
    ] = None,
    listed: Annotated[
        bool, typer.Option('--list', help='List tables and figures, what they need, and what is measured here.')
    ] = False,
    only: Annotated[
        Words | None,
        typer.Option('--only', parser=read_words, help='These rows, between commas.', metavar='ROW,ROW'),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option('--dry-run', help='Print the table with the command of each row; measure nothing.')
    ] = False,
    ratios: Annotated[
        bool,
        typer.Option('--ratios', help="Only the speed of its models beside each other, on this machine's processor."),
    ] = False,
    output: OutputFolder = None,
) -> None:
    """Put what is measured here beside a table of a paper.

    Parameters, MACs, dimensions and the storage of soft labels are measured. Numbers that need data, weights or the
    authors' hardware are not: the table says what each of them lacks, and which command measures it. With --output
    finished rows stay, and the same command again measures the others.
    """
    from ..downstream.reports.reproduce import check_folder, states_in_words, write_table
    from ..downstream.reproduce.entries import find_entry, find_rows
    from ..downstream.reproduce.figures import find_figure
    from ..downstream.reproduce.jobs import State, run_rows

    quiet_logs()
    if listed:
        return print_list(table)
    if table is None:
        raise typer.BadParameter('Name a table, such as tinyvit/table4; --list shows them.')
    if (figure := find_figure(table)) is not None:
        return print_figure(figure)
    entry = find_entry(table)
    numbers = find_rows(entry, only or ())
    if output is not None and not dry_run:
        make_output(output)
        check_folder(output, entry)
    if ratios:
        return print_ratios(entry, numbers, output)
    say = printer()
    lines = run_rows(numbers, output, dry=dry_run, say=say)
    _print(entry, lines, commands=dry_run)
    say(states_in_words(lines))
    print_notes(numbers)
    if output is not None and not dry_run:
        write_table(output, entry, lines, only=only or (), say=say)
    if any(line.state is State.FAILED for line in lines):
        raise typer.Exit(1)
    return None


def _print(entry: 'Entry', lines: Sequence['Line'], commands: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    from ..downstream.reports.reproduce import HEADINGS, table_rows

    table = Table(title=escape(f'{entry.name}: {entry.title}'), title_justify='left', box=None, pad_edge=False)
    for heading in (*HEADINGS, 'command') if commands else HEADINGS:
        table.add_column(heading, justify='right' if heading in ('paper', 'measured', 'difference') else 'left')
    for line, cells in zip(lines, table_rows(lines), strict=True):
        table.add_row(*map(escape, (*cells, line.command) if commands else cells))
    console().print(table)
