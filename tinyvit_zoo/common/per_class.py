"""Accuracy with every class counting the same, which goes beside the share of right answers everywhere.

Where classes are uneven, that share can be high with a class of which nothing is right; this mean cannot.

Shape legend: `N` images.
"""

from collections.abc import Sequence

import numpy as np

__all__ = ['at_zero', 'mean_per_class', 'per_class_words']

MOST_NAMES = 3  # of classes in a line


def mean_per_class(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Mean in % of the accuracies of the classes that occur, each counting the same whatever its number of images.

    Args:
        labels: (N,) integers from 0.
        predictions: (N,) integers.
    """
    labels = np.asarray(labels)
    right = np.bincount(labels[np.asarray(predictions) == labels], minlength=int(labels.max()) + 1)
    images = np.bincount(labels)
    return 100 * float((right[images > 0] / images[images > 0]).mean())


def at_zero(labels: np.ndarray, predictions: np.ndarray, names: Sequence[str]) -> list[str]:
    """The names of the classes that occur and of which nothing is right, for labels (N,) and predictions (N,)."""
    labels = np.asarray(labels)
    found = set(labels[np.asarray(predictions) == labels].tolist())
    return [names[label] for label in np.unique(labels).tolist() if label not in found]


def per_class_words(mean: float, zero: Sequence[str]) -> str:
    """'mean per class 50.00 % (0 % on ant)', which goes beside a top-1 accuracy."""
    if not zero:
        return f'mean per class {mean:.2f} %'
    # Names of ImageNet's classes have commas in them.
    few = '; '.join(zero[:MOST_NAMES]) + ('; ...' if len(zero) > MOST_NAMES else '')
    which = few if len(zero) == 1 else f'{len(zero)} classes: {few}'
    return f'mean per class {mean:.2f} % (0 % on {which})'
