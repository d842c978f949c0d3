"""What a user lacks to run a command, in one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from .console import complain

__all__ = ['needs_eval_extra']

EXTRA = ('accelerate', 'matplotlib', 'skimage', 'sklearn')


@contextmanager
def needs_eval_extra(what: str) -> Iterator[None]:
    """Turn the absence of a package of the extra `eval` into one sentence and exit code 1."""
    try:
        yield
    except ModuleNotFoundError as e:
        if (e.name or '').partition('.')[0] not in EXTRA:
            raise
        complain(f"{what} needs {e.name.partition('.')[0]}: pip install 'tinyvit-zoo[eval]'")
        raise typer.Exit(1) from e
