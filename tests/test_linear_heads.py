"""Linear heads trained together equal heads trained alone; ridge and logistic paths equal direct solvers."""

import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import refused
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from torch import nn

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data.split import check_features, stratified_split
from tinyvit_zoo.downstream.classifiers import logistic, ridge
from tinyvit_zoo.downstream.classifiers.linear_heads import LinearHeads, Setting, grid

CLASSES = 7
WIDTHS = {'pooled': 24, 'last:4': 40}


def blobs(images: int = 300, width: int = 24, seed: int = 0, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, D) float32, directions of very different size and off the origin, and labels (N,)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=images)
    centres = np.random.default_rng(99).normal(size=(CLASSES, width))
    x = (centres[labels] + noise * rng.normal(size=(images, width))) * np.logspace(0.5, -1, width) + 2
    return x.astype(np.float32), labels


def batches(epochs: int, batch_size: int = 128):
    """A cosine over epochs, and the batches, the last of each epoch smaller."""
    x, y = ({k: torch.from_numpy(blobs(width=w)[0]) for k, w in WIDTHS.items()}, torch.from_numpy(blobs()[1]))
    for epoch in range(epochs):
        factor = 0.5 * (1 + math.cos(math.pi * epoch / epochs)) * batch_size / 256
        for places in torch.randperm(len(y), generator=torch.Generator().manual_seed(epoch)).split(batch_size):
            yield {k: v[places] for k, v in x.items()}, y[places], factor


def solo_run(setting: Setting, weight: torch.Tensor, bias: torch.Tensor, epochs: int) -> nn.Linear:
    """The readable reference: one nn.Linear under torch's own SGD."""
    head = nn.Linear(WIDTHS[setting.layer], CLASSES)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9, weight_decay=setting.weight_decay)
    for features, targets, factor in batches(epochs):
        optimizer.param_groups[0]['lr'] = setting.lr * factor
        optimizer.zero_grad()
        F.cross_entropy(head(features[setting.layer]), targets).backward()
        optimizer.step()
    return head


def train_together(settings, epochs: int) -> LinearHeads:
    heads = LinearHeads(settings, WIDTHS, CLASSES)
    for features, targets, factor in batches(epochs):
        heads.step(features, targets, len(targets), factor)
    return heads


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.square().mean().sqrt()).item()


def test_every_head_of_a_grid_equals_its_solo_run():
    settings = grid([0.01, 0.1, 0.5, 2.0], [0, 1e-3], WIDTHS)
    start, heads = LinearHeads(settings, WIDTHS, CLASSES), train_together(settings, 5)
    assert len(settings) >= 8
    for i, setting in enumerate(settings):
        solo = solo_run(setting, *start.head(i), 5)
        weight, bias = heads.head(i)
        assert difference(weight, solo.weight.detach()) <= 1e-5
        assert difference(bias, solo.bias.detach()) <= 1e-5


def test_a_head_does_not_depend_on_the_other_heads():
    together = train_together(grid([0.1, 1e38], [0, 1e-3], WIDTHS), 3)
    alone = train_together([Setting(0.1, 0, 'last:4')], 3)
    place = together.settings.index(Setting(0.1, 0, 'last:4'))
    assert difference(together.head(place)[0], alone.head(0)[0]) <= 1e-6
    x, y = torch.from_numpy(blobs()[0]), torch.from_numpy(blobs()[1])
    accuracy, loss = together.score({'pooled': x, 'last:4': torch.from_numpy(blobs(width=40)[0])}, y)
    diverged = torch.tensor([s.lr == 1e38 for s in together.settings])
    assert torch.equal(accuracy.isnan(), diverged)
    assert torch.equal(loss.isnan(), diverged)


def test_initial_weights_are_those_of_moco_v3():
    weight, bias = LinearHeads([Setting(1, 0, 'a')], {'a': 1000}, 100).head(0)
    assert weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not bias.any()
    other, _ = LinearHeads([Setting(1, 0, 'a')], {'a': 1000}, 100, seed=1).head(0)
    assert not torch.equal(weight, other)


def test_scores_do_not_depend_on_the_number_of_rows_at_a_time(monkeypatch):
    heads, (x, y) = train_together(grid([0.1, 1], [0], ['pooled']), 1), map(torch.from_numpy, blobs())
    accuracy, loss = heads.score({'pooled': x}, y)
    monkeypatch.setattr('tinyvit_zoo.downstream.classifiers.linear_heads.LOGITS_AT_ONCE', 100)
    again, loss_again = heads.score({'pooled': x}, y)
    assert torch.equal(accuracy, again)
    torch.testing.assert_close(loss, loss_again)
    logits = heads.logits({'pooled': x})
    assert accuracy[1].item() == pytest.approx(100 * (logits[1].argmax(1) == y).double().mean().item())
    assert loss[1].item() == pytest.approx(F.cross_entropy(logits[1], y).item(), rel=1e-5)


@pytest.mark.parametrize(('lrs', 'wds', 'word'), [([], [0], 'no head'), ([0], [0], 'learning'), ([1], [-1], 'decay')])
def test_an_invalid_grid_is_refused(lrs, wds, word):
    refused(lambda: grid(lrs, wds, ['pooled']), word, kind=EvaluationError)


# the held-out part


def test_the_held_out_part_is_stratified_and_depends_on_the_seed():
    labels = np.repeat([0, 1, 2, 3], [100, 30, 4, 1])
    train, held = stratified_split(labels, 0.1, seed=3)
    assert sorted([*train, *held]) == list(range(len(labels)))
    assert np.bincount(labels[held]).tolist() == [10, 3, 1]  # none of a class of one
    assert np.array_equal(held, stratified_split(labels, 0.1, seed=3)[1])
    assert not np.array_equal(held, stratified_split(labels, 0.1, seed=4)[1])


def test_bad_features_are_one_clear_error_each():
    x, y = blobs()
    for features, labels, classes, word in (
        (np.where(np.arange(24) == 3, np.nan, x), y, None, 'not finite'),
        (x, np.zeros_like(y), None, 'one class'),
        (x, y, 3, 'does not fit 3 classes'),
        (x[:5], y, None, 'shape'),
        (x[:0], y[:0], None, 'no images'),
    ):
        refused(lambda f=features, k=labels, c=classes: check_features(f, k, c), word, kind=EvaluationError)
    refused(lambda: check_features(x[:, :3], y, CLASSES, like=x), 'width', kind=EvaluationError)
    assert check_features(x[:1], y[:1], CLASSES, like=x) == CLASSES  # a test set may be of one class
    refused(lambda: stratified_split(np.arange(5)), 'two images', kind=EvaluationError)
    refused(lambda: stratified_split(y, 1.5), 'share', kind=EvaluationError)


# ridge


@pytest.mark.parametrize(('images', 'width'), [(300, 24), (30, 80)], ids=['primal', 'dual'])
def test_the_ridge_path_equals_the_direct_solution_at_every_penalty(images, width):
    x, y = blobs(images, width)
    penalties = ridge.default_penalties(x)
    path = ridge.ridge_path(x, y, penalties, CLASSES)
    targets = np.where(np.arange(CLASSES) == y[:, None], 1.0, -1.0)
    centred = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    assert len(penalties) == 23
    for i, penalty in enumerate(penalties):
        direct = np.linalg.solve(centred.T @ centred + penalty * np.eye(width), centred.T @ (targets - targets.mean(0)))
        assert abs(path.weight(i) - direct).max() <= 1e-5 * abs(direct).max()
    theirs = Ridge(alpha=penalties[9]).fit(x.astype(np.float64), targets)
    np.testing.assert_allclose(path.bias(9), theirs.intercept_, rtol=1e-6)
    answers = (x @ path.weight(9) + path.bias(9)).argmax(axis=1)
    assert path.accuracies(x, y)[9] == pytest.approx(100 * (answers == y).mean())


@pytest.mark.parametrize('images', [400, 30], ids=['primal', 'dual'])
def test_the_ridge_probe_fits_again_on_all_training_images(images):
    (x, y), (test_x, test_y) = blobs(images, 60, noise=3), blobs(500, 60, seed=1, noise=3)
    done = ridge.probe(x[15:], y[15:], x[:15], y[:15], test_x, test_y)
    assert done.held_out[done.chosen] == done.held_out.max()
    again = ridge.ridge_path(x, y, [done.penalties[done.chosen]])
    np.testing.assert_allclose(done.weight, again.weight(0).T, rtol=1e-4, atol=1e-6)
    assert done.test == pytest.approx(100 * ((test_x @ again.weight(0) + again.bias(0)).argmax(1) == test_y).mean())


# logistic regression


def sklearn_fit(x: np.ndarray, y: np.ndarray, C: float) -> LogisticRegression:
    """Converged, in float64."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ConvergenceWarning)
        return LogisticRegression(C=C, tol=1e-8, max_iter=2000).fit(x.astype(np.float64), y)


def test_the_logistic_path_equals_the_solution_of_scikit_learn():
    (x, y), (held_x, _) = blobs(noise=2), blobs(2000, seed=1, noise=2)
    cs = (1e-5, 1e-3, 1e-1, 1e1)
    for C, fit in zip(cs, logistic.logistic_path(x, y, cs, tolerance=1e-5, progress=False), strict=True):
        theirs = sklearn_fit(x, y, C)
        weight = theirs.coef_ - theirs.coef_.mean(axis=0)
        assert abs(fit.weight - weight).max() <= 2e-3 * abs(weight).max(), C
        assert (fit.predict(held_x) == theirs.predict(held_x)).mean() >= 0.999


def test_the_fit_of_two_classes_equals_that_of_scikit_learn():
    x, y = blobs(noise=2)
    y = y % 2
    for C, fit in zip(
        (0.01, 1.0), logistic.logistic_path(x, y, (0.01, 1.0), tolerance=1e-5, progress=False), strict=True
    ):
        theirs = sklearn_fit(x, y, C)
        assert fit.C == C
        assert abs(fit.weight[1] - fit.weight[0] - theirs.coef_[0]).max() <= 2e-3 * abs(theirs.coef_).max()


def test_a_fit_from_zero_at_a_large_c_converges():
    x, y = blobs(1000, noise=0.6)
    x *= np.logspace(0, -2, x.shape[1], dtype=np.float32)
    (fit,) = logistic.logistic_path(x, y, [1e5], progress=False)
    assert fit.converged
    assert fit.iterations > 100


def test_separable_classes_converge_up_to_the_largest_c():
    x, y = blobs(noise=0.1)
    for fit in logistic.logistic_path(x, y, logistic.CS, progress=False):
        assert np.isfinite(fit.weight).all()
    assert (fit.predict(x) == y).all()
    assert len(logistic.CS) == 45


def test_a_fit_takes_two_products_with_the_features_per_step_plus_two(monkeypatch):
    class Counted(torch.Tensor):
        """A matrix that counts the products that it enters; `.T` of it does, too."""

        products = 0

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            cls.products += function.__name__ in ('addmm', 'mm', 'matmul', '__matmul__', '__rmatmul__')
            return super().__torch_function__(function, types, args, kwargs)

    class Watched(logistic._Solver):
        def __setattr__(self, name, value):
            super().__setattr__(name, value.as_subclass(Counted) if name == 'x' else value)

    monkeypatch.setattr(logistic, '_Solver', Watched)
    fits = logistic.logistic_path(*blobs(), logistic.CS[:30], progress=False)
    assert all(fit.converged for fit in fits)
    assert 0 < Counted.products <= 2 * sum(fit.iterations for fit in fits) + 2 * len(fits)


def test_fits_are_in_the_order_of_the_cs():
    x, y = blobs()
    fits = logistic.logistic_path(x, y, [1.0, 0.01, 100.0], progress=False)
    assert [fit.C for fit in fits] == [1.0, 0.01, 100.0]
    assert abs(fits[1].weight).max() < abs(fits[0].weight).max() < abs(fits[2].weight).max()


def test_the_logistic_probe_fits_again_on_all_training_images():
    (x, y), (test_x, test_y) = blobs(400, 60, noise=3), blobs(500, 60, seed=1, noise=3)
    done = logistic.probe(x[40:], y[40:], x[:40], y[:40], test_x, test_y, progress=False)
    assert done.held_out[done.chosen] == max(done.held_out)
    theirs = sklearn_fit(x, y, done.cs[done.chosen])
    assert done.test == pytest.approx(100 * theirs.score(test_x, test_y), abs=0.5)
    assert done.test == pytest.approx(100 * (done.predictions == test_y).mean())


def test_invalid_penalties_are_refused():
    x, y = blobs()
    refused(lambda: logistic.logistic_path(x, y, [0.0]), 'above 0', kind=EvaluationError)
    refused(lambda: ridge.ridge_path(x, y, []), 'above 0', kind=EvaluationError)
    same = np.full_like(x, 0.1)
    refused(lambda: ridge.probe(same, y, same, y, same, y), 'same features', kind=EvaluationError)
