"""Data sets by timm's names: 'hfds/OWNER/NAME' (Hub or local folder), 'wds/...', 'torch/...'."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..common.errors import EvaluationError, MissingSplitError
from ..common.text import reason
from .folders import EXTENSIONS, SPLIT_FOLDERS, split_of
from .image_dataset import Arrays, ImageDataset, Source, Wrapped, ends_of, join
from .image_file import header_size, open_image

__all__ = ['PREFIXES', 'read_timm']

PREFIXES = ('hfds', 'wds', 'torch')
IMAGE_KEYS, LABEL_KEYS = ('image', 'img'), ('label', 'fine_label', 'labels')


def read_timm(name: str, split: str, root: Path | None) -> ImageDataset:
    """A split of a data set by timm's name.

    Args:
        name: With one of PREFIXES. 'hfds/' needs the package datasets; 'wds/' reads the tar files of the root.
        split: 'train', 'validation', 'test' or 'all'.
        root: Folder of the data, or for downloads.

    Raises:
        MissingSplitError: If the split is missing.
        EvaluationError: If a package or the data is missing.
    """
    prefix, _, rest = name.partition('/')
    return dict(hfds=_hub, wds=_web, torch=_torchvision)[prefix](name, rest, split, root)


def _choose(name: str, there: Sequence[str], split: str) -> list[str]:
    """The data set's own names of the split; several for 'all'."""
    if split == 'all':
        return list(there)
    for candidate in SPLIT_FOLDERS[split]:
        found = [one for one in there if one.lower() == candidate]
        if found:
            return found[:1]
    raise MissingSplitError(f"{name} has no split '{split}', it has: {', '.join([*there, 'all'])}.")


def _hub(name: str, rest: str, split: str, root: Path | None) -> ImageDataset:
    try:
        import datasets
    except ImportError as e:
        raise EvaluationError(f'{name} needs the package datasets: pip install datasets.') from e
    from timm.data import create_dataset

    parts = []
    try:
        for part in _choose(name, datasets.get_dataset_split_names(rest), split):
            features = datasets.load_dataset(rest, split=part, cache_dir=root and str(root)).features
            image, label = _key(features, IMAGE_KEYS, name, 'images'), _key(features, LABEL_KEYS, name, 'labels')
            folder = None if root is None else str(root)
            data = create_dataset(name, folder, split=part, input_key=image, target_key=label)
            classes = getattr(features[label], 'names', None)
            labels = np.fromiter(data.reader.iter_targets(), dtype=np.int64, count=len(data))
            classes = classes or [str(i) for i in range(int(labels.max(initial=-1)) + 1)]
            parts.append(ImageDataset(name, part, classes, labels, ReaderFiles(data.reader, f'{name}/{part}')))
    except EvaluationError:
        raise
    except Exception as e:  # the Hub's client and datasets raise errors of several libraries
        raise EvaluationError(f'{name} cannot be loaded: {reason(e, 300)}') from e
    return join(parts, split)


def _key(features: Any, candidates: Sequence[str], name: str, what: str) -> str:
    for key in candidates:
        if key in features:
            return key
    raise EvaluationError(
        f'{name} has no column of {what} named {" or ".join(candidates)}, but: {", ".join(features)}.'
    )


def _torchvision(name: str, rest: str, split: str, root: Path | None) -> ImageDataset:
    from timm.data import create_dataset

    if root is None:
        raise EvaluationError(f'{name} needs a root: the folder that torchvision has downloaded it to.')
    parts = []
    for part in ('train', 'test') if split == 'all' else (split,):
        if part == 'validation' and rest != 'imagenet':
            raise MissingSplitError(f"{name} has no split 'validation', it has: train, test, all.")
        try:
            data = create_dataset(name, str(root), split=part)
        except (AssertionError, RuntimeError, OSError, ValueError) as e:
            raise EvaluationError(f'{name} cannot be loaded from {root}: {reason(e, 300)}') from e
        if not hasattr(data, 'targets') or not hasattr(data, 'classes'):
            raise EvaluationError(f'{name} does not list its labels: take a registered name or a folder instead.')
        pixels = getattr(data, 'data', None)
        source: Source = Wrapped(data, f'{name}/{part}')
        if isinstance(pixels, np.ndarray) and pixels.ndim == 4:  # RGB
            source = Arrays(pixels, f'{name}/{part}')
        classes = [c if isinstance(c, str) else ', '.join(c) for c in data.classes]  # ImageNet's have several names
        labels = np.asarray(data.targets).reshape(len(data), -1)[:, 0]  # QMNIST's targets have eight numbers
        parts.append(ImageDataset(name, part, classes, labels, source))
    return join(parts, split)


def _web(name: str, rest: str, split: str, root: Path | None) -> ImageDataset:
    """Tar files in webdataset's layout, KEY.jpg with KEY.cls (or KEY.json with 'label'), read without unpacking."""
    folder = root or Path(rest)
    if not folder.is_dir():
        raise EvaluationError(f'{name} needs a root: the folder with its tar files.')
    shards = _shards(folder)
    members, labels = [], []
    for part in _choose(name, list(shards), split):
        for path in shards[part]:
            for member, label in _members(path):
                members.append((str(path), *member))
                labels.append(label)
    if not labels:
        raise EvaluationError(f'The tar files of {folder} hold no image with a label (KEY.jpg with KEY.cls).')
    classes = [str(i) for i in range(max(labels) + 1)]
    return ImageDataset(name, split, classes, labels, TarMembers(members, folder))


def _shards(folder: Path) -> dict[str, list[Path]]:
    """Tar files of each split, by _info.json or, without one, by file name."""
    for info in (folder / '_info.json', folder / 'info.json'):
        if info.is_file():
            try:
                splits = json.loads(info.read_text())['splits']
                return {name: [folder / file for file in split['filenames']] for name, split in splits.items()}
            except (ValueError, KeyError, TypeError, AttributeError) as e:
                raise EvaluationError(f'{info} does not list the tar files of each split.') from e
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob('*.tar')):
        for word in dict.fromkeys(path.stem.lower().replace('_', '-').split('-')):
            if split_of(word):
                found.setdefault(word, []).append(path)
    return found


def _members(path: Path) -> list[tuple[tuple[str, int, int], int]]:
    """((name, offset, size), label) of each image of a tar file, in its order."""
    images, labels = {}, {}
    try:
        with tarfile.open(path, 'r:') as tar:
            for member in tar:
                stem, _, extension = member.name.rpartition('.')
                if f'.{extension.lower()}' in EXTENSIONS:
                    images[stem] = (member.name, member.offset_data, member.size)
                elif extension == 'cls':
                    labels[stem] = int(_content(tar, member))
                elif extension == 'json':
                    labels.setdefault(stem, json.loads(_content(tar, member)).get('label'))
        return [(member, int(labels[stem])) for stem, member in images.items() if labels.get(stem) is not None]
    except (tarfile.TarError, OSError, ValueError, TypeError, AttributeError) as e:
        raise EvaluationError(f'{path} is not a readable tar file of images and labels ({e}).') from e


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return b'' if file is None else file.read()  # None is not a regular file


class ReaderFiles(Source):
    """Encoded images of one of timm's readers: `reader[i][0]` is an open file."""

    def __init__(self, reader: Any, name: str) -> None:
        self.reader = reader
        self.name = name

    def __len__(self) -> int:
        return len(self.reader)

    def open(self, i: int) -> Image.Image:
        with self.reader[i][0] as file:
            return open_image(file, upright=False)

    def size(self, i: int) -> tuple[int, int]:
        with self.reader[i][0] as file:
            return header_size(file, upright=False)

    def describe(self, i: int) -> str:
        return f'{self.name}[{i}]'

    def identity(self, i: int) -> bytes:
        with self.reader[i][0] as file:
            return ends_of(file)


class TarMembers(Source):
    """Image files inside tar files, read without unpacking."""

    def __init__(self, members: Sequence[tuple[str, str, int, int]], root: Path) -> None:
        self.members = list(members)
        self.root = root

    def __len__(self) -> int:
        return len(self.members)

    def _read(self, i: int) -> io.BytesIO:
        path, _, offset, size = self.members[i]
        with open(path, 'rb') as file:
            file.seek(offset)
            return io.BytesIO(file.read(size))

    def open(self, i: int) -> Image.Image:
        return open_image(self._read(i), upright=False)

    def size(self, i: int) -> tuple[int, int]:
        return header_size(self._read(i), upright=False)

    def describe(self, i: int) -> str:
        path, name, *_ = self.members[i]
        return f'{path}:{name}'

    def identity(self, i: int) -> bytes:
        return b'\0'.join([self.members[i][1].encode(), ends_of(self._read(i))])
