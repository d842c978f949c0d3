"""Images as Segment Anything takes them: the longest side resized to the model's, the rest padded.

Paper: https://arxiv.org/abs/2304.02643; sizes and rounding as in its released code.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

__all__ = ['MEAN', 'STD', 'fitted_size', 'pixels_of']

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet's. Images are normalized first and then padded with zeros, so that the padding is the mean color."""


def fitted_size(height: int, width: int, size: Sequence[int]) -> tuple[int, int]:
    """(height, width) of an image that is resized for a model of the size (H, W), where it takes the upper left corner.

    The longest side becomes the model's longest side, as released. If the other side is then too long, as it can be
    where the model's is not a square, the image is made as large as fits.

    Args:
        height: Of the image.
        width: Likewise.
        size: Of the model.
    """
    longest = max(size)
    found = _scaled(height, width, longest / max(height, width))
    if found[0] > size[0] or found[1] > size[1]:
        found = _scaled(height, width, min(size[0] / height, size[1] / width))
    return found


def _scaled(height: int, width: int, scale: float) -> tuple[int, int]:
    """Rounded; of at least 1 pixel, which the released code does not see to."""
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def pixels_of(image: Image.Image, size: tuple[int, int]) -> torch.Tensor:
    """What the encoder takes: float32 (1, 3, H, W), resized (bilinear, antialiased), normalized, padded with zeros.

    Args:
        image: RGB.
        size: (H, W) of the model.
    """
    height, width = fitted_size(image.height, image.width, size)
    resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32)
    normalized = (resized / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    padded = np.zeros((1, 3, *size), dtype=np.float32)
    padded[0, :, :height, :width] = normalized.transpose(2, 0, 1)
    return torch.from_numpy(padded)
