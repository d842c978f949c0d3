"""Two models on the same images: common difficulty cancels out of the intervals of their differences.

Shape legend: `N` test images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.extras import needs_extra
from tinyvit_zoo.common.paired_accuracy import paired_interval
from tinyvit_zoo.common.per_class import at_zero, mean_per_class, per_class_words
from tinyvit_zoo.data.split import stratified_split

from . import few_shot, knn
from .classifiers import ridge
from .features.extraction import Features

__all__ = ['ModelFeatures', 'Row', 'compare', 'difference_of_right']

K = 20
PROBE = 'linear probe (ridge)'


@dataclass(frozen=True)
class ModelFeatures:
    """Features of one model; `train` is None for few-shot alone."""

    name: str
    train: Features | None
    test: Features


@dataclass(frozen=True)
class Row:
    """One task. Accuracies in %, differences in percentage points.

    Attributes:
        task: Such as '5-way 5-shot (cdfsl)'.
        a: Accuracy of the first model.
        b: Accuracy of the second.
        difference: a - b.
        low: Lower end of its 95 % interval.
        high: Upper end.
        n: Number of paired episodes or images.
        interval: Method of the interval.
        p: Of McNemar's exact test that both are right equally often; None for episodes.
        a_ci95: Half-width of the interval of `a` itself; None for images.
        b_ci95: The same for `b`.
        a_mean_per_class: Accuracy of the first model with every class counting the same; episodes have as many images
            of each class, so it is `a` there.
        b_mean_per_class: The same of the second.
        remarks: What the numbers do not say: classes of which nothing is right, a choice at the edge of its grid, ties.
    """

    task: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    n: int
    interval: str
    p: float | None = None
    a_ci95: float | None = None
    b_ci95: float | None = None
    a_mean_per_class: float | None = None
    b_mean_per_class: float | None = None
    remarks: tuple[str, ...] = ()


def compare(
    a: ModelFeatures,
    b: ModelFeatures,
    *,
    ways: int = 5,
    shots: Sequence[int] = (5,),
    queries: int = 15,
    episodes: int = 600,
    solver: str = 'cdfsl',
    k: int | None = None,
    seed: int = 0,
) -> list[Row]:
    """Few-shot on the same episodes of test images, and kNN and a linear probe on the same training and test images.

    Args:
        a: Features of the first model.
        b: Features of the second, of the same images.
        ways: Classes per episode.
        shots: Images per class to learn from, one row for each number.
        queries: Images per class to classify.
        episodes: Number of episodes.
        solver: See `few_shot.run`.
        k: Neighbors that vote; None for 20, or all training images of fewer.
        seed: Of the episodes, and of the held-out training images that choose the probe's penalty.

    Raises:
        EvaluationError: If the features are of different images, or as in `few_shot`, `knn` and `ridge`.
    """
    _check_same_images(a, b)
    labels = a.test.labels.numpy()
    rows = []
    for n in shots:
        drawn = few_shot.sample_episodes(labels, ways, n, queries, episodes, seed, names=a.test.classes)
        results = [few_shot.run(m.test.values, labels, drawn, solver, progress=True) for m in (a, b)]
        rows.append(_few_shot_row(f'{ways}-way {n}-shot ({solver})', *results))
    if a.train is None or b.train is None:
        return rows
    parts = ((a.train, a.test), (b.train, b.test))
    k = min(K, len(a.train.labels)) if k is None else k
    votes = [_knn(train, test, k) for train, test in parts]
    rows.append(_row_of_images(f'kNN (k = {k})', labels, votes, a.test.classes))
    probes = [_ridge(train, test, seed) for train, test in parts]
    row = _row_of_images(PROBE, labels, [probe.predictions for probe in probes], a.test.classes)
    choices = [f'{side}: {words}' for side, probe in zip('AB', probes, strict=True) if (words := probe.choice.words())]
    rows.append(replace(row, remarks=(*row.remarks, *choices)))
    return rows


def _check_same_images(a: ModelFeatures, b: ModelFeatures) -> None:
    for ours, theirs in ((a.train, b.train), (a.test, b.test)):
        if ours is None or theirs is None:
            same = ours is theirs
        else:
            same = ours.classes == theirs.classes and ours.labels.equal(theirs.labels)
        if not same:
            raise EvaluationError(f'Features of {a.name} and {b.name} are not of the same images: extract both again.')


def _few_shot_row(task: str, a: few_shot.FewShotResult, b: few_shot.FewShotResult) -> Row:
    paired = few_shot.paired(a, b)
    return Row(
        task, a.mean, b.mean, paired.mean, paired.mean - paired.ci95, paired.mean + paired.ci95, len(a.accuracy),
        'mean over episodes ± 1.96 standard errors', None, a.ci95, b.ci95, a.mean, b.mean,
    )  # fmt: skip


def _knn(train: Features, test: Features, k: int) -> np.ndarray:
    """Predictions (N,) for the test images."""
    result = knn.run(train.values, train.labels.numpy(), test.values, test.labels.numpy(), [k])
    return result.predictions[k]


def _row_of_images(task: str, labels: np.ndarray, predictions: Sequence[np.ndarray], classes: Sequence[str]) -> Row:
    """The row of two models' predictions (N,), with what is known of the classes."""
    row = difference_of_right(task, *(predicted == labels for predicted in predictions))
    means = [mean_per_class(labels, predicted) for predicted in predictions]
    zero = [at_zero(labels, predicted, classes) for predicted in predictions]
    words = [f'{side}: {per_class_words(mean, names)}' for side, mean, names in zip('AB', means, zero, strict=True)]
    return replace(row, a_mean_per_class=means[0], b_mean_per_class=means[1], remarks=tuple(words))


def _ridge(train: Features, test: Features, seed: int) -> ridge.RidgeResult:
    """A ridge probe whose penalty was chosen on a tenth of the training images."""
    features, labels = train.values.numpy(), train.labels.numpy()
    fitted, held = stratified_split(labels, 0.1, seed)
    return ridge.probe(
        features[fitted], labels[fitted], features[held], labels[held], test.values.numpy(), test.labels.numpy(),
        num_classes=len(train.classes),
    )  # fmt: skip


def difference_of_right(task: str, a: np.ndarray, b: np.ndarray) -> Row:
    """Difference of the accuracies of two models on the same images.

    The interval is that of `paired_interval`. The test is McNemar's exact test, binomial on the images that exactly one
    model classifies correctly.

    Args:
        task: Its name.
        a: (N,) bool, whether the first model is right.
        b: (N,) bool, whether the second model is right.
    """
    with needs_extra('eval'):
        from scipy.stats import binomtest

    only_a, only_b, n = int((a & ~b).sum()), int((b & ~a).sum()), len(a)
    low, high = paired_interval(a, b)
    p = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    return Row(
        task, 100 * float(a.mean()), 100 * float(b.mean()), 100 * (only_a - only_b) / n,
        low, high, n,
        f'Agresti & Min 2005; {only_a} images right with the first model alone, {only_b} with the second', float(p),
    )  # fmt: skip
