"""What commands share: where they print, how they fail, and the reading of sizes."""

import functools
import json
import shutil
import sys
from collections.abc import Callable
from typing import Any

import typer
from rich.console import Console

__all__ = ['complain', 'console', 'explained', 'parse_size', 'print_json', 'quiet_logs']


MAX_SIDE = 8192


def console() -> Console:
    """Console for stdout; as wide as the terminal, and never cutting lines when piped into a file or `grep`."""
    width = None if sys.stdout.isatty() else max(200, shutil.get_terminal_size().columns)
    return Console(width=width, highlight=False, emoji=False)


def complain(message: str) -> None:
    """One line on stderr."""
    print(' '.join(message.split()), file=sys.stderr)


def print_json(value: Any) -> None:
    """Plain JSON on stdout and nothing else."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def explained(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let what a user can cause end in one sentence and exit code 1; anything else is a bug and keeps its traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        from ..checkpoints import CheckpointError
        from ..common.errors import ModelError

        try:
            return command(*args, **kwargs)
        except BrokenPipeError:  # `| head` has read enough
            raise
        except (ModelError, CheckpointError, OSError) as e:
            complain(str(e))
            raise typer.Exit(1) from e

    return wrapped


def parse_size(text: str | None) -> tuple[int, int] | None:
    """'384' -> (384, 384), '256x320' -> (256, 320) as (height, width). Usage error on anything else."""
    if text is None:
        return None
    sides = text.lower().split('x')
    if len(sides) > 2 or not all(side.isascii() and side.isdigit() for side in sides):
        raise typer.BadParameter(f"'{text}' is no size: give a side such as 384, or HEIGHTxWIDTH such as 256x320.")
    size = int(sides[0]), int(sides[-1])
    if max(size) > MAX_SIDE:
        raise typer.BadParameter(f"'{text}' is beyond {MAX_SIDE} pixels a side.")
    return size


def quiet_logs() -> None:
    """Show warnings of this package, in a line each; timm's and the Hub client's progress notes stay out."""
    import logging

    logging.basicConfig(format='%(message)s', level=logging.WARNING)
