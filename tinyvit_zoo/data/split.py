"""What every probe does first: hold a part of the training images out, and refuse features that cannot be used."""

import numpy as np

from ..common.errors import EvaluationError

__all__ = ['check_features', 'check_labels', 'check_parts', 'stratified_split']


def stratified_split(labels: np.ndarray, held_out: float = 0.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Places of the images to train on and of those to choose with, of each class in the same proportion.

    Args:
        labels: (N,) int64.
        held_out: Share of the images to choose with, between 0 and 1.
        seed: Of the draw.

    Returns:
        Two sorted int64 arrays, which have every place once between them. At least one image of each class is trained
        on, and at least one of each class that has two is held out.

    Raises:
        EvaluationError: If the share is not between 0 and 1, or no class has two images.
    """
    if not 0 < held_out < 1:
        raise EvaluationError(f'A held-out share of {held_out:g} makes no sense: give one between 0 and 1.')
    rng = np.random.default_rng(seed)
    parts = []
    for label in np.unique(labels):
        places = rng.permutation(np.flatnonzero(labels == label))
        parts.append(places[: min(max(1, round(held_out * len(places))), len(places) - 1)])
    held = np.sort(np.concatenate(parts))
    if not len(held):
        raise EvaluationError('No class has two images, so none can be held out to choose with: add images.')
    return np.setdiff1d(np.arange(len(labels)), held), held


def check_labels(labels: np.ndarray, num_classes: int | None = None, *, testing: bool = False) -> int:
    """The number of classes, after a look at the labels of the images.

    Args:
        labels: (N,) integers from 0.
        num_classes: How many classes there should be; None for one more than the largest label.
        testing: Nothing is learned from these images, so they may be of one class.

    Raises:
        EvaluationError: If there are no images, labels are outside the classes, or there is one class only.
    """
    if labels.ndim != 1 or not len(labels):
        raise EvaluationError('There are no images to learn from or to test on: look at the data set and its split.')
    count = int(labels.max()) + 1 if num_classes is None else num_classes
    if labels.min() < 0 or labels.max() >= count:
        raise EvaluationError(
            f'Labels go from {labels.min()} to {labels.max()}, which does not fit {count} classes: '
            'training and test images must have the same classes.'
        )
    if not testing and len(np.unique(labels)) < 2:
        raise EvaluationError('All images are of one class: a probe needs two classes or more.')
    return count


def check_features(
    features: np.ndarray, labels: np.ndarray, num_classes: int | None = None, like: np.ndarray | None = None
) -> int:
    """The number of classes, after a look at features and labels.

    Args:
        features: (N, D) float.
        labels: (N,) integers from 0.
        num_classes: As in `check_labels`.
        like: The training features, if these are to test on.

    Raises:
        EvaluationError: If there are not as many labels as features, a number is not finite, widths differ, or see
            `check_labels`.
    """
    count = check_labels(labels, num_classes, testing=like is not None)
    if features.ndim != 2 or len(features) != len(labels):
        raise EvaluationError(
            f'Features are of shape {tuple(features.shape)}, '
            f'labels of shape {tuple(labels.shape)}: give (N, D) and (N,).'
        )
    if like is not None and features.shape[1] != like.shape[1]:
        raise EvaluationError(
            f'Test features have a width of {features.shape[1]}, training features one of {like.shape[1]}: '
            'extract both with the same model and layer.'
        )
    bad = np.flatnonzero(~np.isfinite(features.sum(axis=1, dtype=np.float64)))  # a number in it is not, if a sum is not
    if len(bad):
        raise EvaluationError(
            f'The features of {len(bad)} of {len(features)} images are not finite, the first of them at place '
            f'{bad[0]}: use float32, and look at the weights of the model.'
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
    """The number of classes, after a look at features and labels to train on, to choose with and to test on.

    Raises:
        EvaluationError: See `check_features`.
    """
    count = check_features(features, labels, num_classes)
    check_features(held_features, held_labels, count, like=features)
    check_features(test_features, test_labels, count, like=features)
    return count
