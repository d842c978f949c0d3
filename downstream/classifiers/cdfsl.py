"""The CD-FSL benchmark's own classifier, exactly, for all episodes at once.

IBM/cdfsl-benchmark, finetune.py with `--freeze_backbone`: a fresh nn.Linear, cross-entropy, SGD with learning rate .01,
momentum .9, *dampening .9* (the first step takes the whole gradient) and weight decay .001 on weight and bias, 100
passes over the support in batches of 4, each in an order of its own. It does not converge, the start weights still show
in its answers: no solver of the converged problem gives its numbers.

The weights stay linear combinations of the support's features and of the start weights. Knowing the factors is enough
(the dual form), and those need nothing but products of features: a matrix of N x (N + C) an episode, made once, takes
the place of features of any width. The bias is the weight of a feature that is always 1.

Shape legend: `E` episodes, `C` ways, `N` = C * shots images to learn from, `D` features, `M` at least N + C.
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
"""Episodes whose features are gathered at a time: few enough to stay in the processor's cache. Where chunks are whole
groups, an episode's matrices always lie at the same places of a cache line, on which their rounding depends."""

LANES = 16
"""What the width of products and factors is rounded up to: they are read as whole vectors."""


def draw(seeds: np.ndarray, ways: int, shots: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    """What an episode draws at random, from its own seed alone.

    Args:
        seeds: uint64 (E,).
        ways: C.
        shots: N / C.
        features: D.

    Returns:
        start: float64 (E, C, D + 1), weight and bias by nn.Linear's rule, uniform within 1 / sqrt(D) of 0.
        orders: int64 (E, EPOCHS, N), in which the support is seen; class c has the places c * shots to (c + 1) * shots.
    """
    bound = 1 / math.sqrt(features)
    start = uniform(child_key(seeds, 2), ways * (features + 1)).reshape(len(seeds), ways, features + 1)
    orders = permutations(child_key(np.asarray(seeds)[:, None], 3, np.arange(EPOCHS)), ways * shots)
    return (2 * start - 1) * bound, orders


def logits(features: torch.Tensor, support: np.ndarray, query: np.ndarray, seeds: np.ndarray) -> torch.Tensor:
    """Learn from the support of every episode and answer its queries.

    Args:
        features: float32 or float64 (n, D) of all images, which is also what everything is computed in.
        support: int64 (E, C, shots), rows of `features`.
        query: int64 (E, C, queries).
        seeds: uint64 (E,).

    Returns:
        (E, C, queries, C), on the device of the features.
    """
    asked = len(support)
    support, query, seeds = (_pad(array) for array in (support, query, seeds))
    E, C, shots = support.shape
    start, orders = draw(seeds, C, shots, features.shape[1])
    start, orders = torch.from_numpy(start).to(features), torch.from_numpy(orders).to(features.device)
    factors = _train(_products(features, support, start), orders, C)
    answers = features.new_empty(E, C * query.shape[2], C)
    of_support, of_start = factors[:, :, : C * shots], factors[:, :, C * shots : C * shots + C]
    for part in _groups(E):
        weight = torch.bmm(of_support[part], _rows(features, support[part]))
        weight += torch.bmm(of_start[part], start[part, :, :-1])
        bias = of_support[part].sum(dim=2) + (of_start[part] @ start[part, :, -1:])[..., 0]
        torch.baddbmm(bias[:, None], _rows(features, query[part]), weight.mT, out=answers[part])
    return answers.view(E, C, query.shape[2], C)[:asked]


def _products(features: torch.Tensor, support: np.ndarray, start: torch.Tensor) -> torch.Tensor:
    """(E, N, M): each image of the support times all of them, and times the start weights; then zeros."""
    E, C, shots = support.shape
    N = C * shots
    products = features.new_zeros(E, N, -(-(N + C) // LANES) * LANES)
    for part in _groups(E):
        x = _rows(features, support[part])
        products[part, :, :N] = torch.bmm(x, x.mT).add_(1)
        products[part, :, N : N + C] = torch.bmm(x, start[part, :, :-1].mT) + start[part, :, -1][:, None]
    return products


def _train(products: torch.Tensor, orders: torch.Tensor, C: int) -> torch.Tensor:
    """SGD in the dual form.

    Args:
        products: (E, N, M), see `_products`.
        orders: int64 (E, EPOCHS, N), see `draw`.
        C: Ways.

    Returns:
        Factors (E, C, M): the weights are `factors[:, :, : N + C] @ [support features; start weights]`.
    """
    E, N, M = products.shape
    factors = products.new_zeros(E, C, M)
    factors[:, :, N : N + C] = torch.eye(C)
    kernel = cdfsl_kernel.load() if products.device.type == 'cpu' else None
    if kernel is None:
        with one_thread():  # several would divide the episodes of another chunk elsewhere, and round them otherwise
            _train_plain(products, orders, factors)
    else:
        settings = cdfsl_kernel.Settings(LEARNING_RATE, MOMENTUM, DAMPENING, WEIGHT_DECAY, EPOCHS)
        kernel(products, orders, factors, settings)
    return factors


def _train_plain(products: torch.Tensor, orders: torch.Tensor, factors: torch.Tensor) -> None:
    """The steps in PyTorch, each for all episodes at once; `factors` are changed in place."""
    E, N, M = products.shape
    C = factors.shape[1]
    velocity = torch.zeros_like(factors)
    flat_products, flat_velocity = products.view(E * N, M), velocity.view(-1)
    episode = torch.arange(E, device=products.device)[:, None]
    row_of_class = torch.arange(C, device=products.device)[:, None] * M
    share = 1.0  # of a new gradient in the velocity; without dampening in the first step
    for epoch in range(EPOCHS):
        for batch in orders[:, epoch].split(BATCH, dim=1):
            n = batch.shape[1]
            rows = flat_products.index_select(0, (batch + episode * N).view(-1)).view(E, n, M)
            z = torch.bmm(factors, rows.mT)
            # Classes first: a softmax over the last but one dimension is several times slower.
            gradient = z.transpose(0, 1).reshape(C, E * n).softmax(dim=0).mul_(share / n)
            place = (batch + episode * (C * M)).view(-1)
            label = batch.div(N // C, rounding_mode='floor').view(-1)
            velocity.mul_(MOMENTUM).add_(factors, alpha=share * WEIGHT_DECAY)
            flat_velocity.scatter_add_(0, (place + row_of_class).view(-1), gradient.view(-1))
            flat_velocity.scatter_add_(0, place + label * M, gradient.new_full((1,), -share / n).expand(E * n))
            factors.add_(velocity, alpha=-LEARNING_RATE)
            share = 1 - DAMPENING


def _pad(array: np.ndarray) -> np.ndarray:
    """Repeat the last episode up to whole groups: products of few matrices are rounded otherwise than those of many."""
    return np.concatenate([array, array[-1:].repeat(-len(array) % GROUP, axis=0)])


def _groups(E: int) -> list[slice]:
    return [slice(i, i + GROUP) for i in range(0, E, GROUP)]


def _rows(features: torch.Tensor, positions: np.ndarray) -> torch.Tensor:
    """Features (e, ways * k, D) of positions (e, ways, k)."""
    flat = torch.from_numpy(positions.reshape(-1)).to(features.device)
    return features.index_select(0, flat).view(len(positions), -1, features.shape[1])
