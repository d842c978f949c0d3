"""The CD-FSL benchmark's own classifier, exactly, for all episodes at once.

IBM/cdfsl-benchmark, finetune.py with `--freeze_backbone`: a new nn.Linear, cross-entropy, SGD with learning rate .01,
momentum .9, *dampening .9* (the first step uses the whole gradient) and weight decay .001 on weight and bias, 100
passes over the support in batches of 4, each in a new order. It does not converge, and the initial weights still affect
its answers: no solver of the converged problem gives the same results.

The weights remain linear combinations of the support's features and the initial weights. Their factors are enough (the
dual form) and depend only on products of features: one N x (N + C) matrix per episode replaces features of any width.
The bias is the weight of a feature that is always 1.

Shape legend: `E` episodes, `C` ways, `N` = C * shots support images, `D` features, `M` at least N + C.
"""

import math

import numpy as np
import torch

from tinyvit_zoo.common.counter_rng import child_key, permutations, uniform
from tinyvit_zoo.common.determinism import one_thread

from . import cdfsl_kernel

__all__ = ['BATCH', 'DAMPENING', 'EPOCHS', 'GROUP', 'LEARNING_RATE', 'MOMENTUM', 'WEIGHT_DECAY', 'draw', 'logits']

LEARNING_RATE, MOMENTUM, DAMPENING, WEIGHT_DECAY = 0.01, 0.9, 0.9, 0.001
EPOCHS, BATCH = 100, 4
GROUP = 16
"""Episodes whose features are gathered at a time: few enough for the processor cache. If chunks are whole groups, an
episode's matrices always have the same alignment to cache lines, on which their rounding depends."""

LANES = 16
"""Multiple to which the width of products and factors is rounded up, so that they are read as whole vectors."""


def draw(seeds: np.ndarray, ways: int, shots: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    """The random draws of each episode, from its own seed alone.

    Args:
        seeds: uint64 (E,).
        ways: C.
        shots: N / C.
        features: D.

    Returns:
        initial: float64 (E, C, D + 1), weight and bias by nn.Linear's rule, uniform within 1 / sqrt(D) of 0.
        orders: int64 (E, EPOCHS, N), of the support; class c has the indices c * shots to (c + 1) * shots.
    """
    bound = 1 / math.sqrt(features)
    initial = uniform(child_key(seeds, 2), ways * (features + 1)).reshape(len(seeds), ways, features + 1)
    orders = permutations(child_key(np.asarray(seeds)[:, None], 3, np.arange(EPOCHS)), ways * shots)
    return (2 * initial - 1) * bound, orders


def logits(features: torch.Tensor, support: np.ndarray, query: np.ndarray, seeds: np.ndarray) -> torch.Tensor:
    """Learn from the support of every episode and answer its queries.

    Args:
        features: float32 or float64 (n, D) of all images; the computation uses the same dtype.
        support: int64 (E, C, shots), rows of `features`.
        query: int64 (E, C, queries).
        seeds: uint64 (E,).

    Returns:
        (E, C, queries, C), on the device of the features.
    """
    asked = len(support)
    support, query, seeds = (_pad(array) for array in (support, query, seeds))
    E, C, shots = support.shape
    drawn = draw(seeds, C, shots, features.shape[1])
    initial, orders = torch.from_numpy(drawn[0]).to(features), torch.from_numpy(drawn[1]).to(features.device)
    factors = _train(_products(features, support, initial), orders, C)
    answers = features.new_empty(E, C * query.shape[2], C)
    of_support, of_initial = factors[:, :, : C * shots], factors[:, :, C * shots : C * shots + C]
    for part in _groups(E):
        weight = torch.bmm(of_support[part], _rows(features, support[part]))
        weight += torch.bmm(of_initial[part], initial[part, :, :-1])
        bias = of_support[part].sum(dim=2) + (of_initial[part] @ initial[part, :, -1:])[..., 0]
        torch.baddbmm(bias[:, None], _rows(features, query[part]), weight.mT, out=answers[part])
    return answers.view(E, C, query.shape[2], C)[:asked]


def _products(features: torch.Tensor, support: np.ndarray, initial: torch.Tensor) -> torch.Tensor:
    """(E, N, M): products of each support image with all of them and with the initial weights, padded with zeros."""
    E, C, shots = support.shape
    N = C * shots
    products = features.new_zeros(E, N, -(-(N + C) // LANES) * LANES)
    for part in _groups(E):
        x = _rows(features, support[part])
        products[part, :, :N] = torch.bmm(x, x.mT).add_(1)
        products[part, :, N : N + C] = torch.bmm(x, initial[part, :, :-1].mT) + initial[part, :, -1][:, None]
    return products


def _train(products: torch.Tensor, orders: torch.Tensor, C: int) -> torch.Tensor:
    """SGD in the dual form.

    Args:
        products: (E, N, M), see `_products`.
        orders: int64 (E, EPOCHS, N), see `draw`.
        C: Ways.

    Returns:
        Factors (E, C, M): the weights are `factors[:, :, : N + C] @ [support features; initial weights]`.
    """
    E, N, M = products.shape
    factors = products.new_zeros(E, C, M)
    factors[:, :, N : N + C] = torch.eye(C)
    kernel = cdfsl_kernel.load() if products.device.type == 'cpu' else None
    if kernel is None:
        with one_thread():  # several threads would split chunks of other sizes elsewhere, with different rounding
            _train_plain(products, orders, factors)
    else:
        settings = cdfsl_kernel.Settings(LEARNING_RATE, MOMENTUM, DAMPENING, WEIGHT_DECAY, EPOCHS)
        kernel(products, orders, factors, settings)
    return factors


def _train_plain(products: torch.Tensor, orders: torch.Tensor, factors: torch.Tensor) -> None:
    """The steps in PyTorch, each for all episodes at once; changes `factors` in place."""
    E, N, M = products.shape
    C = factors.shape[1]
    velocity = torch.zeros_like(factors)
    flat_products, flat_velocity = products.view(E * N, M), velocity.view(-1)
    episode = torch.arange(E, device=products.device)[:, None]
    row_of_class = torch.arange(C, device=products.device)[:, None] * M
    share = 1.0  # of a new gradient in the velocity; the first step has no dampening
    for epoch in range(EPOCHS):
        for batch in orders[:, epoch].split(BATCH, dim=1):
            n = batch.shape[1]
            rows = flat_products.index_select(0, (batch + episode * N).view(-1)).view(E, n, M)
            z = torch.bmm(factors, rows.mT)
            # Classes first: a softmax over the second-to-last dimension is several times slower.
            gradient = z.transpose(0, 1).reshape(C, E * n).softmax(dim=0).mul_(share / n)
            place = (batch + episode * (C * M)).view(-1)
            label = batch.div(N // C, rounding_mode='floor').view(-1)
            velocity.mul_(MOMENTUM).add_(factors, alpha=share * WEIGHT_DECAY)
            flat_velocity.scatter_add_(0, (place + row_of_class).view(-1), gradient.view(-1))
            flat_velocity.scatter_add_(0, place + label * M, gradient.new_full((1,), -share / n).expand(E * n))
            factors.add_(velocity, alpha=-LEARNING_RATE)
            share = 1 - DAMPENING


def _pad(array: np.ndarray) -> np.ndarray:
    """Repeat the last episode up to whole groups: batches of few matrices are rounded differently from large ones."""
    return np.concatenate([array, array[-1:].repeat(-len(array) % GROUP, axis=0)])


def _groups(E: int) -> list[slice]:
    return [slice(i, i + GROUP) for i in range(0, E, GROUP)]


def _rows(features: torch.Tensor, positions: np.ndarray) -> torch.Tensor:
    """Features (e, ways * k, D) of positions (e, ways, k)."""
    flat = torch.from_numpy(positions.reshape(-1)).to(features.device)
    return features.index_select(0, flat).view(len(positions), -1, features.shape[1])
