"""`sam`: Segment Anything with a TinyViT encoder."""

from pathlib import Path
from typing import Annotated

import typer

from .console import command, printer, quiet_transformers
from .options import AllowNonfinite, Part, Size, read_size
from .sam_distill import distill, embed
from .sam_masks import export, segment

SquareSize = Annotated[
    Size | None,
    typer.Option(
        '--img-size',
        parser=read_size,
        help='Longest side of the images, a multiple of 16. Default: 1024, or that of the folder.',
        metavar='SIZE',
    ),
]


def register(app: typer.Typer, panel: str) -> None:
    group = typer.Typer(help='Segment Anything with a TinyViT encoder, such as MobileSAM.')
    for function in (convert, segment, export, distill, embed):
        group.command(function.__name__)(command(function))
    app.add_typer(group, name='sam', rich_help_panel=panel)


def convert(
    *,
    source: Annotated[Path, typer.Argument(help='mobile_sam.pt, or any SAM with a TinyViT encoder.', metavar='FILE')],
    folder: Annotated[Path, typer.Argument(help='Folder for transformers and the Hub.', metavar='FOLDER')],
    img_size: SquareSize = None,
    part: Part = None,
    allow_nonfinite: AllowNonfinite = False,
) -> None:
    """Convert MobileSAM's file to a folder for transformers: configuration, weights, processor, card with licenses."""
    side = side_of(img_size)
    quiet_transformers()
    from ..hub.sam import convert_sam

    model, written = convert_sam(source, folder, side, part, allow_nonfinite)
    vision, say = model.config.vision_config, printer()
    params = sum(p.numel() for p in model.parameters())
    say(f'Read {source}: Segment Anything with a {vision.architecture}, {params / 1e6:.2f} M parameters.')
    say(f'Every tensor was used but the classifier of the encoder. Images have {vision.image_size} pixels a side.')
    say(f'Written to {written}')
    say(f'In Python: tinyvit_zoo.hub.sam.load_sam({str(written)!r})')


def side_of(img_size: Size | None) -> int | None:
    """Side of a square. Usage error on a rectangle."""
    if img_size is None:
        return None
    if img_size.height != img_size.width:
        raise typer.BadParameter(
            f'{img_size} is not a square, and a SAM pads images to one: give its side, such as {max(img_size)}.',
            param_hint="'--img-size'",
        )
    return img_size.height
