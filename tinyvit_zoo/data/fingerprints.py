"""The identity of a data set as one hash, and a file that keeps it, so that images are not read again for it."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..common.errors import EvaluationError
from ..common.files import new_file
from ..common.text import reason

__all__ = ['MANY', 'compute_fingerprint', 'file_stamp', 'folder_stamps', 'kept_fingerprint', 'shown']

_log = logging.getLogger(__name__)

MANY = 2_000_000
"""Images above which a fingerprint is of names, sizes and labels: reading 128 KiB of each would take hours."""
SAMPLE = 4096
"""Of more images than `MANY`, so many are looked at before a kept fingerprint is believed."""
CHUNK = 1 << 16
KEPT = 32
"""Fingerprints that one file keeps: of splits, and of copies on other machines."""
FINGERPRINT = re.compile('[0-9a-f]{64}')


class Images(Protocol):
    """An `ImageDataset`, as far as its fingerprint is concerned; `source` is a `Source`."""

    classes: tuple[str, ...]
    labels: np.ndarray
    label_sets: tuple[tuple[int, ...], ...] | None

    @property
    def source(self) -> Any: ...

    @property
    def positions(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def describe(self, i: int) -> str: ...

    def fingerprint(self) -> str: ...


def compute_fingerprint(dataset: Images) -> str:
    """sha256 (hex) of classes, labels and images in their order, see `ImageDataset.fingerprint`.

    Raises:
        EvaluationError: If a file cannot be read.
    """
    digest = hashlib.sha256(repr((dataset.classes, dataset.label_sets)).encode())
    digest.update(dataset.labels.astype('<i8').tobytes())
    many = len(dataset) > MANY
    if many:
        digest.update(b'names and sizes')
    source, positions = dataset.source, dataset.positions
    for i in shown(range(len(dataset)), 'fingerprint of the images', delay=3):  # of ImageNet it takes minutes
        position = int(positions[i])
        try:
            identity = source.outline(position) if many else source.identity(position)
        except OSError as e:
            raise EvaluationError(f'{dataset.describe(i)} cannot be read ({e.strerror}).') from e
        digest.update(hashlib.sha256(identity).digest())
    return digest.hexdigest()


def shown(indices: range, what: str, delay: float = 0) -> Iterable[int]:
    """The indices, with a progress bar on a terminal if the loop takes longer than `delay` seconds."""
    from tqdm import tqdm

    return tqdm(indices, desc=what, unit='image', disable=None, leave=False, delay=delay)


def kept_fingerprint(dataset: Images, path: Path) -> str:
    """The fingerprint that a file keeps for a data set in this very state; otherwise it is computed and kept there.

    The state is that of the list of images and labels, and of what the file system says: sizes and times of every file,
    or above `MANY` images the times of every folder and the sizes and times of `SAMPLE` files. Images that are not
    files have none, so theirs are not kept.

    Args:
        dataset: The data set.
        path: JSON file; it is made if it is missing or damaged, and one that cannot be written is not an error.

    Raises:
        EvaluationError: If an image cannot be read.
    """
    state = _state(dataset)
    if state is None:
        return dataset.fingerprint()
    kept = _read(path)
    known = kept.get(state)
    if known is not None:
        return known
    fingerprint = dataset.fingerprint()
    newest = dict(list(kept.items())[1 - KEPT :]) | {state: fingerprint}
    try:
        with new_file(path) as new:
            new.write_text(json.dumps(newest, indent=1) + '\n')
    except OSError as e:
        _log.warning('%s cannot be written (%s): the fingerprint will be computed again next time.', path, reason(e))
    return fingerprint


def _read(path: Path) -> dict[str, str]:
    """State -> fingerprint; of a damaged file, what is whole."""
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text())
        if isinstance(content, dict):
            return {k: v for k, v in content.items() if isinstance(v, str) and FINGERPRINT.fullmatch(v)}
    return {}


def _state(dataset: Images) -> str | None:
    """sha256 (hex) of the list of a data set and of what the file system says of it; None if it is not all of files."""
    digest = hashlib.sha256(repr((dataset.classes, dataset.label_sets, MANY)).encode())
    digest.update(dataset.labels.astype('<i8').tobytes())
    positions = dataset.positions
    some = positions
    if len(positions) > MANY:
        some = positions[np.linspace(0, len(positions) - 1, min(SAMPLE, len(positions))).astype(np.int64)]
    try:
        stamps = dataset.source.stamps(positions, some)
        if stamps is None:
            return None
        for stamp in stamps:
            digest.update(hashlib.sha256(stamp).digest())
    except OSError:  # computing the fingerprint names the file
        return None
    return digest.hexdigest()


def file_stamp(path: str | bytes) -> bytes:
    """Size and times of a file or folder, which change with its content."""
    status = os.stat(path)
    return f'{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}'.encode()


def folder_stamps(root: bytes, names: np.ndarray) -> Iterator[bytes]:
    """Stamps of the folders that hold files of these names below a root."""
    separator, folders = os.fsencode(os.sep), set[bytes]()
    for start in range(0, len(names), CHUNK):  # as objects, all of them would take a gigabyte
        folders.update(name.rpartition(separator)[0] for name in names[start : start + CHUNK].tolist())
    for folder in sorted(folders):
        yield folder + b'\0' + file_stamp(os.path.join(root, folder))
