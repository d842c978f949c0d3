"""`cards`: the pages of all releases, rendered and compared with what is committed."""

import typer

from .console import command, print_error


def register(app: typer.Typer, panel: str) -> None:
    group = typer.Typer(help='The pages of all released weights in hub_configs/: build, check.', no_args_is_help=True)
    group.command('build')(command(build))
    group.command('check')(command(check))
    app.add_typer(group, name='cards', rich_help_panel=panel)


def build() -> None:
    """Render hub_configs/ anew: config.json, card and published results of every tag."""
    from ..hub.configs import build_configs, configs_folder

    print(f'{len(build_configs())} pages written to {configs_folder()}')


def check() -> None:
    """Fail if hub_configs/ is not what the releases say."""
    from ..hub.configs import configs_folder, drifted_configs

    drifted = drifted_configs()
    if drifted:
        print_error(f'Not as the releases say: {", ".join(drifted)}. Run `tinyvit-zoo cards build`.')
        raise typer.Exit(1)
    print(f'{configs_folder()} is what the releases say')
