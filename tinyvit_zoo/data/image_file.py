"""The one reader of image files: every mode that Pillow knows becomes RGB with 8 bits, or is refused in a sentence.

Pillow alone clips whatever lies above 255: 16-bit grey images turn white and floats from 0 to 1 turn black.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..common.errors import ImageError
from ..common.text import reason

__all__ = ['header_size', 'load_image', 'open_image', 'to_rgb']

BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # TIFF tags
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)  # of EXIF; its values that exchange height and width
PNG_SIGNATURE, PNG_CHUNK_ENDS = 8, 12  # bytes; a chunk has its length and name before its content, a checksum after it
MIN_IS_WHITE = 0


def load_image(path: str | Path, *, upright: bool = True) -> Image.Image:
    """An image file as RGB with 8 bits per channel; of an animation the first frame.

    Transparency is dropped as timm and torchvision do it: the colors under it show.

    Args:
        path: File of any format that Pillow reads.
        upright: Turn the image as its EXIF orientation says. Pillow turns TIFF images in any case.

    Raises:
        ImageError: If there is no such file, it is damaged or no image, or its values cannot be scaled to 8 bits.
    """
    path = Path(path)
    if not path.is_file():
        raise ImageError(f'No image at {path}.')
    try:
        return to_rgb(open_image(path, upright=upright))
    except UnidentifiedImageError as e:
        raise ImageError(f'{path} is no image of a known format.') from e
    except Exception as e:  # decoders raise almost anything on damaged files
        raise ImageError(f'{path} cannot be read as an image ({reason(e)}).') from e


def open_image(file: str | Path | IO[bytes], *, upright: bool) -> Image.Image:
    """A decoded image in a mode of 8 bits or fewer per channel, such as 'L', 'P' or 'RGBA'; see `load_image`.

    Args:
        file: Path, or a file opened for reading bytes.
        upright: As in `load_image`.

    Raises:
        ImageError: If the values cannot be scaled to 8 bits.
        UnidentifiedImageError: If the file is no image of a known format.
        Exception: Whatever else Pillow raises on what it cannot read.
    """
    if isinstance(file, str | Path):
        with open(file, 'rb') as opened:  # given a path, Pillow 13 scrambles grey TIFF images that it turns
            return open_image(opened, upright=upright)
    try:
        image = Image.open(file)
    except UnidentifiedImageError as e:
        raise UnidentifiedImageError('the format is unknown') from e
    image.load()
    if upright:
        with suppress(Exception):  # damaged EXIF data raise almost anything; the image counts as upright then
            ImageOps.exif_transpose(image, in_place=True)
    narrow = _in_eight_bits(image, _bits(image))
    # Pillow inverts such images of 8 bits by itself.
    inverted = narrow is not image and _tags(image).get(PHOTOMETRIC) == MIN_IS_WHITE
    return ImageOps.invert(narrow) if inverted else narrow


def header_size(file: str | Path | IO[bytes], *, upright: bool) -> tuple[int, int]:
    """(height, width) that `open_image` would give, from the header alone: no pixel is decoded.

    Args:
        file: Path, or a file opened for reading bytes.
        upright: As in `load_image`.

    Raises:
        UnidentifiedImageError: If the file is no image of a known format.
        Exception: Whatever else Pillow raises on what it cannot read.
    """
    if isinstance(file, str | Path):
        with open(file, 'rb') as opened:
            return header_size(opened, upright=upright)
    image = Image.open(file)
    width, height = image.size
    if upright and image.format != 'TIFF':  # Pillow has turned the size of a TIFF image already
        with suppress(Exception):  # as in `open_image`
            if _exif_of_header(image, file).get(ORIENTATION) in SIDEWAYS:
                return width, height
    return height, width


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
    """Bits of a grey value wider than 8 bits, as far as the file says; scanners write 12, for example."""
    if image.mode.startswith('I;16'):
        return _tags(image).get(BITS_PER_SAMPLE, (16,))[0]
    return 16 if image.format in ('PNG', 'PPM') else None  # their mode 'I'


def _in_eight_bits(image: Image.Image, bits: int | None = None) -> Image.Image:
    """The image itself, or 'L' of one with wider values.

    Args:
        image: Of any mode.
        bits: Of a value, 9 to 16; None if that is unknown. Then the largest value decides.
    """
    if image.mode.startswith('I;16'):
        return _grey(np.asarray(image) >> ((bits or 16) - 8))
    if image.mode == 'I':
        return _grey(_scaled(np.asarray(image), {65535: 1 / 256} if bits else {255: 1, 65535: 1 / 256}))
    if image.mode == 'F':
        return _grey(_scaled(np.asarray(image), {1: 255, 255: 1}).round())
    return image


def _scaled(values: np.ndarray, ranges: Mapping[int, float]) -> np.ndarray:
    """Values from 0 to 255, of those within the first range that holds them all.

    Args:
        values: (H, W) int32 or float32.
        ranges: Upper end of each range that starts at 0, and the factor to 255.
    """
    low, high = values.min(), values.max()
    for end, factor in ranges.items():
        if 0 <= low and high <= end:  # NaN is within none
            return values * factor
    ends = ' or '.join(f'0 to {end}' for end in ranges)
    raise ImageError(
        f'its values go from {low:g} to {high:g}, and only {ends} can be scaled to 8 bits: '
        'save it with 8 or 16 bits per channel'
    )


def _grey(values: np.ndarray) -> Image.Image:
    """'L' of (H, W) numbers from 0 to 255; fractions are cut off."""
    return Image.fromarray(values.astype(np.uint8))
