"""Few-shot classification: episodes, the classifiers that learn from them, and their statistics.

The protocol of the CD-FSL benchmark (Guo et al. 2020, "A broader study of cross-domain few-shot learning";
IBM/cdfsl-benchmark, finetune.py): 600 episodes of 5 classes, each class with 5, 20 or 50 labeled images to learn from
and 15 others to classify; the result is the mean accuracy with 1.96 standard errors. Every episode has as many queries
of each class, so the mean over classes is the accuracy.

Here the backbone is frozen, the benchmark's `--freeze_backbone`. TinyViT's Table 5 reports this benchmark with "a
single linear layer in replace of the original classification layer"; whether the rest was frozen or trained with it the
paper does not say, nor was its code released.

Shape legend: `N` images, `D` features of each, `E` episodes of `ways` classes, with `shots` (support) and `queries`
images per class.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm

from tinyvit_zoo.common.counter_rng import child_key, permutations
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.text import count_of

from .classifiers import cdfsl
from .classifiers.few_shot_solvers import logreg, prototype, ridge
from .classifiers.finite import check_finite

__all__ = [
    'SHOTS',
    'SOLVERS',
    'Episodes',
    'FewShotResult',
    'PairedDifference',
    'fitting_counts',
    'paired',
    'run',
    'sample_episodes',
]

Solver = Callable[[torch.Tensor, np.ndarray, np.ndarray, np.ndarray], torch.Tensor]
"""Takes features (N, D), support (E, ways, shots), query (E, ways, queries) and seeds (E,); returns logits (E, ways,
queries, ways)."""

SOLVERS: dict[str, Solver] = {
    'cdfsl': cdfsl.logits,
    'ridge': ridge,
    'prototype': prototype,
    'logreg': logreg,
}
WAYS, SHOTS, QUERIES = 5, (5, 20, 50), 15
"""Of the protocol."""
CHUNK_BYTES = 2**29
"""Approximate memory for the arrays of a chunk of episodes."""


@dataclass(frozen=True)
class Episodes:
    """The images of each episode.

    Attributes:
        classes: int64 (E, ways), labels.
        support: int64 (E, ways, shots), positions of the images to learn from.
        query: int64 (E, ways, queries), positions of the images to classify.
        seeds: uint64 (E,), of the solver's draws in each episode.
        sha256: Hex, of the shapes and values of `classes`, `support` and `query`.
    """

    classes: np.ndarray
    support: np.ndarray
    query: np.ndarray
    seeds: np.ndarray
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256()
        for array in (self.classes, self.support, self.query):
            digest.update(f'{array.shape}'.encode())
            digest.update(np.ascontiguousarray(array, dtype='<i8').data)
        object.__setattr__(self, 'sha256', digest.hexdigest())

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class FewShotResult:
    """Accuracy on the queries of every episode.

    Attributes:
        accuracy: float64 (E,), in %.
        mean: Over the episodes, in %.
        ci95: Half-width of its 95 % interval as in the benchmark: 1.96 population standard deviations over the square
            root of E.
        predictions: int64 (E, ways, queries), indices into the episode's classes.
        solver: Its name.
        episodes_sha256: See `Episodes`.
    """

    accuracy: np.ndarray
    mean: float
    ci95: float
    predictions: np.ndarray
    solver: str
    episodes_sha256: str


@dataclass(frozen=True)
class PairedDifference:
    """Difference between two models on the same episodes.

    Attributes:
        difference: float64 (E,), in percentage points.
        mean: Over the episodes.
        ci95: Half-width of its 95 % interval, as in `FewShotResult`.
    """

    difference: np.ndarray
    mean: float
    ci95: float


def fitting_counts(
    labels: np.ndarray,
    ways: int | None = None,
    shots: Sequence[int] | None = None,
    queries: int | None = None,
    usual_shots: Sequence[int] = SHOTS,
) -> tuple[int, tuple[int, ...], int]:
    """Ways, shots and queries of episodes: those given, otherwise the protocol's, as far as the data is enough.

    Args:
        labels: (N,) integers.
        ways: Classes per episode; None for 5, or all classes of fewer.
        shots: Images per class to learn from; None for those of `usual_shots` that leave the queries their images.
        queries: Images per class to classify; None for 15, or if shots are not given what they leave of the smallest
            class.
        usual_shots: The shots of the protocol, in ascending order.
    """
    counts = np.unique(labels, return_counts=True)[1]
    smallest = int(counts.min(initial=len(labels)))
    if ways is None:
        ways = max(2, min(WAYS, len(counts)))
    if queries is None:
        queries = QUERIES if shots else max(1, min(QUERIES, smallest - usual_shots[0]))
    if shots is None:
        shots = [k for k in usual_shots if k + queries <= smallest] or [max(1, smallest - queries)]
    return ways, tuple(shots), queries


def sample_episodes(
    labels: np.ndarray,
    ways: int = 5,
    shots: int = 5,
    queries: int = 15,
    episodes: int = 600,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> Episodes:
    """Draw episodes; they depend on these arguments alone.

    Episode `e` does not depend on the number of episodes. With other `shots` it has the same classes and queries, and
    its support starts with the same images, so results with different shots can be compared episode by episode.

    Args:
        labels: (N,) integers.
        ways: Classes per episode.
        shots: Images per class to learn from.
        queries: Images per class to classify.
        episodes: Number of episodes.
        seed: Of all draws.
        names: Of the classes in messages, by label.

    Raises:
        EvaluationError: If there are fewer classes than `ways`, or a class has fewer images than shots + queries.
    """
    labels = np.asarray(labels)
    if min(shots, queries, episodes) < 1 or ways < 2:
        raise EvaluationError('Few-shot needs at least 1 episode with at least 2 ways, 1 shot and 1 query.')
    present, counts = np.unique(labels, return_counts=True)
    _check_classes(present, counts, ways, shots, queries, names)
    members = [np.flatnonzero(labels == label) for label in present]
    seeds = child_key(seed, np.arange(episodes))
    chosen = permutations(child_key(seeds, 0), len(present))[:, :ways]
    images = np.empty((episodes, ways, queries + shots), dtype=np.int64)
    for e in range(episodes):
        for way, c in enumerate(chosen[e]):
            order = permutations(child_key(seeds[e], 1, way), len(members[c]))
            images[e, way] = members[c][order[: queries + shots]]
    return Episodes(present[chosen].astype(np.int64), images[..., queries:], images[..., :queries], seeds)


def _check_classes(
    present: np.ndarray, counts: np.ndarray, ways: int, shots: int, queries: int, names: Sequence[str] | None
) -> None:
    if len(present) < ways:
        has = 'one class only' if len(present) == 1 else f'{len(present)} classes'
        raise EvaluationError(
            f'The data has {has}, but {ways}-way episodes need {ways}: choose fewer ways (--ways) or other data.'
        )
    smallest = int(counts.argmin())
    if counts[smallest] < shots + queries:
        label = int(present[smallest])
        raise EvaluationError(
            f'Class {label}{f" ({names[label]})" if names else ""} has {count_of(int(counts[smallest]), "image")}, but '
            f'{count_of(shots, "shot")} and {count_of(queries, "query")} need {shots + queries}: choose fewer of them '
            '(--shots, --queries), or add images.'
        )


def run(
    features: np.ndarray | torch.Tensor,
    labels: np.ndarray,
    episodes: Episodes,
    solver: str = 'cdfsl',
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    chunk: int | None = None,
    progress: bool = False,
) -> FewShotResult:
    """Learn from the support of every episode and classify its queries.

    Args:
        features: (N, D), as they leave the backbone: 'cdfsl' takes them without normalization.
        labels: (N,) integers from which the episodes were drawn.
        episodes: See `sample_episodes`.
        solver: 'cdfsl', the benchmark's own classifier, or 'ridge', 'prototype' or 'logreg' for comparison. Only the
            first is comparable with published results of the benchmark.
        dtype: float32 or float64, of the computation.
        device: Of the computation; the features' by default.
        chunk: Episodes at a time, rounded up to a multiple of 16; None to choose it by memory. On a CPU the result does
            not depend on it, bit for bit.
        progress: Show a bar.

    Raises:
        EvaluationError: If the solver is unknown, or features, labels and episodes do not fit or are not finite.
    """
    if solver not in SOLVERS:
        raise EvaluationError(f"There is no solver '{solver}', choose one of: {', '.join(SOLVERS)}.")
    features = torch.as_tensor(features, device=device).to(dtype)
    _check_features(features, np.asarray(labels), episodes)
    E, ways, _ = episodes.support.shape
    predictions = np.empty(episodes.query.shape, dtype=np.int64)
    chunk = -(-(chunk or _find_chunk(episodes, features.shape[1], dtype)) // cdfsl.GROUP) * cdfsl.GROUP
    with tqdm(total=E, unit='episode', disable=None if progress else True) as bar, torch.inference_mode():
        for start in range(0, E, chunk):
            part = slice(start, start + chunk)
            logits = SOLVERS[solver](features, episodes.support[part], episodes.query[part], episodes.seeds[part])
            predictions[part] = logits.argmax(dim=-1).cpu().numpy()
            bar.update(len(logits))
    right = (predictions == np.arange(ways)[:, None]).reshape(E, -1)
    accuracy = 100 * right.sum(axis=1) / right.shape[1]
    return FewShotResult(accuracy, *_mean_and_ci(accuracy), predictions, solver, episodes.sha256)


def _check_features(features: torch.Tensor, labels: np.ndarray, episodes: Episodes) -> None:
    if features.ndim != 2:
        raise EvaluationError(f'Few-shot takes features (N, D) of one view, not of shape {tuple(features.shape)}.')
    if len(features) != len(labels):
        raise EvaluationError(
            f'There are {len(features)} rows of features and {len(labels)} labels: give equally many.'
        )
    check_finite(features, 'features')
    largest = max(episodes.support.max(), episodes.query.max())
    fits = largest < len(labels) and all(
        (labels[array] == episodes.classes[..., None]).all() for array in (episodes.support, episodes.query)
    )
    if not fits:
        raise EvaluationError('The episodes were drawn from other labels: draw them from the labels of these features.')


def _find_chunk(episodes: Episodes, D: int, dtype: torch.dtype) -> int:
    """The number of episodes that fit into `CHUNK_BYTES`, with features or with products and orders."""
    _, ways, shots = episodes.support.shape
    n, queries = ways * shots, ways * episodes.query.shape[2]
    numbers = max((n + queries) * D, n * (n + ways) + 2 * n * cdfsl.EPOCHS)
    return max(1, CHUNK_BYTES // (numbers * dtype.itemsize))


def _mean_and_ci(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(1.96 * values.std() / math.sqrt(len(values)))


def paired(a: FewShotResult, b: FewShotResult) -> PairedDifference:
    """Accuracy of `a` minus that of `b`, episode by episode: their common difficulty cancels out of the interval.

    Raises:
        EvaluationError: If the results are of different episodes.
    """
    if a.episodes_sha256 != b.episodes_sha256:
        raise EvaluationError('The two results are of different episodes: run both models on the same ones.')
    difference = a.accuracy - b.accuracy
    return PairedDifference(difference, *_mean_and_ci(difference))
