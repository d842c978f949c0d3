"""Data sets by name: the registered ones, any folder of class folders, and what timm takes."""

import difflib
from pathlib import Path

from .errors import EvaluationError
from .folders import read_folder
from .image_dataset import ImageDataset, join
from .registry import REGISTRY, Entry

__all__ = ['SPLITS', 'ImageDataset', 'load_dataset']

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
        name: Of `REGISTRY`, or a folder of class folders (or of folders train, val and test of such).
        split: 'train', 'validation', 'test' or 'all'; each as the protocols need it, see `REGISTRY`.
        root: Folder that holds the data, where the data set does not come with a library.
        seed: Of the splits of digits and the crops of textures; the others have splits of their own.
        skip_unreadable: Decode every image once beforehand and leave out those that cannot be; `skipped` names them.
        check_counts: Whether other numbers of images or classes than the registered ones are an error.

    Returns:
        Images as PIL in RGB, in an order that is the same on every machine.

    Raises:
        EvaluationError: On an unknown name, a missing split, missing, empty or incomplete data.
    """
    if split not in SPLITS:
        raise EvaluationError(f"There is no split '{split}': take one of {', '.join(SPLITS)}.")
    if name in REGISTRY:
        dataset = _load_registered(REGISTRY[name], split, None if root is None else Path(root), seed, check_counts)
    elif Path(name).is_dir():
        dataset = read_folder(Path(name), split)
    else:
        close = difflib.get_close_matches(name, REGISTRY, n=1)
        raise EvaluationError(
            f"'{name}' is no data set and no folder. {f'Did you mean {close[0]}? ' if close else ''}Take a folder of "
            f'class folders, or one of: {", ".join(REGISTRY)}.'
        )
    dataset = dataset.without_unreadable() if skip_unreadable else dataset
    if not len(dataset):
        raise EvaluationError(f'{name} ({split}) has no image that can be read.')
    return dataset


def _load_registered(entry: Entry, split: str, root: Path | None, seed: int, check_counts: bool) -> ImageDataset:
    if split not in entry.splits:
        raise EvaluationError(f"{entry.name} has no split '{split}', it has: {', '.join(entry.splits)}.")
    parts = []
    for part in entry.splits[split]:
        dataset = entry.read(root, part, seed)
        if check_counts:
            _check_counts(entry, part, dataset)
        parts.append(dataset)
    return join(parts, split)


def _check_counts(entry: Entry, part: str, dataset: ImageDataset) -> None:
    for what, found, expected in (
        ('images', len(dataset), entry.counts[part]),
        ('classes', len(dataset.classes), entry.classes),
    ):
        if found != expected:
            raise EvaluationError(
                f'{entry.name} ({part}) has {found:,} {what} here, and {expected:,} by {entry.figures}: complete the '
                'data, or pass check_counts=False.'
            )
