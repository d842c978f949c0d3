"""The difference of two accuracies on the same images, where common difficulty cancels out."""

import math

import numpy as np

__all__ = ['paired_interval']


def paired_interval(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """95 % interval, in percentage points, of the accuracy of `a` less that of `b`.

    That of Agresti & Min 2005 ('Simple improved confidence intervals for comparing matched proportions', Statistics in
    Medicine 24): the usual interval for paired proportions after adding 1/2 to each of the four counts, which keeps its
    width above zero if the two hardly differ.

    Args:
        a: (N,) bool, whether the first model is right.
        b: (N,) bool, whether the second model is right.
    """
    only_a, only_b, total = int((a & ~b).sum()), int((b & ~a).sum()), len(a) + 2
    middle = (only_a - only_b) / total
    half = 1.96 * math.sqrt((only_a + only_b + 1) / total - middle**2) / math.sqrt(total)
    return 100 * max(-1.0, middle - half), 100 * min(1.0, middle + half)
