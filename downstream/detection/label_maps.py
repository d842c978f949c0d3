"""Label maps of a segmenter's data, checked before the training: sizes, values, classes without a pixel."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.fileio import list_dir_or_file
from PIL import Image

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.text import count_of, first_few, reason
from tinyvit_zoo.data.folders import EXTENSIONS
from tinyvit_zoo.data.image_file import upright_size

__all__ = ['check_label_maps']

IGNORED = 255


def check_label_maps(
    dataset: Mapping[str, Any], classes: Sequence[str], learned: bool, say: Callable[[str], None]
) -> None:
    """Check the images and label maps of a data set of mmseg: pairs, sizes, labels.

    Args:
        dataset: Config of a BaseSegDataset that lists a folder.
        classes: Names in the order of the labels.
        learned: It is the training data.
        say: Prints which classes have no pixel.

    Raises:
        EvaluationError: If there are no images, one has no label map or one of another size, or a label is not a class.
    """
    if dataset.get('ann_file'):
        return  # a list of names, which mmseg reads
    root, prefix = Path(dataset.get('data_root') or ''), dataset.get('data_prefix') or {}
    images, maps = root / prefix.get('img_path', ''), root / prefix.get('seg_map_path', '')
    ending, map_ending = dataset.get('img_suffix', '.jpg'), dataset.get('seg_map_suffix', '.png')
    # As mmseg lists them: no hidden ones, and of this ending alone.
    names = sorted(list_dir_or_file(images, list_dir=False, recursive=True)) if images.is_dir() else []
    files = [images / name for name in names if name.endswith(ending)]
    if not files:
        raise EvaluationError(
            f'{images} holds no images that end in {ending}: give the folder above as --data, or another img_suffix of '
            'the data set.'
        )
    others = [name for name in names if Path(name).suffix.lower() in EXTENSIONS and not name.endswith(ending)]
    if others:
        say(
            f'{images}: {count_of(len(others), "image")} left out, not ending in {ending} as img_suffix of the data '
            f'set says: {first_few(others)}.'
        )
    pairs = [(file, maps / f'{str(file.relative_to(images))[: -len(ending)]}{map_ending}') for file in files]
    absent = [file.name for file, labels in pairs if not labels.is_file()]
    if absent:
        raise EvaluationError(
            f'{images} has {count_of(len(absent), "image")} without a label map in {maps}: {first_few(absent)}.'
        )
    first = 1 if dataset.get('reduce_zero_label', dataset['type'].endswith('ADE20KDataset')) else 0
    seen = np.zeros(256, dtype=bool)
    with ThreadPoolExecutor() as pool:
        for values in pool.map(lambda pair: _labels(pair[0], pair[1], first, classes), pairs):
            seen[values] = True
    seen[IGNORED] = False
    empty = [name for i, name in enumerate(classes) if i + first >= IGNORED or not seen[i + first]]
    if len(empty) == len(classes):
        raise EvaluationError(f'No label map of {maps} has a pixel of any class.')
    if empty:
        what = 'cannot be learned' if learned else 'do not count in the metric'
        say(f'{maps} has no pixel of {len(empty)} of {len(classes)} classes, which {what}: {first_few(empty, 10)}.')


def _labels(file: Path, labels: Path, first: int, classes: Sequence[str]) -> np.ndarray:
    """The values in a label map."""
    size, orientation = upright_size(file)
    try:
        with Image.open(labels) as image:
            array = np.asarray(image)
    except Exception as e:  # decoders raise almost anything on damaged files
        raise EvaluationError(f'{labels} cannot be read as an image ({reason(e)}).') from e
    if array.ndim != 2:
        raise EvaluationError(
            f'{labels} has {image.mode} colors, and a label map has one channel of labels: save it as gray or palette.'
        )
    if array.shape != size[::-1]:
        turned = f' as its EXIF orientation ({orientation}) turns it' if orientation > 1 else ''
        raise EvaluationError(
            f'{file.name} has {size[0]}x{size[1]} pixels{turned}, and its label map {labels} {array.shape[1]}x'
            f'{array.shape[0]}: both must have the same size.'
        )
    values = np.unique(array.astype(np.int64))
    strange = [v for v in values if v != IGNORED and not 0 <= v < min(first + len(classes), IGNORED)]
    if strange:
        last = min(first + len(classes), IGNORED) - 1
        most = '' if last < IGNORED - 1 else f' (mmseg reads none above {last})'
        raise EvaluationError(
            f'{labels} has the label {strange[0]}, and the {len(classes)} classes ({first_few(classes)}) have the '
            f'labels {first} to {last}{most}: correct it, or name all classes with --classes.'
        )
    return values
