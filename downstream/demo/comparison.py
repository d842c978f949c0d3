"""The end of the demo: the trained model's features compared with those of random weights.

Held-out digits show what the encoder has learned. Crops of photographs are a kind of image that it was not trained on:
a model this small, trained on digits, has no reason to be good at them, and the comparison says whether it is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from matplotlib.figure import Figure
from torch import nn

from tinyvit_zoo.data.image_dataset import Arrays, ImageDataset
from tinyvit_zoo.data.offline import digits, textures
from tinyvit_zoo.data.split import stratified_split

from ..compare import ModelFeatures, Row, compare
from ..features.extraction import Features, extract
from ..reports import plots
from ..results import plain
from .digits import PHOTOS

__all__ = ['EPISODES', 'NAMES', 'Comparison', 'Pool', 'compare_with_random', 'comparison_images']

NAMES = ("the demo's model", 'random weights')
WAYS = 5
SHOTS = (1, 5, 20)
QUERIES = 15
EPISODES = 600
NEIGHBOURS = 20
Comparison = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Pool:
    """Images, and the indices (int64) of those to train on, to test on, and to draw episodes from."""

    images: ImageDataset
    train: np.ndarray
    test: np.ndarray
    episodes: np.ndarray


def comparison_images(seed: int = 0, limit: int | None = None, photographs: bool = False) -> dict[str, Pool]:
    """Images that the demo's model was not trained on.

    Digits: the held-out ones. Episodes are drawn from all of them; probes train on one half and test on the other.
    Textures: crops of 19 of the 21 photographs, as the model was trained on crops of the other two. Episodes are drawn
    from the test crops.

    Args:
        seed: Of the demo.
        limit: Approximate number of textures, for a quick look.
        photographs: Whether to include textures.
    """
    held = digits('test', seed)
    pools = dict(digits=Pool(held, *stratified_split(held.labels, 0.5, seed), np.arange(len(held))))
    return pools | dict(textures=_textures(seed, limit)) if photographs else pools


def _textures(seed: int, limit: int | None) -> Pool:
    parts = []
    for crops in (textures('train', seed), textures('test', seed)):
        trained_on = [crops.classes.index(name) for name in PHOTOS]
        chosen = np.flatnonzero(~np.isin(crops.labels, trained_on))
        parts.append(crops.subset(chosen[:: 1 if limit is None else max(1, 2 * len(chosen) // limit)]))
    train, test = np.split(np.arange(len(parts[0]) + len(parts[1])), [len(parts[0])])
    return Pool(_join(*parts), train, test, test)


def _join(first: ImageDataset, second: ImageDataset) -> ImageDataset:
    pixels = [np.asarray(part.image(i)) for part in (first, second) for i in range(len(part))]
    labels = np.concatenate([first.labels, second.labels])
    return ImageDataset(first.name, 'all', first.classes, labels, Arrays(np.stack(pixels), first.name))


def compare_with_random(
    folder: Path,
    model: nn.Module,
    pools: Mapping[str, Pool],
    seed: int = 0,
    episodes: int = EPISODES,
    say: Callable[[str], None] = print,
) -> tuple[Comparison, dict[str, Figure]]:
    """5-way few-shot, kNN and a linear probe on the features of both models, on the same episodes and images.

    Args:
        folder: The saved model, whose architecture the random model gets.
        model: The trained model.
        pools: See `comparison_images`.
        seed: Of the random weights, the episodes and the t-SNE.
        episodes: Number of episodes for each number of shots.
        say: Prints a line.

    Returns:
        Rows of each pool as plain values, and figures by name.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random = timm.create_model(f'local-dir:{folder}', pretrained=False).eval()
    found: Comparison = {}
    figures: dict[str, Figure] = {}
    for name, pool in pools.items():
        everything = [extract(m, pool.images, progress=False) for m in (model, random)]
        pooled, probes = (
            [ModelFeatures(title, *pick(f)) for title, f in zip(NAMES, everything, strict=True)]
            for pick in (
                lambda f, pool=pool: (None, _part(f, pool.episodes)),
                lambda f, pool=pool: (_part(f, pool.train), _part(f, pool.test)),
            )
        )
        smallest = int(np.unique(pool.images.labels[pool.episodes], return_counts=True)[1].min())
        queries = min(QUERIES, smallest // 2)
        shots = [n for n in SHOTS if n + queries <= smallest]
        few = compare(*pooled, ways=WAYS, shots=shots, queries=queries, episodes=episodes, seed=seed)
        rows = [*few, *compare(*probes, shots=(), k=NEIGHBOURS, seed=seed)]
        for row in rows:
            say(f'  {name:8s} {row.task:22s} {_words(row)}')
            if row.remarks:
                say(f'  {"":8s} {"; ".join(row.remarks)}')
        found[name] = [plain(row) for row in rows]
        figures |= _figures(name, pooled, rows, shots, seed)
    return found, figures


def _part(features: Features, indices: np.ndarray) -> Features:
    chosen = torch.from_numpy(indices)
    return replace(features, values=features.values[chosen], labels=features.labels[chosen])


def _words(row: Row) -> str:
    return f'{row.a:5.1f} % | {row.b:5.1f} % | difference {row.difference:+.1f} ({row.low:+.1f} to {row.high:+.1f})'


def _figures(
    name: str, models: Sequence[ModelFeatures], rows: Sequence[Row], shots: Sequence[int], seed: int
) -> dict[str, Figure]:
    few = rows[: len(shots)]
    series = {
        NAMES[0]: {n: (row.a, row.a_ci95 or 0.0) for n, row in zip(shots, few, strict=True)},
        NAMES[1]: {n: (row.b, row.b_ci95 or 0.0) for n, row in zip(shots, few, strict=True)},
    }
    ends = ([getattr(row, key) for row in rows] for key in ('difference', 'low', 'high'))
    figures = {
        f'few_shot_{name}': plots.accuracy_over_shots(
            series, title=f'{WAYS}-way few-shot on {name}, {rows[0].n} episodes', chance=100 / WAYS
        ),
        f'differences_{name}': plots.differences(
            [row.task for row in rows], *ends, title=f'{NAMES[0]} minus {NAMES[1]}, {name}'
        ),
    }
    for title, model in zip(('trained', 'random'), models, strict=True):
        features = model.test
        figures[f'tsne_{name}_{title}'] = plots.tsne(
            features.values.numpy(), features.labels.numpy(), features.classes,
            title=f'{model.name}: {name} (t-SNE)', seed=seed,
        )  # fmt: skip
    return figures
