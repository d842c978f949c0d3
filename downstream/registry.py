"""What is known of every data set: one entry each, asserted when the data is there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import offline_datasets
from .image_dataset import ImageDataset

__all__ = ['REGISTRY', 'Entry']


@dataclass(frozen=True)
class Entry:
    """A data set.

    Attributes:
        name: As `load_dataset` takes it.
        read: (root, part, seed) -> one part of it; imports what it needs by itself. Root is None where `needs_root`
            is False.
        splits: The parts that make up each split, as the protocols need them.
        counts: Images of each part.
        classes: Number of classes.
        source: Where it comes from.
        licence: As stated there.
        layout: What the root has to hold, for messages; empty if no root is needed.
        if_dead: What to do when the source does not answer.
        figures: Where counts and classes are from.
    """

    name: str
    read: Callable[[Path | None, str, int], ImageDataset]
    splits: Mapping[str, tuple[str, ...]]
    counts: Mapping[str, int]
    classes: int
    source: str
    licence: str
    layout: str = ''
    if_dead: str = ''
    figures: str = 'the data set itself'


ENTRIES = (
    Entry(
        'digits',
        lambda root, part, seed: offline_datasets.digits(part, seed),
        splits=dict(train=('train',), test=('test',), all=('train', 'test')),
        counts=dict(train=1347, test=450),
        classes=10,
        source='scikit-learn (load_digits: UCI, Optical Recognition of Handwritten Digits)',
        licence='CC BY 4.0',
    ),
    Entry(
        'textures',
        lambda root, part, seed: offline_datasets.textures(part, seed),
        splits=dict(train=('train',), test=('test',), all=('train', 'test')),
        counts=dict(train=21 * 80, test=21 * 40),
        classes=21,
        source='crops of the photographs that scikit-image and scikit-learn ship',
        licence='per photograph, free to use: see README.txt in the data folder of scikit-image',
    ),
)

REGISTRY = {entry.name: entry for entry in ENTRIES}
