"""Hard samples: images whose label is outside a teacher's most probable classes (TinyViT Sec. 4 and Tab. 1).

The paper removes 14 % of ImageNet-21k, the images whose labels are outside the top 5 of Florence, before it pre-trains.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tinyvit_zoo.common.counter_rng import child_key, permutations
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data.image_dataset import ImageDataset
from tinyvit_zoo.soft_labels import Store, check_data
from tinyvit_zoo.soft_labels.stored_views import is_converted, rows_of

from ..imagenet import evaluate

__all__ = ['TOP', 'HardSamples', 'draw_positions', 'hard_in_store', 'hard_of_teacher']

TOP = 5
CHUNK = 1 << 14  # records that are read at a time


@dataclass(frozen=True)
class HardSamples:
    """What a teacher says of the labels of N images.

    Attributes:
        top: Most probable classes that the label must be among.
        views: How many of each image the teacher saw: 1, or the stored epochs.
        outside: (N,) int64, in how many of them the label is not among those classes.
        guesses: (N,) int64, its most probable class, of stored epochs in the first.
        positions: (N,) int64, ascending, of these images in the data set.
    """

    top: int
    views: int
    outside: np.ndarray
    guesses: np.ndarray
    positions: np.ndarray

    @property
    def hard(self) -> np.ndarray:
        """(N,) bool: the label is outside in most views, more than half of them."""
        return 2 * self.outside > self.views


def draw_positions(dataset: ImageDataset, images: int | None, seed: int) -> np.ndarray:
    """Positions (N,) int64, ascending, of so many images of a data set, or of all; fewer are among more."""
    if images is None or images >= len(dataset):
        return np.arange(len(dataset))
    return np.sort(permutations(child_key(seed, 0), len(dataset))[:images])


def hard_of_teacher(
    teacher: nn.Module,
    dataset: ImageDataset,
    top: int = TOP,
    *,
    positions: np.ndarray | None = None,
    batch_size: int = 64,
    device: torch.device | str | None = None,
    workers: int = 0,
    progress: bool = True,
) -> HardSamples:
    """By a teacher at work, which sees each image once, in its own preprocessing for evaluation.

    Args:
        teacher: Any timm model with a classifier for these classes. Unchanged.
        dataset: Images with labels.
        top: From 1; fewer than there are classes.
        positions: Of the N images that it sees, ascending; None for all.
        batch_size: Images of a forward pass.
        device: The model's by default.
        workers: Processes that read images.
        progress: Whether to show a bar on a terminal.

    Raises:
        EvaluationError: If there are no labels or no more classes than `top`, or as `imagenet.evaluate`.
    """
    _check(dataset, top)
    positions = np.arange(len(dataset)) if positions is None else positions
    scores = evaluate(
        teacher, dataset.subset(positions), batch_size=batch_size, device=device, workers=workers, progress=progress
    )
    return HardSamples(top, 1, (scores.ranks >= top).astype(np.int64), scores.predictions, positions)


def hard_in_store(
    store: Store,
    dataset: ImageDataset,
    top: int = TOP,
    epochs: Sequence[int] | None = None,
    positions: np.ndarray | None = None,
) -> HardSamples:
    """By stored soft labels. They are of augmented views, of which some may show little of an image: most must agree.

    Args:
        store: Saved from the data set, or converted.
        dataset: Images with labels: all that the store is of.
        top: From 1 to the K of the store; fewer than there are classes.
        epochs: Numbers of stored epochs; None for all.
        positions: Of the N images that are read, ascending; None for all.

    Raises:
        EvaluationError: If the store has fewer than `top` probabilities a view, is of other data, lacks an epoch or is
            damaged, or there are no labels.
    """
    _check(dataset, top)
    if store.info.k < top:
        raise EvaluationError(
            f'{store.place} has the {store.info.k} most probable classes of each view, which do not tell whether a '
            f'label is among {top}: choose a store of at least {top}, or --teacher.'
        )
    check_data(store, dataset)
    positions = np.arange(len(dataset)) if positions is None else positions
    rows = rows_of(store, dataset)[positions] if is_converted(store.info) else positions
    labels, N = dataset.labels[positions], len(positions)
    numbers = list(store.whole_epochs() if epochs is None else epochs)
    outside, guesses = np.zeros(N, np.int64), np.zeros(N, np.int64)
    for count, number in enumerate(numbers):
        epoch = store.epoch(number)
        for start in range(0, N, CHUNK):
            part = slice(start, start + CHUNK)
            ids = epoch.read(rows[part]).ids
            outside[part] += (ids[:, :top] != labels[part, None]).all(axis=1)
            if not count:
                guesses[part] = ids[:, 0]
    return HardSamples(top, len(numbers), outside, guesses, positions)


def _check(dataset: ImageDataset, top: int) -> None:
    if not dataset.classes:
        raise EvaluationError(f'{dataset.name} has no labels, which decide what is hard: give labeled images.')
    if not 1 <= top < len(dataset.classes):
        raise EvaluationError(
            f'Of {len(dataset.classes)} classes a label is always or never among the top {top}: choose --top from 1 to '
            f'{len(dataset.classes) - 1}.'
        )
