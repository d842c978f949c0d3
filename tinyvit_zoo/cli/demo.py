"""`demo`: train, save, make again and classify, on real pictures."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import typer

from .console import complain, console, explained

FOLDER = Path(__file__).parents[2] / 'downstream'
# Its name where another package has taken the plain one.
OWN_NAME = '_tinyvit_zoo_downstream'


def register(app: typer.Typer) -> None:
    app.command('demo')(demo)


@explained
def demo(
    output: Path = typer.Option(Path('demo_output'), help='Folder for everything that is written.'),
    epochs: int = typer.Option(None, min=1, help='Passes over the training pictures.'),
    seed: int = typer.Option(0, help='Of the split, the start weights and the order.'),
) -> None:
    """Train a small TinyViT on real digits and photo crops, save it, make it again and classify (no network needed)."""
    try:
        module = import_downstream('demo')
    except ModuleNotFoundError as e:
        if (e.name or '').partition('.')[0] not in ('sklearn', 'matplotlib'):
            raise
        complain("The demo needs scikit-learn and matplotlib: pip install 'tinyvit-zoo[eval]'")
        raise typer.Exit(1) from e
    out = console()
    options = {} if epochs is None else {'epochs': epochs}
    module.run_demo(output, seed=seed, say=lambda text: out.print(text, markup=False, soft_wrap=True), **options)


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
