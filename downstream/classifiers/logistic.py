"""Multinomial logistic regression for many penalties, each fit started from an extrapolation of the last two.

The problem is scikit-learn's `LogisticRegression(C)`: C * (sum of cross-entropies) + (sum of squared weights) / 2, with
an unpenalized bias; for two classes, where it has one weight vector, the penalty is on the difference of our two.
DINOv2 (eval/log_regression.py) solves it for 45 values of C separately, each from zero.

Here the features are rotated into the eigenbasis of their Gram matrix once. In it the Hessian is nearly diagonal for
every C (Böhning 1992 bounds it by such a matrix), so limited-memory BFGS starts from a good estimate of it; its memory
of the cross-entropy's curvature is valid for every C, too. As logits are linear in the weights, a step takes two
products with the features, however many lengths the line search tries.

Shape legend: `N` images, `D` width, `K` classes.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.per_class import mean_per_class
from tinyvit_zoo.data.split import check_features, check_parts

from .choice import Choice, edges
from .ridge import gram

__all__ = ['CS', 'Fit', 'LogisticResult', 'logistic_path', 'probe']

CS = tuple(float(c) for c in np.logspace(-6, 5, 45))
"""DINOv2's values of C."""

TOLERANCE = 0.0005
MAX_ITERATIONS = 1000  # as DINOv2
MEMORY = 20  # steps from which the curvature is estimated
TRIES = 12  # step lengths of the line search
PRECISION = 1e-6  # of a function value, relative


@dataclass(frozen=True)
class Fit:
    """A classifier, `logits = features @ weight.T + bias`.

    Attributes:
        C: Inverse of the penalty.
        weight: (K, D) float32.
        bias: (K,) float32.
        iterations: Steps from the initial weights that the smaller C gave.
        converged: Whether the next step would have moved the logits by less than the tolerance.
    """

    C: float
    weight: np.ndarray
    bias: np.ndarray
    iterations: int
    converged: bool

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(N, D) -> class of each image, (N,) int64."""
        return (features.astype(np.float32, copy=False) @ self.weight.T + self.bias).argmax(axis=1)


def logistic_path(
    features: np.ndarray,
    labels: np.ndarray,
    cs: Sequence[float] = CS,
    *,
    num_classes: int | None = None,
    tolerance: float = TOLERANCE,
    device: torch.device | str = 'cpu',
    progress: bool = True,
) -> list[Fit]:
    """Logistic regression for every C.

    Args:
        features: (N, D) float; a copy in float32 is made.
        labels: (N,) int64, from 0.
        cs: Above 0.
        num_classes: Default: the largest label plus one.
        tolerance: A fit ends when its next step would move the logits by less than this share of their root mean
            square. Predictions depend on ratios of logits only.
        device: Of the computation.
        progress: Show a bar.

    Returns:
        One fit for each C, in the order of `cs`.

    Raises:
        EvaluationError: If features, labels or a C cannot be used.
    """
    num_classes = check_features(features, labels, num_classes)
    checked = _checked(cs)
    solver = _Solver(_Basis.of(features), features, labels, num_classes, tolerance, device)
    share = 0.5 if num_classes == 2 else 1.0  # the squares of w and -w sum to half the square of their difference
    with tqdm(sorted(set(checked)), desc='C', disable=None if progress else True) as bar:
        fits = {C: replace(solver.fit(share * C), C=C) for C in bar}
    return [fits[C] for C in checked]


def _checked(cs: Sequence[float]) -> list[float]:
    if not len(cs) or not all(math.isfinite(C) and C > 0 for C in cs):
        raise EvaluationError('Give at least one C, all of them above 0.')
    return [float(C) for C in cs]


@dataclass(frozen=True)
class _Basis:
    """Eigenvectors (D, D) of the centered Gram matrix, its eigenvalues (D,) per image, and the features' mean (D,)."""

    vectors: np.ndarray
    spectrum: np.ndarray
    mean: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> '_Basis':
        mean = features.mean(axis=0, dtype=np.float64)
        spectrum, vectors = np.linalg.eigh(gram(features, mean))
        return cls(vectors, spectrum.clip(0) / len(features), mean)


class _Solver:
    """Fits on one set of images, each started from the one before."""

    def __init__(
        self,
        basis: _Basis,
        features: np.ndarray,
        labels: np.ndarray,
        num_classes: int,
        tolerance: float,
        device: torch.device | str,
    ) -> None:
        self.basis, self.tolerance = basis, tolerance
        x = torch.from_numpy(features.astype(np.float32, copy=False)).to(device)
        self.x = (x - x.new_tensor(basis.mean)) @ x.new_tensor(basis.vectors)
        self.targets = torch.from_numpy(labels).to(device)
        self.rows = torch.arange(len(x), device=device)
        # One value per row of `w`: the weights in the eigenbasis, then the bias.
        self.spectrum = x.new_tensor([*basis.spectrum, 1.0])[:, None]
        self.penalized = x.new_tensor([1.0] * x.shape[1] + [0.0])[:, None]
        self.w = x.new_zeros(x.shape[1] + 1, num_classes)
        self.C: float | None = None  # of the last fit
        self.before: tuple[float, torch.Tensor, torch.Tensor] | None = None  # C, `w` and logits of the fit before it
        self.logits = x.new_zeros(len(x), num_classes)
        self.loss, self.residual = self.measure(self.logits)
        self.memory: deque[tuple[torch.Tensor, torch.Tensor]] = deque(maxlen=MEMORY)

    def measure(self, logits: torch.Tensor) -> tuple[float, torch.Tensor]:
        """Sum of cross-entropies, and probabilities minus one-hot targets (N, K).

        It avoids differences of nearly equal numbers for well-classified images: with a large C nothing else is left.
        """
        residual = logits - logits.amax(dim=1, keepdim=True)
        gap = residual[self.rows, self.targets]
        residual.exp_()
        right = residual[self.rows, self.targets]
        residual[self.rows, self.targets] = 0
        wrong = residual.sum(dim=1)
        loss = torch.log1p(wrong + (right - 1)) - gap
        residual.div_((right + wrong)[:, None])
        residual[self.rows, self.targets] = -wrong / (right + wrong)
        return loss.sum(dtype=torch.float64).item(), residual

    def gradient(self, residual: torch.Tensor) -> torch.Tensor:
        """Gradient of the cross-entropy with respect to `w`."""
        return torch.cat([self.x.T @ residual, residual.sum(dim=0, keepdim=True)])

    def penalty(self, w: torch.Tensor, C: float) -> float:
        """Sum of the penalized squares of `w` over 2 C."""
        return (self.penalized * w * w).sum(dtype=torch.float64).item() / (2 * C)

    def spread(self, w: torch.Tensor) -> float:
        """Root mean square of the logits of `w` over images and classes, without a product with the features."""
        return (self.spectrum * w * w).sum().div(w.shape[1]).sqrt().item()

    def extrapolate(self, C: float) -> None:
        """Extrapolate the last two fits on a scale of log C, and start there if it is better than the last fit."""
        w, logits = self.w, self.logits
        if self.before is not None and self.C is not None:
            last, w_before, logits_before = self.before
            ratio = math.log(C / self.C) / math.log(self.C / last)
            w_new, logits_new = w + ratio * (w - w_before), logits + ratio * (logits - logits_before)
            loss, residual = self.measure(logits_new)
            if loss + self.penalty(w_new, C) < self.loss + self.penalty(w, C):
                self.w, self.logits, self.loss, self.residual = w_new, logits_new, loss, residual
        if self.C is not None:
            self.before = self.C, w, logits
        self.C = C

    def fit(self, C: float) -> Fit:
        """Minimize for one C."""
        self.extrapolate(C)
        gradient = self.gradient(self.residual)
        # Mean of p (1 - p) by class: times the spectrum, the average curvature of the cross-entropy.
        curvature = (self.residual.abs() * (1 - self.residual.abs())).mean(dim=0)
        guess = len(self.x) * self.spectrum * curvature
        guess = guess.clamp_min(1e-8 * guess.max()) + self.penalized / C
        iterations, converged = 0, False
        while iterations < MAX_ITERATIONS:
            total = gradient + self.penalized * self.w / C
            direction = self.direction(total, guess, C)
            converged = self.spread(direction) <= self.tolerance * self.spread(self.penalized * self.w)
            if converged:
                break
            new_gradient = self.step(direction, (direction * total).sum().item(), gradient, C)
            if new_gradient is None:
                if not self.memory:
                    break  # float32 resolves no lower value
                self.memory.clear()
                continue
            gradient = new_gradient
            iterations += 1
        weight = self.basis.vectors @ self.w[:-1].double().cpu().numpy()
        bias = self.w[-1].double().cpu().numpy() - self.basis.mean @ weight
        return Fit(C, weight.T.astype(np.float32), bias.astype(np.float32), iterations, converged)

    def direction(self, total: torch.Tensor, guess: torch.Tensor, C: float) -> torch.Tensor:
        """Limited-memory BFGS (Nocedal and Wright, algorithm 7.4); `guess` estimates the Hessian's diagonal."""
        pairs = [(s, y + self.penalized * s / C) for s, y in self.memory]
        rho = [1 / (s * y).sum() for s, y in pairs]
        q, alphas = total.clone(), []
        for (s, y), r in zip(reversed(pairs), reversed(rho), strict=True):
            alphas.append(r * (s * q).sum())
            q -= alphas[-1] * y
        q /= guess
        if pairs:
            s, y = pairs[-1]
            q *= (s * y).sum() / (y * y / guess).sum()
        for (s, y), r, alpha in zip(pairs, rho, reversed(alphas), strict=True):
            q += s * (alpha - r * (y * q).sum())
        return q.mean(dim=1, keepdim=True) - q  # a part common to all classes changes no probability

    def step(self, direction: torch.Tensor, slope: float, gradient: torch.Tensor, C: float) -> torch.Tensor | None:
        """Line search; the new gradient of the cross-entropy, or None if no tried length lowers the function."""
        change = torch.addmm(direction[-1], self.x, direction[:-1])
        value, length = self.loss + self.penalty(self.w, C), 1.0
        for _ in range(TRIES if slope < 0 else 0):
            w, logits = self.w + length * direction, self.logits + length * change
            loss, residual = self.measure(logits)
            difference = loss + self.penalty(w, C) - value
            accepted = difference < 1e-4 * length * slope
            if not accepted and abs(difference) < PRECISION * value:  # too small to judge by values
                new_slope = (residual * change).sum() + (self.penalized * w * direction).sum() / C
                accepted = new_slope.abs().item() < -0.9 * slope
            if accepted:
                new_gradient = self.gradient(residual)
                pair = length * direction, new_gradient - gradient
                if (pair[0] * pair[1]).sum() > 0:
                    self.memory.append(pair)
                self.w, self.logits, self.loss, self.residual = w, logits, loss, residual
                return new_gradient
            length *= min(0.5, max(0.1, -slope * length / (2 * max(difference - slope * length, 1e-30))))
        return None


@dataclass(frozen=True)
class LogisticResult:
    """A logistic probe.

    Attributes:
        cs: The tried values of C.
        held_out: Accuracy in % on the held-out images at every C.
        iterations: Steps of every fit.
        converged: Whether each fit converged.
        chosen: Index of the chosen C: the most accurate one, the smallest of equal ones.
        choice: Whether others were as good, or the chosen one is the smallest or largest.
        test: Accuracy in % on the test images with the chosen C, after a fit on training and held-out images.
        mean_per_class: The same with every class counting the same.
        predictions: (number of test images,) int64.
        fit: On training and held-out images.
    """

    cs: tuple[float, ...]
    held_out: tuple[float, ...]
    iterations: tuple[int, ...]
    converged: tuple[bool, ...]
    chosen: int
    choice: Choice
    test: float
    mean_per_class: float
    predictions: np.ndarray
    fit: Fit


def probe(
    features: np.ndarray,
    labels: np.ndarray,
    held_features: np.ndarray,
    held_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    cs: Sequence[float] = CS,
    *,
    num_classes: int | None = None,
    device: torch.device | str = 'cpu',
    progress: bool = True,
) -> LogisticResult:
    """Choose C on held-out images, fit on them and the training images, and test once, as DINOv2 does.

    Args:
        features: (N, D) float, of the training images.
        labels: (N,) int64.
        held_features: Of the held-out images.
        held_labels: int64.
        test_features: Of the test images.
        test_labels: int64.
        cs: See `logistic_path`.
        num_classes: Default: the largest label of the training images plus one.
        device: Of the computation.
        progress: Show a bar.

    Raises:
        EvaluationError: If features, labels or a C cannot be used.
    """
    num_classes = check_parts(features, labels, held_features, held_labels, test_features, test_labels, num_classes)
    tried = sorted(set(_checked(cs)))
    options: dict[str, Any] = dict(num_classes=num_classes, device=device)
    fits = logistic_path(features, labels, tried, progress=progress, **options)
    accuracies = [100 * float((fit.predict(held_features) == held_labels).mean()) for fit in fits]
    chosen = int(np.argmax(accuracies))
    both = np.concatenate([features, held_features]), np.concatenate([labels, held_labels])
    last = logistic_path(*both, [tried[chosen]], progress=False, **options)[0]
    predictions = last.predict(test_features)
    return LogisticResult(
        cs=tuple(tried),
        held_out=tuple(accuracies),
        iterations=tuple(fit.iterations for fit in fits),
        converged=tuple(fit.converged for fit in fits),
        chosen=chosen,
        choice=Choice(edges('C', tried[chosen], tried), accuracies.count(accuracies[chosen]), 'the smallest C'),
        test=100 * float((predictions == test_labels).mean()),
        mean_per_class=mean_per_class(test_labels, predictions),
        predictions=predictions,
        fit=last,
    )
