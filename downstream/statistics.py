"""Statistics of accuracies: intervals, and right and wrong answers by class.

Shape legend: `N` images, `K` classes.
"""

import math

import numpy as np

__all__ = ['accuracies', 'confusion_matrix', 'wilson']


def wilson(accuracy: float, images: int) -> tuple[float, float]:
    """95 % interval in % (Wilson 1927) of an accuracy in %: these images as a sample of all such images.

    Unlike the one from the binomial's variance it has a width at 0 and 100 %, too.
    """
    share, z = accuracy / 100, 1.96
    middle = share + z**2 / (2 * images)
    half = z * math.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    return 100 * (middle - half) / (1 + z**2 / images), 100 * (middle + half) / (1 + z**2 / images)


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, K: int) -> np.ndarray:
    """Numbers of images int64 (K, K), true class by row, answer by column, of labels (N,) and answers (N,)."""
    return np.bincount(labels * K + predictions, minlength=K * K).reshape(K, K)


def accuracies(counts: np.ndarray) -> np.ndarray:
    """Accuracy of each class in % (K,), of a matrix as above; NaN for a class without images."""
    images = counts.sum(axis=1)
    return np.divide(100.0 * counts.diagonal(), images, out=np.full(len(counts), np.nan), where=images > 0)
