"""Two data sets of real images from the wheels of scikit-learn and scikit-image, without network or folder.

Splits and crops are drawn with sha256, not with a random generator, whose stream may change between versions.
"""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from ..common.extras import needs_extra
from .image_dataset import Arrays, ImageDataset
from .image_file import load_image

__all__ = ['PHOTOGRAPHS', 'digits', 'textures']

DIGIT_SIZE, CROP_SIZE = 32, 64  # pixels per side
TRAIN_SHARE = 0.75  # of the digits of each class
CROPS = dict(train=80, test=40)  # of each photograph
TRAIN_SIDE = 0.6  # of the longer side of each photograph; test crops come from the rest
SMALLEST_CROP, LARGEST_CROP = 32, 112  # pixels of the photograph
LEAST_CONTRAST, ATTEMPTS = 16, 100  # least gray levels between the darkest and lightest pixel of a crop

PHOTOGRAPHS = (
    'astronaut.png', 'brick.png', 'camera.png', 'cell.png', 'chelsea.png', 'clock_motion.png', 'coffee.png',
    'coins.png', 'grass.png', 'gravel.png', 'hubble_deep_field.jpg', 'ihc.png', 'microaneurysms.png', 'moon.png',
    'motorcycle_left.png', 'page.png', 'retina.jpg', 'rocket.jpg', 'text.png',
)  # fmt: skip
"""Photographs in the wheel of scikit-image, without its drawings and the second view of the motorcycle."""

FROM_SKLEARN = ('china.jpg', 'flower.jpg')


def draw(bound: int, *what: object) -> int:
    """A number from 0 to `bound` - 1 that depends on `what` alone."""
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:8], 'little') % bound


def digits(part: str, seed: int = 0) -> ImageDataset:
    """1797 scans of handwritten digits (UCI Optical Recognition), 8x8 with 17 gray levels, as 32x32 RGB.

    Args:
        part: 'train' (three quarters of each class) or 'test'.
        seed: Of the split.
    """
    with needs_extra('eval'):
        from sklearn.datasets import load_digits

    bunch = load_digits()
    chosen = []
    for label in range(10):
        members = np.flatnonzero(bunch.target == label)
        order = sorted(members.tolist(), key=lambda i: draw(1 << 62, 'digits', seed, i))
        cut = round(TRAIN_SHARE * len(order))
        chosen += order[:cut] if part == 'train' else order[cut:]
    chosen.sort()
    pixels = np.stack([_enlarge(bunch.images[i]) for i in chosen])
    return ImageDataset('digits', part, [str(i) for i in range(10)], bunch.target[chosen], Arrays(pixels, 'digits'))


def _enlarge(scan: np.ndarray) -> np.ndarray:
    grey = Image.fromarray((scan * (255 / 16)).round().astype(np.uint8))
    return np.asarray(grey.resize((DIGIT_SIZE, DIGIT_SIZE), Image.Resampling.BICUBIC).convert('RGB'))


def textures(part: str, seed: int = 0) -> ImageDataset:
    """Square crops of 21 photographs as 64x64 RGB, one class per photograph; gray ones have three equal channels.

    Training crops come from the first 60 % of the longer side of a photograph, test crops from the rest, so they share
    no pixel.

    Args:
        part: 'train' (80 crops per class) or 'test' (40).
        seed: Of the size and position of the crops.
    """
    pixels, labels, classes = [], [], []
    for label, (name, photo) in enumerate(_photographs().items()):
        classes.append(name)
        pixels += [_crop(photo, part, name, number, seed) for number in range(CROPS[part])]
        labels += [label] * CROPS[part]
    return ImageDataset('textures', part, classes, labels, Arrays(np.stack(pixels), 'textures'))


def _crop(photo: Image.Image, part: str, name: str, number: int, seed: int) -> np.ndarray:
    """Crop `number` of a photograph: uint8 (CROP_SIZE, CROP_SIZE, 3).

    A crop of nearly one color, such as the black corners of the retina, is drawn again.
    """
    for attempt in range(ATTEMPTS):
        crop = photo.crop(crop_box(photo.size, part, name, number, seed, attempt))
        if np.ptp(np.asarray(crop), axis=(0, 1)).max() >= LEAST_CONTRAST:
            break
    return np.asarray(crop.resize((CROP_SIZE, CROP_SIZE), Image.Resampling.BICUBIC))


def crop_box(
    size: tuple[int, int], part: str, name: str, number: int, seed: int, attempt: int = 0
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels of crop `number` of a photograph with `size` (width, height)."""
    longer = int(size[1] > size[0])
    cut = int(TRAIN_SIDE * size[longer])
    first, last = [0, 0], list(size)
    if part == 'train':
        last[longer] = cut
    else:
        first[longer] = cut
    room = min(last[0] - first[0], last[1] - first[1])
    what = name, part, number, seed, attempt
    side = SMALLEST_CROP + draw(min(room, LARGEST_CROP) - SMALLEST_CROP + 1, *what, 'side')
    left = first[0] + draw(last[0] - first[0] - side + 1, *what, 'left')
    top = first[1] + draw(last[1] - first[1] - side + 1, *what, 'top')
    return left, top, left + side, top + side


def _photographs() -> dict[str, Image.Image]:
    with needs_extra('eval'):
        import skimage
        from sklearn.datasets import load_sample_image

    folder = Path(skimage.__file__).parent / 'data'
    photos = {Path(name).stem: load_image(folder / name, upright=False) for name in PHOTOGRAPHS}
    return photos | {Path(name).stem: Image.fromarray(load_sample_image(name)) for name in FROM_SKLEARN}
