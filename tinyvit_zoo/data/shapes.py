"""Rectangles and circles on noise, for detectors and segmenters that have to run without a download.

    detection:     train.json  train/0001.png ...  val.json  val/0001.png ...            COCO's format
    segmentation:  {images,annotations}/{training,validation}/0001.png ...               ADE20K's layout

Every image is a function of (part, number). Those of training and validation have nothing in common.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from ..common.counter_rng import child_key, uniform

__all__ = ['make_detection_set', 'make_segmentation_set']

CLASSES = ('rectangle', 'circle')
COLORS = ((210, 60, 50), (50, 90, 215))
SIDE = 256  # pixels of an image
SMALLEST, LARGEST = 20, 120  # pixels of a shape: COCO's three sizes occur
NOISE = 90  # gray levels
TRIES = 20  # to find a place
OVERLAP = 0.1  # of the smaller box


class Shape(NamedTuple):
    """A shape and its box, in pixels."""

    category: int
    color: tuple[int, ...]
    box: tuple[int, int, int, int]  # left, top, right, bottom

    @property
    def polygon(self) -> np.ndarray:
        """(points, 2) of x and y."""
        left, top, right, bottom = self.box
        if self.category == 0:
            return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], dtype=float)
        angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        around = (1 + np.stack([np.cos(angle), np.sin(angle)], axis=1)) / 2
        return np.array([left, top]) + around * np.array([right - left, bottom - top])


def make_detection_set(root: Path, train: int = 8, validation: int = 8) -> None:
    """Write a small instance segmentation set in COCO's format.

    Args:
        root: Folder of everything; made if it is missing.
        train: Images in `train/`.
        validation: Images in `val/`.
    """
    for part, count in dict(train=train, val=validation).items():
        (root / part).mkdir(parents=True, exist_ok=True)
        images, annotations = [], list[dict[str, Any]]()
        for number in range(1, count + 1):
            image, shapes = _image(part, number)
            image.save(root / part / f'{number:04d}.png')
            images.append(dict(id=number, file_name=f'{number:04d}.png', width=SIDE, height=SIDE))
            annotations += [_annotation(number, len(annotations) + i, shape) for i, shape in enumerate(shapes, 1)]
        categories = [dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)]
        content = dict(info={}, licenses=[], images=images, annotations=annotations, categories=categories)
        (root / f'{part}.json').write_text(json.dumps(content))


def make_segmentation_set(root: Path, train: int = 8, validation: int = 8) -> None:
    """Write the same shapes in ADE20K's layout: label 1 is the background, 2 a rectangle, 3 a circle.

    Args:
        root: Folder of everything; made if it is missing.
        train: Images in `images/training/`.
        validation: Images in `images/validation/`.
    """
    for part, count in dict(training=train, validation=validation).items():
        for kind in ('images', 'annotations'):
            (root / kind / part).mkdir(parents=True, exist_ok=True)
        for number in range(1, count + 1):
            image, shapes = _image(part, number)
            labels = Image.new('L', (SIDE, SIDE), 1)
            for shape in shapes:
                ImageDraw.Draw(labels).polygon([tuple(p) for p in shape.polygon], fill=shape.category + 2)
            image.save(root / 'images' / part / f'{number:04d}.jpg', quality=95)
            labels.save(root / 'annotations' / part / f'{number:04d}.png')


def _image(part: str, number: int) -> tuple[Image.Image, list[Shape]]:
    key = child_key(int.from_bytes(part.encode()[:8], 'little'), number)
    noise = uniform(child_key(key, 0), SIDE * SIDE * 3).reshape(SIDE, SIDE, 3)
    image = Image.fromarray((NOISE * noise).astype(np.uint8))
    shapes = list(_shapes(iter(uniform(child_key(key, 1), 1000))))
    for shape in shapes:
        ImageDraw.Draw(image).polygon([tuple(p) for p in shape.polygon], fill=shape.color)
    return image, shapes


def _shapes(drawn: Iterator[float]) -> Iterator[Shape]:
    """Two to four shapes that hardly overlap, by numbers in [0, 1)."""

    def integer(low: int, high: int) -> int:
        return low + int(next(drawn) * (high - low))

    boxes: list[tuple[int, int, int, int]] = []
    for _ in range(integer(2, 5)):
        category, width, height = integer(0, 2), integer(SMALLEST, LARGEST), integer(SMALLEST, LARGEST)
        color = tuple(level + integer(-35, 36) for level in COLORS[category])
        for _ in range(TRIES):
            left, top = integer(0, SIDE - width), integer(0, SIDE - height)
            box = (left, top, left + width, top + height)
            if all(_overlap(box, other) < OVERLAP for other in boxes):
                boxes.append(box)
                yield Shape(category, color, box)
                break


def _overlap(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Common area as a share of the smaller box."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(width, 0) * max(height, 0) / smaller


def _annotation(image: int, number: int, shape: Shape) -> dict[str, Any]:
    left, top, right, bottom = shape.box
    x, y = shape.polygon.T
    area = abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2
    outline = [round(float(value), 2) for value in shape.polygon.reshape(-1)]
    return dict(
        id=number, image_id=image, category_id=shape.category + 1, iscrowd=0, area=float(area),
        bbox=[left, top, right - left, bottom - top], segmentation=[outline],
    )  # fmt: skip
