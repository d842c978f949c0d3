"""Features of images in one file, with the path and the label of every image."""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tinyvit_zoo.common.errors import EvaluationError, MissingSplitError
from tinyvit_zoo.common.files import new_file
from tinyvit_zoo.common.processes import Processes
from tinyvit_zoo.common.text import reason
from tinyvit_zoo.data.datasets import load_dataset
from tinyvit_zoo.data.folders import class_folders, folder_too_many, is_plain_folder, read_plain_folder, split_folders
from tinyvit_zoo.data.image_dataset import ImageDataset
from tinyvit_zoo.data.registry import find_entry

from .features import Features, extract

__all__ = ['embed', 'find_images']

_log = logging.getLogger(__name__)


def find_images(
    data: str | Path,
    split: str = 'all',
    root: str | Path | None = None,
    *,
    skip_unreadable: bool = False,
    **options: Any,
) -> ImageDataset:
    """A data set as `load_dataset` finds it, or every image below a folder that has images in itself.

    Args:
        data: Name of a data set, folder of class folders, or folder of images; the latter has no labels.
        split: As in `load_dataset`; a folder of images has 'all' only.
        root: As in `load_dataset`.
        skip_unreadable: Decode every image once beforehand and leave out those that cannot be.
        **options: As in `load_dataset`.

    Raises:
        EvaluationError: As `load_dataset`.
    """
    folder = Path(data)
    # '' would be the working directory; a registered name is that data set, as in `load_dataset`.
    if not str(data) or find_entry(str(data)) or not os.path.isdir(folder) or not _is_plain(folder):
        return load_dataset(str(data), split, root, skip_unreadable=skip_unreadable, **options)
    if split != 'all':
        raise MissingSplitError(f"{folder} holds images without classes, so that its only split is 'all'.")
    if is_plain_folder(folder) and class_folders(folder):
        _log.warning('%s: its folders are not classes, as images lie beside them: there are no labels.', folder)
    dataset = read_plain_folder(folder)
    dataset = dataset.without_unreadable() if skip_unreadable else dataset
    if not len(dataset):
        raise EvaluationError(f'{folder} has no image that can be read.')
    return dataset


def _is_plain(folder: Path) -> bool:
    if is_plain_folder(folder):
        return True
    inner = None if split_folders(folder) else folder_too_many(folder)  # photos/2024/may: no name of a class
    return inner is not None and not split_folders(inner)


def embed(
    model: nn.Module,
    dataset: ImageDataset,
    output: str | Path,
    *,
    layers: str = 'pooled',
    dtype: torch.dtype = torch.float32,
    batch_size: int | None = None,
    cache: str | Path | None = None,
    device: torch.device | str | None = None,
    workers: int = 0,
) -> Features:
    """Compute the features of all images and write them with their paths. Of several processes the first one writes.

    The file holds `features` (N, D) float32, `paths` (N,) as `ImageDataset.describe` names the images, and for data
    with labels `labels` (N,) int64, which count in `classes` (K,). `numpy.load` reads it without pickle.

    Args:
        model: Any timm model; it is moved to `device` and otherwise left as it was.
        dataset: N images, see `find_images`.
        output: The file, '*.npz'. It appears whole or not at all.
        layers, dtype, batch_size, cache, device, workers: As in `features.extract`.

    Returns:
        The features.

    Raises:
        EvaluationError: As `features.extract`, or if the file has another suffix or cannot be written.
    """
    output = Path(output)
    if output.suffix != '.npz':
        raise EvaluationError(f'{output} will be a NumPy archive: give it the suffix .npz.')
    features = extract(
        model, dataset, layers=layers, dtype=dtype, batch_size=batch_size, cache=cache, device=device, workers=workers
    )
    arrays: dict[str, Any] = dict(
        features=features.values.numpy(), paths=np.array([dataset.describe(i) for i in range(len(dataset))])
    )
    if dataset.classes:
        arrays |= dict(labels=dataset.labels, classes=np.array(dataset.classes))
    if Processes().rank == 0:
        try:
            with new_file(output) as new:
                np.savez(new, **arrays)
        except OSError as e:
            raise EvaluationError(f'{output} cannot be written ({reason(e)}): choose another --output.') from e
    return features
