"""The views that TinyViT's code drew from the seeds in its stored logits, drawn and made again.

Its transform takes every number from one generator, `numpy.random.Generator(PCG64(seed))`, in an order that depends on
what was drawn before (Cream, TinyViT/data/augmentation): that order is followed here draw by draw. NumPy promises the
same streams for its bit generators alone, not for `normal` and `choice`: `check_generator` asks for a few of both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..common.errors import EvaluationError
from ..data.rand_augment import OPERATIONS
from ..data.replay import Erasing, RandAugment, View, ViewSpec, fill_color
from ..data.view_apply import erase, make_image, normalized
from ..data.view_params import ATTEMPTS, Box

__all__ = [
    'GRID',
    'Draws',
    'OfficialView',
    'check_generator',
    'draw_official_view',
    'official_spec',
    'official_tensor',
]

GRID = 224, 224
"""Rectangles are drawn for images of this size, whatever their own (random_erasing.py, REF_H and REF_W)."""

SIGNED = frozenset(name for name, argument in OPERATIONS.items() if argument and argument(1, True) < argument(1, False))


def official_spec(
    size: tuple[int, int] = GRID, mean: Sequence[float] = IMAGENET_DEFAULT_MEAN, **changes: Any
) -> ViewSpec:
    """Settings of the published pretraining; the fill color follows the mean, so teacher's and student's differ.

    Args:
        size: (height, width) of the views.
        mean: CLIP's for the views that the teacher saw, ImageNet's for the student's.
        **changes: Other settings of `ViewSpec`.
    """
    settings: dict[str, Any] = dict(size=size, rand_augment=RandAugment(), erasing=Erasing(), fill=fill_color(mean))
    return ViewSpec(**(settings | changes))


@dataclass(frozen=True)
class OfficialView:
    """What one seed stands for.

    Attributes:
        view: Parameters; the `noise_key` is not used.
        noise_seeds: Of NumPy's MT19937, one for each erased rectangle.
        draws: Every number drawn, in order, as (name, number).
    """

    view: View
    noise_seeds: tuple[int, ...]
    draws: tuple[tuple[str, Any], ...]


class Draws:
    """One seed's generator with the functions of aug_random.py.

    Args:
        seed: Stored with the logits.

    Attributes:
        log: See `OfficialView.draws`.
    """

    def __init__(self, seed: int) -> None:
        self.generator = np.random.Generator(np.random.PCG64(seed))
        self.log: list[tuple[str, Any]] = []

    def share(self) -> float:
        value = self.generator.random()
        self.log.append(('random', value))
        return value

    def uniform(self, low: float, high: float) -> float:
        return self.share() * (high - low) + low

    def integer(self, low: int, high: int) -> int:
        """`low` to `high`, both included."""
        return min(int(self.share() * (high - low + 1)) + low, high)

    def normal(self, mean: float, std: float) -> float:
        value = self.generator.normal(mean, std)
        self.log.append(('normal', value))
        return value

    def choice(self, names: Sequence[str], count: int) -> list[str]:
        chosen = [names[i] for i in self.generator.choice(len(names), count)]
        self.log.append(('choice', chosen))
        return chosen


KNOWN = 8.933947568354348, ['4', '0', '1', '0'], -0.6251510977745056
"""The first numbers of seed 0: of `normal` after `random`, of `choice`, and of the noise."""


def check_generator() -> None:
    """Refuse a NumPy whose generators give other numbers than that of the released code.

    Raises:
        EvaluationError: With its version.
    """
    draws = Draws(0)
    draws.share()
    drawn = draws.normal(9, 0.5), draws.choice([str(i) for i in range(15)], 4), _noise(0, (1,)).item()
    if drawn != KNOWN:
        raise EvaluationError(
            f'NumPy {np.__version__} draws other numbers from the seeds of the released code than it did: use NumPy '
            '1.26 to 2.4.'
        )


def draw_official_view(seed: int, image_size: tuple[int, int], spec: ViewSpec) -> OfficialView:
    """The view of one seed.

    Args:
        seed: As stored, 0 to 2^31 - 1.
        image_size: (height, width) of the decoded image.
        spec: Settings of the run, see `official_spec`.

    Raises:
        EvaluationError: If the settings have color jitter, which the official code cannot replay either.
    """
    if spec.color_jitter is not None:
        raise EvaluationError('Official seeds replay no color jitter: leave it out of the settings of the views.')
    draws = Draws(seed)
    crop = _crop(draws, image_size, spec)
    flip = spec.hflip > 0 and draws.share() < spec.hflip
    operations = _rand_augment(draws, spec.rand_augment) if spec.rand_augment else []
    erased, seeds = _erase(draws, spec.erasing) if spec.erasing and spec.erasing.probability else ([], [])
    view = View(image_size, crop, flip, tuple(operations), (), tuple(erased), GRID, 0)
    return OfficialView(view, tuple(seeds), tuple(draws.log))


def official_tensor(
    image: Image.Image,
    official: OfficialView,
    spec: ViewSpec,
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
) -> torch.Tensor:
    """The input that the official code gave to the model: float32 (3, H, W), normalized and erased.

    Args:
        image: Of the size that the view was drawn for.
        official: Of `draw_official_view`.
        spec: The settings given there.
        mean: Of the model, for each channel.
        std: Of the model, for each channel.
    """
    pixels = normalized(make_image(image, official.view, spec), mean, std)
    mode = spec.erasing.mode if spec.erasing else 'const'
    return erase(pixels, official.view, mode, lambda number, shape: _noise(official.noise_seeds[number], shape))


def _noise(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.Generator(np.random.MT19937(seed)).normal(size=shape).astype(np.float32)


def _crop(draws: Draws, image_size: tuple[int, int], spec: ViewSpec) -> Box:
    height, width = image_size
    for _ in range(ATTEMPTS):
        area = draws.uniform(*spec.scale) * (height * width)
        ratio = math.exp(draws.uniform(*map(math.log, spec.ratio)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if w <= width and h <= height:
            return draws.integer(0, height - h), draws.integer(0, width - w), h, w
    low, high = spec.ratio
    h = round(width / low) if width / height < low else height
    w = round(height * high) if width / height > high else width
    return (height - h) // 2, (width - w) // 2, h, w


def _rand_augment(draws: Draws, settings: RandAugment) -> list[tuple[str, float | None]]:
    done = []
    for name in draws.choice(settings.operations, settings.layers):
        if settings.probability < 1 and draws.share() > settings.probability:
            continue
        magnitude = settings.magnitude
        if math.isinf(settings.magnitude_std):
            magnitude = draws.uniform(0, magnitude)
        elif settings.magnitude_std:  # drawn for operations without a magnitude too
            magnitude = draws.normal(magnitude, settings.magnitude_std)
        magnitude = max(0.0, min(magnitude, settings.magnitude_max))
        argument, negative = OPERATIONS[name], name in SIGNED and draws.share() > 0.5
        done.append((name, None if argument is None else argument(magnitude, negative)))
    return done


def _erase(draws: Draws, settings: Erasing) -> tuple[list[Box], list[int]]:
    """Rectangles on `GRID`, and the seeds of their noise."""
    if draws.share() > settings.probability:
        return [], []
    count = settings.count if settings.count == 1 else draws.integer(1, settings.count)
    height, width = GRID
    boxes, seeds = [], []
    for _ in range(count):
        for _ in range(ATTEMPTS):
            area = draws.uniform(*settings.area) * (height * width) / count
            aspect = math.exp(draws.uniform(*map(math.log, settings.aspect)))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if w < width and h < height:
                boxes.append((draws.integer(0, height - h), draws.integer(0, width - w), h, w))
                if settings.mode != 'const':
                    seeds.append(draws.integer(0, 1 << 30))
                break
    return boxes, seeds
