"""Parameters of views: a function of (seed, epoch, position, image size) alone, for a whole batch at once.

Every operation draws from a key of its own, `child_key(seed, epoch, position, stage)`, so that no setting of one, and
no new one, changes what another draws. From draws to parameters nothing is used but +, -, *, /, square roots, rounding
and the tables of `common.exact_tables`: the parameters are the same to the bit with any NumPy on any processor.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from ..common.counter_rng import child_key, uniform
from ..common.errors import EvaluationError
from ..common.exact_tables import at_quantiles, geometric, normal_quantiles
from ..common.plain import plain
from ..common.text import reason
from .rand_augment import OPERATIONS, RandAugment
from .view_spec import Erasing, ViewSpec

__all__ = ['JITTER', 'Box', 'Stage', 'View', 'ViewParameters', 'draw_views', 'is_checked']

ATTEMPTS = 10  # to draw a crop or a rectangle that fits, as in timm and torchvision
CHECKED_EVERY = 256
JITTER = ('Brightness', 'Contrast', 'Saturation', 'Hue')

Box = tuple[int, int, int, int]
"""Top, left, height, width in pixels."""


class Stage(IntEnum):
    """The last part of the key of each operation. Numbers are never changed or used again."""

    CROP = 0
    FLIP = 1
    RAND_AUGMENT = 2
    COLOR_JITTER = 3
    ERASE = 4
    ERASE_NOISE = 5
    MASK = 6
    CONTRAST = 7


@dataclass(frozen=True)
class View:
    """What is done to one image, in this order.

    Attributes:
        image_size: (height, width) of the image that it was drawn for.
        crop: What is left of the image, and then resized.
        flip: Whether left and right are exchanged.
        operations: Names of timm's operations, each with its argument, None where it has none.
        jitter: Names in `JITTER`, each with the factor, or the turn for 'Hue', in the order in which they are done.
        erased: Rectangles to replace, on a grid of `grid` pixels that lies over the whole view.
        grid: (height, width) of that grid.
        noise_key: Seed of what replaces them.
    """

    image_size: tuple[int, int]
    crop: Box
    flip: bool
    operations: tuple[tuple[str, float | None], ...]
    jitter: tuple[tuple[str, float], ...]
    erased: tuple[Box, ...]
    grid: tuple[int, int]
    noise_key: int

    def record(self) -> dict[str, Any]:
        """In types that JSON has."""
        return plain(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> 'View':
        """The inverse of `record`.

        Raises:
            EvaluationError: If it is none.
        """
        try:
            view = cls(**{name: _as_tuples(value) for name, value in record.items()})
            known = set(OPERATIONS) | set(JITTER)
            if not all(name in known for name, _ in (*view.operations, *view.jitter)) or len(view.crop) != 4:
                raise ValueError('it has an unknown operation, or no crop')
        except (TypeError, ValueError) as e:
            raise EvaluationError(f'The record of the view is damaged ({reason(e)}): draw it again.') from e
        return view


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class ViewParameters:
    """Parameters of B views; `parameters[i]` is one of them as a `View`.

    Attributes:
        spec: What they were drawn for.
        image_sizes: (B, 2) int64, height and width of the images.
        crops: (B, 4) int64, top, left, height and width.
        flips: (B,) bool.
        operations: (B, L) int64, places in `spec.rand_augment.operations`, -1 for an operation that is not done.
        magnitudes: (B, L) float64, in timm's scale.
        negative: (B, L) bool, the sign of the operations that have one.
        jitter: (B, 4) float64, see `JITTER`; (B, 0) without color jitter.
        jitter_order: (B, 4) int64, places in `JITTER`; (B, 0) without color jitter.
        erased: (B, R, 4) int64, rectangles on a grid of the size of `spec`; of height 0 where there is none.
        noise_keys: (B,) uint64.
    """

    spec: ViewSpec
    image_sizes: np.ndarray
    crops: np.ndarray
    flips: np.ndarray
    operations: np.ndarray
    magnitudes: np.ndarray
    negative: np.ndarray
    jitter: np.ndarray
    jitter_order: np.ndarray
    erased: np.ndarray
    noise_keys: np.ndarray

    def __len__(self) -> int:
        return len(self.crops)

    def __iter__(self) -> Iterator[View]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> View:
        height, width = self.image_sizes[i].tolist()
        top, left, crop_height, crop_width = self.crops[i].tolist()
        return View(
            image_size=(height, width),
            crop=(top, left, crop_height, crop_width),
            flip=bool(self.flips[i]),
            operations=tuple(self._operations(i)),
            jitter=tuple((JITTER[k], self.jitter[i, k].item()) for k in self.jitter_order[i].tolist()),
            erased=tuple((t, x, h, w) for t, x, h, w in self.erased[i].tolist() if h),
            grid=self.spec.size,
            noise_key=int(self.noise_keys[i]),
        )

    def _operations(self, i: int) -> Iterator[tuple[str, float | None]]:
        rows = (self.operations[i].tolist(), self.magnitudes[i].tolist(), self.negative[i].tolist())
        for place, magnitude, negative in zip(*rows, strict=True):
            if place >= 0 and self.spec.rand_augment is not None:
                name = self.spec.rand_augment.operations[place]
                argument = OPERATIONS[name]
                yield name, None if argument is None else argument(magnitude, negative)


def is_checked(position: int | np.ndarray) -> Any:
    """Whether stores keep the CRC32 of the views of this position: 1 in 256, the first of any data set among them."""
    return position % CHECKED_EVERY == 0


def draw_views(
    spec: ViewSpec,
    seed: int,
    epoch: int | np.ndarray,
    positions: Sequence[int] | np.ndarray,
    sizes: Sequence[tuple[int, int]] | np.ndarray,
) -> ViewParameters:
    """Parameters of the views of a batch; each depends on nothing but its own seed, epoch, position and size.

    Args:
        spec: Settings.
        seed: Of the run.
        epoch: From 0; one for all, or (B,) one for each.
        positions: (B,) from 0, of the images in their data set.
        sizes: (B, 2) height and width of the images in pixels.

    Raises:
        EvaluationError: If there is not one size of at least one pixel for each position.
    """
    places = np.asarray(positions, dtype=np.int64).reshape(-1)
    pixels = np.asarray(sizes, dtype=np.int64).reshape(-1, 2)
    if len(places) != len(pixels) or (len(pixels) and min(pixels.min(), places.min() + 1) < 1):
        raise EvaluationError(
            f'{len(places)} positions came with {len(pixels)} sizes of images: give a height and a width of at least '
            '1 for each position from 0.'
        )
    epochs = epoch if isinstance(epoch, int) else np.asarray(epoch).reshape(-1, 1)
    keys = child_key(seed, epochs, places[:, None], np.arange(len(Stage)))
    operations, magnitudes, negative = _rand_augment(spec.rand_augment, keys[:, Stage.RAND_AUGMENT])
    jitter, jitter_order = _jitter(spec.color_jitter, keys[:, Stage.COLOR_JITTER])
    return ViewParameters(
        spec=spec,
        image_sizes=pixels,
        crops=_crop(spec, keys[:, Stage.CROP], pixels),
        flips=uniform(keys[:, Stage.FLIP], 1)[:, 0] < spec.hflip,
        operations=operations,
        magnitudes=magnitudes,
        negative=negative,
        jitter=jitter,
        jitter_order=jitter_order,
        erased=_erase(spec.erasing, keys[:, Stage.ERASE], spec.size),
        noise_keys=keys[:, Stage.ERASE_NOISE],
    )


def _between(low: float, high: float, shares: np.ndarray) -> np.ndarray:
    return low + shares * (high - low)


def _crop(spec: ViewSpec, keys: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Crops (B, 4), of torchvision's distribution: the first of ten attempts that fits, or else the central one."""
    heights, widths = sizes[:, :1].astype(np.float64), sizes[:, 1:].astype(np.float64)
    draws = uniform(keys, 4 * ATTEMPTS).reshape(-1, ATTEMPTS, 4)
    area = heights * widths * _between(*spec.scale, draws[..., 0])
    ratio = at_quantiles(geometric(*spec.ratio), draws[..., 1])
    height, width = np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))
    fits = (width <= widths) & (height <= heights) & (np.minimum(width, height) >= 1)
    crops, found = _first_that_fits(height, width, fits, draws, heights[:, 0], widths[:, 0])
    if not found.all():
        crops[~found] = _central(spec.ratio, heights[~found, 0], widths[~found, 0])
    return crops


def _first_that_fits(
    height: np.ndarray,
    width: np.ndarray,
    fits: np.ndarray,
    draws: np.ndarray,
    heights: float | np.ndarray,
    widths: float | np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The first attempt of each row that fits, at a place drawn for it.

    Args:
        height: (M, A) of each attempt.
        width: (M, A) of each attempt.
        fits: (M, A) bool.
        draws: (M, A, 4); the last two are for the place.
        heights: (M,) or one for all, of what the rectangle lies in.
        widths: (M,) or one for all.

    Returns:
        Rectangles (M, 4) int64, and whether any fitted, (M,) bool.
    """
    rows, first = np.arange(len(fits)), fits.argmax(axis=1)
    height, width, places = height[rows, first], width[rows, first], draws[rows, first]
    boxes = np.empty((len(rows), 4), dtype=np.int64)
    # A share below 1 times an integer is rounded to a number below it.
    boxes[:, 0] = np.floor(places[:, 2] * (heights - height + 1))
    boxes[:, 1] = np.floor(places[:, 3] * (widths - width + 1))
    boxes[:, 2], boxes[:, 3] = height, width
    return boxes, fits[rows, first]


def _central(ratio: tuple[float, float], heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """The largest crops (B, 4) in the middle whose width divided by height is in the range."""
    own = widths / heights
    height = np.where(own < ratio[0], np.minimum(np.maximum(np.rint(widths / ratio[0]), 1), heights), heights)
    width = np.where(own > ratio[1], np.minimum(np.maximum(np.rint(heights * ratio[1]), 1), widths), widths)
    return np.stack([(heights - height) // 2, (widths - width) // 2, height, width], axis=1)


def _rand_augment(settings: RandAugment | None, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places of operations, magnitudes and signs, all (B, L); four draws for each layer."""
    if settings is None:
        none = np.zeros((len(keys), 0))
        return none.astype(np.int64), none, none.astype(bool)
    draws = uniform(keys, 4 * settings.layers).reshape(-1, settings.layers, 4)
    operations = (draws[..., 0] * len(settings.operations)).astype(np.int64)
    operations[draws[..., 1] >= settings.probability] = -1
    if np.isinf(settings.magnitude_std):
        magnitudes = settings.magnitude * draws[..., 2]
    else:
        magnitudes = settings.magnitude + settings.magnitude_std * at_quantiles(normal_quantiles(), draws[..., 2])
    return operations, np.clip(magnitudes, 0, settings.magnitude_max), draws[..., 3] < 0.5


def _jitter(largest: tuple[float, ...] | None, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors, the last one the turn of the hue, and the order in which they are done: (B, 4) each."""
    if largest is None:
        return np.zeros((len(keys), 0)), np.zeros((len(keys), 0), dtype=np.int64)
    draws = uniform(keys, 8)
    widest = np.array(largest)
    low, high = np.maximum(0, 1 - widest), 1 + widest
    low[3], high[3] = -widest[3], widest[3]
    return low + draws[:, :4] * (high - low), draws[:, 4:].argsort(axis=1, kind='stable')


def _erase(settings: Erasing | None, keys: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Rectangles (B, R, 4) on a grid of `size`; two draws for a view, and ten attempts of four for each rectangle."""
    result = np.zeros((len(keys), settings.count if settings else 0, 4), dtype=np.int64)
    if settings is None:
        return result
    view = uniform(keys, 2)
    counts = np.where(view[:, 0] < settings.probability, 1 + np.floor(view[:, 1] * settings.count), 0)
    views, numbers = np.nonzero(np.arange(settings.count) < counts[:, None])
    draws = uniform(child_key(keys[views], numbers), 4 * ATTEMPTS).reshape(-1, ATTEMPTS, 4)
    area = _between(*settings.area, draws[..., 0]) * (size[0] * size[1]) / counts[views, None]
    aspect = at_quantiles(geometric(*settings.aspect), draws[..., 1])
    height, width = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (height < size[0]) & (width < size[1]) & (np.minimum(width, height) >= 1)
    boxes, found = _first_that_fits(height, width, fits, draws, *size)
    result[views, numbers] = boxes * found[:, None]
    return result
