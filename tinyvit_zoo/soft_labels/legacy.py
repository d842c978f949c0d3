"""Dumps of TinyViT's released code, read and converted to a store.

An epoch is a folder `logits_top{K}_epoch{E}` with `rank{r}-keys.txt` (a key in each line) and `rank{r}-values.bin`
(records of 4 + 4K bytes in the same order: an int32 seed of the augmentation, K int16 classes, K float16
probabilities). A key is the name of an image of ImageNet-22k, or its position in other data sets.

Source: https://github.com/microsoft/Cream/tree/main/TinyViT, data/augmentation/manager.py and dataset_wrapper.py.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import EvaluationError
from ..common.text import first_few
from .record import SoftLabels
from .store import Store, StoreInfo, shard_size_for

__all__ = ['OfficialEpoch', 'convert', 'find_epochs', 'names_fingerprint', 'read_epoch', 'record_bytes']

MOST_CLASSES = 2**15  # the released code writes classes as int16
SEED_BYTES = 4


def record_bytes(k: int) -> int:
    """Bytes of a record of K classes: the seed, K classes of two bytes and K probabilities of two bytes."""
    return SEED_BYTES + 4 * k


@dataclass(frozen=True)
class OfficialEpoch:
    """The dump of one epoch, its records mapped into memory.

    Attributes:
        number: E.
        k: K.
        keys: (n,) bytes strings in the order of positions.
        files: Mapped uint8 (n_r, 4 + 4K) of every rank.
        places: int64 (n, 2): file and row of every key.
    """

    number: int
    k: int
    keys: np.ndarray
    files: tuple[np.ndarray, ...]
    places: np.ndarray

    def read(self, positions: range) -> tuple[np.ndarray, SoftLabels]:
        """Seeds int32 (n,) and labels of consecutive positions."""
        place = self.places[positions.start : positions.stop]
        records = np.empty((len(place), record_bytes(self.k)), np.uint8)
        for number in np.unique(place[:, 0]).tolist():
            at = np.flatnonzero(place[:, 0] == number)
            records[at] = self.files[number][place[at, 1]]
        end = SEED_BYTES + 2 * self.k
        seeds = np.ascontiguousarray(records[:, :SEED_BYTES]).view('<i4')[:, 0]
        return seeds, SoftLabels(records[:, SEED_BYTES:end].view('<i2'), records[:, end:].view('<f2'))


def find_epochs(folder: str | Path) -> dict[int, Path]:
    """The epochs' folders of a dump by number; `folder` may be one of them.

    Raises:
        EvaluationError: If there is none, or they have different K.
    """
    folder = Path(folder).expanduser()
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    found = {
        p: m for p in (folder, *inside) if (m := re.fullmatch(r'logits_top(\d+)_epoch(\d+)', p.name)) and p.is_dir()
    }
    if not found:
        raise EvaluationError(f'{folder} holds no folder such as logits_top100_epoch0 of the released code.')
    if len({m[1] for m in found.values()}) > 1:
        raise EvaluationError(
            f'{folder} holds dumps of several K: {first_few(p.name for p in found)}. Name one of them.'
        )
    return {int(m[2]): path for path, m in found.items()}


def read_epoch(folder: Path) -> OfficialEpoch:
    """The dump of one epoch; its keys sorted, numbers as numbers.

    Raises:
        EvaluationError: If a file is missing or cut, or a key is in two places or missing.
    """
    match = re.fullmatch(r'logits_top(\d+)_epoch(\d+)', folder.name)
    assert match, folder
    k, number = int(match[1]), int(match[2])
    keys, files, places = [], [], []
    for i, path in enumerate(_value_files(folder)):
        files.append(_map(path, record_bytes(k)))
        keys.append(_read_keys(path.with_name(path.name.replace('-values.bin', '-keys.txt')), path, len(files[-1])))
        places.append(np.stack([np.full(len(keys[-1]), i), np.arange(len(keys[-1]))], axis=1))
    merged, place = np.concatenate(keys), np.concatenate(places)
    order = _order(merged, folder)
    merged, place = merged[order], place[order]
    twice = np.flatnonzero(merged[1:] == merged[:-1])
    if len(twice):
        one, two = place[twice[0]], place[twice[0] + 1]
        names = [_value_files(folder)[i].name for i in (int(one[0]), int(two[0]))]
        raise EvaluationError(
            f'{folder} has the key {merged[twice[0]].decode()} in {names[0]} and again in {names[1]}: remove the '
            'file that is of another run.'
        )
    return OfficialEpoch(number, k, merged, tuple(files), place)


def convert(
    folder: str | Path,
    output: str | Path,
    classes: int,
    views: Mapping[str, Any],
    teacher: str,
    progress: Callable[[int, int], object] = lambda done, of: None,
) -> Store:
    """Write the dumps of all epochs in a folder as a store, with the seeds beside the records.

    What an earlier, interrupted run wrote is kept.

    Args:
        folder: Of the epochs' folders, or one of them.
        output: Folder of the store.
        classes: C.
        views: Settings of the released code's augmentation.
        teacher: Its name.
        progress: Called with the records that are done and their number, after each shard.

    Returns:
        The store.

    Raises:
        EvaluationError: If the dumps are incomplete, or the store cannot be written.
    """
    if classes > MOST_CLASSES:
        raise EvaluationError(f'The released code writes at most {MOST_CLASSES} classes rightly, not {classes}.')
    epochs = find_epochs(folder)
    store, done = None, 0
    for number in sorted(epochs):
        epoch = read_epoch(epochs[number])
        info = _info(epoch, classes, views, teacher)
        if store is None:
            store = Store.create(output, info)
        _check_keys(store.info, info, epochs[number])
        missing = store.missing_shards(number)
        done += sum(len(info.positions(i)) for i in range(info.shards) if i not in missing)
        for shard in missing:
            seeds, labels = epoch.read(info.positions(shard))
            store.write_shard(number, shard, labels, {}, seeds)
            done += len(seeds)
            progress(done, len(epochs) * info.images)
        store.finish(number)
    assert store is not None
    return store


def names_fingerprint(names: np.ndarray) -> str:
    """What identifies a data set of which only the names of the images are known, in order: bytes strings (n,)."""
    return 'names:' + hashlib.sha256(b'\n'.join(names.tolist())).hexdigest()


def _info(epoch: OfficialEpoch, classes: int, views: Mapping[str, Any], teacher: str) -> StoreInfo:
    return StoreInfo(
        form='exact', k=epoch.k, classes=classes, classes_sha256='', teacher=teacher, teacher_sha256='',
        precision='unknown', views=views, seed=0, data='released soft labels',
        fingerprint=names_fingerprint(epoch.keys), images=len(epoch.keys), shard_size=shard_size_for(len(epoch.keys)),
        libraries={},
    )  # fmt: skip


def _check_keys(first: StoreInfo, this: StoreInfo, folder: Path) -> None:
    if first.images != this.images:
        raise EvaluationError(f'{folder} has {this.images} keys, other epochs {first.images}: some are missing.')
    if first.identity != this.identity:
        raise EvaluationError(f'{folder} has other keys than other epochs: they are of different data sets.')


def _value_files(folder: Path) -> list[Path]:
    """Files of values by rank. Raises: EvaluationError: If there is none."""
    found = {int(m[1]): p for p in folder.iterdir() if (m := re.fullmatch(r'rank(\d+)-values\.bin', p.name))}
    if not found:
        raise EvaluationError(f'{folder} holds no file such as rank0-values.bin.')
    return [found[rank] for rank in sorted(found)]


def _map(path: Path, size: int) -> np.ndarray:
    length = path.stat().st_size
    if length % size:
        raise EvaluationError(
            f'{path} is cut: {length} bytes are {length // size} records of {size} bytes and {length % size} more.'
        )
    if not length:
        return np.empty((0, size), np.uint8)
    return np.memmap(path, np.uint8, 'r').reshape(-1, size)


def _read_keys(path: Path, values: Path, records: int) -> np.ndarray:
    if not path.is_file():
        raise EvaluationError(f'{path} is missing, without which {values.name} cannot be read.')
    keys = path.read_bytes().split()
    if len(keys) != records:
        raise EvaluationError(
            f'{path} has {len(keys)} keys, but {values.name} has {records} records: one of them is cut.'
        )
    return np.array(keys, dtype=np.bytes_) if keys else np.empty(0, 'S1')


def _order(keys: np.ndarray, folder: Path) -> np.ndarray:
    """The order of the positions: of numbers if all keys are, which must then be 0 to n - 1; else of names."""
    if not len(keys):
        raise EvaluationError(f'{folder} has no records.')
    if not all(key.isdigit() for key in keys[:1000].tolist()):
        return keys.argsort(kind='stable')
    try:
        numbers = keys.astype(np.int64)
    except (ValueError, OverflowError):
        return keys.argsort(kind='stable')
    order = numbers.argsort(kind='stable')
    present = np.unique(numbers)
    missing = int(present[-1]) + 1 - len(present)
    if missing:
        first = np.flatnonzero(present != np.arange(len(present)))[0]  # at the latest where the largest one stands
        raise EvaluationError(f"{folder} lacks {missing} keys, such as {first}: a rank's files are missing.")
    return order
