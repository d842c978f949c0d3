"""The modules of our `downstream` folder, whatever else goes by that name; and what a user lacks to run them."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import typer

from .console import complain

__all__ = ['import_downstream', 'needs_eval_extra']

FOLDER = Path(__file__).parents[2] / 'downstream'
# Its name where another package has taken the plain one.
OWN_NAME = '_tinyvit_zoo_downstream'
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


def import_downstream(name: str) -> ModuleType:
    """A module of our `downstream`, the one that was installed beside this package.

    Someone who stands in a folder with a `downstream` of their own has that one first on the path. Theirs is neither
    run nor pushed out of `sys.modules`: ours is then loaded under another name (its modules import each other
    relatively).
    """
    package = 'downstream' if _is_ours('downstream') else OWN_NAME
    if package == OWN_NAME and package not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            OWN_NAME, FOLDER / '__init__.py', submodule_search_locations=[str(FOLDER)]
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules[OWN_NAME] = module
        spec.loader.exec_module(module)
    return importlib.import_module(f'{package}.{name}')


def _is_ours(package: str) -> bool:
    """Whether `import package` would give, or has given, the one in FOLDER. Nothing is run to find out."""
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # something without a spec sits in sys.modules
        return False
    return bool(spec and spec.origin) and Path(spec.origin).resolve() == (FOLDER / '__init__.py').resolve()
