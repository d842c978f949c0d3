"""First steps of every probe: hold out a part of the training images, and refuse unusable features and labels."""

import numpy as np

from ..common.errors import EvaluationError

__all__ = ['check_features', 'check_labels', 'check_parts', 'stratified_split']


def stratified_split(labels: np.ndarray, held_out: float = 0.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training images and of the held-out images, in the same proportion for each class.

    Args:
        labels: (N,) int64.
        held_out: Share of the held-out images, between 0 and 1.
        seed: Of the draw.

    Returns:
        Two sorted int64 arrays that contain every index once between them: at least one training image of each class,
        and at least one held-out image of each class that has two.

    Raises:
        EvaluationError: If the share is not between 0 and 1, or no class has two images.
    """
    if not 0 < held_out < 1:
        raise EvaluationError(f'The held-out share is {held_out:g}: give one between 0 and 1.')
    rng = np.random.default_rng(seed)
    parts = []
    for label in np.unique(labels):
        places = rng.permutation(np.flatnonzero(labels == label))
        parts.append(places[: min(max(1, round(held_out * len(places))), len(places) - 1)])
    held = np.sort(np.concatenate(parts))
    if not len(held):
        raise EvaluationError('No class has two images, so none can be held out: add images.')
    return np.setdiff1d(np.arange(len(labels)), held), held


def check_labels(labels: np.ndarray, num_classes: int | None = None, *, testing: bool = False) -> int:
    """Check labels; the number of classes.

    Args:
        labels: (N,) integers from 0.
        num_classes: Expected number of classes; None for the largest label plus one.
        testing: The images are for testing, so they may be of one class.

    Raises:
        EvaluationError: If there are no images, labels are out of range, or there is only one class.
    """
    if labels.ndim != 1 or not len(labels):
        raise EvaluationError('There are no images to learn from or to test on: check the data set and its split.')
    count = int(labels.max()) + 1 if num_classes is None else num_classes
    if labels.min() < 0 or labels.max() >= count:
        raise EvaluationError(
            f'Labels go from {labels.min()} to {labels.max()}, which does not fit {count} classes: '
            'use the same classes for training and testing.'
        )
    if not testing and len(np.unique(labels)) < 2:
        raise EvaluationError('All images are of one class: a probe needs at least two classes.')
    return count


def check_features(
    features: np.ndarray, labels: np.ndarray, num_classes: int | None = None, like: np.ndarray | None = None
) -> int:
    """Check features and their labels; the number of classes.

    Args:
        features: (N, D) float.
        labels: (N,) integers from 0.
        num_classes: As in `check_labels`.
        like: The training features, if these are test features.

    Raises:
        EvaluationError: If the numbers of features and labels differ, a value is not finite, the widths differ, or as
            in `check_labels`.
    """
    count = check_labels(labels, num_classes, testing=like is not None)
    if features.ndim != 2 or len(features) != len(labels):
        raise EvaluationError(
            f'Features are of shape {tuple(features.shape)}, '
            f'labels of shape {tuple(labels.shape)}: give (N, D) and (N,).'
        )
    if like is not None and features.shape[1] != like.shape[1]:
        raise EvaluationError(
            f'Test features have a width of {features.shape[1]}, training features of {like.shape[1]}: '
            'extract both with the same model and layer.'
        )
    bad = np.flatnonzero(~np.isfinite(features.sum(axis=1, dtype=np.float64)))  # a sum is finite only if all values are
    if len(bad):
        raise EvaluationError(
            f'The features of {len(bad)} of {len(features)} images are not finite, the first of them at index '
            f'{bad[0]}: use float32, and check the weights of the model.'
        )
    return count


def check_parts(
    features: np.ndarray,
    labels: np.ndarray,
    held_features: np.ndarray,
    held_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    num_classes: int | None = None,
) -> int:
    """Check training, held-out and test features with their labels; the number of classes.

    Raises:
        EvaluationError: See `check_features`.
    """
    count = check_features(features, labels, num_classes)
    check_features(held_features, held_labels, count, like=features)
    check_features(test_features, test_labels, count, like=features)
    return count
