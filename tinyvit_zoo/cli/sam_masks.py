"""`sam segment`: the mask of what is marked on an image; `sam export`: a SAM as two ONNX files."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from .console import only_with, print_json, quiet_logs, quiet_transformers
from .int8_options import Int8Options, print_quantized
from .options import ImgSize, Json, Seed, pair_of

if TYPE_CHECKING:
    from ..segment_anything import Prompt, Segmented


class Point(NamedTuple):
    """A place on an image in pixels from its upper left corner; prints as it is written."""

    x: float
    y: float

    def __str__(self) -> str:
        return f'{self.x:g},{self.y:g}'


class Box(NamedTuple):
    """Upper left and lower right corner; prints as it is written."""

    x0: float
    y0: float
    x1: float
    y1: float

    def __str__(self) -> str:
        return ','.join(f'{side:g}' for side in self)


def _read_point(text: str) -> Point:
    return Point(*_read(text, 2, 'a point is X,Y in pixels, such as 320,200'))


def _read_box(text: str) -> Box:
    return Box(*_read(text, 4, 'a box is X0,Y0,X1,Y1 in pixels, such as 40,60,320,200'))


def _read(text: str, count: int, form: str) -> list[float]:
    try:
        numbers = [float(part) for part in str(text).split(',')]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise typer.BadParameter(f"'{text}' is none: {form}.")
    return numbers


def _png(path: Path | None) -> Path | None:
    if path is not None and path.suffix.lower() != '.png':
        raise typer.BadParameter(f'{path} will be a PNG image: give it the suffix .png.')
    return path


Rectangular = Annotated[
    bool,
    typer.Option('--rectangular', help='Do not pad the short side: faster, but weights were trained with padding.'),
]


def segment(
    *,
    image: Annotated[Path, typer.Argument(help='Image file.', metavar='IMAGE')],
    output: Annotated[
        Path, typer.Option('--output', '-o', callback=_png, help='Mask, of the size of the image.', metavar='PNG')
    ],
    weights: Annotated[
        Path | None, typer.Option('--weights', help='mobile_sam.pt, or a folder of sam convert.', metavar='FILE|DIR')
    ] = None,
    onnx: Annotated[
        Path | None, typer.Option('--onnx', help='Folder of the two files of sam export.', metavar='DIR')
    ] = None,
    point: Annotated[
        list[Point] | None, typer.Option('--point', parser=_read_point, help='On the object.', metavar='X,Y')
    ] = None,
    not_point: Annotated[
        list[Point] | None, typer.Option('--not', parser=_read_point, help='On something else.', metavar='X,Y')
    ] = None,
    box: Annotated[
        Box | None, typer.Option('--box', parser=_read_box, help='Around the object.', metavar='X0,Y0,X1,Y1')
    ] = None,
    overlay: Annotated[
        Path | None,
        typer.Option('--overlay', callback=_png, help='The image with mask and marks drawn on it.', metavar='PNG'),
    ] = None,
    rectangular: Rectangular = False,
    as_json: Json = False,
) -> None:
    """Write the mask of an object marked by points or a box: white on the object, black elsewhere.

    Coordinates are pixels of the image as displayed, after its EXIF orientation.
    """
    from ..common.files import check_writable, write_together
    from ..data.image_file import load_image
    from ..segment_anything import Prompt, png
    from ..segment_anything import overlay as drawn

    if (weights is None) == (onnx is None):
        raise typer.BadParameter('Give --weights FILE or --onnx DIR, one of the two.')
    if onnx is not None and rectangular:
        raise typer.BadParameter('--rectangular cannot be given with --onnx: it is chosen in sam export.')
    _refuse_same_file(image, output, overlay)
    for path in filter(None, (output, overlay)):
        check_writable(path)
    quiet_logs()
    picture = load_image(image)
    prompt = Prompt(tuple(point or ()), tuple(not_point or ()), box)
    prompt.check(picture.height, picture.width)  # before weights are read
    found = _segmenter(weights, onnx, rectangular)(picture, prompt)
    files = {output: png(found.mask)}
    if overlay is not None:
        files[overlay] = drawn(picture, found.mask, prompt)
    write_together(files)
    facts = _facts(image, output, overlay, prompt, found)
    if as_json:
        print_json(facts)
        return
    where = f'within {Box(*found.box)}' if found.box else 'empty'
    print(f'Written to {output}: {found.area:,} pixels, {facts["share"]:.1%} of the image, {where}.')
    if overlay is not None:
        print(f'The image with its mask is written to {overlay}.')
    print(f'The model estimates an IoU of {found.iou:.2f} with the object.')


def _refuse_same_file(image: Path, output: Path, overlay: Path | None) -> None:
    """Usage error if one file would replace another."""
    if overlay is not None and overlay.resolve() == output.resolve():
        raise typer.BadParameter(
            f'{overlay} is the mask: give the overlay a file of its own.', param_hint="'--overlay'"
        )
    for path, option in ((output, '--output'), (overlay, '--overlay')):
        if path is not None and path.resolve() == image.resolve():
            raise typer.BadParameter(
                f'{path} is the image, which would be lost: give another file.', param_hint=f"'{option}'"
            )


def _segmenter(weights: Path | None, onnx: Path | None, rectangular: bool) -> Any:
    from ..segment_anything import Segmenter

    if onnx is not None:
        return Segmenter.of_onnx(onnx)
    assert weights is not None
    return Segmenter.of_model(_load(weights, rectangular))


def _load(weights: Path, rectangular: bool) -> Any:
    quiet_transformers()
    from ..hub.sam import load_sam

    return load_sam(weights, rectangular=rectangular or None)


def _facts(image: Path, output: Path, overlay: Path | None, prompt: 'Prompt', found: 'Segmented') -> dict[str, Any]:
    height, width = found.mask.shape
    return dict(
        image=str(image), width=width, height=height, points=prompt.points, not_points=prompt.others,
        prompt_box=prompt.box, mask=str(output), overlay=overlay and str(overlay), box=found.box, area=found.area,
        share=round(found.area / found.mask.size, 6), iou=round(found.iou, 6),
    )  # fmt: skip


def export(
    *,
    weights: Annotated[Path, typer.Argument(help='mobile_sam.pt, or a folder of sam convert.', metavar='FILE|DIR')],
    encoder: Annotated[Path | None, typer.Option(help='File, ending in .onnx.', metavar='FILE')] = None,
    decoder: Annotated[Path | None, typer.Option(help='File, ending in .onnx.', metavar='FILE')] = None,
    img_size: ImgSize = None,
    dynamic_size: Annotated[bool, typer.Option('--dynamic-size', help='Accept images of any size from 32x32.')] = False,
    rectangular: Rectangular = False,
    all_masks: Annotated[
        bool, typer.Option('--all-masks', help='Let the decoder return all 4 masks instead of the one that it chooses.')
    ] = False,
    seed: Seed = 0,
    int8: Int8Options,
) -> None:
    """Export a SAM as ONNX: the image encoder, and the decoder with the names that labeling tools expect.

    Each file is compared with PyTorch, and neither is written unless both match. With --int8 the encoder computes
    in 8 bits; the decoder stays in float32, and the masks of both are compared on images that --calibrate does not use.
    """
    from ..segment_anything.export import TOLERANCE, check_files, export_sam

    if rectangular and not dynamic_size:
        raise typer.BadParameter('--rectangular needs --dynamic-size: a file for one size gets images of that size.')
    only_with(decoder, '--decoder', 'all_masks')
    quiet_logs()
    int8.check()
    files = check_files(encoder, decoder)  # before weights are read
    model = _load(weights, rectangular)
    if int8.int8:
        from ..int8.sam import quantize_sam

        quantized = quantize_sam(
            model, files[0], files[1], **int8.arguments(), img_size=pair_of(img_size), dynamic_size=dynamic_size,
            all_masks=all_masks, seed=seed,
        )  # fmt: skip
        return print_quantized(quantized, 'IoU of masks')
    done = export_sam(model, *files, img_size=pair_of(img_size), dynamic_size=dynamic_size, all_masks=all_masks)
    for part, path in (('encoder', done.encoder), ('decoder', done.decoder)):
        if path is not None:
            megabytes, difference = path.stat().st_size / 1e6, done.differences[part]
            print(f'The {part} is written to {path}: {megabytes:.1f} MB.')
            print(f'It differs from PyTorch by {difference:.1e} of the largest value, allowed {TOLERANCE:.0e}.')
    height, width = done.img_size
    others = ', and of others' if done.dynamic else ''
    padding = 'without padding' if model.config.rectangular and done.dynamic else 'the rest padded with 0'
    print(f'Images are of {height}x{width}{others}: the longest side resized, normalized, {padding}.')
    if done.encoder and done.decoder and done.encoder.parent == done.decoder.parent:
        folder = shlex.quote(str(done.encoder.parent))
        print(f'Try them: tinyvit-zoo sam segment IMAGE --onnx {folder} --point X,Y -o mask.png')
    return None
