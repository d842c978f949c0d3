"""Subsets of the images to train on: a share of every class, a long tail, or the images that a file names.

Which images they are depends on the seed and on labels and order of the data set alone (`common.counter_rng`). Each
class has one random order, of which a share is the beginning: 1 % lies within 10 %.
"""

import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..common.counter_rng import child_key, permutations
from ..common.errors import EvaluationError
from ..common.files import new_file
from ..common.text import count_of, first_few, reason, shown
from .image_dataset import ImageDataset, Selection

__all__ = [
    'IMBALANCE',
    'long_tailed',
    'share_of_each_class',
    'some_of_each_class',
    'subset_identity',
    'take_subset',
    'write_kept',
]

LONG_TAILED = 'long-tailed'
IMBALANCE = 100
"""Images of the largest class over those of the smallest in a long tail (Cui et al. 2019, Sec. 5.1)."""

CLASS, CLASSES = 0, 1  # of the counters of a subset: the images of a class, and the order of the classes
KEPT_VERSION = 1
FINGERPRINTS = 'fingerprints.json'
"""Beside a list of kept images: computing the fingerprint of a large data set takes minutes."""


def take_subset(dataset: ImageDataset, which: str, seed: int = 0) -> ImageDataset:
    """The images to train on.

    Args:
        dataset: All images. Without classes, as a folder of unlabelled images is, a share is one of all images.
        which: A share such as '1%'; 'long-tailed'; or a file: names one a line, such as the published lists of 1 % and
            10 % of ImageNet, or `kept.json` of `analyze hard-samples`.
        seed: Of shares and the long tail.

    Returns:
        The images in the order of the data set, with all classes; `selection` says which they are.

    Raises:
        EvaluationError: If there is no such subset, a file is damaged, of other data or names images that are not
            there, or a long tail is asked for of data without classes.
    """
    if not which.strip():
        raise _no_subset(which)
    share = re.fullmatch(r'(\d+(?:\.\d+)?|\.\d+) ?%', which.strip())
    if share:
        if not 0 < float(share[1]) <= 100:
            raise EvaluationError(f'{which} of the images is not a share: give more than 0% and at most 100%.')
        positions = share_of_each_class(dataset.labels, float(share[1]) / 100, seed)
        name = f'{float(share[1]):g}%'
    elif which == LONG_TAILED:
        if not dataset.classes:
            raise EvaluationError(f'{dataset.name} has no classes, and a long tail is one of classes: give a share.')
        positions, name = long_tailed(dataset.labels, seed), which
    else:
        positions, name = _listed(dataset, Path(which)), Path(which).name
    selected = dataset.subset(positions)
    selected.selection = Selection(name, positions, dataset)
    return selected


def share_of_each_class(labels: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """Positions of a share of every class, rounded, at least one image each; those of a smaller share are among them.

    Args:
        labels: (N,) int64; all the same for a share of all images.
        share: Above 0 and at most 1.
        seed: Of the draw.

    Returns:
        int64, ascending.
    """
    return _first_of_each_class(labels, seed, lambda label, images: round(share * images))


def some_of_each_class(labels: np.ndarray, images: int, seed: int = 0) -> np.ndarray:
    """Positions of so many images of each class, or all of fewer: int64, ascending. They begin every share of it."""
    return _first_of_each_class(labels, seed, lambda label, total: images)


def long_tailed(labels: np.ndarray, seed: int = 0, imbalance: float = IMBALANCE) -> np.ndarray:
    """Positions of a long tail: class sizes fall exponentially, from the largest class's to that over the imbalance.

    Cui et al. 2019, "Class-balanced loss based on effective number of samples", Sec. 5.1, there in the order of the
    classes; here their order is drawn, since that of ImageNet is not random. No class has more than all its images or
    less than one.

    Args:
        labels: (N,) int64.
        seed: Of the order of the classes and of the draw.
        imbalance: At least 1.

    Returns:
        int64, ascending.
    """
    present, counts = np.unique(labels, return_counts=True)
    order = permutations(child_key(seed, CLASSES), len(present))
    rank = dict(zip(present[order].tolist(), range(len(present)), strict=True))
    largest, steps = int(counts.max()), max(1, len(present) - 1)
    return _first_of_each_class(
        labels, seed, lambda label, images: min(images, round(largest * imbalance ** (-rank[label] / steps)))
    )


def subset_identity(dataset: ImageDataset) -> dict[str, str]:
    """What of a subset must be the same for a run to be resumed: 'subset' and its fingerprint; empty for all images."""
    return {} if dataset.selection is None else {'subset': dataset.selection.fingerprint}


def _first_of_each_class(labels: np.ndarray, seed: int, number: Callable[[int, int], int]) -> np.ndarray:
    """Of each class the first images of its random order, so many as `number` says of its label and size."""
    by_class = np.argsort(labels, kind='stable')
    present, starts = np.unique(labels[by_class], return_index=True)
    parts = []
    for label, places in zip(present.tolist(), np.split(by_class, starts[1:]), strict=True):
        order = permutations(child_key(seed, CLASS, max(0, label)), len(places))  # -1 where there are no labels
        parts.append(places[order[: max(1, number(label, len(places)))]])
    return np.sort(np.concatenate(parts))


def write_kept(path: Path, dataset: ImageDataset, left_out: np.ndarray, **about: Any) -> None:
    """Write a file for `take_subset` of all images but some.

    Args:
        path: JSON file.
        dataset: All images.
        left_out: int64, positions of those that are not kept.
        **about: Plain values for people: what left them out.

    Raises:
        EvaluationError: If it cannot be written.
    """
    content = dict(
        version=KEPT_VERSION, data=dataset.name, split=dataset.split, images=len(dataset),
        kept=len(dataset) - len(left_out), fingerprint=dataset.fingerprint(path.parent / FINGERPRINTS), **about,
        left_out=left_out.tolist(),
    )  # fmt: skip
    try:
        with new_file(path) as new:
            # A name that is no UTF-8 becomes an escape of JSON.
            text = json.dumps(content, ensure_ascii=False) + '\n'
            new.write_text(text, encoding='utf-8', errors='backslashreplace')
    except OSError as e:
        raise EvaluationError(f'{path} cannot be written ({reason(e)}): choose another file.') from e


def _listed(dataset: ImageDataset, path: Path) -> np.ndarray:
    """Positions of the images that a file names, ascending."""
    try:
        text = path.read_text(encoding='utf-8-sig', errors='surrogateescape')
    except (FileNotFoundError, ValueError) as e:  # ValueError: a name with a null
        raise _no_subset(str(path)) from e
    except OSError as e:
        raise EvaluationError(f'{path} cannot be read ({reason(e)}): give a file of names.') from e
    if path.suffix.lower() == '.json':
        return _kept(dataset, path, text)
    names = [name for name in map(str.strip, text.splitlines()) if name]
    if not names:
        raise EvaluationError(f'{path} names no image: write one file name a line.')
    return _positions_of(dataset, path, names)


def _no_subset(which: str) -> EvaluationError:
    return EvaluationError(
        f"'{shown(which)}' is neither a subset nor a file: give a share such as 1%, long-tailed, or a file of names."
    )


def _kept(dataset: ImageDataset, path: Path, text: str) -> np.ndarray:
    try:
        content = json.loads(text)
        images, fingerprint, listed = content['images'], content['fingerprint'], content['left_out']
        if content['version'] != KEPT_VERSION or {type(images), *map(type, listed)} != {int}:
            raise TypeError(listed)
        left_out = np.asarray(listed, dtype=np.int64)
        if len(left_out) and not 0 <= left_out.min() <= left_out.max() < images:
            raise ValueError(listed)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as e:
        raise EvaluationError(
            f'{path} is not a list of kept images from `analyze hard-samples`: give one, or a text file of names.'
        ) from e
    if images != len(dataset) or fingerprint != dataset.fingerprint(path.parent / FINGERPRINTS):
        raise EvaluationError(
            f'{path} is of other images ({images:,} of {shown(content.get("data"))}, {shown(content.get("split"))}) '
            f'than these {len(dataset):,} of {dataset.name}, {dataset.split}: give the data that it was made from.'
        )
    kept = np.setdiff1d(np.arange(images), left_out)
    if not len(kept):
        raise EvaluationError(f'{path} keeps no image: there is nothing to train on.')
    return kept


def _positions_of(dataset: ImageDataset, path: Path, names: Iterable[str]) -> np.ndarray:
    """Positions of images by name: a file name, or the end of a path with as many folders as make it unique, up to all
    of them: a list may have been made in another folder than this.
    """
    wanted: dict[str, list[str]] = defaultdict(list)  # by what follows the last slash: paths are compared where it fits
    for name in dict.fromkeys(names):
        wanted[name.replace('\\', '/').rpartition('/')[2]].append(name)
    found: dict[str, int] = {}
    for i in range(len(dataset)):
        place = dataset.describe(i).replace('\\', '/')
        same = wanted.get(place.rpartition('/')[2], ())
        places = (place, os.path.abspath(place).replace('\\', '/')) if same else ()
        for name in same:
            end = name.replace('\\', '/').removeprefix('./')
            if not any(whole == end or whole.endswith(f'/{end}') for whole in places):
                continue
            if found.setdefault(name, i) != i:
                raise EvaluationError(
                    f"{path}: '{shown(name)}' is the name of several images of {dataset.name}, such as "
                    f'{dataset.describe(found[name])} and {dataset.describe(i)}: put the folder before it.'
                )
    missing = [name for same in wanted.values() for name in same if name not in found]
    if missing:
        total = sum(map(len, wanted.values()))
        raise EvaluationError(
            f'{path} has {count_of(total, "name")}, {len(missing):,} of no image of {dataset.name} ({dataset.split}), '
            f'such as {first_few(missing, 1).removesuffix(", ...")}: give the data that the list is of.'
        )
    return np.unique(np.fromiter(found.values(), np.int64, len(found)))
