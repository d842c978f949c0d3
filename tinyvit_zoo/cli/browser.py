"""`browser`: a static page to compare the models of the zoo and to try them."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from .console import command, quiet_logs


def register(app: typer.Typer, panel: str) -> None:
    group = typer.Typer(help='A static page to compare all models and to try an image: build.', no_args_is_help=True)
    group.callback()(lambda: None)  # with one command alone, typer would leave out its name
    group.command('build')(command(build))
    app.add_typer(group, name='browser', rich_help_panel=panel)


def build(
    *,
    output: Annotated[Path, typer.Option('--output', '-o', help='Folder for the page.', metavar='DIR')],
    runtime: Annotated[
        Path | None,
        typer.Option(help='Unpacked npm package onnxruntime-web, to try images in the browser.', metavar='FOLDER'),
    ] = None,
    npm: Annotated[bool, typer.Option('--npm', help='Fetch that package with `npm pack`.')] = False,
    demo_model: Annotated[
        Path | None,
        typer.Option(help='Model to try: an .onnx file of `export`, or the folder of `demo`.', metavar='PATH'),
    ] = None,
) -> None:
    """Write the zoo browser, a folder of static files for any web server or a Space of the Hub."""
    from ..browser import build_site

    quiet_logs()
    site = build_site(output, runtime, npm, demo_model)
    print(f'Written to {site.folder}: {site.models} models.')
    if site.runtime is None:
        print('Without onnxruntime-web, trying an image is left out: add --npm, or --runtime FOLDER.')
    else:
        print(f'Images are tried by onnxruntime-web {site.runtime}' + (', with a model.' if site.trial else '.'))
    print(f'Look at it: python -m http.server --directory {shlex.quote(str(site.folder))} --bind 127.0.0.1')
