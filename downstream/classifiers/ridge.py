"""Ridge regression onto one-hot targets for many penalties from one eigendecomposition.

As in big_vision's few-shot evaluator (`fewshot_lsr`), another penalty costs two thin products and no new
decomposition. The intercept is not penalized here, so scikit-learn's `Ridge(alpha)` gives the same results.

Shape legend: `N` images, `D` width, `K` classes, `L` penalties.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.per_class import mean_per_class
from tinyvit_zoo.data.split import check_features, check_parts

from .choice import Choice, edges

__all__ = ['RidgePath', 'RidgeResult', 'default_penalties', 'gram', 'probe', 'ridge_path']

ROWS_AT_ONCE = 4096
LOW, HIGH = -1.0, 1.0  # targets of the wrong classes and of the true one, as in big_vision


@dataclass(frozen=True)
class RidgePath:
    """Classifiers for many penalties, `logits = features @ weight(i) + bias(i)`.

    Attributes:
        penalties: (L,) float64.
        basis: (D, R) float64, R = min(N, D) directions of the features.
        spectrum: (R,) float64, eigenvalues of the centered Gram matrix.
        targets: (R, K) float64, the targets in that basis.
        mean: (D,) of the features, float64.
        mean_target: (K,) float64.
    """

    penalties: np.ndarray
    basis: np.ndarray
    spectrum: np.ndarray
    targets: np.ndarray
    mean: np.ndarray
    mean_target: np.ndarray

    def weight(self, i: int) -> np.ndarray:
        """(D, K) float64 at the i-th penalty."""
        return self.basis @ (self.targets / (self.spectrum + self.penalties[i])[:, None])

    def bias(self, i: int) -> np.ndarray:
        """(K,) float64 at the i-th penalty."""
        return self.mean_target - self.mean @ self.weight(i)

    def accuracies(self, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Accuracy in % at every penalty (L,) on features (N, D) and labels (N,)."""
        right = np.zeros(len(self.penalties), dtype=np.int64)
        weights = np.stack([self.weight(i) for i in range(len(self.penalties))]).astype(np.float32)
        biases = np.stack([self.bias(i) for i in range(len(self.penalties))]).astype(np.float32)
        for start in range(0, len(labels), ROWS_AT_ONCE):
            x = features[start : start + ROWS_AT_ONCE].astype(np.float32, copy=False)
            for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
                right[i] += ((x @ weight + bias).argmax(axis=1) == labels[start : start + ROWS_AT_ONCE]).sum()
        return 100 * right / len(labels)


@dataclass(frozen=True)
class _Moments:
    """Sums over images in float64; those of parts of a data set add up."""

    gram: np.ndarray  # (D, D) of features minus `origin`
    total: np.ndarray  # (D,) of features minus `origin`
    by_class: np.ndarray  # (K, D) the same by class
    counts: np.ndarray  # (K,)
    origin: np.ndarray  # (D,) a point near the mean, so that differences lose little precision

    def __add__(self, other: '_Moments') -> '_Moments':
        sums = {name: getattr(self, name) + getattr(other, name) for name in ('gram', 'total', 'by_class', 'counts')}
        return _Moments(**sums, origin=self.origin)

    def path(self, penalties: np.ndarray) -> RidgePath:
        N = self.counts.sum()
        mean = self.total / N
        spectrum, basis = np.linalg.eigh(self.gram - N * np.outer(mean, mean))
        # One-hot targets minus their mean, times centered features.
        products = (HIGH - LOW) * (self.by_class - np.outer(self.counts, mean))
        return RidgePath(
            penalties, basis, spectrum.clip(0), basis.T @ products.T, mean + self.origin, _mean_target(self.counts)
        )


def ridge_path(
    features: np.ndarray, labels: np.ndarray, penalties: Sequence[float], num_classes: int | None = None
) -> RidgePath:
    """Ridge regression for every penalty.

    Args:
        features: (N, D) float.
        labels: (N,) int64, from 0.
        penalties: Of the squared weights, above 0, on the scale of scikit-learn's `alpha`.
        num_classes: Default: the largest label plus one.

    Returns:
        The classifiers, computed from the Gram matrix of features (D, D) or of images (N, N), whichever is smaller.

    Raises:
        EvaluationError: If features or labels cannot be used, or a penalty is not above 0.
    """
    checked = _checked(penalties)
    num_classes = check_features(features, labels, num_classes)
    if len(features) < features.shape[1]:
        return _dual(features, labels, num_classes, checked)
    return _moments(features, labels, num_classes, _origin(features)).path(checked)


def _checked(penalties: Sequence[float] | np.ndarray) -> np.ndarray:
    checked = np.asarray(penalties, dtype=np.float64)
    if checked.ndim != 1 or not len(checked) or not (np.isfinite(checked) & (checked > 0)).all():
        raise EvaluationError('Give at least one penalty, all of them above 0.')
    return checked


def _mean_target(counts: np.ndarray) -> np.ndarray:
    return LOW + (HIGH - LOW) * counts / counts.sum()


def _origin(features: np.ndarray) -> np.ndarray:
    return features[:ROWS_AT_ONCE].mean(axis=0, dtype=np.float64)


def gram(features: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Gram matrix (D, D) float64 of features (N, D) minus a point (D,), without copying all of them to float64."""
    total = np.zeros((features.shape[1],) * 2)
    for start in range(0, len(features), ROWS_AT_ONCE):
        x = features[start : start + ROWS_AT_ONCE] - origin  # float64
        total += x.T @ x  # NumPy recognizes the symmetry and computes half of it
    return total


def _moments(features: np.ndarray, labels: np.ndarray, num_classes: int, origin: np.ndarray) -> _Moments:
    by_class = np.zeros((num_classes, features.shape[1]))
    for label in range(num_classes):
        by_class[label] = (features[labels == label] - origin).sum(axis=0)
    counts = np.bincount(labels, minlength=num_classes).astype(np.float64)
    return _Moments(gram(features, origin), by_class.sum(axis=0), by_class, counts, origin)


def _dual(features: np.ndarray, labels: np.ndarray, num_classes: int, penalties: np.ndarray) -> RidgePath:
    mean = features.mean(axis=0, dtype=np.float64)
    x = features - mean
    spectrum, images = np.linalg.eigh(x @ x.T)
    counts = np.bincount(labels, minlength=num_classes).astype(np.float64)
    targets = np.full((len(x), num_classes), LOW)
    targets[np.arange(len(x)), labels] = HIGH
    mean_target = _mean_target(counts)
    return RidgePath(penalties, x.T @ images, spectrum.clip(0), images.T @ (targets - mean_target), mean, mean_target)


def default_penalties(features: np.ndarray) -> np.ndarray:
    """23 penalties (float64), from 1e-6 to 1e5 times the mean eigenvalue of the centered Gram matrix of (N, D).

    This makes the same grid suitable for features of any scale and any number of images.

    Raises:
        EvaluationError: If all images have the same features.
    """
    if not np.ptp(features, axis=0).any():
        raise EvaluationError('All images have the same features: check the weights of the model and the layer.')
    return features.var(axis=0, dtype=np.float64).sum() * len(features) / features.shape[1] * np.logspace(-6, 5, 23)


@dataclass(frozen=True)
class RidgeResult:
    """A ridge probe.

    Attributes:
        penalties: (L,) float64.
        held_out: (L,) accuracy in % on the held-out images at every penalty.
        chosen: Index of the chosen penalty: the most accurate one, the largest of equal ones.
        choice: Whether others were as good, or the chosen one is the smallest or largest.
        test: Accuracy in % on the test images with the chosen penalty, after a fit on training and held-out images.
        mean_per_class: The same with every class counting the same.
        predictions: (number of test images,) int64.
        weight: (K, D) float32 of the chosen classifier.
        bias: (K,) float32.
    """

    penalties: np.ndarray
    held_out: np.ndarray
    chosen: int
    choice: Choice
    test: float
    mean_per_class: float
    predictions: np.ndarray
    weight: np.ndarray
    bias: np.ndarray


def probe(
    features: np.ndarray,
    labels: np.ndarray,
    held_features: np.ndarray,
    held_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    penalties: Sequence[float] | None = None,
    *,
    num_classes: int | None = None,
) -> RidgeResult:
    """Choose a penalty on held-out images, fit on them and the training images, and test once.

    Args:
        features: (N, D) float, of the training images.
        labels: (N,) int64.
        held_features: Of the held-out images.
        held_labels: int64.
        test_features: Of the test images.
        test_labels: int64.
        penalties: See `ridge_path`; None for `default_penalties`.
        num_classes: Default: the largest label of the training images plus one.

    Raises:
        EvaluationError: If features, labels or penalties cannot be used, or as in `default_penalties`.
    """
    num_classes = check_parts(features, labels, held_features, held_labels, test_features, test_labels, num_classes)
    tried = default_penalties(features) if penalties is None else _checked(penalties)
    primal = len(features) >= features.shape[1]
    origin = _origin(features)
    moments = _moments(features, labels, num_classes, origin) if primal else None
    path = moments.path(tried) if moments else _dual(features, labels, num_classes, tried)
    accuracies = path.accuracies(held_features, held_labels)
    best = np.flatnonzero(accuracies == accuracies.max())
    chosen = int(best[tried[best].argmax()])
    if moments:  # sums add up
        final = (moments + _moments(held_features, held_labels, num_classes, origin)).path(tried[[chosen]])
    else:
        both = np.concatenate([features, held_features]), np.concatenate([labels, held_labels])
        final = ridge_path(both[0], both[1], tried[[chosen]].tolist(), num_classes)
    weight, bias = final.weight(0).T.astype(np.float32), final.bias(0).astype(np.float32)
    predictions = (test_features.astype(np.float32, copy=False) @ weight.T + bias).argmax(axis=1)
    return RidgeResult(
        penalties=tried,
        held_out=accuracies,
        chosen=chosen,
        choice=Choice(edges('the penalty', float(tried[chosen]), tried.tolist()), len(best), 'the largest'),
        test=100 * float((predictions == test_labels).mean()),
        mean_per_class=mean_per_class(test_labels, predictions),
        predictions=predictions,
        weight=weight,
        bias=bias,
    )
