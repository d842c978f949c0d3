"""`demo`: train, save, load, classify and compare, on real images."""

from pathlib import Path
from typing import Annotated

import typer

from .console import command, printer
from .evaluator_options import own_folder


def register(app: typer.Typer, panel: str) -> None:
    app.command('demo', rich_help_panel=panel)(command(demo))


def demo(
    *,
    output: Annotated[
        Path, typer.Option('--output', '-o', help='Folder for everything that is written.', metavar='DIR')
    ] = Path('demo_output'),
    epochs: Annotated[int | None, typer.Option(min=1, help='Passes over the training images.')] = None,
    seed: Annotated[int, typer.Option(help='Of the split, the initial weights and the order.')] = 0,
    photographs: Annotated[
        bool,
        typer.Option(
            '--photographs', help='Also compare the features on crops of photographs, which it was not trained on.'
        ),
    ] = False,
) -> None:
    """Train a small TinyViT on real digits and photo crops, save it, load it, classify, compare its features on unseen
    digits with those of random weights, and let it teach a smaller one (no network needed)."""
    from ..downstream.demo.run import EPOCHS, run_demo
    from ..hub.folder import check_folder

    check_folder(output / 'model')
    with own_folder(output, first=True):
        run_demo(output, EPOCHS if epochs is None else epochs, seed, photographs=photographs, say=printer())
