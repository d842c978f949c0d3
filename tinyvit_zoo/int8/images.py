"""Images that activations are measured on, and other images that the result is checked on."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..common.counter_rng import child_key, permutations
from ..common.errors import EvaluationError, MissingSplitError
from ..data.datasets import load_dataset
from ..data.folders import read_plain_folder
from ..data.image_dataset import ImageDataset

__all__ = ['FEWEST', 'CalibrationImages', 'CheckImages', 'calibration_images', 'check_images']

FEWEST = 16
"""Readable images that calibration needs at least: ranges of fewer say little of the images to come."""
HELD_OUT = 4  # one of so many images is kept for the check where there is no other folder

Transform = Callable[[Image.Image], torch.Tensor]


@dataclass(frozen=True)
class CalibrationImages:
    """Images that activations are measured on.

    Attributes:
        inputs: Of the model, float32 (1, C, H, W) each.
        digests: sha256 of the pixels of each image.
        dataset: What they were drawn from.
        rest: Positions in `dataset` that were not drawn, in the order of the draw.
    """

    inputs: list[np.ndarray]
    digests: frozenset[bytes]
    dataset: ImageDataset
    rest: np.ndarray


@dataclass(frozen=True)
class CheckImages:
    """Images that calibration did not see; iterating reads them anew.

    Attributes:
        dataset: What they are from.
        positions: Those to read.
        transform: The model's preprocessing.
        seen: sha256 of the pixels of calibration images, which are left out.
    """

    dataset: ImageDataset
    positions: np.ndarray
    transform: Transform
    seen: frozenset[bytes]

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """Position and input, float32 (1, C, H, W), of each image that can be read."""
        for i in self.positions.tolist():
            found = _read(self.dataset, i, self.transform)
            if found is not None and found[0] not in self.seen:
                yield i, found[1]


def calibration_images(
    where: str, count: int, transform: Transform, *, held_out: bool, seed: int = 0
) -> CalibrationImages:
    """Draw images for calibration.

    Args:
        where: A folder of images or of class folders, or the name of a data set: its split 'train', or else all of it.
        count: How many, at most.
        transform: The model's preprocessing.
        held_out: Leave at least a quarter of the images for the check.
        seed: Of the draw.

    Raises:
        EvaluationError: If fewer than `FEWEST` images can be read.
    """
    dataset = _load(where, ('train', 'all'))
    order = permutations(child_key(seed), len(dataset)).reshape(-1)
    if held_out:
        count = max(min(count, len(dataset) - len(dataset) // HELD_OUT), FEWEST)
    inputs: list[np.ndarray] = []
    digests: set[bytes] = set()
    passed = 0
    for i in order.tolist():
        if len(inputs) == count:
            break
        passed += 1
        found = _read(dataset, i, transform)
        if found is not None:
            digests.add(found[0])
            inputs.append(found[1])
    if len(inputs) < FEWEST:
        raise EvaluationError(
            f'{where} has {len(inputs)} images that can be read, {passed - len(inputs)} that cannot: calibration needs '
            f'at least {FEWEST}.'
        )
    return CalibrationImages(inputs, frozenset(digests), dataset, order[passed:])


def check_images(where: str | None, calibration: CalibrationImages, transform: Transform) -> CheckImages:
    """Images for the check: all of a folder or data set, or those that the calibration left, without those it saw.

    Args:
        where: As for `calibration_images`, but of a data set the split 'test', or else 'validation', or all of it.
        calibration: What was drawn before.
        transform: The model's preprocessing.
    """
    if where is None:
        rest = calibration.rest[: max(len(calibration.inputs), FEWEST)]
        return CheckImages(calibration.dataset, rest, transform, calibration.digests)
    dataset = _load(where, ('test', 'validation', 'all'))
    return CheckImages(dataset, np.arange(len(dataset)), transform, calibration.digests)


def _load(where: str, splits: tuple[str, ...]) -> ImageDataset:
    """The first of these splits that exists; a folder without class folders has images without labels."""
    for split in splits:
        try:
            return load_dataset(where, split, check_counts=False)
        except MissingSplitError:
            continue
        except EvaluationError:
            if not Path(where).is_dir():
                raise
            break
    return read_plain_folder(Path(where))


def _read(dataset: ImageDataset, i: int, transform: Transform) -> tuple[bytes, np.ndarray] | None:
    """sha256 of the pixels and input of an image; None if it cannot be read."""
    try:
        image = dataset.image(i)
    except EvaluationError:
        return None
    digest = hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()
    return digest, transform(image)[None].numpy().astype(np.float32, copy=False)
