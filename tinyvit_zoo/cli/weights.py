"""`convert` and `import`: checkpoint files."""

from enum import StrEnum
from pathlib import Path

import typer

from .console import explained, parse_size, quiet_logs

Layout = StrEnum('Layout', ['ours', 'official'])
Head = StrEnum('Head', ['in1k'])


def register(app: typer.Typer) -> None:
    app.command('convert')(convert)
    app.command('import')(import_file)


@explained
def convert(
    source: Path = typer.Argument(help='Any checkpoint file or folder.', metavar='IN'),
    target: Path = typer.Argument(help='*.safetensors, *.pth, or a folder for timm and the Hub.', metavar='OUT'),
    to: Layout = typer.Option(None, help='Key layout; default: official for *.pth, else ours.'),
    head: Head = typer.Option(None, help='in1k: turn an ImageNet-22k head into the ImageNet-1k one.'),
    name: str = typer.Option(None, help='Check the result by loading it as this model.', metavar='ARCH.TAG'),
    num_classes: int = typer.Option(None, min=0, help='Classes of the file, if not those of the tag; 0: no head.'),
    img_size: str = typer.Option(None, '--img-size', help="Size the file is for, if not the model's.", metavar='SIZE'),
    as_init: bool = typer.Option(
        False, '--as-init', help='Start a training of ARCH from an encoder: classifier and last norms fresh, any heads.'
    ),
) -> None:
    """Convert a checkpoint between layouts and formats, or into a Hub-ready folder."""
    size = parse_size(img_size)
    from ..hub.convert import convert as run

    quiet_logs()
    read, written = run(source, target, to and str(to), head and str(head), name, num_classes, size, as_init)
    print(f'Read {source}: {read}.')
    if as_init:
        print(f'A start for training {name}: its classifier and its norms behind the blocks are fresh.')
    elif name:
        print(f'Every key and shape is that of {name}.')
    print(f'Written to {written}')
    if written.is_dir():
        print(f"In Python: timm.create_model('local-dir:{written}', pretrained=True)")


@explained
def import_file(
    source: Path = typer.Argument(help='Any checkpoint file or folder.', metavar='FILE'),
    name: str = typer.Option(..., help='The released weights that the file holds.', metavar='ARCH.TAG'),
) -> None:
    """Keep a file as the weights of a released tag, for use without a network."""
    from ..hub.convert import import_weights

    quiet_logs()
    read, folder = import_weights(source, name)
    print(f'Read {source}: {read}.')
    print(f'Stored in {folder}')
    print(f"In Python: timm.create_model('{folder.name}', pretrained=True)")
