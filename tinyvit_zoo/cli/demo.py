"""`demo`: train, save, make again, classify and compare, on real pictures."""

from pathlib import Path

import typer

from .console import console, explained
from .extras import needs_eval_extra


def register(app: typer.Typer) -> None:
    app.command('demo')(demo)


@explained
def demo(
    output: Path = typer.Option(Path('demo_output'), help='Folder for everything that is written.'),
    epochs: int = typer.Option(None, min=1, help='Passes over the training pictures.'),
    seed: int = typer.Option(0, help='Of the split, the start weights and the order.'),
) -> None:
    """Train a small TinyViT on real digits and photo crops, save it, make it again, classify, and compare its features
    with those of random weights (no network needed)."""
    with needs_eval_extra('The demo'):
        from ..downstream.demo import run as module
    out = console()
    options = {} if epochs is None else {'epochs': epochs}
    module.run_demo(output, seed=seed, say=lambda text: out.print(text, markup=False, soft_wrap=True), **options)
