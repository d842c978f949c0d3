"""k-nearest-neighbor classification as in DINO (Caron et al. 2021; facebookresearch/dino, eval_knn.py).

Features are normalized to length 1; the k most similar images of the bank vote for their class with weight
exp(cosine / .07). One pass serves all k, and only a block of similarities is in memory at a time; the original spreads
each vote over a one-hot row of all classes.

Shape legend: `N` images of the bank, `Q` queries, `D` features, `K` largest k, `C` classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.per_class import mean_per_class

from .classifiers.finite import check_finite

__all__ = ['KS', 'TEMPERATURE', 'KNNResult', 'check_ks', 'fitting_ks', 'run', 'vote']

KS = (10, 20, 100, 200)
TEMPERATURE = 0.07
QUERIES, BANK = 256, 16384
"""Rows of queries and of the bank in a block of similarities."""
STRIPS = 8
KEPT = 8192
"""Queries whose nearest neighbors are tracked during one pass over the bank."""


@dataclass(frozen=True)
class KNNResult:
    """Votes of the neighbors.

    Attributes:
        accuracy: By k, in %.
        mean_per_class: By k, in %: the same with every class counting the same.
        predictions: By k, int64 (Q,), labels.
    """

    accuracy: dict[int, float]
    mean_per_class: dict[int, float]
    predictions: dict[int, np.ndarray]


def run(
    bank: np.ndarray | torch.Tensor,
    bank_labels: np.ndarray,
    queries: np.ndarray | torch.Tensor,
    query_labels: np.ndarray,
    ks: Sequence[int] | None = None,
    *,
    temperature: float = TEMPERATURE,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> KNNResult:
    """Classify the queries by their neighbors in the bank.

    The order of equally similar images is undefined: a bank with copies of an image under several labels has no
    determined answer.

    Args:
        bank: (N, D) features of the training images.
        bank_labels: (N,) integers, at least 0.
        queries: (Q, D).
        query_labels: (Q,).
        ks: Numbers of neighbors, each at most N; None for those of `KS` that fit.
        temperature: Of the votes.
        device: Of the computation, which is in float32 (float64 for float64 features); the bank's by default.
        progress: Show a bar.

    Raises:
        EvaluationError: If features and labels do not fit or are not finite, a k is not within 1..N, or all images of
            the bank are of one class.
    """
    bank, queries = (torch.as_tensor(x, device=device) for x in (bank, queries))
    own, truth = np.asarray(bank_labels, dtype=np.int64), np.asarray(query_labels)
    ks = fitting_ks(len(bank)) if ks is None else ks
    _check(bank, own, queries, truth, ks, temperature)
    dtype = torch.float64 if bank.dtype == torch.float64 else torch.float32
    labels = torch.from_numpy(own).to(bank.device)
    classes = int(labels.max()) + 1
    answers: dict[int, list[torch.Tensor]] = {k: [] for k in ks}
    with tqdm(total=len(queries), unit='image', disable=None if progress else True) as bar, torch.inference_mode():
        for block in queries.split(KEPT):
            similarity, neighbors = _nearest(F.normalize(block.to(dtype), dim=1), bank, max(ks))
            for s, n in zip(similarity.split(QUERIES), neighbors.split(QUERIES), strict=True):
                for k, predicted in vote(s, labels[n], classes, ks, temperature).items():
                    answers[k].append(predicted)
            bar.update(len(block))
    predictions = {k: torch.cat(blocks).cpu().numpy() for k, blocks in answers.items()}
    accuracy = {k: 100 * float((predicted == truth).mean()) for k, predicted in predictions.items()}
    per_class = {k: mean_per_class(truth, predicted) for k, predicted in predictions.items()}
    return KNNResult(accuracy, per_class, predictions)


def _nearest(queries: torch.Tensor, bank: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest cosines (q, k), most similar first, and their positions in the bank; `queries` of unit length."""
    best = queries.new_full((len(queries), k), -torch.inf)
    places = torch.zeros_like(best, dtype=torch.int64)
    for start in range(0, len(bank), BANK):
        block = F.normalize(bank[start : start + BANK].to(queries.dtype), dim=1)
        for q, b, p in zip(queries.split(QUERIES), best.split(QUERIES), places.split(QUERIES), strict=True):
            found, at = _largest(q @ block.T, min(k, len(block)))
            found, at = torch.cat([b, found], dim=1), torch.cat([p, at + start], dim=1)
            values, kept = found.topk(k, dim=1)
            b.copy_(values)
            p.copy_(at.gather(1, kept))
    return best, places


def _largest(values: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest values of each row (q, k) in any order, and their positions.

    This is faster than `topk` of the whole row. The row is cut into strips of equal width; its largest values are in
    the k columns with the largest maxima over the strips, or in the remainder of the row.
    """
    width = values.shape[1] // STRIPS
    if width < 2 * k:
        return values.topk(k, dim=1, sorted=False)
    strips = values[:, : STRIPS * width].unflatten(1, (STRIPS, width))
    columns = strips.amax(dim=1).topk(k, dim=1, sorted=False).indices[:, None].expand(-1, STRIPS, -1)
    places = columns + width * torch.arange(STRIPS, device=values.device)[:, None]
    rest = torch.arange(STRIPS * width, values.shape[1], device=values.device).expand(len(values), -1)
    candidates = torch.cat([strips.gather(2, columns).flatten(1), values[:, STRIPS * width :]], dim=1)
    found, at = candidates.topk(k, dim=1, sorted=False)
    return found, torch.cat([places.flatten(1), rest], dim=1).gather(1, at)


def vote(
    similarity: torch.Tensor, labels: torch.Tensor, classes: int, ks: Sequence[int], temperature: float = TEMPERATURE
) -> dict[int, torch.Tensor]:
    """Class with the most votes among the first k neighbors, by k.

    Args:
        similarity: (q, K) cosines, most similar first.
        labels: int64 (q, K) of the neighbors.
        classes: C.
        ks: Each at most K.
        temperature: A neighbor's vote has the weight exp(similarity / temperature).

    Returns:
        int64 (q,) for each k, in the order of `ks`.
    """
    # Relative to the nearest neighbor, so that votes do not overflow at any temperature.
    weight = ((similarity - similarity[:, :1]) / temperature).exp_()
    votes = weight.new_zeros(len(weight), classes)
    answers, counted = {}, 0
    for k in sorted(ks):
        votes.scatter_add_(1, labels[:, counted:k], weight[:, counted:k])
        answers[k], counted = votes.argmax(dim=1), k
    return {k: answers[k] for k in ks}


def _check(
    bank: torch.Tensor,
    labels: np.ndarray,
    queries: torch.Tensor,
    truth: np.ndarray,
    ks: Sequence[int],
    temperature: float,
) -> None:
    for what, features, own in (('bank', bank, labels), ('queries', queries, truth)):
        if features.ndim != 2:
            raise EvaluationError(f'kNN takes features (N, D) of one view, but the {what} has {tuple(features.shape)}.')
        if len(features) != len(own) or not len(own):
            raise EvaluationError(
                f'The {what} has {len(features)} rows of features and {len(own)} labels: give equally many, at least 1.'
            )
        check_finite(features, what)
    if bank.shape[1] != queries.shape[1]:
        raise EvaluationError(
            f'The bank has {bank.shape[1]} features, the queries have {queries.shape[1]}: take both from one model.'
        )
    check_ks(ks, len(bank))
    if labels.min() < 0:
        raise EvaluationError(f'Labels start at 0, but the bank has {labels.min()}.')
    if not temperature > 0:
        raise EvaluationError(f'The temperature must be above 0, not {temperature}.')
    if (labels == labels[0]).all():
        raise EvaluationError('All images of the bank are of one class, which would be every answer.')


def fitting_ks(N: int) -> tuple[int, ...]:
    """The numbers of neighbors of the protocol for which a bank of N images is large enough; 1 if there are none."""
    return tuple(k for k in KS if k <= N) or (1,)


def check_ks(ks: Sequence[int], N: int) -> None:
    """Check the numbers of neighbors before anything is computed.

    Raises:
        EvaluationError: If one is not within 1..N.
    """
    if not ks or min(ks) < 1 or max(ks) > N:
        raise EvaluationError(
            f'k must be from 1 to the {N} images of the bank, not {", ".join(map(str, ks))}: choose other numbers of '
            'neighbors (-k).'
        )
