"""Folders with one folder per class, the layout that torchvision calls ImageFolder."""

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
from PIL import Image
from timm.utils.misc import natural_key

from ..common.errors import EvaluationError, MissingSplitError
from ..common.text import count_of, first_few, reason, shown
from .image_dataset import Files, ImageDataset, join

__all__ = [
    'EXTENSIONS',
    'class_folders',
    'find_split',
    'folder_too_many',
    'images_below',
    'is_plain_folder',
    'lies_among_images',
    'read_class_folders',
    'read_folder',
    'read_plain_folder',
    'split_folders',
    'split_of',
]

_log = logging.getLogger(__name__)

EXTENSIONS = frozenset(
    (
        '.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.apng', '.bmp', '.dib', '.ppm', '.pgm', '.pbm', '.pnm', '.pfm',
        '.tif', '.tiff', '.webp', '.gif', '.avif', '.avifs', '.jp2', '.j2k', '.j2c', '.jpc', '.jpf', '.jpx', '.mpo',
        '.tga', '.pcx', '.qoi', '.sgi', '.psd',
    )
)  # fmt: skip
"""Endings of the files that are read, in lower case; Pillow knows all of these formats."""

LEFT_BY_SYSTEMS = frozenset(('__MACOSX', '@eaDir', 'lost+found'))
"""Folders that are passed over like hidden ones."""

NOTES = frozenset(
    ('.txt', '.md', '.csv', '.tsv', '.json', '.jsonl', '.xml', '.yaml', '.yml', '.html', '.log', '.ini', '.db', '.py')
)
"""Endings of files that may lie beside images; those of all others are counted and said."""

SPLIT_FOLDERS = dict(train=('train', 'training'), validation=('val', 'valid', 'validation'), test=('test', 'testing'))
"""Accepted names of the folder of a split, in any case."""


def class_folders(folder: Path) -> tuple[str, ...]:
    """Names of the folders in a folder without hidden ones, in timm's order.

    A classifier that timm's scripts trained on such a folder has its outputs in this order: numbers sort as numbers
    ('2' before '10'), and case is ignored.
    """
    names = (entry.name for entry in _entries(folder) if entry.is_dir())
    return tuple(sorted(names, key=lambda name: (natural_key(name), name)))


def split_of(name: str) -> str | None:
    """The split that a folder of this name holds, if any."""
    return next((split for split, names in SPLIT_FOLDERS.items() if name.lower() in names), None)


def find_split(folder: Path, split: str) -> Path | None:
    """The folder of a split, if there is one.

    Raises:
        EvaluationError: If there are several, such as `val` and `Validation`.
    """
    there = [folder / name for name in class_folders(folder) if split_of(name) == split] if folder.is_dir() else []
    there = [path for path in there if class_folders(path)] or there
    if len(there) > 1:
        raise EvaluationError(
            f"{folder} has {' and '.join(f'{path.name}/' for path in there)}, and each may be the split '{split}': "
            'rename or remove all but one.'
        )
    return there[0] if there else None


def split_folders(folder: Path) -> dict[str, Path]:
    """The folder of each split that exists; one without class folders is a class of that name, not a split.

    Raises:
        EvaluationError: See `find_split`.
    """
    there = {split: find_split(folder, split) for split in SPLIT_FOLDERS}
    return {split: path for split, path in there.items() if path is not None and class_folders(path)}


def lies_among_images(place: Path, folder: Path) -> bool:
    """Whether files in `place` would count as images, and itself as a class or a split, of the data set in `folder`.

    Where there is a folder of the split train, only the folders of splits are read.

    Raises:
        EvaluationError: See `find_split`.
    """
    place, folder = place.resolve(), folder.resolve()
    if not place.is_relative_to(folder):
        return False
    parts = {split: find_split(folder, split) for split in SPLIT_FOLDERS}
    if parts['train'] is None:
        return True
    inside = place.relative_to(folder).parts
    return bool(inside) and split_of(inside[0]) is not None


def read_folder(folder: Path, split: str) -> ImageDataset:
    """A folder with one folder per class, or with one folder per split that has these.

    Without folders of splits, the only split is 'all'. All splits have the classes of train.

    Raises:
        MissingSplitError: If the split is missing.
        EvaluationError: If there is no image, a split has a class that train lacks, or the layout is another one.
    """
    if not folder.is_dir():
        raise EvaluationError(f'{folder} is not a folder.')
    parts = split_folders(folder)
    _say_dead_links(folder)
    if not parts:
        _refuse_other_layouts(folder)
    if split != 'all' and split not in parts:
        raise MissingSplitError(_no_split(folder, split, parts))
    others = [name for name in class_folders(folder) if folder / name not in parts.values()] if parts else []
    if others:
        _log.warning('%s: left out, as they are not splits: %s.', folder, first_few([f'{name}/' for name in others]))
    if 'train' in parts:
        _refuse_single(parts['train'])
    parts = parts or dict(all=folder)
    classes = class_folders(parts.get('train') or next(iter(parts.values())))
    chosen = parts.values() if split == 'all' else [parts[split]]
    # As `classify` and `detect predict` read the same photographs.
    return join([read_class_folders(part, str(folder), classes, root=folder, upright=True) for part in chosen], split)


def _refuse_other_layouts(folder: Path) -> None:
    """Errors for a folder without splits whose folders are not classes either."""
    filled = list(_filled(folder))
    if not filled:
        raise EvaluationError(_no_images(folder))
    inner = [
        place for place in (folder / name for name in filled) if not is_plain_folder(place) and split_folders(place)
    ]
    if inner:
        raise EvaluationError(
            f'{folder} has one folder too many above the splits: give {" or ".join(map(str, inner[:3]))} instead.'
        )
    if all(split_of(name) for name in filled):
        raise EvaluationError(
            f'{folder} has images in {first_few([f"{name}/" for name in filled])} without class folders: '
            f'put those of each class into a folder of its name, such as {filled[0]}/CLASS/.'
        )
    _refuse_near_splits(folder, filled)
    _refuse_single(folder)


def _refuse_near_splits(folder: Path, filled: Sequence[str]) -> None:
    """Errors for folders that are called nearly like splits, and for splits within the classes: both would be taken for
    classes, and images to learn from for images to test on.
    """
    if any(is_plain_folder(folder / name) for name in filled):
        return
    named = first_few([f'{name}/' for name in filled])
    if all(map(_sounds_like_split, filled)):
        raise EvaluationError(f'{folder} has {named}: call the folders of its splits train/, val/ and test/.')
    inner = {name: list(_filled(folder / name)) for name in filled}
    if all(map(split_of, chain(*inner.values()))):
        one, part = filled[0], inner[filled[0]][0]
        raise EvaluationError(
            f'{folder} has folders of splits within {named}: put the splits outside and the classes inside, such as '
            f'{part}/{one}/ instead of {one}/{part}/.'
        )


def _sounds_like_split(name: str) -> bool:
    """Whether a split is one of the words of a name, as in 'train2017', 'test_images' and 'val '."""
    return any(split_of(word.removesuffix('set')) for word in re.findall(r'[a-z]+', name.lower()))


def _refuse_single(folder: Path) -> None:
    inner = folder_too_many(folder)
    if inner is not None:
        raise EvaluationError(
            f'{folder} has one folder too many above the classes: give {inner} instead, or move its folders up.'
        )


def folder_too_many(folder: Path) -> Path | None:
    """The single folder with images below a folder, if it holds several folders of images rather than images."""
    inner, filled = folder, list(islice(_filled(folder), 2))
    while len(filled) == 1 and not is_plain_folder(inner / filled[0]):
        inner /= filled[0]
        filled = list(islice(_filled(inner), 2))
    return inner if inner != folder and len(filled) > 1 else None


def _filled(folder: Path) -> Iterator[str]:
    """Names of the folders in a folder that have images below them."""
    return (name for name in class_folders(folder) if next(_image_files(folder / name), None))


def _no_split(folder: Path, split: str, parts: dict[str, Path]) -> str:
    names = dict(train='train/', validation='val/', test='test/')
    message = f"{folder} has no split '{split}', it has: {', '.join(dict.fromkeys([*parts, 'all']))}"
    if not parts:
        return (
            f'{message}. Its folders ({first_few(class_folders(folder))}) are taken for classes: put them into train/ '
            'for the images to learn from, and into val/ or test/ for those to test on.'
        )
    flat = find_split(folder, split)
    if flat is not None:
        return f'{message}. {flat} has no class folders: put the images of each class into a folder of its name.'
    others = [name for name in class_folders(folder) if split_of(name) is None]
    call = f'; of its other folders ({first_few(others)}) none is called so' if others else ''
    return f'{message}. A split is a folder: {names[split]}CLASS/{call}.'


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
        raise EvaluationError(f'{name}: {folder} is not a folder.')
    there = class_folders(folder)
    classes = there if classes is None else tuple(classes)
    index = {c: i for i, c in enumerate(classes)}
    strange = [c for c in there if c not in index]
    if strange:
        raise EvaluationError(_no_class(folder, strange[0], classes, name))
    for c in there:
        if not _is_text(c):
            raise EvaluationError(f'{folder} has a class folder whose name {shown(c)} is not UTF-8: rename it.')
    if root is not None:
        _say_dead_links(folder)
    root = root or folder
    names, labels, other, empty = [], [], Counter[str](), []
    for c in sorted(there, key=index.__getitem__):
        files = _image_names(folder / c, root, other)
        names += [files] if len(files) else []
        labels += [np.full(len(files), index[c])]
        empty += [] if len(files) else [f'{c}/']
    if not names:
        raise EvaluationError(_no_images(folder, other))
    _say_others(folder, other)
    if empty:
        _log.warning('%s: classes without images: %s.', folder, first_few(empty))
    beside = sum(_is_image(entry) for entry in _entries(folder))
    if beside:
        _log.warning('%s: left out beside the class folders: %s.', folder, count_of(beside, 'image'))
    source = Files(np.concatenate(names), root, prepare, upright=upright)
    return ImageDataset(name, '', classes, np.concatenate(labels), source)


def _no_class(folder: Path, strange: str, classes: Sequence[str], name: str) -> str:
    message = (
        f"{folder} has {count_of(len(class_folders(folder)), 'class folder')}, of which '{strange}' is none of "
        f'the {len(classes)} classes of {name}'
    )
    inner = folder_too_many(folder)
    if inner is not None and set(class_folders(inner)) <= set(classes):
        return f'{message}: it has one folder too many above the classes, move those of {inner} up.'
    near = next((c for c in classes if c.lower() == strange.lower()), None)
    return f'{message}: rename it{f" to {near!r}" if near else ""}, or take it away.'


def _is_text(name: str) -> bool:
    """Whether a name of the file system can be written to a file."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _say_dead_links(folder: Path) -> None:
    """Say which folders may be missing because their disk is."""
    dead = [entry.name for entry in _entries(folder) if entry.is_symlink() and not os.path.exists(entry.path)]
    dead = [name for name in dead if os.path.splitext(name)[1].lower() not in EXTENSIONS]
    if dead:
        _log.warning('%s: left out, as they are links that lead nowhere: %s.', folder, first_few(dead))


def _no_images(folder: Path, other: Counter[str] | None = None) -> str:
    if other is None:
        other = Counter()
        if next(_image_files(folder, other), None):
            return (
                f'{folder} holds images, but no class folders: put the images of each class into a folder of its '
                'name, below train/ and val/ to learn and to test.'
            )
    if other:
        return f'{folder} holds no images that can be read, only {_counted(other)}: save them as .png or .jpg.'
    return f'{folder} holds no images: it needs one folder per class with image files in it.'


def _counted(other: Counter[str]) -> str:
    named = [f'{ending or "without ending"} ({n})' for ending, n in other.most_common()]
    return f'{count_of(sum(other.values()), "file")} of other kinds: {first_few(named)}'


def _say_others(folder: Path, other: Counter[str]) -> None:
    if other:
        _log.warning('%s: left out are %s.', folder, _counted(other))


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What a folder holds without hidden files and folders.

    Raises:
        EvaluationError: If it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            yield from (e for e in entries if not e.name.startswith('.') and e.name not in LEFT_BY_SYSTEMS)
    except OSError as e:
        raise EvaluationError(f'{folder} cannot be listed ({reason(e)}): repair its permissions, or move it.') from e


def _is_image(entry: os.DirEntry[str]) -> bool:
    """Whether it is called so; a link that leads nowhere is one, and reading it names it."""
    file = entry.is_file() or (entry.is_symlink() and not entry.is_dir())
    return file and os.path.splitext(entry.name)[1].lower() in EXTENSIONS


def _image_names(folder: Path, root: Path, other: Counter[str]) -> np.ndarray:
    """(N,) bytes: names relative to the root of the image files below a folder, sorted as paths are.

    Without an object for each, since millions of them would take gigabytes and minutes.
    """
    start = len(os.path.join(folder, ''))
    below = os.path.join(folder.relative_to(root), '')
    names = sorted((path[start:] for path in _image_files(folder, other)), key=lambda name: name.split(os.sep))
    return np.array([os.fsencode(below + name) for name in names], dtype=np.bytes_)


def _image_files(folder: Path, other: Counter[str] | None = None, above: frozenset[str] | None = None) -> Iterator[str]:
    """Image files below a folder; links are followed, but for those to a folder that they lie in.

    Args:
        folder: Where to look.
        other: Counts files of other kinds by ending.
        above: Folders that `folder` lies in.
    """
    place = os.path.realpath(folder)
    above = frozenset(map(str, Path(place).parents)) if above is None else above
    for entry in _entries(folder) if place not in above else ():
        if entry.is_dir():
            yield from _image_files(Path(entry.path), other, above | {place})
        elif _is_image(entry):
            yield entry.path
        elif other is not None:
            ending = os.path.splitext(entry.name)[1].lower()
            other.update([ending] if ending not in NOTES else [])


def images_below(folder: Path) -> list[Path]:
    """Every image file below a folder, in its own folders too, sorted by path; see `read_class_folders`.

    Raises:
        EvaluationError: If there is none.
    """
    other = Counter[str]()
    paths = sorted(map(Path, _image_files(folder, other)))
    if not paths:
        what = f'only {_counted(other)}' if other else f'none of {", ".join(sorted(EXTENSIONS))}'
        raise EvaluationError(f'{folder} holds no images that can be read, {what}.')
    _say_others(folder, other)
    return paths


def read_plain_folder(folder: Path) -> ImageDataset:
    """Every image below a folder without classes: all labels are -1, see `images_below`.

    Raises:
        EvaluationError: If there is no image.
    """
    paths = images_below(folder)
    return ImageDataset(str(folder), 'all', (), [-1] * len(paths), Files(paths, folder, upright=True))


def is_plain_folder(folder: Path) -> bool:
    """Whether a folder has images in itself, not in one folder a class."""
    return any(_is_image(entry) for entry in _entries(folder))
