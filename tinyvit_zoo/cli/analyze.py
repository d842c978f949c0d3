"""`analyze`: what models compute, layer by layer. A command is a function of its own module."""

import typer

from .analyze_layers import attention, cka, fourier
from .analyze_predictions import class_relations, hard_samples
from .console import command

COMMANDS = (cka, attention, fourier, class_relations, hard_samples)


def register(app: typer.Typer, panel: str) -> None:
    group = typer.Typer(help='What models compute, layer by layer: the analyses of the four papers.')
    for function in COMMANDS:
        group.command(function.__name__.replace('_', '-'))(command(function))
    app.add_typer(group, name='analyze', rich_help_panel=panel)
