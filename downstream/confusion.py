"""Right and wrong answers by class.

Shape legend: `N` images, `K` classes.
"""

import numpy as np

__all__ = ['accuracies', 'confusion_matrix']


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, K: int) -> np.ndarray:
    """Numbers of images int64 (K, K), true class by row, answer by column, of labels (N,) and answers (N,)."""
    return np.bincount(labels * K + predictions, minlength=K * K).reshape(K, K)


def accuracies(counts: np.ndarray) -> np.ndarray:
    """Accuracy of each class in % (K,), of a matrix as above; NaN for a class without images."""
    images = counts.sum(axis=1)
    return np.divide(100.0 * counts.diagonal(), images, out=np.full(len(counts), np.nan), where=images > 0)
