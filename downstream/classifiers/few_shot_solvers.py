"""Classifiers for few-shot episodes other than the benchmark's own: for comparison with `cdfsl`, not in its place.

Each takes features (N, D), their rows as support (E, ways, shots) and query (E, ways, queries), and seeds (E,), which
it ignores, and returns logits (E, ways, queries, ways).
"""

import numpy as np
import torch

from tinyvit_zoo.common.extras import needs_extra

__all__ = ['logreg', 'prototype', 'ridge']

RIDGE = 0.1
"""Penalty relative to the mean squared length of the centered features; our choice, not from a paper."""


def prototype(features: torch.Tensor, support: np.ndarray, query: np.ndarray, seeds: np.ndarray) -> torch.Tensor:
    """Nearest class mean by squared Euclidean distance (Snell et al. 2017, "Prototypical networks")."""
    means, q = features[support].mean(dim=2), features[query].flatten(1, 2)
    center = means.mean(dim=1, keepdim=True)  # far from the origin the differences would cancel out
    means, q = means - center, q - center
    # |q - m|^2 without |q|^2, which all classes share
    products = q @ means.mT
    return (2 * products - means.square().sum(dim=-1)[:, None]).unflatten(1, query.shape[1:])


def ridge(features: torch.Tensor, support: np.ndarray, query: np.ndarray, seeds: np.ndarray) -> torch.Tensor:
    """Ridge regression onto -1 and 1 in closed form, with an unpenalized intercept."""
    E, ways, shots = support.shape
    x, q = features[support].flatten(1, 2), features[query].flatten(1, 2)
    center = x.mean(dim=1, keepdim=True)
    x, q = x - center, q - center
    gram = x @ x.mT
    penalty = RIDGE * gram.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
    target = 2 * torch.eye(ways, dtype=x.dtype, device=x.device).repeat_interleave(shots, dim=0) - 1
    gram.diagonal(dim1=1, dim2=2).add_(penalty[:, None])
    dual = torch.linalg.solve(gram, (target - target.mean(dim=0)).expand(E, -1, -1))
    return (q @ (x.mT @ dual)).unflatten(1, query.shape[1:])


def logreg(features: torch.Tensor, support: np.ndarray, query: np.ndarray, seeds: np.ndarray) -> torch.Tensor:
    """scikit-learn's logistic regression with its default penalty (C=1), one episode at a time."""
    with needs_extra('eval'):
        from sklearn.linear_model import LogisticRegression

    _, ways, shots = support.shape
    labels = np.arange(ways).repeat(shots)
    numbers = features.cpu().numpy()
    logits = []
    for known, asked in zip(support.reshape(len(support), -1), query.reshape(len(query), -1), strict=True):
        classifier = LogisticRegression(max_iter=1000).fit(numbers[known], labels)
        scores = classifier.decision_function(numbers[asked])
        logits.append(np.stack([-scores, scores], axis=1) if ways == 2 else scores)
    return torch.from_numpy(np.stack(logits)).to(features).unflatten(1, query.shape[1:])
