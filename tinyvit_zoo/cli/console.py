"""Shared by all commands: where they print, how they fail, and options that they have in common."""

import functools
import inspect
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from typing import Any, get_type_hints

import typer
from rich.console import Console
from typer.models import ArgumentInfo

__all__ = ['command', 'console', 'print_error', 'print_json', 'printer', 'quiet_logs', 'quiet_transformers']


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


def command(function: Callable[..., Any], models: bool = True) -> Callable[..., Any]:
    """Make a command of a function: what typer calls instead of it.

    - A parameter whose type is a dataclass stands for the options that its fields are.
    - The models are registered before the function runs, as the console script has not run the body of the package;
      not so with `models=False`.
    - An error that a user can cause ends in one sentence and exit code 1. Any other is a bug and keeps its traceback.
    """
    hints = get_type_hints(function, include_extras=True)
    bundles: dict[str, type[Any]] = {name: kind for name, kind in hints.items() if _is_bundle(name, kind)}

    @functools.wraps(function)
    def wrapped(**values: Any) -> Any:
        if models:
            from .. import models as registered  # noqa: F401
        from ..common.errors import CheckpointError, ModelError, WeightsNotFoundError
        from ..common.extras import MissingExtraError

        for name, bundle in bundles.items():
            values[name] = bundle(**{field: values.pop(field) for field in inspect.signature(bundle).parameters})
        try:
            return function(**values)
        except BrokenPipeError:  # `| head` has read enough
            raise
        except (ModelError, CheckpointError, MissingExtraError, OSError) as e:
            options = _instead_of_weights(parameters) if isinstance(e, WeightsNotFoundError) else ''
            print_error(f'{e} {options}')
            raise typer.Exit(1) from e

    paragraphs = (inspect.getdoc(function) or '').split('\n\n')
    wrapped.__doc__ = '\n\n'.join(' '.join(paragraph.split()) for paragraph in paragraphs)  # rich keeps line breaks
    parameters = _without_bundles(function, hints, bundles)
    wrapped.__dict__['__signature__'] = inspect.Signature(parameters)
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapped


def _instead_of_weights(parameters: Sequence[inspect.Parameter]) -> str:
    """Which options of a command do without weights that cannot be found."""
    names = [f'--{parameter.name.replace("_", "-")}' for parameter in parameters if not _is_argument(parameter)]
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
