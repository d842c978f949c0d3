"""Few-shot classification: episodes, the classifiers that learn from them, and their statistics.

The protocol of the CD-FSL benchmark (Guo et al. 2020, "A broader study of cross-domain few-shot learning";
IBM/cdfsl-benchmark, finetune.py): 600 episodes of 5 classes, 5, 20 or 50 labelled images of each to learn from and 15
others of each to answer, the mean accuracy and 1.96 standard errors. TinyViT's Table 5 was measured so.

Shape legend: `N` images, `D` features of each, `E` episodes of `ways` classes, with `shots` (support) and `queries`
images a class.
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

from .classifiers import cdfsl
from .classifiers.few_shot_solvers import logreg, prototype, ridge
from .classifiers.finite import check_finite

__all__ = ['SOLVERS', 'Episodes', 'FewShotResult', 'PairedDifference', 'paired', 'run', 'sample_episodes']

Solver = Callable[[torch.Tensor, np.ndarray, np.ndarray, np.ndarray], torch.Tensor]
"""Takes features (N, D), support (E, ways, shots), query (E, ways, queries) and seeds (E,), gives logits (E, ways,
queries, ways)."""

SOLVERS: dict[str, Solver] = {
    'cdfsl': cdfsl.logits,
    'ridge': ridge,
    'prototype': prototype,
    'logreg': logreg,
}
CHUNK_BYTES = 2**29
"""Memory that the arrays of a chunk of episodes may take, about."""


@dataclass(frozen=True)
class Episodes:
    """Which images each episode is made of.

    Attributes:
        classes: int64 (E, ways), labels.
        support: int64 (E, ways, shots), positions of the images to learn from.
        query: int64 (E, ways, queries), positions of the images to answer.
        seeds: uint64 (E,), of what a solver draws in each episode.
        sha256: Hex, of the shapes and numbers of `classes`, `support` and `query`.
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
            digest.update(np.ascontiguousarray(array, dtype='<i8'))
        object.__setattr__(self, 'sha256', digest.hexdigest())

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class FewShotResult:
    """How well the queries of every episode were answered.

    Attributes:
        accuracy: float64 (E,), in %.
        mean: Over the episodes, in %.
        ci95: Half the width of its 95 % interval, as the benchmark: 1.96 population standard deviations over the root
            of E.
        predictions: int64 (E, ways, queries), which of the episode's classes each query was taken for.
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
    """By how much one model is better than another on the same episodes.

    Attributes:
        difference: float64 (E,), in percentage points.
        mean: Over the episodes.
        ci95: Half the width of its 95 % interval, as in `FewShotResult`.
    """

    difference: np.ndarray
    mean: float
    ci95: float


def sample_episodes(
    labels: np.ndarray,
    ways: int = 5,
    shots: int = 5,
    queries: int = 15,
    episodes: int = 600,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> Episodes:
    """Draw episodes; nothing but these arguments decides on them.

    Episode `e` is the same however many there are, and with other `shots` it has the same classes and queries, and its
    support begins with the same images: results of several shots are comparable episode by episode.

    Args:
        labels: (N,) integers.
        ways: Classes in an episode.
        shots: Images of each to learn from.
        queries: Images of each to answer.
        episodes: How many.
        seed: Of all draws.
        names: What to call the classes in messages, by label.

    Raises:
        EvaluationError: If there are fewer classes than `ways`, or a class has fewer images than shots + queries.
    """
    labels = np.asarray(labels)
    if min(shots, queries, episodes) < 1 or ways < 2:
        raise EvaluationError('An episode takes at least 2 ways, 1 shot and 1 query, and there is at least 1 episode.')
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
        raise EvaluationError(f'The data has {has}, {ways}-way episodes need {ways}: choose fewer ways or other data.')
    smallest = int(counts.argmin())
    if counts[smallest] < shots + queries:
        label = int(present[smallest])
        raise EvaluationError(
            f'Class {label}{f" ({names[label]})" if names else ""} has {counts[smallest]} images, {shots} shots and '
            f'{queries} queries need {shots + queries}: choose fewer of them.'
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
    """Learn from the support of every episode and answer its queries.

    Args:
        features: (N, D), as they leave the backbone: 'cdfsl' takes them without any normalisation.
        labels: (N,) integers, those that the episodes were drawn from.
        episodes: See `sample_episodes`.
        solver: 'cdfsl', the benchmark's own classifier, or for comparison 'ridge', 'prototype', 'logreg'. Only the
            first gives numbers that may stand beside published ones of the benchmark.
        dtype: float32 or float64, of all computing.
        device: Of all computing; that of the features by default.
        chunk: Episodes at a time, rounded up to multiples of 16; found by itself. No bit of the result depends on it
            on a CPU.
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
        raise EvaluationError(f'There are {len(features)} rows of features and {len(labels)} labels: give as many.')
    check_finite(features, 'features')
    largest = max(episodes.support.max(), episodes.query.max())
    fits = largest < len(labels) and all(
        (labels[array] == episodes.classes[..., None]).all() for array in (episodes.support, episodes.query)
    )
    if not fits:
        raise EvaluationError('The episodes were drawn from other labels: draw them from those of these features.')


def _find_chunk(episodes: Episodes, D: int, dtype: torch.dtype) -> int:
    """As many episodes as fit into the memory, each with its features or its matrix of products and its orders."""
    _, ways, shots = episodes.support.shape
    n, queries = ways * shots, ways * episodes.query.shape[2]
    numbers = max((n + queries) * D, n * (n + ways) + 2 * n * cdfsl.EPOCHS)
    return max(1, CHUNK_BYTES // (numbers * dtype.itemsize))


def _mean_and_ci(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(1.96 * values.std() / math.sqrt(len(values)))


def paired(a: FewShotResult, b: FewShotResult) -> PairedDifference:
    """Accuracy of `a` minus that of `b`, episode by episode: what both find hard cancels out of the interval.

    Raises:
        EvaluationError: If they were not measured on the same episodes.
    """
    if a.episodes_sha256 != b.episodes_sha256:
        raise EvaluationError('The two results are of different episodes: run both models on the same ones.')
    difference = a.accuracy - b.accuracy
    return PairedDifference(difference, *_mean_and_ci(difference))
