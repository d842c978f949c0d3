"""`pretrain`: train an encoder without labels. A command is a function of its own module, listed below."""

import typer

from .console import command
from .pretrain_features import features
from .pretrain_images import d_mae, mae, mocov3, tinymim

COMMANDS = (tinymim, mae, d_mae, mocov3, features)


def register(app: typer.Typer, panel: str) -> None:
    group = typer.Typer(help='Train an encoder without labels.')
    for function in COMMANDS:
        group.command(function.__name__)(command(function))
    app.add_typer(group, name='pretrain', rich_help_panel=panel)
