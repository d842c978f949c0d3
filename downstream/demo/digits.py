"""The demo's images, real ones from scikit-learn: handwritten digits, and crops of two photos.

Digits: those of the data set `digits` with its split, so the test images of other evaluators are held out here, too.
Photos: china.jpg and flower.jpg. Training crops are from the lower half of a photo, held-out crops from the upper half.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from tinyvit_zoo.data.image_dataset import ImageDataset
from tinyvit_zoo.data.offline import DIGIT_SIZE, digits

__all__ = ['CLASSES', 'NUM_DIGITS', 'PHOTOS', 'SIZE', 'DemoImages', 'load_images', 'load_photos']

SIZE = DIGIT_SIZE  # pixels per side; the smallest image that TinyViT takes
PHOTOS = ('china', 'flower')
CLASSES = (*(str(i) for i in range(10)), *PHOTOS)
NUM_DIGITS = 10


@dataclass(frozen=True)
class DemoImages:
    """Images of SIZE x SIZE, and the index of each one's class in CLASSES."""

    images: list[Image.Image]
    targets: torch.Tensor

    def __len__(self) -> int:
        return len(self.images)

    @property
    def is_digit(self) -> torch.Tensor:
        """Boolean mask of the digits; the other images are crops of photos."""
        return self.targets < NUM_DIGITS


def load_photos() -> dict[str, Image.Image]:
    """The two whole photos, by class name."""
    bunch = load_sample_images()
    names = [str(name).rsplit('/', 1)[-1].removesuffix('.jpg') for name in bunch.filenames]
    return {name: Image.fromarray(pixels) for name, pixels in zip(names, bunch.images, strict=True)}


def load_images(seed: int = 0, limit: int | None = None) -> tuple[DemoImages, DemoImages]:
    """Disjoint training and held-out images.

    Args:
        seed: Of the split and the crops.
        limit: Approximate number of digits, with crops in proportion, for a quick look.

    Returns:
        Training images (three quarters of the digits) and held-out images (one quarter), all 12 classes in each.
    """
    photos = load_photos()
    rng = np.random.default_rng(seed)
    train, held = digits('train', seed), digits('test', seed)
    share = 1.0 if limit is None else limit / (len(train) + len(held))
    return _with_crops(_part(train, share), photos, 'lower', rng), _with_crops(_part(held, share), photos, 'upper', rng)


def _part(dataset: ImageDataset, share: float) -> ImageDataset:
    """The first images of each class, a share of them."""
    members = [np.flatnonzero(dataset.labels == label) for label in range(NUM_DIGITS)]
    return dataset.subset(np.sort(np.concatenate([m[: round(share * len(m))] for m in members])))


def _with_crops(scans: ImageDataset, photos: dict[str, Image.Image], half: str, rng: np.random.Generator) -> DemoImages:
    """The digits, and as many crops of each photo as there are images of a digit."""
    images = [scans.image(i) for i in range(len(scans))]
    labels = scans.labels.tolist()
    crops = len(scans) // NUM_DIGITS
    for name in PHOTOS:
        images += [_crop(photos[name], half, rng) for _ in range(crops)]
        labels += [CLASSES.index(name)] * crops
    return DemoImages(images, torch.tensor(labels))


def _crop(photo: Image.Image, half: str, rng: np.random.Generator) -> Image.Image:
    """A square of random size and position in one half of a photo, scaled to SIZE x SIZE."""
    width, height = photo.size
    first, last = (0, height // 2) if half == 'upper' else (height // 2, height)
    side = int(rng.integers(80, 181))
    left = int(rng.integers(0, width - side + 1))
    top = int(rng.integers(first, last - side + 1))
    return photo.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
