"""`reproduce`: the published tables beside what is measured here."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import command, console, not_with, printer, quiet_logs, refuse_among_images
from .options import OutputFolder, Words, make_output, read_words
from .reproduce_lists import print_figure, print_list, print_notes, print_ratios

if TYPE_CHECKING:
    from ..downstream.reproduce.jobs import Line
    from ..downstream.reproduce.numbers import Number
    from ..downstream.reproduce.plans import RunCommand
    from ..downstream.reproduce.ratios import Ratios
    from ..downstream.reproduce.record import Entry
    from ..downstream.reproduce.running import Jobs

Scale = StrEnum('Scale', ['digits', 'full'])  # as in downstream.reproduce.plans, which imports torch

INTERRUPTED = 130
"""Exit code of a command after Ctrl-C."""


def register(app: typer.Typer, panel: str) -> None:
    app.command('reproduce', rich_help_panel=panel)(command(reproduce))


def reproduce(
    *,
    context: typer.Context,
    table: Annotated[
        str | None,
        typer.Argument(
            help='A table such as tinyvit/table4, or a figure such as mae_lite/figure1; with --list also a paper.',
            metavar='[TABLE]',
        ),
    ] = None,
    listed: Annotated[
        bool, typer.Option('--list', help='List tables and figures, what they need, and what is measured here.')
    ] = False,
    only: Annotated[
        Words | None,
        typer.Option('--only', parser=read_words, help='Only these rows, separated by commas.', metavar='ROW,ROW'),
    ] = None,
    scale: Annotated[
        Scale | None,
        typer.Option(
            '--scale',
            help='Also run evaluators and trainers. full: as published, on the data in --root. digits: the same on '
            'two small data sets, for a few epochs.',
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            '--root', help='For --scale full: folder with one folder per data set, named after it.', metavar='DIR'
        ),
    ] = None,
    jobs: Annotated[
        Path | None,
        typer.Option(
            '--jobs',
            help='Folder that keeps finished jobs, which several tables can share. Default: DIR/jobs.',
            metavar='DIR',
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option('--dry-run', help='Print the table with the command of each row; measure nothing.')
    ] = False,
    ratios: Annotated[
        bool,
        typer.Option(
            '--ratios',
            help="Also measure, on this machine's processor, the speed of its models beside each other, or the time of "
            'a training with and without a live teacher.',
        ),
    ] = False,
    output: OutputFolder = None,
) -> None:
    """Put what is measured here beside a table of a paper.

    Parameters, MACs, dimensions and the storage of soft labels are measured. Numbers that need data, weights or the
    authors' hardware are not: the table says what each of them needs and which command measures it. --scale runs these
    commands. With --output finished rows are kept, and the same command again measures the others.
    """
    from ..downstream.reproduce.figures import find_figure

    quiet_logs()
    of_rows = ('only', 'scale', 'root', 'jobs', 'dry_run', 'ratios', 'output')
    not_with(listed, '--list', *of_rows)
    if listed:
        return print_list(table)
    if table is None:
        raise typer.BadParameter('Name a table, such as tinyvit/table4; --list shows them.')
    if (figure := find_figure(table)) is not None:
        not_with(figure, 'a figure, whose commands are only printed', *of_rows)
        return print_figure(figure)
    from ..downstream.reports.ratios import read_ratios  # needs the extra `eval`
    from ..downstream.reports.reproduce import (
        check_folder,
        missing_in_words,
        ratios_in_words,
        replaced_in_words,
        states_in_words,
        write_table,
    )
    from ..downstream.reproduce.entries import find_entry, find_rows
    from ..downstream.reproduce.jobs import State, run_rows
    from ..downstream.reproduce.plans import Scale as RunScale
    from ..downstream.reproduce.ratios import with_ratios

    if only is not None and not only:
        raise typer.BadParameter('--only names no row: give it some, or leave it out for the whole table.')
    entry = find_entry(table)
    numbers = find_rows(entry, only or ())
    if ratios and dry_run:
        raise typer.BadParameter('--ratios measures and --dry-run does not: leave one of them out.')
    _check(scale, root, jobs, output, dry_run, numbers)
    if output is not None and not dry_run:
        make_output(output)
        check_folder(output, entry)
    say = printer()
    if ratios:
        speeds: Ratios | None = print_ratios(entry, numbers, output)
    else:
        speeds = read_ratios(output, entry, say) if output is not None else None
    lines = run_rows(
        numbers, output, dry=dry_run, say=say, scale=None if scale is None else RunScale(scale),
        jobs=_jobs(_runner(context), scale, root, jobs, output),
    )  # fmt: skip
    lines = lines if speeds is None else with_ratios(lines, speeds)
    _print(entry, lines, commands=dry_run)
    below = [*replaced_in_words(lines), *ratios_in_words(lines, speeds), *missing_in_words(lines, root)]
    for words in (*below, states_in_words(lines)):
        say(words)
    print_notes(numbers)
    if output is not None and not dry_run:
        write_table(output, entry, lines, only=only or (), scale=scale and str(scale), ratios=speeds, say=say)
    if any(line.state is State.FAILED for line in lines):
        raise typer.Exit(1)
    return None


def _check(
    scale: Scale | None,
    root: Path | None,
    jobs: Path | None,
    output: Path | None,
    dry_run: bool,
    numbers: Sequence['Number'],
) -> None:
    """Usage error on options that do not go together, and on rows of which nothing runs."""
    from ..downstream.reproduce.jobs import may_be_measured

    if scale is None:
        given = '--root' if root else '--jobs' if jobs else ''
        if given:
            raise typer.BadParameter(f'{given} is for evaluators and trainers: add --scale full or --scale digits.')
        return
    if root is not None and scale is not Scale.full:
        raise typer.BadParameter('--root is for --scale full; digits and textures need no folder.')
    if root is not None and not root.is_dir():
        raise typer.BadParameter(f'There is no folder {root}: give --root the folder that holds the data sets.')
    if root is not None:
        _refuse_among_data(root, {'--output': output, '--jobs': jobs})
    if output is None and not dry_run:
        raise typer.BadParameter(f'--scale {scale} needs a folder for results and states: add --output DIR.')
    if not any(may_be_measured(number) for number in numbers):
        raise typer.BadParameter('All of these rows are quoted, and nothing measures them: name other rows.')


def _refuse_among_data(root: Path, places: Mapping[str, Path | None]) -> None:
    """Usage error if a place to write to lies among the images of a data set in the root."""
    from ..common.errors import EvaluationError
    from ..data.registry import REGISTRY

    for option, place in places.items():
        for name in (*REGISTRY, 'imagenet-c'):
            if place is not None:
                with suppress(EvaluationError):  # two folders that may be a split: said if a job reads them
                    refuse_among_images(option, place, name, root / name)


def _jobs(
    run: 'RunCommand', scale: Scale | None, root: Path | None, jobs: Path | None, output: Path | None
) -> 'Jobs | None':
    """Where jobs run and are kept, in no folder for `--dry-run` alone; None where no evaluators and trainers run."""
    from ..downstream.reproduce.jobs import JOBS
    from ..downstream.reproduce.running import Jobs

    folder = jobs or (output and output / JOBS)
    if scale is None:
        return None
    return Jobs(folder and folder.absolute(), run, root and root.absolute(), printer())


def _runner(context: typer.Context) -> 'RunCommand':
    """Runs other commands of the program that this one is a command of."""
    return partial(_run_command, context.find_root().command)


def _run_command(program: Any, words: Sequence[str], log: Path) -> None:
    """Run a command in this process; what it says goes to a file.

    Args:
        program: All commands together.
        words: After `tinyvit-zoo`.
        log: The file.

    Raises:
        JobError: If it ends in an error; the message is its own.
        KeyboardInterrupt: If it was interrupted, which typer makes an exit code or its own exception of.
    """
    from ..downstream.reproduce.running import JobError

    before, code = sys.argv, None
    sys.argv = ['tinyvit-zoo', *words]  # which results.json says
    try:
        with (
            log.open('w', encoding='utf-8', errors='backslashreplace') as file,
            redirect_stdout(file),
            redirect_stderr(file),
        ):
            code = program.main(list(words), prog_name='tinyvit-zoo', standalone_mode=False)
    except typer.Abort as e:
        raise KeyboardInterrupt from e
    except Exception as e:
        if not hasattr(e, 'format_message'):  # no usage error
            raise
        raise JobError(e.format_message()) from e
    finally:
        sys.argv = before
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        lines = log.read_text(encoding='utf-8').strip().splitlines()
        raise JobError(lines[-1] if lines else f'exit code {code}')


def _print(entry: 'Entry', lines: Sequence['Line'], commands: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    from ..downstream.reports.reproduce import headings, table_rows

    columns = headings(lines)
    table = Table(title=escape(f'{entry.name}: {entry.title}'), title_justify='left', box=None, pad_edge=False)
    for heading in (*columns, 'command') if commands else columns:
        right = heading in ('paper', 'measured', 'difference', 'digits', 'ratio, paper', 'ratio, here')
        table.add_column(heading, justify='right' if right else 'left')
    for line, cells in zip(lines, table_rows(lines), strict=True):
        table.add_row(*map(escape, (*cells, line.command) if commands else cells))
    console().print(table)
