"""`pretrain`: train an encoder without labels. A command is a function of its own module, listed below."""

import typer

from .console import command
from .pretrain_features import features

COMMANDS = (features,)


def register(app: typer.Typer, panel: str) -> None:
    group = typer.Typer(help='Train an encoder without labels.')
    group.callback()(lambda: None)  # else typer takes a single command for the group itself
    for function in COMMANDS:
        group.command(function.__name__)(command(function))
    app.add_typer(group, name='pretrain', rich_help_panel=panel)
