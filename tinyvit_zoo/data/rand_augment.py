"""timm's RandAugment as settings: which operations are drawn, how often, how strong, and their explicit arguments."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..common.errors import EvaluationError
from ..common.plain import plain
from .checked import check, check_probability, normalize

__all__ = ['GEOMETRIC', 'INCREASING', 'OPERATIONS', 'PLAIN', 'THREE', 'RandAugment']

LEVELS = 10.0  # timm's magnitudes are tenths of the strongest
# Arguments of timm's operations for a magnitude, computed as timm does it. Its own functions draw the sign as well.


def _signed(largest: float) -> Callable[[float, bool], float]:
    return lambda level, negative: (-1.0 if negative else 1.0) * (level / LEVELS * largest)


def _away_from_one(level: float, negative: bool) -> float:
    return max(0.1, 1.0 + _signed(0.9)(level, negative))


def _between(low: float, high: float) -> Callable[[float, bool], float]:
    return lambda level, negative: max(low, min(high, low + (high - low) * (level / LEVELS)))


def _enhanced(level: float, negative: bool) -> float:
    return level / LEVELS * 1.8 + 0.1


def _bits(level: float) -> int:
    return int(level / LEVELS * 4)


def _threshold(level: float) -> int:
    return min(256, int(level / LEVELS * 256))


OPERATIONS: dict[str, Callable[[float, bool], float] | None] = {
    'AutoContrast': None,
    'Equalize': None,
    'Invert': None,
    'Rotate': _signed(30.0),
    'Posterize': lambda level, negative: _bits(level),
    'PosterizeIncreasing': lambda level, negative: 4 - _bits(level),
    'Solarize': lambda level, negative: _threshold(level),
    'SolarizeIncreasing': lambda level, negative: 256 - _threshold(level),
    'SolarizeAdd': lambda level, negative: min(128, int(level / LEVELS * 110)),
    'Color': _enhanced,
    'ColorIncreasing': _away_from_one,
    'Contrast': _enhanced,
    'ContrastIncreasing': _away_from_one,
    'Brightness': _enhanced,
    'BrightnessIncreasing': _away_from_one,
    'Sharpness': _enhanced,
    'SharpnessIncreasing': _away_from_one,
    'ShearX': _signed(0.3),
    'ShearY': _signed(0.3),
    'TranslateXRel': _signed(0.45),
    'TranslateYRel': _signed(0.45),
    'Desaturate': _between(0.5, 1.0),
    'GaussianBlur': _between(0.1, 2.0),
}
"""Operations of timm's RandAugment, and the argument of each for a magnitude and a sign; None for those without."""

PLAIN = (
    'AutoContrast', 'Equalize', 'Invert', 'Rotate', 'Posterize', 'Solarize', 'SolarizeAdd', 'Color', 'Contrast',
    'Brightness', 'Sharpness', 'ShearX', 'ShearY', 'TranslateXRel', 'TranslateYRel',
)  # fmt: skip
"""timm's set for `inc0`, in its order: the number that is drawn is a place in it."""

INCREASING = tuple(f'{name}Increasing' if f'{name}Increasing' in OPERATIONS else name for name in PLAIN)
"""timm's set for `inc1`."""

THREE = ('SolarizeIncreasing', 'Desaturate', 'GaussianBlur')
"""timm's set for `t3a`."""

GEOMETRIC = frozenset(('Rotate', 'ShearX', 'ShearY', 'TranslateXRel', 'TranslateYRel'))

SECTIONS = dict(n='layers', m='magnitude', mstd='magnitude_std', mmax='magnitude_max', p='probability')
"""Parts of timm's form and the attributes that they set."""


@dataclass(frozen=True)
class RandAugment:
    """Operations drawn one after the other, each as likely as the others, with replacement, as timm does it.

    Attributes:
        operations: Names in `OPERATIONS`.
        layers: Operations drawn for a view.
        probability: Of each of them to be done at all.
        magnitude: Mean of the magnitudes.
        magnitude_std: Standard deviation of the magnitudes; infinite for any from 0 to `magnitude`, equally likely.
        magnitude_max: Largest magnitude; larger ones become it, negative ones 0.

    Raises:
        EvaluationError: If the settings cannot be.
    """

    operations: tuple[str, ...] = INCREASING
    layers: int = 2
    probability: float = 0.5
    magnitude: float = 9.0
    magnitude_std: float = 0.5
    magnitude_max: float = LEVELS

    def __post_init__(self) -> None:
        normalize(
            self,
            operations=tuple(self.operations),
            layers=int(self.layers),
            probability=float(self.probability),
            magnitude=float(self.magnitude),
            magnitude_std=float(self.magnitude_std),
            magnitude_max=float(self.magnitude_max),
        )
        unknown = next((name for name in self.operations if name not in OPERATIONS), None)
        check(unknown is None, f"RandAugment has no operation '{unknown}' here: take some of {', '.join(OPERATIONS)}")
        check(0 < len(self.operations) < 128, 'RandAugment needs 1 to 127 operations to draw from')
        check(0 < self.layers <= 64, f'RandAugment has n = {self.layers} operations a view: give 1 to 64')
        check_probability(self.probability, 'the operations of RandAugment')
        check(0 <= self.magnitude < math.inf, f'The magnitude m of RandAugment is {self.magnitude:g}: give 0 or more')
        check(self.magnitude_std >= 0, f'The deviation mstd of RandAugment is {self.magnitude_std:g}: give 0 or more')
        check(0 < self.magnitude_max < math.inf, f'The largest magnitude mmax is {self.magnitude_max:g}: give above 0')

    @classmethod
    def parse(cls, text: str) -> 'RandAugment':
        """From timm's form, such as 'rand-m9-mstd0.5-inc1'.

        Raises:
            EvaluationError: If it is of another form, or asks for what cannot be made again.
        """
        policy, *sections = text.split('-')
        check(policy == 'rand', f"Views can be made again under RandAugment alone, not '{text}': take rand-...")
        values: dict[str, Any] = dict(magnitude=LEVELS, magnitude_std=0.0)
        chosen, increasing = '', False
        for section in sections:
            found = re.fullmatch(r'(t)(\w+)|([a-z]+)(\d+(?:\.\d*)?)', section)
            key, value = (found[1] or found[3], found[2] or found[4]) if found else ('', '')
            if key == 't':
                chosen = value
            elif key == 'inc':
                increasing = float(value) != 0
            elif key in SECTIONS:
                values[SECTIONS[key]] = float(value)
            else:
                raise EvaluationError(f"'{text}' has a part '{section}', which is none of n, m, p, mstd, mmax, inc, t.")
        if values['magnitude_std'] > 100:  # timm's sign for a uniform distribution
            values['magnitude_std'] = math.inf
        check(
            chosen in ('', '3a'), f"'{text}' draws from timm's set '{chosen}', which cannot be made again: leave t out"
        )
        return cls(operations=THREE if chosen else INCREASING if increasing else PLAIN, **values)

    def settings(self) -> dict[str, Any]:
        """In types that JSON has."""
        return plain(self) | (dict(magnitude_std='uniform') if math.isinf(self.magnitude_std) else {})

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> 'RandAugment':
        """The inverse of `settings`."""
        uniform = settings.get('magnitude_std') == 'uniform'
        return cls(**(dict(settings) | (dict(magnitude_std=math.inf) if uniform else {})))
