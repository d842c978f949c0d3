"""`pretrain`: train a small model from a teacher, or from images alone. A command is a function of its own module."""

import typer

from .console import command
from .pretrain_features import features
from .pretrain_images import d_mae, mae, mocov3, tinymim
from .pretrain_minivit import minivit

COMMANDS = (tinymim, mae, d_mae, mocov3, minivit, features)


def register(app: typer.Typer, panel: str) -> None:
    group = typer.Typer(help='Train a small model from a teacher or from images alone.')
    for function in COMMANDS:
        group.command(function.__name__)(command(function))
    app.add_typer(group, name='pretrain', rich_help_panel=panel)
