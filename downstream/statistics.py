"""Statistics of accuracies: confidence intervals, confusion matrices, and accuracy by class.

Shape legend: `N` images, `K` classes.
"""

import math
from typing import Any

import numpy as np

from tinyvit_zoo.common.extras import needs_extra

__all__ = ['accuracies', 'confusion_matrix', 'half_width', 'wilson']


def wilson(accuracy: float, images: int) -> tuple[float, float]:
    """95 % interval in % (Wilson 1927) of an accuracy in %, the images being a sample of all such images.

    Unlike the interval from the binomial's variance it has a positive width at 0 and 100 %.
    """
    share, z = accuracy / 100, 1.96
    middle = share + z**2 / (2 * images)
    half = z * math.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    return 100 * (middle - half) / (1 + z**2 / images), 100 * (middle + half) / (1 + z**2 / images)


def half_width(standard_error: Any, samples: int) -> Any:
    """Half the width of the 95 % interval of a mean by Student's t.

    Args:
        standard_error: Of the mean, estimated from the samples; a float, or an array, whose shape the result has.
        samples: At least 2, such as runs with seeds of their own, or batches of a jackknife.

    Raises:
        MissingExtraError: If SciPy is missing.
    """
    with needs_extra('eval'):
        from scipy.stats import t
    return t.ppf(0.975, samples - 1) * standard_error


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, K: int) -> np.ndarray:
    """Counts int64 (K, K), true class by row and prediction by column, of labels (N,) and predictions (N,)."""
    return np.bincount(labels * K + predictions, minlength=K * K).reshape(K, K)


def accuracies(counts: np.ndarray) -> np.ndarray:
    """Accuracy in % of each class (K,) from a confusion matrix (K, K); NaN for a class without images."""
    images = counts.sum(axis=1)
    return np.divide(100.0 * counts.diagonal(), images, out=np.full(len(counts), np.nan), where=images > 0)
