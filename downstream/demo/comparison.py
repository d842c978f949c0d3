"""The demo's end: what its model learned, held against the same architecture with random weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import timm
import torch
from torch import nn

from tinyvit_zoo.data.image_dataset import Arrays, ImageDataset
from tinyvit_zoo.data.offline import digits, textures
from tinyvit_zoo.data.split import stratified_split

from ..compare import ModelFeatures, Row, compare
from ..features.extraction import Features, extract
from ..reports import plots
from ..results import plain
from .digits import PHOTOS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['EPISODES', 'NAMES', 'Comparison', 'Pool', 'compare_with_random', 'pictures_to_compare_on']

NAMES = ("the demo's model", 'random weights')
WAYS = 5
SHOTS = (1, 5, 20)
QUERIES = 15
EPISODES = 600
NEIGHBOURS = 20
Comparison = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Pool:
    """Pictures, and which of them (int64 places) are learned from, answered, and put into episodes."""

    pictures: ImageDataset
    train: np.ndarray
    test: np.ndarray
    episodes: np.ndarray


def pictures_to_compare_on(seed: int = 0, limit: int | None = None) -> dict[str, Pool]:
    """Pictures none of which the demo's model was trained on.

    Digits: the held-out ones; episodes are drawn from all of them, and probes learn from one half and answer the other.
    Textures: of 19 of the 21 photographs, as the model was trained on crops of the other two; episodes are drawn from
    the test crops.

    Args:
        seed: Of the demo.
        limit: Use only about so many textures; for a quick look.
    """
    held = digits('test', seed)
    parts = []
    for crops in (textures('train', seed), textures('test', seed)):
        trained_on = [crops.classes.index(name) for name in PHOTOS]
        places = np.flatnonzero(~np.isin(crops.labels, trained_on))
        parts.append(crops.subset(places[:: 1 if limit is None else max(1, 2 * len(places) // limit)]))
    train, test = np.split(np.arange(len(parts[0]) + len(parts[1])), [len(parts[0])])
    return dict(
        digits=Pool(held, *stratified_split(held.labels, 0.5, seed), np.arange(len(held))),
        textures=Pool(_join(*parts), train, test, test),
    )


def _join(first: ImageDataset, second: ImageDataset) -> ImageDataset:
    pixels = [np.asarray(part[i][0]) for part in (first, second) for i in range(len(part))]
    labels = np.concatenate([first.labels, second.labels])
    return ImageDataset(first.name, 'all', first.classes, labels, Arrays(np.stack(pixels), first.name))


def compare_with_random(
    folder: Path,
    model: nn.Module,
    pools: Mapping[str, Pool],
    seed: int = 0,
    episodes: int = EPISODES,
    say: Callable[[str], None] = print,
) -> tuple[Comparison, dict[str, 'Figure']]:
    """5-way few-shot, kNN and a linear probe with the features of both, on the same episodes and pictures.

    Args:
        folder: Saved model, which says what the random one is to be like.
        model: The trained one.
        pools: See `pictures_to_compare_on`.
        seed: Of the random weights, the episodes and the t-SNE.
        episodes: How many for each number of shots.
        say: Prints a line.

    Returns:
        Rows of each pool, in plain values, and figures by name.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random = timm.create_model(f'local-dir:{folder}', pretrained=False).eval()
    found, figures = {}, {}
    for name, pool in pools.items():
        everything = [extract(m, pool.pictures, progress=False) for m in (model, random)]
        pooled, probes = (
            [ModelFeatures(title, *pick(f)) for title, f in zip(NAMES, everything, strict=True)]
            for pick in (
                lambda f, pool=pool: (None, _part(f, pool.episodes)),
                lambda f, pool=pool: (_part(f, pool.train), _part(f, pool.test)),
            )
        )
        smallest = int(np.unique(pool.pictures.labels[pool.episodes], return_counts=True)[1].min())
        queries = min(QUERIES, smallest // 2)
        shots = [n for n in SHOTS if n + queries <= smallest]
        few = compare(*pooled, ways=WAYS, shots=shots, queries=queries, episodes=episodes, seed=seed)
        rows = [*few, *compare(*probes, shots=(), k=NEIGHBOURS, seed=seed)]
        for row in rows:
            say(f'  {name:8s} {row.task:22s} {_words(row)}')
        found[name] = [plain(row) for row in rows]
        figures |= _figures(name, pooled, rows, shots, seed)
    return found, figures


def _part(features: Features, places: np.ndarray) -> Features:
    chosen = torch.from_numpy(places)
    return replace(features, values=features.values[chosen], labels=features.labels[chosen])


def _words(row: Row) -> str:
    return f'{row.a:5.1f} % | {row.b:5.1f} % | difference {row.difference:+.1f} ({row.low:+.1f} to {row.high:+.1f})'


def _figures(
    name: str, models: Sequence[ModelFeatures], rows: Sequence[Row], shots: Sequence[int], seed: int
) -> dict[str, 'Figure']:
    few = rows[: len(shots)]
    series = {
        NAMES[0]: {n: (row.a, row.a_ci95) for n, row in zip(shots, few, strict=True)},
        NAMES[1]: {n: (row.b, row.b_ci95) for n, row in zip(shots, few, strict=True)},
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
