"""ImageNet-1k, -22k and related sets: the names of their folders, and the classes that these stand for."""

import json
import os
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
from timm.data import ImageNetInfo

from ..common.errors import EvaluationError
from ..common.text import count_of, first_few, reason
from .folders import SPLIT_FOLDERS, class_folders, find_split, read_class_folders
from .image_dataset import Files, ImageDataset
from .readers import find_folder

__all__ = [
    'CORRUPTIONS',
    'FOLDERS_22K',
    'FOLDERS_V2',
    'corruption_folder',
    'corruption_folders',
    'imagenet',
    'imagenet_22k',
    'imagenet_c',
    'imagenet_real',
    'imagenet_subset',
    'imagenet_v2',
    'split_folders_of',
]

CORRUPTIONS = (
    'gaussian_noise', 'shot_noise', 'impulse_noise', 'defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur', 'snow',
    'frost', 'fog', 'brightness', 'contrast', 'elastic_transform', 'pixelate', 'jpeg_compression',
    'speckle_noise', 'gaussian_blur', 'spatter', 'saturate',
)  # fmt: skip
"""The fifteen corruptions of the benchmark, and the four that its authors added for validation."""


LISTING = 'in22k_image_names.txt'
"""TinyViT's list of the images of ImageNet-22k: a line such as n00007846_10001 for each."""
FOLDERS_22K = ('imagenet22k', 'ImageNet-22k', 'fall11_whole', 'train', '.')
FOLDERS_V2 = ('imagenetv2-matched-frequency-format-val', 'imagenetv2-matched-frequency', '.')
ENDINGS_22K = ('.JPEG', '.jpeg', '.jpg')
CHUNK = 1 << 24  # bytes of a list that are parsed at once


@cache
def _wnids(subset: str = 'imagenet-1k') -> tuple[str, ...]:
    return tuple(ImageNetInfo(subset).label_names())


def imagenet(root: Path, part: str) -> ImageDataset:
    """ImageNet-1k, one folder per WordNet id; `part` is 'train' or 'validation'."""
    folder = find_split(root, part) or find_folder(root, SPLIT_FOLDERS[part], 'imagenet-1k')
    return read_class_folders(folder, 'imagenet-1k', _wnids(), root=root)


def split_folders_of(root: Path) -> list[Path]:
    """The folders that `imagenet` reads, of those that there are."""
    found = [find_split(root, part) for part in ('train', 'validation')]
    return [folder for folder in found if folder is not None]


def imagenet_22k(root: Path) -> ImageDataset:
    """ImageNet-22k, the release of fall 2011, one folder per WordNet id; labels are those of the released heads.

    If `LISTING` lies beside the folders, the images are those of the list and no folder is opened: on a disk in a
    network, listing 21841 folders of 14 million files takes long.
    """
    folder = find_folder(root, FOLDERS_22K, 'imagenet-22k')
    if (folder / LISTING).is_file():
        return _listed_22k(folder, folder / LISTING)
    if not class_folders(folder) and (archives := sorted(path.name for path in folder.glob('n*.[zt][ia][pr]'))):
        raise EvaluationError(
            f'{folder} has {count_of(len(archives), "archive")} ({first_few(archives)}) and no folders: unpack each of '
            f'them into a folder of its name, such as {folder / Path(archives[0]).stem}.'
        )
    # Relative to the folder itself: wherever it lies, its fingerprint is the same.
    return read_class_folders(folder, 'imagenet-22k', _wnids('imagenet-22k'))


def _listed_22k(folder: Path, listing: Path) -> ImageDataset:
    """The images of a list, in the order in which the folders would give them."""
    known = np.array([os.fsencode(wnid) for wnid in _wnids('imagenet-22k')])
    names, labels, ending = [], [], None
    for stems in _stems(listing):
        ids = np.array([stem.partition(b'_')[0] for stem in stems], dtype=np.bytes_)
        found = np.searchsorted(known, ids).clip(max=len(known) - 1)
        strange = np.flatnonzero(known[found] != ids)
        if len(strange):
            raise EvaluationError(
                f"{listing} lists '{os.fsdecode(stems[strange[0]])}', which is of none of the {len(known)} classes of "
                'imagenet-22k: a line is the name of an image without its ending, such as n00007846_10001.'
            )
        ending = ending or _ending_of(folder, os.fsdecode(stems[0]), listing)
        names.append(np.array([id + b'/' + stem + ending for id, stem in zip(ids.tolist(), stems, strict=True)]))
        labels.append(found)
    if not names:
        raise EvaluationError(f'{listing} lists no image: remove it, and the folders beside it are listed instead.')
    every, of = np.concatenate(names), np.concatenate(labels)
    if (every[:-1] > every[1:]).any():
        order = np.argsort(every, kind='stable')
        every, of = every[order], of[order]
    return ImageDataset('imagenet-22k', 'train', _wnids('imagenet-22k'), of, Files(every, folder))


def _stems(listing: Path) -> Iterator[list[bytes]]:
    """Lines of a list, some at a time."""
    try:
        with listing.open('rb') as file:
            while lines := file.readlines(CHUNK):
                stems = [line.strip() for line in lines]
                yield from filter(None, [[stem for stem in stems if stem]])
    except OSError as e:
        raise EvaluationError(f'{listing} cannot be read ({reason(e)}).') from e


def _ending_of(folder: Path, stem: str, listing: Path) -> bytes:
    """Ending of the image files, by the first of the list."""
    place = folder / stem.partition('_')[0] / stem
    for ending in ENDINGS_22K:
        if place.with_name(stem + ending).is_file():
            return ending.encode()
    raise EvaluationError(
        f'{listing} lists {stem}, but there is no {place}{" or ".join(ENDINGS_22K)}: unpack the images of each class '
        'into a folder of its name.'
    )


def imagenet_real(root: Path) -> ImageDataset:
    """The validation images with all labels that count as right (Beyer et al. 2020), found by file name.

    Some images have no such label. `labels` are the original ones.
    """
    dataset = imagenet(root, 'validation')
    real = json.loads(_timm_info('imagenet_real_labels.json'))
    names = {f'ILSVRC2012_val_{i + 1:08d}': labels for i, labels in enumerate(real)}
    try:
        dataset.label_sets = tuple(tuple(names[Path(dataset.describe(i)).stem]) for i in range(len(dataset)))
    except KeyError as e:
        raise EvaluationError(
            f'{root} has an image named {e.args[0]}: the labels of ReaL belong to the original file names, such as '
            'ILSVRC2012_val_00000001.JPEG.'
        ) from e
    dataset.name = 'imagenet-real'
    return dataset


def imagenet_v2(root: Path) -> ImageDataset:
    """ImageNet-V2, matched frequency. Its folders 0 to 999 are sorted as numbers: '10' comes after '9'."""
    folder = find_folder(root, FOLDERS_V2, 'imagenet-v2')
    dataset = read_class_folders(folder, 'imagenet-v2', [str(i) for i in range(1000)], root=root)
    dataset.classes = _wnids()
    return dataset


def imagenet_subset(root: Path, name: str) -> ImageDataset:
    """ImageNet-A or -R: 200 of the 1000 classes; labels are indices into these 200."""
    listed = _timm_info(f'{name.replace("-", "_")}_synsets.txt').split()
    return read_class_folders(find_folder(root, (name, '.'), name), name, listed, root=root)


def _timm_info(file: str) -> str:
    """Text of one of the lists about ImageNet that timm ships."""
    return resources.files('timm.data').joinpath('_info', file).read_text()


def imagenet_c(root: Path, name: str, corruption: str, severity: str) -> ImageDataset:
    """ImageNet-C, one corruption at one severity (1 to 5)."""
    if corruption not in CORRUPTIONS or severity not in ('1', '2', '3', '4', '5'):
        raise EvaluationError(
            f"'{name}' is not of the form imagenet-c/CORRUPTION/SEVERITY, with a severity of 1 to 5 and a corruption "
            f'of: {", ".join(CORRUPTIONS)}.'
        )
    folder = corruption_folder(root, corruption) / severity
    return read_class_folders(folder, name, _wnids(), root=root)


def corruption_folder(root: Path, corruption: str) -> Path:
    """The folder with the severities of a corruption; the first candidate if none exists.

    It is at the root, or one or two folders below it: the archives have folders noise, blur, weather, digital and
    extra, some copies one with the benchmark's name.
    """
    places = [root / corruption, *sorted(root.glob(f'*/{corruption}')), *sorted(root.glob(f'*/*/{corruption}'))]
    return next((place for place in places if place.is_dir()), places[0])


def corruption_folders(root: Path, corruption: str = '') -> list[Path]:
    """The folder of a corruption, or those of all without one, of those that there are."""
    folders = [corruption_folder(root, name) for name in ([corruption] if corruption else CORRUPTIONS)]
    return [folder for folder in folders if folder.is_dir()]
