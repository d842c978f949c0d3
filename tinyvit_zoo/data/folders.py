"""Folders with one folder per class, the layout that torchvision calls ImageFolder."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from PIL import Image
from timm.utils.misc import natural_key

from ..common.errors import EvaluationError, MissingSplitError
from .image_dataset import Files, ImageDataset, join

__all__ = [
    'EXTENSIONS',
    'class_folders',
    'images_below',
    'is_plain_folder',
    'read_class_folders',
    'read_folder',
    'read_plain_folder',
    'split_folders',
]

EXTENSIONS = frozenset(
    ('.jpg', '.jpeg', '.png', '.bmp', '.ppm', '.pgm', '.tif', '.tiff', '.webp', '.gif')
)  # torchvision's, and GIF

SPLIT_FOLDERS = dict(train=('train', 'training'), validation=('val', 'valid', 'validation'), test=('test', 'testing'))
"""Accepted names of the folder of a split."""


def class_folders(folder: Path) -> tuple[str, ...]:
    """Names of the folders in a folder without hidden ones, in timm's order.

    A classifier that timm's scripts trained on such a folder has its outputs in this order: numbers sort as numbers
    ('2' before '10'), and case is ignored.
    """
    names = (path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith('.'))
    return tuple(sorted(names, key=lambda name: (natural_key(name), name)))


def split_folders(folder: Path) -> dict[str, Path]:
    """The folder of each split that exists; one without class folders is a class of that name, not a split."""
    parts = {}
    for split, names in SPLIT_FOLDERS.items():
        there = [folder / name for name in names if (folder / name).is_dir()]
        if there and class_folders(there[0]):
            parts[split] = there[0]
    return parts


def read_folder(folder: Path, split: str) -> ImageDataset:
    """A folder with one folder per class, or with one folder per split that has these.

    Without folders of splits, the only split is 'all'. All splits have the classes of train.

    Raises:
        MissingSplitError: If the split is missing.
        EvaluationError: If there is no image, or a split has a class that train lacks.
    """
    if not folder.is_dir():
        raise EvaluationError(f'{folder} is no folder.')
    parts = split_folders(folder) or dict(all=folder)
    if split != 'all' and split not in parts:
        if next(_image_files(folder), None) is None:
            raise EvaluationError(_no_images(folder))
        raise MissingSplitError(
            f"{folder} has no split '{split}', it has: {', '.join(dict.fromkeys([*parts, 'all']))}."
        )
    classes = class_folders(parts.get('train') or next(iter(parts.values())))
    chosen = parts.values() if split == 'all' else [parts[split]]
    # As `classify` and `detect predict` read the same photographs.
    return join([read_class_folders(part, str(folder), classes, root=folder, upright=True) for part in chosen], split)


def read_class_folders(
    folder: Path,
    name: str,
    classes: Sequence[str] | None = None,
    *,
    root: Path | None = None,
    prepare: Callable[[Image.Image], Image.Image] | None = None,
    upright: bool = False,
) -> ImageDataset:
    """Every image below the class folders, sorted by class and path.

    Hidden files and folders, which systems and editors leave behind (`._1.jpg`, `.ipynb_checkpoints`), are skipped;
    links are followed.

    Args:
        folder: Has one folder per class.
        name: Of the data set.
        classes: Names of the class folders in the order of their labels; None for all of them, see `class_folders`.
        root: Folder to which paths are relative in the fingerprint; None for `folder`.
        prepare: See `Files`.
        upright: See `Files`.

    Raises:
        EvaluationError: If there is no such folder, no image in it, or a class folder that is not in `classes`.
    """
    if not folder.is_dir():
        raise EvaluationError(f'{name}: {folder} is no folder.')
    there = class_folders(folder)
    classes = there if classes is None else tuple(classes)
    index = {c: i for i, c in enumerate(classes)}
    strange = [c for c in there if c not in index]
    if strange:
        raise EvaluationError(
            f"{folder} has {len(there)} class folders, among them '{strange[0]}', which is none of the "
            f'{len(classes)} classes of {name}.'
        )
    paths, labels = [], []
    for c in sorted(there, key=index.__getitem__):
        files = sorted(_image_files(folder / c))
        paths += files
        labels += [index[c]] * len(files)
    if not paths:
        raise EvaluationError(_no_images(folder))
    return ImageDataset(name, '', classes, labels, Files(paths, root or folder, prepare, upright=upright))


def _no_images(folder: Path) -> str:
    return f'{folder} holds no images: it needs one folder per class with image files in it.'


def _image_files(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith('.')]
        for name in files:
            if not name.startswith('.') and os.path.splitext(name)[1].lower() in EXTENSIONS:
                yield Path(place, name)


def images_below(folder: Path) -> list[Path]:
    """Every image file below a folder, in its own folders too, sorted by path; see `read_class_folders`.

    Raises:
        EvaluationError: If there is none.
    """
    paths = sorted(_image_files(folder))
    if not paths:
        raise EvaluationError(f'{folder} holds no images ({", ".join(sorted(EXTENSIONS))}).')
    return paths


def read_plain_folder(folder: Path) -> ImageDataset:
    """Every image below a folder without classes: all labels are -1, see `images_below`.

    Raises:
        EvaluationError: If there is no image.
    """
    paths = images_below(folder)
    return ImageDataset(str(folder), 'all', (), [-1] * len(paths), Files(paths, folder))


def is_plain_folder(folder: Path) -> bool:
    """Whether a folder has images in itself, not in one folder a class."""
    return any(path.is_file() and path.suffix.lower() in EXTENSIONS for path in folder.glob('[!.]*'))
