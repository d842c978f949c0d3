"""The one reader of image files: every mode that Pillow knows becomes RGB with 8 bits, or is refused in a sentence.

Pillow alone clips whatever lies above 255: 16-bit gray images turn white and floats from 0 to 1 turn black.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..common.errors import ImageError
from ..common.paths import MAX_PATH
from ..common.text import reason, shown

__all__ = ['header_size', 'load_image', 'open_image', 'to_rgb', 'upright_size']

WIDTH, HEIGHT, BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 256, 257, 258, 262, 339  # TIFF tags
MIN_IS_WHITE, SIGNED = 0, 2
ORIENTATION, SIDEWAYS = 274, (5, 6, 7, 8)  # EXIF tag; its values that exchange height and width
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PNG_SIGNATURE, PNG_CHUNK_ENDS = 8, 12  # bytes; a chunk has its length and name before its content, a checksum after it
SHARE = 16
"""A range is believed if the largest value is at least 1/16 of it: 4095 may be white of 12 bits, 1.3 of floats."""
ROUNDING = 1 / 512
"""Floats beyond a range by half a gray level at most count as its end: resizing and compression leave such values."""


def load_image(path: str | Path, *, upright: bool = True) -> Image.Image:
    """An image file as RGB with 8 bits per channel; of an animation the first frame.

    Transparency is dropped as timm and torchvision do it: the colors under it show. Gray values of 9 to 16 bits are
    scaled by the number of bits that the file states; of floats and 32-bit integers the largest value says whether they
    go to 1, 255 or 65535. Color profiles are not applied, by timm neither.

    Args:
        path: File of any format that Pillow reads.
        upright: Turn the image as its EXIF orientation says. Pillow turns TIFF images in any case.

    Raises:
        ImageError: If there is no such file, it is damaged or no image, or its values cannot be scaled to 8 bits.
    """
    path = Path(path)
    if not os.path.isfile(path):  # a name may be too long to ask for
        raise ImageError(f'No image at {shown(path, MAX_PATH)}.')
    try:
        return to_rgb(open_image(path, upright=upright))
    except UnidentifiedImageError as e:
        raise ImageError(
            f'{path} is not an image of a known format, or of a kind that Pillow does not read: save it as PNG or JPEG.'
        ) from e
    except Exception as e:  # decoders raise almost anything on damaged files
        raise ImageError(f'{path} cannot be read as an image ({reason(e)}).') from e


def open_image(file: str | Path | IO[bytes], *, upright: bool) -> Image.Image:
    """A decoded image in a mode of 8 bits or fewer per channel, such as 'L', 'P' or 'RGBA'; see `load_image`.

    Args:
        file: Path, or a file opened for reading bytes.
        upright: As in `load_image`.

    Raises:
        ImageError: If the values cannot be scaled to 8 bits.
        UnidentifiedImageError: If the file is not an image of a known format.
        Exception: Whatever else Pillow raises on what it cannot read.
    """
    if isinstance(file, str | Path):
        with open(file, 'rb') as opened:  # given a path, Pillow 13 scrambles gray TIFF images that it turns
            return open_image(opened, upright=upright)
    try:
        image = Image.open(file)
    except UnidentifiedImageError as e:
        raise UnidentifiedImageError('Pillow does not know the format, or not this kind of it') from e
    image.load()
    turned: Image.Image = image
    if upright and image.format != 'TIFF':  # Pillow turns these by itself
        with suppress(Exception):  # damaged EXIF data raise almost anything; the image counts as upright then
            # `ImageOps.exif_transpose` returns copies, or lacks `in_place` in old versions of Pillow.
            turned = image.transpose(TURNS[image.getexif()[ORIENTATION]])
    narrow = _in_eight_bits(turned, _bits(image))
    # Pillow inverts such images of 8 bits by itself.
    inverted = narrow is not turned and _tags(image).get(PHOTOMETRIC) == MIN_IS_WHITE
    return ImageOps.invert(narrow) if inverted else narrow


def header_size(file: str | Path | IO[bytes], *, upright: bool) -> tuple[int, int]:
    """(height, width) that `open_image` would give, from the header alone: no pixel is decoded.

    Args:
        file: Path, or a file opened for reading bytes.
        upright: As in `load_image`.

    Raises:
        UnidentifiedImageError: If the file is not an image of a known format.
        Exception: Whatever else Pillow raises on what it cannot read.
    """
    if isinstance(file, str | Path):
        with open(file, 'rb') as opened:
            return header_size(opened, upright=upright)
    image = Image.open(file)
    width, height = _upright(image, _orientation(image, file)) if upright else _loaded_size(image)
    return height, width


def upright_size(path: str | Path) -> tuple[tuple[int, int], int]:
    """(width, height) of what `load_image` gives, and the EXIF orientation from 1 to 8; only the header is read.

    Raises:
        ImageError: If the file cannot be opened as an image.
    """
    try:
        with open(path, 'rb') as file:
            image = Image.open(file)
            orientation = _orientation(image, file)
            return _upright(image, orientation), orientation
    except UnidentifiedImageError as e:
        raise ImageError(f'{path} is not an image of a known format.') from e
    except Exception as e:  # as in `load_image`
        raise ImageError(f'{path} cannot be read as an image ({reason(e)}).') from e


def _upright(image: Image.Image, orientation: int) -> tuple[int, int]:
    """(width, height) after the turn."""
    width, height = _loaded_size(image)
    return (height, width) if orientation in SIDEWAYS and image.format != 'TIFF' else (width, height)


def _loaded_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) that an open image will have: Pillow turns TIFF images when it loads them, new ones before."""
    if image.format != 'TIFF':
        return image.size
    width, height = _tags(image)[WIDTH], _tags(image)[HEIGHT]
    return (height, width) if _tags(image).get(ORIENTATION) in SIDEWAYS else (width, height)


def _orientation(image: Image.Image, file: IO[bytes]) -> int:
    """From 1 to 8, of an image that is open but not loaded; 1 where it has none, or one that means nothing."""
    orientation = 1
    with suppress(Exception):  # as in `open_image`
        orientation = _exif_of_header(image, file).get(ORIENTATION, 1)
    return orientation if orientation in range(1, 9) else 1


def _exif_of_header(image: Image.Image, file: IO[bytes]) -> Image.Exif:
    """EXIF data of an image that is open but not loaded; Pillow decodes a PNG image to find them behind its pixels."""
    if image.format == 'PNG' and not _text_behind_pixels(file):
        return Image.Image.getexif(image)
    return image.getexif()


def _text_behind_pixels(file: IO[bytes]) -> bool:
    """Whether a PNG file has EXIF data or texts behind its first pixels."""
    place, pixels = file.tell(), False
    try:
        file.seek(PNG_SIGNATURE)
        while len(head := file.read(8)) == 8 and head[4:] != b'IEND':
            pixels = pixels or head[4:] == b'IDAT'
            if pixels and head[4:] in (b'eXIf', b'tEXt', b'zTXt', b'iTXt'):
                return True
            file.seek(int.from_bytes(head[:4], 'big') + PNG_CHUNK_ENDS - 8, 1)
        return False
    finally:
        file.seek(place)


def to_rgb(image: Image.Image) -> Image.Image:
    """A decoded image of any mode as RGB with 8 bits per channel; transparency is dropped.

    Raises:
        ImageError: If its values cannot be scaled to 8 bits.
    """
    image = _in_eight_bits(image)
    if image.mode == 'P' and 'transparency' in image.info:
        image = image.convert('RGBA')  # Pillow warns of a palette with transparency that becomes RGB
    return image.convert('RGB')


def _tags(image: Image.Image) -> Mapping[int, Any]:
    """Those of a TIFF file, none of others."""
    return getattr(image, 'tag_v2', {})


def _bits(image: Image.Image) -> int | None:
    """Bits of a gray value wider than 8 bits, as far as the file says; scanners write 12, for example."""
    tags = _tags(image)
    bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
    if image.mode.startswith('I;16'):
        return bits
    if bits == 16 and tags.get(SAMPLE_FORMAT, (0,))[0] == SIGNED:
        return 15
    return 16 if image.format in ('PNG', 'PPM') else None  # their mode 'I'


def _in_eight_bits(image: Image.Image, bits: int | None = None) -> Image.Image:
    """The image itself, or 'L' of one with wider values.

    Args:
        image: Of any mode.
        bits: Of a value, 9 to 16; None if that is unknown. Then the largest value decides, or the image is refused.
    """
    if image.mode.startswith('I;16'):
        return _grey(np.asarray(image) >> ((bits or 16) - 8))
    if image.mode == 'I':
        ranges = {2**bits - 1: 2.0 ** (8 - bits)} if bits else {255: 1, 65535: 1 / 256}
        return _grey(_scaled(np.asarray(image), ranges))
    if image.mode == 'F':
        return _grey(_scaled(np.asarray(image), {1: 255, 255: 1}).round())
    return image


def _scaled(values: np.ndarray, ranges: Mapping[int, float]) -> np.ndarray:
    """Values from 0 to 255, of those within one of the ranges; see `SHARE` and `ROUNDING`.

    Args:
        values: (H, W) int32 or float32.
        ranges: Upper end of each range that starts at 0, and the factor to 255; the first takes dark images, too.
    """
    low, high = float(values.min()), float(values.max())
    for i, (end, factor) in enumerate(ranges.items()):
        slack = end * ROUNDING if values.dtype.kind == 'f' else 0
        if -slack <= low and high <= end + slack and (i == 0 or high >= end / SHARE):  # NaN is within none
            return (values * factor).clip(0, 255)
    ends = ' or '.join(f'0 to {end}' for end in ranges)
    raise ImageError(
        f'its values go from {low:g} to {high:g}, and only {ends} can be scaled to 8 bits: '
        'save it with 8 or 16 bits per channel'
    )


def _grey(values: np.ndarray) -> Image.Image:
    """'L' of (H, W) numbers from 0 to 255; fractions are cut off."""
    return Image.fromarray(values.astype(np.uint8))
