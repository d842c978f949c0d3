"""Tables of functions that are not exact in floating point, the same to the bit on every processor.

`exp` and `log` of NumPy and of C libraries differ in the last bit between processors and versions. The entries here
come from `decimal`, whose results the General Decimal Arithmetic specification fixes to the last digit, and what lies
between them from sums and products, which IEEE 754 fixes too.
"""

from decimal import Context, Decimal, localcontext
from functools import cache

import numpy as np

__all__ = ['at_quantiles', 'geometric', 'normal_quantiles']

INTERVALS = 1024
DIGITS = 34
PI = Decimal('3.141592653589793238462643383279502884')


def at_quantiles(table: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Values of a distribution at shares of its probability, linear between the entries of its table.

    Args:
        table: (n + 1,) float64, the values at 0, 1/n, ..., 1.
        shares: float64 in [0, 1), of any shape.

    Returns:
        float64 of the same shape.
    """
    places = shares * (len(table) - 1)
    lower = places.astype(np.int64)
    below = table[lower]
    return below + (places - lower) * (table[lower + 1] - below)


@cache
def geometric(low: float, high: float) -> np.ndarray:
    """Table of the distribution whose logarithm is uniform between those of two numbers: float64 (1025,)."""
    with localcontext(Context(prec=DIGITS)):
        first, last = Decimal(low).ln(), Decimal(high).ln()
        step = (last - first) / INTERVALS
        inner = [float((first + step * i).exp()) for i in range(1, INTERVALS)]
    return _fixed([low, *inner, high])


@cache
def normal_quantiles() -> np.ndarray:
    """Table of the normal distribution of mean 0 and variance 1: float64 (1025,).

    It ends at 3.3 standard deviations, so that the last interval has the density that it should have at its inner end.
    """
    upper = [Decimal(0)]
    with localcontext(Context(prec=DIGITS)):
        for i in range(1, INTERVALS // 2):
            upper.append(_quantile(Decimal(i) / INTERVALS, upper[-1]))
        upper.append(2 * upper[-1] - upper[-2])
    values = [float(value) for value in upper]
    return _fixed([*(-value for value in reversed(values[1:])), *values])


def _quantile(above_half: Decimal, start: Decimal) -> Decimal:
    """Where the normal distribution reaches one half and `above_half`, by Halley's steps from a smaller value."""
    value = start
    for _ in range(60):
        density = (-value * value / 2).exp() / (2 * PI).sqrt()
        short = above_half / density - _area_over_density(value)
        step = short / (1 - value * short / 2)
        value += step
        if abs(step) < Decimal('1e-12'):  # the next step is below 1e-30
            break
    return value


def _area_over_density(value: Decimal) -> Decimal:
    """Integral of the normal density from 0 to `value`, divided by the density there: x + x^3/3 + x^5/(3 * 5) + ..."""
    term = total = value
    odd = 1
    while term > total * Decimal('1e-32'):
        odd += 2
        term = term * value * value / odd
        total += term
    return total


def _fixed(values: list[float]) -> np.ndarray:
    table = np.array(values, dtype=np.float64)
    table.flags.writeable = False  # it is shared
    return table
