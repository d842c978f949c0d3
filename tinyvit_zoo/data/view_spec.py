"""What is drawn for the views of a data set: the settings of every operation, in a form that a file can hold."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN

from ..common.errors import EvaluationError
from ..common.hashes import json_hash
from ..common.plain import plain
from ..common.text import reason
from .checked import check, check_probability, normalize, range_of
from .rand_augment import GEOMETRIC, RandAugment

__all__ = ['Erasing', 'ViewSpec', 'fill_color']

VERSION = 1
"""Of the way from settings to images; a change of it changes images and so makes stored labels worthless."""

ERASE_MODES = ('pixel', 'rand', 'const')
INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos')
TURNING = ('nearest', 'bilinear', 'bicubic')  # what Pillow can rotate, shear and shift with


@dataclass(frozen=True)
class Erasing:
    """Rectangles of the normalized image that are replaced, as timm's RandomErasing does it.

    Attributes:
        probability: Of any.
        mode: What replaces them: 'pixel' for noise, 'rand' for one random color each, 'const' for the mean color.
        count: Largest number of rectangles; each number from 1 is equally likely, and their areas are divided by it.
        area: Range of the shares of the image that they cover together.
        aspect: Range of height divided by width, uniform in its logarithm.

    Raises:
        EvaluationError: If the settings cannot be.
    """

    probability: float = 0.25
    mode: str = 'pixel'
    count: int = 1
    area: tuple[float, float] = (0.02, 1 / 3)
    aspect: tuple[float, float] = (0.3, 1 / 0.3)

    def __post_init__(self) -> None:
        normalize(
            self,
            probability=float(self.probability),
            count=int(self.count),
            area=range_of(self.area, 'erased area', largest=1),
            aspect=range_of(self.aspect, 'erased aspect'),
        )
        check_probability(self.probability, 'erasing')
        check(self.mode in ERASE_MODES, f"There is no erasing mode '{self.mode}': take {', '.join(ERASE_MODES)}")
        check(0 < self.count <= 64, f'Up to {self.count} rectangles cannot be erased: give a count of 1 to 64')


@dataclass(frozen=True)
class ViewSpec:
    """How views are drawn and made: crop, resize, flip, RandAugment, color jitter, erasing, in this order.

    Mean and standard deviation are none of it: teacher and student normalize the same view each with its own.

    Attributes:
        size: (height, width) of a view in pixels. A student may take the same view at another size.
        scale: Range of the cropped area as a share of the image.
        ratio: Range of width divided by height of the crop, uniform in its logarithm.
        hflip: Probability of a horizontal flip.
        rand_augment: None for none.
        color_jitter: Largest change of (brightness, contrast, saturation, hue), where three numbers leave the hue alone
            and one is for the other three; done after RandAugment if there are both. None for none.
        erasing: None for none.
        interpolation: Of the resize, and of the operations that turn or shift.
        fill: (red, green, blue) where a turned or shifted image ends; see `fill_color`.

    Raises:
        EvaluationError: If the settings cannot be.
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    rand_augment: RandAugment | None = None
    color_jitter: tuple[float, ...] | None = None
    erasing: Erasing | None = None
    interpolation: str = 'bicubic'
    fill: tuple[int, ...] = (124, 116, 104)  # round(255 * mean) of ImageNet

    def __post_init__(self) -> None:
        size, fill = tuple(map(int, self.size)), tuple(map(int, self.fill))
        check(len(size) == 2 and min(size) > 0, f'Views cannot be of size {size}: give a height and a width in pixels')
        check(
            len(fill) == 3 and 0 <= min(fill) <= max(fill) <= 255,
            f'{fill} is not a color: give three numbers of 0 to 255',
        )
        normalize(
            self,
            size=size,
            fill=fill,
            scale=range_of(self.scale, 'cropped area (scale)', largest=1),
            ratio=range_of(self.ratio, 'aspect of the crop (ratio)'),
            hflip=float(self.hflip),
            color_jitter=_jitter(self.color_jitter),
        )
        check_probability(self.hflip, 'a flip')
        turning = self.rand_augment is not None and GEOMETRIC & set(self.rand_augment.operations)
        check(
            self.interpolation in (TURNING if turning else INTERPOLATIONS),
            f"Views cannot be made with the interpolation '{self.interpolation}'{' and RandAugment' if turning else ''}"
            f': take {", ".join(TURNING if turning else INTERPOLATIONS)}',
        )

    @classmethod
    def from_timm(
        cls,
        input_size: int | Sequence[int] = 224,
        *,
        scale: Sequence[float] | None = None,
        ratio: Sequence[float] | None = None,
        hflip: float = 0.5,
        color_jitter: float | Sequence[float] | None = 0.4,
        force_color_jitter: bool = False,
        auto_augment: str | None = None,
        interpolation: str = 'bicubic',
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        re_prob: float = 0.0,
        re_mode: str = 'const',
        re_count: int = 1,
    ) -> 'ViewSpec':
        """Settings by the names that `timm.data.create_transform` has for training, and with the same meaning.

        Args:
            input_size: Of the model: pixels per side, (height, width) or (channels, height, width).
            scale: As in timm.
            ratio: As in timm.
            hflip: As in timm.
            color_jitter: Left out with RandAugment, as in timm.
            force_color_jitter: Unless this is set.
            auto_augment: RandAugment in timm's form, or None.
            interpolation: As in timm, though not 'random'.
            mean: Of the model, for the fill color.
            re_prob: As in timm.
            re_mode: As in timm.
            re_count: As in timm.

        Raises:
            EvaluationError: If the settings cannot be.
        """
        height, width = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)[-2:]
        keep = not auto_augment or force_color_jitter or '3a' in auto_augment
        return cls(
            size=(height, width),
            scale=range_of(scale or (0.08, 1.0), 'cropped area (scale)', largest=1),
            ratio=range_of(ratio or (3 / 4, 4 / 3), 'aspect of the crop (ratio)'),
            hflip=hflip,
            rand_augment=RandAugment.parse(auto_augment) if auto_augment else None,
            color_jitter=_jitter(color_jitter) if keep else None,
            erasing=Erasing(re_prob, re_mode or 'const', re_count) if re_prob else None,
            interpolation=interpolation,
            fill=fill_color(mean),
        )

    def settings(self) -> dict[str, Any]:
        """In types that JSON has, with the version of their meaning."""
        values = plain(self) | dict(rand_augment=self.rand_augment and self.rand_augment.settings())
        return dict(version=VERSION, **values)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> 'ViewSpec':
        """The inverse of `settings`.

        Raises:
            EvaluationError: If they are of another version, incomplete, or cannot be.
        """
        values = dict(settings)
        version = values.pop('version', None)
        check(
            version == VERSION,
            f'The views were made by version {version} of their settings and this package makes version {VERSION}: '
            'take the package that they were made with',
        )
        try:
            if values['rand_augment'] is not None:
                values['rand_augment'] = RandAugment.from_settings(values['rand_augment'])
            if values['erasing'] is not None:
                values['erasing'] = Erasing(**values['erasing'])
            return cls(**values)
        except EvaluationError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError) as e:
            raise EvaluationError(f'The settings of the views are damaged ({reason(e)}): copy them again.') from e

    @property
    def hash(self) -> str:
        """sha256 (hex) of `settings`."""
        return json_hash(self.settings())


def fill_color(mean: Sequence[float]) -> tuple[int, ...]:
    """The color that timm fills with for a model with this mean."""
    return tuple(min(255, round(255 * value)) for value in mean)


def _jitter(largest: float | Sequence[float] | None) -> tuple[float, ...] | None:
    """Four numbers, or None if nothing changes."""
    if largest is None:
        return None
    values = (largest,) * 3 if isinstance(largest, int | float) else tuple(largest)
    values = tuple(float(value) for value in (*values, 0.0)[:4])
    right = len(values) == 4 and all(0 <= value < math.inf for value in values) and values[3] <= 0.5
    check(right, f'The color jitter is {largest}: give three numbers of 0 or more, and a hue of up to .5')
    return values if any(values) else None
