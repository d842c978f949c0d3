"""`cards`: the pages of all releases, rendered and compared with what is committed."""

import typer

from .console import command, print_error


def register(app: typer.Typer, panel: str) -> None:
    group = typer.Typer(help='The pages of all released weights in hub_configs/: build, check.', no_args_is_help=True)
    group.command('build')(command(build))
    group.command('check')(command(check))
    app.add_typer(group, name='cards', rich_help_panel=panel)


def build() -> None:
    """Render hub_configs/ (config.json, card and published results of every tag), and the figure of the README."""
    from ..hub.configs import build_configs, build_figure, configs_folder

    print(f'{len(build_configs())} pages written to {configs_folder()}')
    figure = build_figure()
    if figure is not None:
        print(f'Figure written to {figure}')


def check() -> None:
    """Fail if hub_configs/ or the figure of the README does not match the releases."""
    from ..hub.configs import configs_folder, drifted_configs, figure_drifted, figure_path

    drifted = drifted_configs()
    if figure_drifted():
        drifted.append(str(figure_path()))
    if drifted:
        print_error(f'Not as the releases say: {", ".join(drifted)}. Run `tinyvit-zoo cards build`.')
        raise typer.Exit(1)
    print(f'{configs_folder()} is what the releases say')
