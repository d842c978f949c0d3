"""Statistics of accuracies: confidence intervals, confusion matrices, accuracy by class, and how sure a choice is.

Shape legend: `N` images, `K` classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinyvit_zoo.common.text import first_few

__all__ = [
    'Choice',
    'accuracies',
    'at_zero',
    'confusion_matrix',
    'edges',
    'mean_per_class',
    'per_class_words',
    'wilson',
]


def wilson(accuracy: float, images: int) -> tuple[float, float]:
    """95 % interval in % (Wilson 1927) of an accuracy in %, the images being a sample of all such images.

    Unlike the interval from the binomial's variance it has a positive width at 0 and 100 %.
    """
    share, z = accuracy / 100, 1.96
    middle = share + z**2 / (2 * images)
    half = z * math.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    return 100 * (middle - half) / (1 + z**2 / images), 100 * (middle + half) / (1 + z**2 / images)


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, K: int) -> np.ndarray:
    """Counts int64 (K, K), true class by row and prediction by column, of labels (N,) and predictions (N,)."""
    return np.bincount(labels * K + predictions, minlength=K * K).reshape(K, K)


def accuracies(counts: np.ndarray) -> np.ndarray:
    """Accuracy in % of each class (K,) from a confusion matrix (K, K); NaN for a class without images."""
    images = counts.sum(axis=1)
    return np.divide(100.0 * counts.diagonal(), images, out=np.full(len(counts), np.nan), where=images > 0)


def mean_per_class(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Mean in % of the accuracies of the classes that occur, each counting the same whatever its number of images.

    Where classes are uneven, top-1 can be high with a class of which nothing is right; this cannot.

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
    which = first_few(zero) if len(zero) == 1 else f'{len(zero)} classes: {first_few(zero)}'
    return f'mean per class {mean:.2f} % (0 % on {which})'


@dataclass(frozen=True)
class Choice:
    """What a value that was chosen from a grid does not say itself.

    Attributes:
        edges: Settings whose chosen value is the smallest or the largest that was tried, in words.
        tied: How many values, the chosen one included, were equally good on the images that chose.
        rule: Which of those is taken.
    """

    edges: tuple[str, ...]
    tied: int
    rule: str

    def words(self) -> str:
        """A line, empty where there is nothing to say."""
        parts = [f'{edge}, so the best may lie beyond the grid' for edge in self.edges]
        if self.tied > 1:
            parts.insert(0, f'{self.tied} are equally good on the held-out images, of which {self.rule} is taken')
        return '; '.join(parts)


def edges(name: str, value: float, tried: Sequence[float]) -> tuple[str, ...]:
    """In words whether a chosen value is the smallest or the largest of those tried. A smallest value of 0 has nothing
    below it, and of a single value nothing was chosen.
    """
    values = sorted(set(tried))
    if len(values) < 2 or (value == values[0] == 0) or value not in (values[0], values[-1]):
        return ()
    return (f'{name} {value:.3g} is the {"smallest" if value == values[0] else "largest"} of {len(values)}',)
