"""`convert` and `import`: checkpoint files."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .console import command, quiet_logs
from .options import AllowNonfinite, Part, Size, pair_of, read_size

Layout = StrEnum('Layout', ['ours', 'official'])
Head = StrEnum('Head', ['in1k'])


def register(app: typer.Typer, panel: str) -> None:
    app.command('convert', rich_help_panel=panel)(command(convert))
    app.command('import', rich_help_panel=panel)(command(import_file))


def convert(
    *,
    source: Annotated[Path, typer.Argument(help='Any checkpoint file or folder.', metavar='IN')],
    target: Annotated[
        Path, typer.Argument(help='*.safetensors, *.pth, or a folder for timm and the Hub.', metavar='OUT')
    ],
    to: Annotated[Layout | None, typer.Option(help='Key layout; default: official for *.pth, else ours.')] = None,
    head: Annotated[Head | None, typer.Option(help='in1k: turn an ImageNet-22k head into the ImageNet-1k one.')] = None,
    name: Annotated[
        str | None, typer.Option(help='Check the result by loading it as this model.', metavar='ARCH.TAG')
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(min=0, help='Classes of the file, if not those of the tag; 0: no head.')
    ] = None,
    img_size: Annotated[
        Size | None,
        typer.Option(
            '--img-size', parser=read_size, help="Image size of the file, if not the model's own.", metavar='SIZE'
        ),
    ] = None,
    part: Part = None,
    allow_nonfinite: AllowNonfinite = False,
    as_init: Annotated[
        bool,
        typer.Option(
            '--as-init',
            help='Make initial weights of ARCH from an encoder: fresh classifier and last norms, any number of heads.',
        ),
    ] = False,
) -> None:
    """Convert a checkpoint between layouts and formats, or into a Hub-ready folder."""
    from ..hub.convert import convert as write
    from ..names import model_folder

    quiet_logs()
    read, written = write(
        model_folder(source) or source,
        target,
        to and str(to),
        head and str(head),
        name,
        num_classes,
        pair_of(img_size),
        as_init,
        part,
        allow_nonfinite,
    )
    print(f'Read {source}: {read}.')
    if as_init:
        print(f'Initial weights for training {name}: its classifier and its norms after the blocks are fresh.')
    elif name:
        print(f'Every key and shape is that of {name}.')
    print(f'Written to {written}')
    if written.is_dir():
        print(f'In Python: timm.create_model({f"local-dir:{written}"!r}, pretrained=True)')


def import_file(
    *,
    source: Annotated[Path, typer.Argument(help='Any checkpoint file or folder.', metavar='FILE')],
    name: Annotated[str, typer.Option(help='The released weights that the file holds.', metavar='ARCH.TAG')],
    part: Part = None,
    allow_nonfinite: AllowNonfinite = False,
) -> None:
    """Keep a file as the weights of a released tag, for use without a network."""
    from ..hub.convert import import_weights

    quiet_logs()
    read, folder = import_weights(source, name, part, allow_nonfinite)
    print(f'Read {source}: {read}.')
    print(f'Stored in {folder}')
    print(f"In Python: timm.create_model('{folder.name}', pretrained=True)")
