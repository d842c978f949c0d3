"""Checks of settings that are frozen dataclasses."""

import math
from collections.abc import Sequence
from typing import Any

from ..common.errors import EvaluationError

__all__ = ['check', 'check_probability', 'normalize', 'range_of']


def check(right: bool, message: str) -> None:
    """Raise an EvaluationError with the message and a full stop, unless the settings are right."""
    if not right:
        raise EvaluationError(f'{message}.')


def check_probability(value: float, what: str) -> None:
    check(0 <= value <= 1, f'The probability of {what} is {value:g}: give one from 0 to 1')


def range_of(values: Sequence[float], what: str, largest: float = math.inf) -> tuple[float, float]:
    """A range of positive numbers."""
    pair = tuple(float(value) for value in values)
    right = len(pair) == 2 and 0 < pair[0] <= pair[-1] <= largest and math.isfinite(pair[-1])
    limit = '' if math.isinf(largest) else f', none above {largest:g}'
    check(right, f'The range of the {what} is {pair}: give two positive numbers, the smaller one first{limit}')
    return pair[0], pair[1]


def normalize(settings: Any, **values: Any) -> None:
    """Set attributes of a frozen dataclass, so that equal settings are equal in type too, and so in their hash."""
    for name, value in values.items():
        object.__setattr__(settings, name, value)
