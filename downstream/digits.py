"""The demo's pictures, all of them real and all of them in scikit-learn: handwritten digits, and crops of two photos.

Digits: 1797 scans of 8x8 pixels and 17 grey levels (UCI, Optical Recognition of Handwritten Digits). Photos:
china.jpg and flower.jpg. Training crops come from the lower half of a photo, held-out crops from the upper half.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from sklearn.model_selection import train_test_split

__all__ = ['CLASSES', 'NUM_DIGITS', 'PHOTOS', 'SIZE', 'Pictures', 'load_photos', 'load_pictures']

SIZE = 32  # the smallest picture that TinyViT takes
PHOTOS = ('china', 'flower')
CLASSES = (*(str(i) for i in range(10)), *PHOTOS)
NUM_DIGITS = 10


@dataclass(frozen=True)
class Pictures:
    """Pictures of SIZE x SIZE, and the index of each one's class in CLASSES."""

    images: list[Image.Image]
    targets: torch.Tensor

    def __len__(self) -> int:
        return len(self.images)

    @property
    def is_digit(self) -> torch.Tensor:
        """Boolean mask of the digits; the others are crops of photos."""
        return self.targets < NUM_DIGITS


def load_photos() -> dict[str, Image.Image]:
    """The two whole photos, by class name."""
    bunch = load_sample_images()
    names = [str(name).rsplit('/', 1)[-1].removesuffix('.jpg') for name in bunch.filenames]
    return {name: Image.fromarray(pixels) for name, pixels in zip(names, bunch.images, strict=True)}


def load_pictures(seed: int = 0, limit: int | None = None) -> tuple[Pictures, Pictures]:
    """Training and held-out pictures, without a common one.

    Args:
        seed: Of the split and the crops.
        limit: Use only about so many digits, and crops in proportion; for a quick look.

    Returns:
        Training (three quarters of the digits) and held-out pictures (one quarter), all 12 classes in each.
    """
    digits = load_digits()
    images, targets = digits.images, digits.target
    if limit is not None:
        images, _, targets, _ = train_test_split(images, targets, train_size=limit, random_state=seed, stratify=targets)
    train_x, held_x, train_y, held_y = train_test_split(
        images, targets, test_size=0.25, random_state=seed, stratify=targets
    )
    photos = load_photos()
    rng = np.random.default_rng(seed)
    # As many crops of a photo as there are pictures of a digit.
    train = _pictures(train_x, train_y, photos, 'lower', len(train_x) // NUM_DIGITS, rng)
    return train, _pictures(held_x, held_y, photos, 'upper', len(held_x) // NUM_DIGITS, rng)


def _pictures(
    scans: np.ndarray,
    targets: np.ndarray,
    photos: dict[str, Image.Image],
    half: str,
    crops: int,
    rng: np.random.Generator,
) -> Pictures:
    images = [_enlarge(scan) for scan in scans]
    labels = targets.tolist()
    for name in PHOTOS:
        images += [_crop(photos[name], half, rng) for _ in range(crops)]
        labels += [CLASSES.index(name)] * crops
    return Pictures(images, torch.tensor(labels))


def _enlarge(scan: np.ndarray) -> Image.Image:
    """8x8 of 0..16 -> SIZE x SIZE RGB."""
    grey = Image.fromarray((scan * (255 / 16)).round().astype(np.uint8))
    return grey.resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert('RGB')


def _crop(photo: Image.Image, half: str, rng: np.random.Generator) -> Image.Image:
    """A square of random side and place within one half of a photo, scaled to SIZE x SIZE."""
    width, height = photo.size
    first, last = (0, height // 2) if half == 'upper' else (height // 2, height)
    side = int(rng.integers(80, 181))
    left = int(rng.integers(0, width - side + 1))
    top = int(rng.integers(first, last - side + 1))
    return photo.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
