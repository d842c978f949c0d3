"""Shared by all commands: where they print, how they fail, and options that they have in common."""

import functools
import inspect
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_type_hints

import typer
from rich.console import Console
from typer.models import ArgumentInfo

__all__ = [
    'command',
    'console',
    'not_with',
    'only_with',
    'print_error',
    'print_json',
    'printer',
    'quiet_logs',
    'quiet_transformers',
    'refuse_among_images',
]

CONTEXT = 'context_of_command'
_given: ContextVar[Mapping[str, str]] = ContextVar('given', default=MappingProxyType({}))
"""Options on the command line of the command that runs: name of the parameter -> as it is spelled."""


def console() -> Console:
    """Console for stdout; as wide as the terminal, and never cutting lines when piped into a file or `grep`."""
    width = None if sys.stdout.isatty() else max(200, shutil.get_terminal_size().columns)
    return Console(width=width, highlight=False, emoji=False)


def printer() -> Callable[[str], None]:
    """A function that prints lines as they are, but for what acts on a terminal: names of files and classes may."""
    from ..common.text import escaped

    out = console()
    return lambda text: out.print('\n'.join(map(escaped, text.split('\n'))), markup=False, soft_wrap=True)


def print_error(message: str) -> None:
    """One line on stderr, without what acts on a terminal: names of files and keys may."""
    from ..common.text import escaped

    print(escaped(' '.join(message.split())), file=sys.stderr)


def print_json(value: Any) -> None:
    """Plain JSON on stdout and nothing else."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def quiet_logs() -> None:
    """Show warnings of this package, in a line each; timm's and the Hub client's progress notes stay out."""
    import logging

    logging.basicConfig(format='%(message)s', level=logging.WARNING)
    logging.getLogger('timm.scheduler').setLevel(logging.ERROR)  # warns where a training has one update


def quiet_transformers() -> None:
    """As `quiet_logs`, and without the progress bars of transformers."""
    quiet_logs()
    from ..common.extras import needs_extra

    with needs_extra('transformers'):
        from transformers.utils import logging
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def command(function: Callable[..., Any], models: bool = True, results: bool = True) -> Callable[..., Any]:
    """Make a command of a function: what typer calls instead of it.

    - A parameter whose type is a dataclass stands for the options that its fields are.
    - `only_with` knows which options were given.
    - Places may begin with '~', which no shell replaces in `--output=~/run`.
    - What it writes must not lie among the images that it reads: they would be others in the next run. Nor may it
      replace the results of another command, unless it leaves `results.json` alone (`results=False`).
    - The models are registered before the function runs, as the console script has not run the body of the package;
      not so with `models=False`.
    - An error that a user can cause ends in one sentence and exit code 1. Any other is a bug and keeps its traceback.
    """
    hints = get_type_hints(function, include_extras=True)
    bundles: dict[str, type[Any]] = {name: kind for name, kind in hints.items() if _is_bundle(name, kind)}
    own_context = next((name for name, kind in hints.items() if kind is typer.Context), None)

    @functools.wraps(function)
    def wrapped(**values: Any) -> Any:
        if models:
            from .. import models as registered  # noqa: F401
        from ..common.errors import CheckpointError, ModelError, WeightsNotFoundError
        from ..common.extras import MissingExtraError
        from ..common.text import as_sentence

        context = values[own_context] if own_context else values.pop(CONTEXT)
        values = {name: _from_home(value, name) for name, value in values.items()}
        with _options_of(context):
            try:
                _refuse_outputs_among_images(values)
                if results:
                    _refuse_results_of_others(values, context)
                for name, bundle in bundles.items():
                    values[name] = bundle(
                        **{field: values.pop(field) for field in inspect.signature(bundle).parameters}
                    )
                return function(**values)
            except BrokenPipeError:  # `| head` has read enough
                raise
            except (ModelError, CheckpointError, MissingExtraError, OSError) as e:
                options = _instead_of_weights(parameters) if isinstance(e, WeightsNotFoundError) else ''
                print_error(f'{as_sentence(e)} {options}')
                raise typer.Exit(1) from e

    paragraphs = (inspect.getdoc(function) or '').split('\n\n')
    wrapped.__doc__ = '\n\n'.join(' '.join(paragraph.split()) for paragraph in paragraphs)  # rich keeps line breaks
    parameters = _without_bundles(function, hints, bundles)
    if own_context is None:
        parameters.append(inspect.Parameter(CONTEXT, inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))
    wrapped.__dict__['__signature__'] = inspect.Signature(parameters)
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapped


def only_with(condition: Any, what: str, *names: str) -> None:
    """Usage error if options were given that nothing reads.

    Args:
        condition: Whether something reads them.
        what: The options that make it so, in words.
        *names: Of the parameters.
    """
    if not condition and (found := _given_of(names)):
        raise typer.BadParameter(f'{found} {"need" if "," in found else "needs"} {what}.')


def not_with(condition: Any, what: str, *names: str) -> None:
    """Usage error if options were given that another one makes void; arguments as `only_with`."""
    if condition and (found := _given_of(names)):
        raise typer.BadParameter(f'{found} cannot be combined with {what}.')


def _given_of(names: Sequence[str]) -> str:
    return ', '.join(_given.get()[name] for name in names if name in _given.get())


@contextmanager
def _options_of(context: typer.Context) -> Iterator[None]:
    """Let `only_with` know which options a command was given."""
    spelled = {param.name: max(param.opts, key=len) for param in context.command.params if param.name}
    sources = {name: context.get_parameter_source(name) for name in spelled}
    token = _given.set(
        {name: spelled[name] for name, source in sources.items() if source is not None and source.name == 'COMMANDLINE'}
    )
    try:
        yield
    finally:
        _given.reset(token)


def _from_home(value: Any, name: str) -> Any:
    """A path, or several, with '~' replaced; anything else as it is."""
    if isinstance(value, list):
        return [_from_home(item, name) for item in value]
    if isinstance(value, Path):
        with suppress(RuntimeError):  # no such user: then it is a name like any other
            return value.expanduser()
    if isinstance(value, str) and name in ('data', 'store'):  # folders, or something else
        return os.path.expanduser(value)
    return value


def _refuse_outputs_among_images(values: Mapping[str, Any]) -> None:
    """Usage error if a command would write into the folder of images that it reads."""
    for name in ('output', 'cache'):
        place = values.get(name)
        if 'data' in values and place is not None and place.suffix != '.npz':  # of `embed`: a single file, not an image
            refuse_among_images(f'--{name}', place, values['data'], values.get('root'))


def refuse_among_images(option: str, place: str | Path, data: str | Path | None, root: Path | None) -> None:
    """Usage error if a folder to write to lies among images that are read: the next run would read others.

    Args:
        option: That names the folder.
        place: The folder, or a file beside which others are written, as a figure beside kept.json.
        data: Name of a data set, or a folder.
        root: Of the data set.
    """
    from ..data.folders import lies_among_images
    from ..data.registry import find_entry

    entry = find_entry(str(data)) if data else None
    folder = root if entry is not None or (data == 'folder' and root is not None) else data
    if not folder or not os.path.isdir(folder):  # '' would be the working directory
        return
    among = lies_among_images if entry is None else entry.lies_among_images
    if among(Path(place), Path(folder)):
        raise typer.BadParameter(
            f'{option} {place} lies among the images of {folder}, and what is written there would be taken for images '
            'or classes: choose a folder outside.'
        )


def _refuse_results_of_others(values: Mapping[str, Any], context: typer.Context) -> None:
    """Usage error if a command would replace the results of another one, which may have taken days."""
    output = values.get('output')
    if output is None or values.get('dry_run'):
        return
    with suppress(OSError):  # a place that cannot be one, which the command says in its own words
        if (output / 'results.json').is_file():
            _refuse_results_of_another(output, context)


def _refuse_results_of_another(output: Path, context: typer.Context) -> None:
    from ..common.paths import read_json

    own: list[str] = []
    command: Any = context
    while command.parent is not None:  # up to the program itself
        own.insert(0, command.info_name)
        command = command.parent
    try:
        written = shlex.split(read_json(output / 'results.json')['command'])[1:]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # a file of somebody else
        written = []
    if written[: len(own)] != own:
        raise typer.BadParameter(
            f'{output} has the results of another command, which would be lost: choose another folder for those of '
            f'{" ".join(own)}.'
        )


def _instead_of_weights(parameters: Sequence[inspect.Parameter]) -> str:
    """Which options of a command do without weights that cannot be found; none if it was told where they are."""
    names = [f'--{parameter.name.replace("_", "-")}' for parameter in parameters if not _is_argument(parameter)]
    if any(option.startswith('--weights') for option in _given.get().values()):
        return ''
    options = [f'{name} FILE' for name in names if name.startswith('--weights')]
    options += [name for name in names if name.startswith('--random')]
    return f'Give {" or ".join(options)} instead.' if options else ''


def _is_argument(parameter: inspect.Parameter) -> bool:
    return any(isinstance(part, ArgumentInfo) for part in getattr(parameter.annotation, '__metadata__', ()))


def _is_bundle(name: str, kind: Any) -> bool:
    return name != 'return' and isinstance(kind, type) and is_dataclass(kind)


def _without_bundles(
    function: Callable[..., Any], hints: dict[str, Any], bundles: dict[str, type[Any]]
) -> list[inspect.Parameter]:
    """The parameters of a function with the fields of each dataclass in its place."""
    parameters = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name in bundles:
            fields = get_type_hints(bundles[name], include_extras=True)
            inner = inspect.signature(bundles[name]).parameters.values()
            parameters += [p.replace(annotation=fields[p.name], kind=p.KEYWORD_ONLY) for p in inner]
        else:
            parameters.append(parameter.replace(annotation=hints[name], kind=parameter.KEYWORD_ONLY))
    return parameters
