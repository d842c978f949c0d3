"""Labelled images, read one by one from a source: files, arrays, or the items of another library's data set."""

import copy
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from ..common.errors import EvaluationError
from ..common.text import reason
from .fingerprints import compute_fingerprint, file_stamp, folder_stamps, kept_fingerprint, shown
from .image_file import header_size, open_image, to_rgb

__all__ = ['Arrays', 'Files', 'ImageDataset', 'Joined', 'Selection', 'Source', 'Wrapped', 'ends_of', 'join', 'size_of']

T = TypeVar('T')

END = 1 << 16  # bytes at either end of a file that its identity covers
UNCOMPRESSED = frozenset(('.bmp', '.ppm', '.pgm', '.tif', '.tiff'))  # a change may affect the middle alone


class Source(Protocol):
    """Images by index, before any transform. The last two methods are those of images that are not files."""

    def __len__(self) -> int: ...

    def open(self, i: int) -> Image.Image:
        """Decode image `i`; any exception means that it is unreadable."""

    def size(self, i: int) -> tuple[int, int]:
        """(height, width) of the image that `open` would give, without decoding it where that can be."""

    def describe(self, i: int) -> str:
        """The name of image `i` in messages: its path if it has one."""

    def identity(self, i: int) -> bytes:
        """Bytes that differ if the image differs."""

    def outline(self, i: int) -> bytes:
        """Name and size of image `i` if it is a file; otherwise its identity."""
        return self.identity(i)

    def stamps(self, indices: np.ndarray, looked_at: np.ndarray) -> Iterator[bytes] | None:
        """What the file system says of the images `indices`; it changes if files are added, removed or written.

        Args:
            indices: Images.
            looked_at: Those whose sizes and times are part of it. If they are not all, those of folders are, too.

        Returns:
            None if the images are not files.

        Raises:
            OSError: If a file or folder is missing.
        """
        return None


class Files(Source):
    """Image files.

    Args:
        paths: One per image; or (N,) names below the root as bytes (`os.fsencode`), which need less memory and time.
        root: Folder above all of them; its own place does not affect the identity of the images.
        prepare: Done to each decoded image before it becomes RGB.
        upright: Turn images as their EXIF orientation says. Published results are on images as stored.
    """

    def __init__(
        self,
        paths: Sequence[Path] | np.ndarray,
        root: Path,
        prepare: Callable[[Image.Image], Image.Image] | None = None,
        *,
        upright: bool = False,
    ) -> None:
        # One array: counting references to a million strings would copy all of them into every reading process.
        if not isinstance(paths, np.ndarray):
            paths = np.array([os.fsencode(path.relative_to(root)) for path in paths], dtype=np.bytes_)
        self.names = paths
        self.root = root
        self.prepare = prepare
        self.upright = upright

    def __len__(self) -> int:
        return len(self.names)

    def path(self, i: int) -> Path:
        return self.root / os.fsdecode(self.names[i].item())

    def open(self, i: int) -> Image.Image:
        image = open_image(self.path(i), upright=self.upright)
        return image if self.prepare is None else self.prepare(image)

    def size(self, i: int) -> tuple[int, int]:
        if self.prepare is not None:  # it may change the size
            return size_of(self.open(i))
        return header_size(self.path(i), upright=self.upright)

    def describe(self, i: int) -> str:
        return str(self.path(i))

    def identity(self, i: int) -> bytes:
        """Path below the root, size, and the first and last 64 KiB, which include checksums.

        Hashing whole files would mean reading ImageNet once more. Uncompressed files are hashed whole.
        """
        path = self.path(i)
        with path.open('rb') as file:
            content = file.read() if path.suffix.lower() in UNCOMPRESSED else ends_of(file)
        return self._named(i, content)

    def outline(self, i: int) -> bytes:
        return self._named(i, str(os.stat(self._place(i)).st_size).encode())

    def _named(self, i: int, content: bytes) -> bytes:
        name = os.fsdecode(self.names[i].item()).replace(os.sep, '/').encode(errors='surrogateescape')
        return b'\0'.join([name, content, b'upright'] if self.upright else [name, content])

    def _place(self, i: int) -> bytes:
        return os.path.join(os.fsencode(self.root), self.names[i].item())

    def stamps(self, indices: np.ndarray, looked_at: np.ndarray) -> Iterator[bytes]:
        names = self.names[indices]
        yield f'{self.upright} {names.dtype}'.encode()
        yield names.tobytes()
        if len(looked_at) < len(indices):
            yield from folder_stamps(os.fsencode(self.root), names)
        for i in looked_at:
            yield file_stamp(self._place(i))


def size_of(image: Image.Image) -> tuple[int, int]:
    """(height, width)."""
    return image.height, image.width


def ends_of(file: IO[bytes]) -> bytes:
    """Size, first and last 64 KiB of a file or file-like object."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(END)
    file.seek(max(len(head), size - END))
    return b'\0'.join([str(size).encode(), head, file.read()])


class Arrays(Source):
    """Images in memory: uint8 (N, H, W, 3)."""

    def __init__(self, pixels: np.ndarray, name: str) -> None:
        self.pixels = pixels
        self.name = name

    def __len__(self) -> int:
        return len(self.pixels)

    def open(self, i: int) -> Image.Image:
        return Image.fromarray(self.pixels[i])

    def size(self, i: int) -> tuple[int, int]:
        height, width = self.pixels.shape[1:3]
        return height, width

    def describe(self, i: int) -> str:
        return f'{self.name}[{i}]'

    def identity(self, i: int) -> bytes:
        return self.pixels[i].tobytes()


class Joined(Source):
    """Several sources, one after the other."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = tuple(sources)
        self.ends = np.cumsum([len(source) for source in sources])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _find(self, i: int) -> tuple[Source, int]:
        number = int(np.searchsorted(self.ends, i, side='right'))
        return self.sources[number], i - (int(self.ends[number - 1]) if number else 0)

    def open(self, i: int) -> Image.Image:
        source, i = self._find(i)
        return source.open(i)

    def size(self, i: int) -> tuple[int, int]:
        source, i = self._find(i)
        return source.size(i)

    def describe(self, i: int) -> str:
        source, i = self._find(i)
        return source.describe(i)

    def identity(self, i: int) -> bytes:
        source, i = self._find(i)
        return source.identity(i)

    def outline(self, i: int) -> bytes:
        source, i = self._find(i)
        return source.outline(i)

    def stamps(self, indices: np.ndarray, looked_at: np.ndarray) -> Iterator[bytes] | None:
        starts = self.ends - [len(source) for source in self.sources]
        parts = []
        for source, start, end in zip(self.sources, starts, self.ends, strict=True):
            own, some = (i[(i >= start) & (i < end)] - start for i in (indices, looked_at))
            parts.append(source.stamps(own, some))
        if any(part is None for part in parts):
            return None
        return chain([indices.astype('<i8').tobytes()], *(part for part in parts if part is not None))


class Wrapped(Source):
    """Images of another library's data set, whose items start with a PIL image; their identity needs decoding."""

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset = dataset
        self.name = name

    def __len__(self) -> int:
        return len(self.dataset)

    def open(self, i: int) -> Image.Image:
        return self.dataset[i][0]

    def size(self, i: int) -> tuple[int, int]:
        return size_of(self.open(i))

    def describe(self, i: int) -> str:
        return f'{self.name}[{i}]'

    def identity(self, i: int) -> bytes:
        image = to_rgb(self.open(i))
        return repr(image.size).encode() + image.tobytes()


@dataclass(frozen=True, eq=False)
class Selection:
    """Some images of a data set.

    Attributes:
        name: As the user gives it, such as '10%'; of a file its name without folder.
        positions: (n,) int64, ascending, in `whole`.
        whole: The data set.
    """

    name: str
    positions: np.ndarray
    whole: 'ImageDataset'

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of the positions and of the number of images they are from; not of the images themselves."""
        digest = hashlib.sha256(f'{len(self.whole)}\0'.encode())
        digest.update(self.positions.astype('<i8').tobytes())
        return digest.hexdigest()

    @property
    def words(self) -> str:
        """Such as '10%: 150 of 1,500 images of digits (train)'."""
        whole = self.whole
        return f'{self.name}: {len(self.positions):,} of {len(whole):,} images of {whole.name} ({whole.split})'

    def facts(self) -> dict[str, Any]:
        """The same for results.json."""
        return dict(name=self.name, images=len(self.positions), of=len(self.whole), sha256=self.fingerprint)


class ImageDataset(Dataset):
    """Images with one label each: `dataset[i]` is (image, int label), a PIL image in RGB unless there is a transform.

    Attributes:
        name: The name it was loaded by.
        split: 'train', 'validation', 'test' or 'all'.
        classes: Names; a label is an index into them.
        labels: (N,) int64.
        transform: Applied to every PIL image, or None.
        skipped: Unreadable images that were left out on request.
        complete: False if images were left out, or the number of images or classes is not the registered one.
        label_sets: All labels that count as right, one tuple per image (ImageNet-ReaL), or None.
        selection: The subset of a data set that these images are, or are taken from; None for all of it.
    """

    def __init__(
        self,
        name: str,
        split: str,
        classes: Sequence[str],
        labels: Sequence[int] | np.ndarray,
        source: Source,
        label_sets: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.name = name
        self.split = split
        self.classes = tuple(classes)
        self.labels = np.asarray(labels, dtype=np.int64).reshape(-1)
        self.transform: Callable[[Image.Image], Any] | None = None
        self.skipped: tuple[str, ...] = ()
        self.complete = True
        self.label_sets = None if label_sets is None else tuple(tuple(labels) for labels in label_sets)
        self.selection: Selection | None = None
        self._source = source
        self._indices: np.ndarray | None = None  # all in order: a list of millions would say no more

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        """The transformed image and its label.

        Raises:
            EvaluationError: If the image cannot be read.
        """
        image = self.image(i)
        return (image if self.transform is None else self.transform(image)), int(self.labels[i])

    def image(self, i: int) -> Image.Image:
        """Image `i` as RGB, without the transform.

        Raises:
            EvaluationError: If the image cannot be read.
        """
        return self._read(i, lambda source, number: to_rgb(source.open(number)))

    def image_size(self, i: int) -> tuple[int, int]:
        """(height, width) of `image(i)`; of a file from its header, without decoding it.

        Raises:
            EvaluationError: If the header cannot be read.
        """
        return self._read(i, lambda source, number: source.size(number))

    def _read(self, i: int, read: Callable[[Source, int], T]) -> T:
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        try:
            return read(self._source, self._position(i))
        except Exception as e:  # decoders raise almost anything on damaged files
            raise EvaluationError(
                f'{self.describe(i)} is not a readable image ({reason(e)}): repair it, or leave out unreadable images '
                'with skip_unreadable=True (--skip-unreadable).'
            ) from e

    def describe(self, i: int) -> str:
        """The path of image `i`, or a name such as 'digits[17]'."""
        return self._source.describe(self._position(i))

    def _position(self, i: int) -> int:
        """Of image `i` in the source."""
        return range(len(self))[i] if self._indices is None else int(self._indices[i])

    @property
    def source(self) -> Source:
        """Where the images come from: all those that were loaded, also those that a subset leaves out."""
        return self._source

    @property
    def positions(self) -> np.ndarray:
        """(N,) int64, of every image in the source."""
        return np.arange(len(self)) if self._indices is None else self._indices

    def with_transform(self, transform: Callable[[Image.Image], Any] | None) -> 'ImageDataset':
        """A copy whose images go through `transform`; the images are shared."""
        other = copy.copy(self)
        other.transform = transform
        return other

    def subset(self, indices: Sequence[int] | np.ndarray) -> 'ImageDataset':
        """A copy with only the images `indices`, in that order, and with all classes."""
        other = copy.copy(self)
        other.__dict__.pop('_fingerprint', None)
        indices = np.asarray(indices, dtype=np.int64).reshape(-1)
        other.labels = self.labels[indices]
        other._indices = self.positions[indices]
        if self.label_sets is not None:
            other.label_sets = tuple(self.label_sets[i] for i in indices)
        return other

    def without_unreadable(self) -> 'ImageDataset':
        """A copy without unreadable images, which `skipped` lists. Decodes every image once."""
        readable, skipped = [], []
        for i in shown(range(len(self)), 'reading every image'):
            try:
                self.image(i)
            except EvaluationError:
                skipped.append(self.describe(i))
            else:
                readable.append(i)
        other = self.subset(readable)
        other.skipped = (*self.skipped, *skipped)
        other.complete = self.complete and not skipped
        return other

    def fingerprint(self, kept: str | Path | None = None) -> str:
        """sha256 (hex) of classes, labels and images in their order; the same on every machine.

        For a file it covers the path below the root, the size and 64 KiB at either end; of more images than
        `fingerprints.MANY` path and size alone, and no file is opened. It is computed once.

        Args:
            kept: A JSON file that keeps it from one process to the next, see `kept_fingerprint`.

        Raises:
            EvaluationError: If an image cannot be read.
        """
        if kept is not None:
            self._fingerprint = kept_fingerprint(self, Path(kept))
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return compute_fingerprint(self)


def join(parts: Sequence[ImageDataset], split: str) -> ImageDataset:
    """Whole data sets with the same classes as one, in that order.

    The last classes may be missing in some parts: a part whose labels are numbers has only those up to its largest.

    Raises:
        EvaluationError: If a label stands for different classes in two parts.
    """
    first = parts[0]
    if len(parts) == 1:
        other = copy.copy(first)
        other.split = split
        return other
    labels = np.concatenate([part.labels for part in parts])
    classes = max((part.classes for part in parts), key=len)
    if any(part.classes != classes[: len(part.classes)] for part in parts):
        raise EvaluationError(f'The parts of {first.name} have different classes: take one of them.')
    return ImageDataset(first.name, split, classes, labels, Joined([part._source for part in parts]))
