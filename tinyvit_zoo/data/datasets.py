"""Data sets by name: registered ones, any folder of class folders, and timm's names."""

import difflib
import logging
import os
from pathlib import Path

import numpy as np

from ..common.errors import EvaluationError, MissingSplitError
from ..common.paths import MAX_PATH
from ..common.text import reason, shown
from .folders import read_folder
from .image_dataset import ImageDataset, join
from .registry import REGISTRY, Entry, find_entry
from .timm_datasets import PREFIXES, read_timm

__all__ = ['SPLITS', 'load_dataset']

_log = logging.getLogger(__name__)
SPLITS = ('train', 'validation', 'test', 'all')


def load_dataset(
    name: str,
    split: str = 'train',
    root: str | Path | None = None,
    *,
    seed: int = 0,
    skip_unreadable: bool = False,
    check_counts: bool = True,
) -> ImageDataset:
    """One split of a data set.

    Args:
        name: A name of `REGISTRY`; 'imagenet-c/CORRUPTION/SEVERITY'; a folder of class folders, or of the folders
            train, val and test with class folders in them; 'folder' if `root` is such a folder; or timm's 'hfds/...',
            'wds/...', 'torch/...'.
        split: 'train', 'validation', 'test' or 'all', as the protocols define them; see `REGISTRY`.
        root: Folder that holds the data, unless the data set comes with a library.
        seed: Of the splits of digits and the crops of textures; other data sets have splits of their own.
        skip_unreadable: Decode every image once beforehand and leave out unreadable ones; `skipped` lists them.
        check_counts: Whether a number of images or classes other than the registered one is an error. Otherwise it is
            a warning, and `complete` is False.

    Returns:
        PIL images in RGB, in the same order on every machine.

    Raises:
        MissingSplitError: If the split does not exist, or its labels were never published.
        EvaluationError: If the name is unknown, the data is missing, empty, damaged or incomplete, or a label is of no
            class.
    """
    if split not in SPLITS:
        raise EvaluationError(f"There is no split '{split}': take one of {', '.join(SPLITS)}.")
    root = None if root is None else Path(root)
    entry = find_entry(name)
    if entry is not None:
        dataset = _load_registered(entry, split, root, seed, check_counts)
    elif name.partition('/')[0] in PREFIXES:
        dataset = read_timm(name, split, root)
    elif (name == 'folder' and root is not None) or os.path.isdir(name):  # a name may be too long to ask for
        dataset = read_folder(root if name == 'folder' and root is not None else Path(name), split)
    else:
        raise EvaluationError(_unknown(name))
    dataset = dataset.without_unreadable() if skip_unreadable else dataset
    if not len(dataset):
        raise EvaluationError(f'{name} ({split}) has no image that can be read.')
    if dataset.labels.min() < 0 or dataset.labels.max() >= len(dataset.classes):
        kind = MissingSplitError if dataset.labels.min() < 0 else EvaluationError
        raise kind(
            f'{name} ({split}) has labels from {dataset.labels.min()} to {dataset.labels.max()} for '
            f'{len(dataset.classes)} classes: labels of -1 were never published, so take another split.'
        )
    return dataset


def _unknown(name: str) -> str:
    if name.partition('/')[0] in ('hfids', 'tfds'):
        return f'{name} is a stream, whose images have no positions: take hfds/ or wds/ instead.'
    close = difflib.get_close_matches(name, REGISTRY, n=1)
    hint = f'Did you mean {close[0]}? ' if close else ''
    return (
        f"'{shown(name, MAX_PATH)}' is neither a data set nor a folder. {hint}Take a folder of class folders, "
        f'hfds/..., wds/..., torch/..., imagenet-c/CORRUPTION/SEVERITY, or one of: {", ".join(REGISTRY)}.'
    )


def _load_registered(entry: Entry, split: str, root: Path | None, seed: int, check_counts: bool) -> ImageDataset:
    if split not in entry.splits:
        raise MissingSplitError(f"{entry.name} has no split '{split}', it has: {', '.join(entry.splits)}.")
    if entry.layout and (root is None or not root.is_dir()):
        problem = f'{entry.name} needs a root' if root is None else f'{root} is not a folder for {entry.name}'
        raise EvaluationError(f'{problem}: {entry.how_to_get}')
    parts = [_read_part(entry, root, part, seed) for part in entry.splits[split]]
    problems = [_other_counts(entry, part, dataset) for part, dataset in zip(entry.splits[split], parts, strict=True)]
    dataset = join(parts, split)
    for problem, is_error in filter(None, problems):
        if is_error and check_counts:
            raise EvaluationError(
                f'{problem}: complete the data or, if this is intended, pass check_counts=False (--any-counts).'
            )
        _log.warning('%s.', problem)
        dataset.complete = False
    return dataset


def _read_part(entry: Entry, root: Path | None, part: str, seed: int) -> ImageDataset:
    try:
        return entry.read(root or Path(), part, seed)
    except EvaluationError:
        raise
    except (LookupError, TypeError, ValueError) as e:  # a list that can be opened, with unexpected content
        raise EvaluationError(
            f'The lists of {entry.name} ({part}) in {root} are damaged ({reason(e)}): {entry.how_to_get}'
        ) from e


def _other_counts(entry: Entry, part: str, dataset: ImageDataset) -> tuple[str, bool] | None:
    """The first number that is not the registered one, in words, and whether it is an error."""
    images = ('images', len(dataset), entry.counts[part], not entry.copies_differ)
    classes = ('classes', len(dataset.classes), entry.classes, True)
    if entry.copies_differ:
        classes = ('classes', int(np.count_nonzero(np.bincount(dataset.labels))), entry.classes, True)
    for what, found, expected, is_error in (classes, images) if entry.copies_differ else (images, classes):
        if found != expected:
            numbers = f'has {found:,} {what} here, and {expected:,} according to {entry.figures}'
            return f'{entry.name} ({part}) {numbers}', is_error
    return None
