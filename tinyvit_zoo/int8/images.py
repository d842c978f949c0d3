"""Images that activations are measured on, and other images that the result is checked on."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

import numpy as np
import torch
from PIL import Image

from ..common.counter_rng import child_key, permutations
from ..common.errors import EvaluationError, MissingSplitError
from ..data.datasets import load_dataset
from ..data.folders import read_plain_folder
from ..data.image_dataset import ImageDataset

__all__ = ['FEWEST', 'CalibrationImages', 'CheckImages', 'Inputs', 'calibration_images', 'check_images']

_log = logging.getLogger(__name__)

FEWEST = 16
"""Readable images that calibration needs at least: ranges of fewer say little of the images to come."""
HELD_OUT = 4  # one of so many images is kept for the check where there is no other folder
KEPT = 1 << 28  # bytes of inputs in memory: 128 images of 224 pixels have 77 MB, of 1024 pixels 1.6 GB

Transform = Callable[[Image.Image], torch.Tensor]


class Inputs(Sequence[np.ndarray]):
    """Inputs of a model, float32 (1, C, H, W) each: in memory as far as `KEPT` goes, the others read anew each time.

    Args:
        dataset: What the images are from.
        transform: The model's preprocessing.
    """

    def __init__(self, dataset: ImageDataset, transform: Transform) -> None:
        self._dataset = dataset
        self._transform = transform
        self._positions: list[int] = []
        self._kept: list[np.ndarray] = []  # the first ones
        self._bytes = 0

    def append(self, i: int, x: np.ndarray) -> None:
        """Add the image at position `i`, whose input is `x`."""
        if len(self._kept) == len(self._positions) and self._bytes + x.nbytes <= KEPT:
            self._kept.append(x)
            self._bytes += x.nbytes
        self._positions.append(i)

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, k: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, k: slice) -> list[np.ndarray]: ...
    def __getitem__(self, k: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(k, slice):
            return [self[j] for j in range(*k.indices(len(self)))]
        i = range(len(self))[k]
        if i < len(self._kept):
            return self._kept[i]
        return _input(self._dataset.image(self._positions[i]), self._transform)


@dataclass(frozen=True)
class CalibrationImages:
    """Images that activations are measured on.

    Attributes:
        inputs: Of the model.
        digests: sha256 of the pixels of each image.
        dataset: What they were drawn from.
        rest: Positions in `dataset` that were not drawn, in the order of the draw.
    """

    inputs: Inputs
    digests: frozenset[bytes]
    dataset: ImageDataset
    rest: np.ndarray


@dataclass
class CheckImages:
    """Images that calibration did not see; iterating reads them anew, and says once how many are left out.

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
    _said: bool = field(default=False, init=False)

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """Position and input, float32 (1, C, H, W), of each image that can be read."""
        unreadable = seen = 0
        for i in self.positions.tolist():
            found = _read(self.dataset, i, self.transform)
            if found is None:
                unreadable += 1
            elif found[0] in self.seen:
                seen += 1
            else:
                yield i, found[1]
        self._say(unreadable, seen)

    def _say(self, unreadable: int, seen: int) -> None:
        if (unreadable or seen) and not self._said:
            self._said = True
            counts = {'that cannot be read': unreadable, 'that calibration saw': seen}
            words = ', '.join(
                f'{count} {"image" if count == 1 else "images"} {which}' for which, count in counts.items() if count
            )
            _log.warning('Left out of the check on %s: %s.', self.dataset.name, words)


def calibration_images(
    where: str, count: int, transform: Transform, *, held_out: bool, seed: int = 0
) -> CalibrationImages:
    """Draw images for calibration.

    Args:
        where: A folder of images or of class folders, or the name of a data set: its split 'train', or else all of it.
        count: How many, at most; `FEWEST` at least.
        transform: The model's preprocessing.
        held_out: Leave at least a quarter of the images for the check, as far as `FEWEST` others can be read.
        seed: Of the draw.

    Raises:
        EvaluationError: If fewer than `FEWEST` images can be read.
    """
    dataset = _load(where, ('train', 'all'))
    order = permutations(child_key(seed), len(dataset)).reshape(-1)
    free = len(order) - len(order) // HELD_OUT if held_out else len(order)
    inputs, digests, passed = Inputs(dataset, transform), set[bytes](), 0
    for i in order.tolist():
        if len(inputs) >= (max(count, FEWEST) if passed < free else FEWEST):
            break
        passed += 1
        found = _read(dataset, i, transform)
        if found is not None:
            digests.add(found[0])
            inputs.append(i, found[1])
    if len(inputs) < FEWEST:
        raise EvaluationError(
            f'Calibration needs at least {FEWEST} images that can be read: {where} has {len(inputs)}, and '
            f'{passed - len(inputs)} that cannot.'
        )
    if len(inputs) < passed:
        _log.warning('%s: left out, as they cannot be read: %d of %d images.', where, passed - len(inputs), passed)
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
    return digest, _input(image, transform)


def _input(image: Image.Image, transform: Transform) -> np.ndarray:
    return transform(image)[None].numpy().astype(np.float32, copy=False)
