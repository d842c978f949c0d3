"""`run`: any script, with our models known to timm."""

import runpy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer, panel: str) -> None:
    # Parsing ends at SCRIPT: everything after it is the script's own, --help and -- included.
    settings = dict(allow_interspersed_args=False, ignore_unknown_options=True)
    app.command('run', context_settings=settings, rich_help_panel=panel)(run)


def run(
    script: Annotated[Path, typer.Argument(help='A Python script.', metavar='SCRIPT', exists=True, dir_okay=False)],
    args: Annotated[
        list[str] | None, typer.Argument(help='Its arguments, passed on unchanged.', metavar='ARGS...')
    ] = None,
) -> Callable[[], None]:
    """Run a script, such as timm's train.py or validate.py, with the models of this package registered.

    Several processes: torchrun --nproc-per-node=2 -m tinyvit_zoo.cli run train.py ...
    """
    return partial(run_script, script, args or [])


def run_script(script: Path, args: list[str]) -> None:
    """Do what `python SCRIPT ARGS...` does, after `import tinyvit_zoo`."""
    from tinyvit_zoo import models  # noqa: F401  the console script has not run the body of the package

    folder = str(script.resolve().parent)
    if sys.flags.safe_path:  # python -P leaves the first entry out
        sys.path.insert(0, folder)
    else:
        sys.path[0] = folder
    sys.argv = [str(script), *args]
    runpy.run_path(str(script), run_name='__main__')
