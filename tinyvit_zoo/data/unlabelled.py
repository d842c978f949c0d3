"""Images for a training that needs no labels: any folder of images, or any data set by name."""

import os
from pathlib import Path

from ..common.errors import EvaluationError, MissingSplitError
from .datasets import load_dataset
from .folders import find_split, read_plain_folder
from .image_dataset import ImageDataset
from .registry import find_entry

__all__ = ['load_unlabelled', 'with_classes']


def load_unlabelled(
    name: str,
    root: str | Path | None = None,
    *,
    seed: int = 0,
    skip_unreadable: bool = False,
    check_counts: bool = True,
) -> ImageDataset:
    """The images to train on where no labels are needed.

    Of a folder every image below its folder `train`, or below itself where there is none: their folders are not classes
    here, so `classes` is empty and every label is -1. Of any other data set the split 'train', or else all of it.

    Args:
        name: A folder of images, or a name as in `load_dataset`.
        root: As in `load_dataset`.
        seed: As in `load_dataset`.
        skip_unreadable: Decode every image once beforehand and leave out those that cannot be.
        check_counts: As in `load_dataset`.

    Raises:
        EvaluationError: If there is no image, or as `load_dataset`.
    """
    folder = Path(root) if name == 'folder' and root is not None else Path(name)
    # '' would be the working directory; a registered name is that data set, as in `load_dataset`.
    if name and find_entry(name) is None and os.path.isdir(folder):
        part = find_split(folder, 'train')
        dataset = read_plain_folder(part or folder)
        dataset.name, dataset.split = str(folder), 'train' if part else 'all'
        dataset = dataset.without_unreadable() if skip_unreadable else dataset
        if not len(dataset):
            raise EvaluationError(f'{folder} has no image that can be read.')
        return dataset

    def load(split: str) -> ImageDataset:
        return load_dataset(name, split, root, seed=seed, skip_unreadable=skip_unreadable, check_counts=check_counts)

    try:
        return load('train')
    except MissingSplitError:
        return load('all')


def with_classes(dataset: ImageDataset, name: str, root: str | Path | None = None, seed: int = 0) -> ImageDataset:
    """The same images by the classes that their folders are, so that a subset of them is that of other trainings.

    Args:
        dataset: As `load_unlabelled` gives it.
        name: Of it.
        root: As in `load_dataset`.
        seed: As in `load_dataset`.

    Returns:
        The images as `load_dataset` reads them, without those that `dataset` left out; `dataset` where some lie in no
        folder that is a class.
    """
    if dataset.classes:
        return dataset
    try:
        labelled = load_dataset(name, dataset.split, root, seed=seed)
    except EvaluationError:
        return dataset
    if len(labelled) != len(dataset) + len(dataset.skipped):
        return dataset
    if not dataset.skipped:
        return labelled
    skipped = set(dataset.skipped)
    kept = labelled.subset([i for i in range(len(labelled)) if labelled.describe(i) not in skipped])
    kept.skipped, kept.complete = dataset.skipped, False
    return kept
