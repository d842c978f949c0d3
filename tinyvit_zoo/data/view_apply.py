"""From the parameters of a view to its image: always the same pixels, without drawing anything.

timm's operations are called with explicit arguments; nothing global is read or changed, so any number of threads may do
so at once. Rectangles are erased in the normalized image, as timm and TinyViT's authors do it, with noise of mean 0 and
variance 1: no color of 8 bits could hold it. The check value is that of the image before.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance
from timm.data import auto_augment

from ..common.counter_rng import child_key, uniform
from ..common.errors import EvaluationError
from ..common.exact_tables import at_quantiles, normal_quantiles
from .augment import posterized
from .image_file import to_rgb
from .view_params import Box, View
from .view_spec import ViewSpec

__all__ = ['erase', 'image_crc32', 'make_image', 'normalized', 'on_grid', 'to_tensor']

Noise = Callable[[int, tuple[int, ...]], np.ndarray]
"""(number of the rectangle, shape) -> float numbers of mean 0 and variance 1."""


def make_image(image: Image.Image, view: View, spec: ViewSpec, size: tuple[int, int] | None = None) -> Image.Image:
    """A view of an image, before it is normalized and erased.

    Args:
        image: Of any mode; the view is RGB.
        view: Parameters that were drawn for an image of this size.
        spec: Settings that they were drawn with.
        size: (height, width) of the view, None for that of `spec`. The same parts of the image are seen at any size.

    Returns:
        RGB with 8 bits, `size` pixels.

    Raises:
        EvaluationError: If the parameters are for an image of another size.
    """
    if view.image_size != (image.height, image.width):
        raise EvaluationError(
            f'The view was drawn for an image of {view.image_size[0]}x{view.image_size[1]} pixels and this one has '
            f'{image.height}x{image.width}: draw it for this size.'
        )
    height, width = size or spec.size
    top, left, crop_height, crop_width = view.crop
    resample = Image.Resampling[spec.interpolation.upper()]
    # Not `resize(box=)`: that lets pixels around the crop in. Rows first, as up to Pillow 12: Pillow 13 begins with the
    # columns where that is less work, and rounds to 8 bits in between.
    result = to_rgb(image).crop((left, top, left + crop_width, top + crop_height))
    result = result.resize((width, crop_height), resample).resize((width, height), resample)
    if view.flip:
        result = result.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for name, argument in view.operations:
        result = _augmented(result, name, argument, spec.fill, resample)
    for name, factor in view.jitter:
        result = _turned_hue(result, factor) if name == 'Hue' else ENHANCE[name](result).enhance(factor)
    return result


ENHANCE = dict(Brightness=ImageEnhance.Brightness, Contrast=ImageEnhance.Contrast, Saturation=ImageEnhance.Color)


def _augmented(
    image: Image.Image, name: str, argument: float | None, fill: tuple[int, ...], resample: Image.Resampling
) -> Image.Image:
    function: Any = auto_augment.NAME_TO_OP[name]
    arguments = () if argument is None else (argument,)
    if name.startswith('Posterize'):
        return posterized(function, image, *map(int, arguments))
    return function(image, *arguments, fillcolor=fill, resample=resample)


def _turned_hue(image: Image.Image, turn: float) -> Image.Image:
    """With the hue turned by a share of the circle, as torchvision does it."""
    shift = int(turn * 255)
    hue, saturation, value = image.convert('HSV').split()
    hue = hue.point([(i + shift) % 256 for i in range(256)])
    return Image.merge('HSV', (hue, saturation, value)).convert('RGB')


def image_crc32(image: Image.Image) -> int:
    """CRC32 of the pixels of an RGB image, row by row."""
    return zlib.crc32(image.tobytes())


def to_tensor(
    image: Image.Image, view: View, spec: ViewSpec, mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """The input of a model: normalized as torchvision does it, then erased.

    Args:
        image: Of `make_image`.
        view: Parameters of the view.
        spec: Settings that they were drawn with.
        mean: Of the model, for each channel.
        std: Of the model, for each channel.

    Returns:
        float32 (3, H, W).
    """
    mode = 'const' if spec.erasing is None else spec.erasing.mode
    return erase(normalized(image, mean, std), view, mode, lambda number, shape: _noise(view.noise_key, number, shape))


def normalized(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """An RGB image as float32 (3, H, W), as torchvision's ToTensor and Normalize compute it."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div_(255)
    return pixels.sub_(torch.tensor(mean)[:, None, None]).div_(torch.tensor(std)[:, None, None])


def erase(pixels: torch.Tensor, view: View, mode: str, noise: Noise) -> torch.Tensor:
    """Replace the rectangles of a view in a normalized image (3, H, W), in place; see `Erasing` for the mode."""
    for number, box in enumerate(view.erased):
        top, left, height, width = on_grid(box, view.grid, (pixels.shape[1], pixels.shape[2]))
        part = pixels[:, top : top + height, left : left + width]
        shape = (len(pixels), height, width) if mode == 'pixel' else (len(pixels), 1, 1)
        part.copy_(torch.zeros(shape) if mode == 'const' else torch.from_numpy(noise(number, shape)))
    return pixels


def on_grid(box: Box, grid: tuple[int, int], size: tuple[int, int]) -> Box:
    """A rectangle on a grid as one of an image of another size, by the rule of TinyViT's code."""
    top, left = (min(round(box[k] * size[k] / grid[k]), size[k] - 1) for k in (0, 1))
    height, width = (min(round(box[k + 2] * size[k] / grid[k]), size[k] - start) for k, start in enumerate((top, left)))
    return top, left, height, width


def _noise(key: int, number: int, shape: tuple[int, ...]) -> np.ndarray:
    count = int(np.prod(shape))
    return at_quantiles(normal_quantiles(), uniform(child_key(key, number), count)).astype(np.float32).reshape(shape)
