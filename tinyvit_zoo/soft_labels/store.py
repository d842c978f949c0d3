"""A store: a teacher's soft labels for views of a data set, epoch by epoch.

    store.json                      what all records were made from
    epoch-0003/epoch.json           once the epoch is whole: hashes of its shards
    epoch-0003/00012.safetensors    records of consecutive positions in the data set

The position in the data set is the index: no keys are kept, in files or in memory. An epoch's folder can be copied and
used alone, with `store.json` beside it; machines that save different epochs never write the same file.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import EvaluationError
from ..common.files import remove_leftovers
from ..common.hashes import json_hash
from ..common.text import count_of
from .place import Place
from .record import DamagedRecordError, Form, FormName, SoftLabels
from .sealed import read_sealed, write_sealed
from .shard import Shard, open_shard, write_shard

__all__ = ['MOST_EPOCHS', 'Epoch', 'LastEpoch', 'Store', 'StoreInfo', 'in_words']

VERSION = 1
STORE, EPOCH = 'store.json', 'epoch.json'
FINGERPRINTS = 'fingerprints.json'
"""Beside the store: reading 128 KiB of every image of a large data set again would take longer than all else."""
SHARD_SIZE, SMALL_SHARD_SIZE = 65_536, 4096
SMALL = 2**18  # images below which a shard of the usual size would be most of an epoch
MOST_EPOCHS = 10**6
IMAGES, SEAL = 'images', 'images_sha256'
"""In the header of a shard: CRC32 of views' images by position, and a hash of them."""
HASHES = ('classes_sha256', 'teacher_sha256', 'fingerprint')
"""Attributes that tell people the least: what else differs is said first."""
TYPES = dict(k=int, classes=int, seed=int, images=int, shard_size=int, views=dict, libraries=dict)
"""Of the attributes in `store.json` that are not strings."""


@dataclass(frozen=True)
class StoreInfo:
    """What all records of a store were made from.

    Attributes:
        form: Layout of a record, see `record.Form`.
        k: Probabilities kept.
        classes: Number of classes.
        classes_sha256: Hash of their names in order.
        teacher: Name of the model.
        teacher_sha256: Its `state_hash`.
        precision: Type in which it computed, such as 'float32' or 'bfloat16'.
        views: What a view is drawn from, as plain values.
        seed: Of the run: a view depends on it, the epoch and the position alone.
        data: Name of the data set and split.
        fingerprint: Of the data set.
        images: N, its images.
        shard_size: Positions of a shard.
        libraries: Versions that drew and computed, for messages.

    `data` and `libraries` may change between two runs of one saving: the fingerprint and checksums tell what matters.
    """

    form: FormName
    k: int
    classes: int
    classes_sha256: str
    teacher: str
    teacher_sha256: str
    precision: str
    views: Mapping[str, Any]
    seed: int
    data: str
    fingerprint: str
    images: int
    shard_size: int
    libraries: Mapping[str, str]

    @cached_property
    def identity(self) -> str:
        """Hash of everything that must stay the same."""
        return json_hash(self.fixed())

    def fixed(self) -> dict[str, Any]:
        """Everything that must stay the same."""
        return {k: v for k, v in asdict(self).items() if k not in ('data', 'libraries')}

    @property
    def record(self) -> Form:
        """The layout of its records."""
        return Form(self.form, self.classes, self.k)

    @property
    def shards(self) -> int:
        """Shards of an epoch."""
        return -(-self.images // self.shard_size)

    def positions(self, shard: int) -> range:
        """Positions that a shard holds."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.images))

    def check(self, place: object, **needed: Any) -> None:
        """Refuse a store that was made from something else.

        Args:
            place: Where it is, for the message.
            **needed: Attributes and the values that they must have.

        Raises:
            EvaluationError: With the first attribute that differs, and both values; of settings, those that differ.
        """
        for name, value in sorted(needed.items(), key=lambda item: item[0] in HASHES):
            stored = getattr(self, name)
            if stored != value:
                one, other = map(_short, _differences(stored, value))
                raise EvaluationError(
                    f'{place} was saved with {name.replace("_", " ")} {one}, but this is {other}: give what it was '
                    'saved with, or another store.'
                )


def shard_size_for(images: int) -> int:
    """Positions of a shard for a data set of that size."""
    return SMALL_SHARD_SIZE if images <= SMALL else SHARD_SIZE


class Epoch:
    """The whole records of one epoch, mapped into memory."""

    def __init__(self, info: StoreInfo, number: int, shards: Sequence[Shard], paths: Sequence[Path]) -> None:
        self.info, self.number, self._shards, self._paths = info, number, shards, paths
        self._form = info.record
        self._images: dict[int, dict[str, int]] = {}

    def read(self, positions: Sequence[int] | np.ndarray) -> SoftLabels:
        """The labels of views at these positions, in their order, each checked.

        Raises:
            EvaluationError: If there is no such position, or a record is damaged; the message names its file.
        """
        positions = np.asarray(positions, np.int64)
        strange = positions[(positions < 0) | (positions >= self.info.images)]
        if len(strange):
            raise EvaluationError(f'Positions are from 0 to {self.info.images - 1}, not {strange[0]}.')
        try:
            return self._form.decode(self._gather(positions), self.number, positions)
        except DamagedRecordError as e:
            path = self._paths[e.position // self.info.shard_size]
            raise EvaluationError(
                f'{path} is damaged (the record of image {e.position} in epoch {self.number}): copy or save it again.'
            ) from e

    def image_crc32(self, position: int) -> int | None:
        """The CRC32 of the view's image at this position; None for the views that carry none."""
        number = position // self.info.shard_size
        if number not in self._images:
            self._images[number] = self._shards[number].about[IMAGES]
        return self._images[number].get(str(position))

    def seeds(self, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """int64 (n,): seeds of the released code's augmentation at these positions.

        Raises:
            EvaluationError: If the store was not converted from its files.
        """
        numbers, rows = np.divmod(np.asarray(positions, np.int64), self.info.shard_size)
        found = [self._shards[n].seeds for n in numbers.tolist()]
        if any(seeds is None for seeds in found):
            raise EvaluationError(f'Epoch {self.number} has no seeds: it was not converted from the released code.')
        return np.array([seeds[row] for seeds, row in zip(found, rows, strict=True) if seeds is not None], np.int64)

    def _gather(self, positions: np.ndarray) -> np.ndarray:
        """uint8 (n, R) in the order of the positions: shard by shard into one buffer, then each to its place."""
        numbers, rows = np.divmod(positions, self.info.shard_size)
        order = numbers.argsort(kind='stable')
        rows = rows[order]
        ends = numbers[order].searchsorted(np.arange(len(self._shards) + 1)).tolist()
        gathered = np.empty(len(rows), np.dtype((np.void, self._form.size)))
        for shard, start, stop in zip(self._shards, ends[:-1], ends[1:], strict=True):
            if start < stop:
                np.take(shard.rows, rows[start:stop], out=gathered[start:stop], mode='clip')
        records = np.empty_like(gathered)
        records[order] = gathered
        return records.view(np.uint8).reshape(len(rows), -1)


class Store:
    """A store on this machine, or behind any address that fsspec can open.

    Args:
        place: Folder, or an address such as 's3://BUCKET/FOLDER' or 'hf://datasets/OWNER/NAME'.
        info: What it is made from.
    """

    def __init__(self, place: Place, info: StoreInfo) -> None:
        self.place, self.info = place, info

    @classmethod
    def open(cls, place: str | Path) -> 'Store':
        """A store that exists.

        Raises:
            EvaluationError: If there is none, or it was changed or made by a later version.
        """
        where = Place(place)
        content = read_sealed(
            where.local(
                STORE, missing=f'{place} holds no soft labels (no {STORE}): name what `tinyvit-zoo distill save` wrote.'
            )
        )
        version = content.pop('version', None)
        if version != VERSION:
            raise EvaluationError(f'{place} is a store of version {version}, this package reads {VERSION}: update it.')
        if not _describes_a_store(content):
            raise EvaluationError(f'{place}/{STORE} does not describe soft labels of this version: copy it again.')
        return cls(where, StoreInfo(**content))

    @classmethod
    def create(cls, folder: str | Path, info: StoreInfo) -> 'Store':
        """The store of these labels in a folder: a new one, or what an earlier run of the same saving left.

        Raises:
            EvaluationError: If the folder holds other labels, or cannot be written to.
        """
        where = Place(folder)
        path = where.folder / STORE
        if path.exists():
            store = cls.open(folder)
            store.info.check(folder, **info.fixed())
            return store
        write_sealed(path, dict(asdict(info), version=VERSION))
        return cls(where, info)

    def epochs(self) -> list[int]:
        """The whole epochs, in order."""
        found = (re.fullmatch(r'epoch-(\d{4,})', name) for name in self.place.names())
        return sorted(int(m[1]) for m in found if m and self.place.has(f'{m[0]}/{EPOCH}'))

    def whole_epochs(self) -> list[int]:
        """`epochs`, of which there must be one. Raises: EvaluationError: If there is none."""
        found = self.epochs()
        if not found:
            raise EvaluationError(f'{self.place} has no whole epoch yet: save one with `tinyvit-zoo distill save`.')
        return found

    def epochs_in_words(self) -> str:
        """The whole epochs as in 'epochs 0 to 3, 7'; 'no epoch'."""
        return in_words(self.epochs())

    def check_epoch(self, number: int) -> None:
        """Refuse an epoch that is not there, before any of its shards is opened or fetched.

        Raises:
            EvaluationError: If it is not there or not whole.
        """
        known = self.epochs()
        if number not in known:
            raise EvaluationError(f'{self.place} has no whole epoch {number}, it has {in_words(known)}.')

    def epoch(self, number: int) -> Epoch:
        """A whole epoch, its files mapped into memory.

        Raises:
            EvaluationError: If it is not there or not whole, or a file is missing, of another epoch or store, or has
                another header than when it was written.
        """
        folder = _folder(number)
        self.check_epoch(number)
        missing = f'{self.place}/{folder}/{EPOCH} is missing: copy it again.'
        content = read_sealed(self.place.local(f'{folder}/{EPOCH}', missing=missing))
        hashes = _hashes(content.get('shards'))
        if content.get('epoch') != number or content.get('store') != self.info.identity:
            raise EvaluationError(f'{self.place}/{folder}/{EPOCH} belongs to another epoch or store: copy it again.')
        shards, paths = [], []
        for i in range(self.info.shards):
            name = _shard_name(number, i)
            sha256 = hashes.get(name.rpartition('/')[2], '')
            missing = f'{self.place}/{name} is missing: copy or save it again.'
            paths.append(self.place.local(name, missing=missing, key=sha256[:16]))
            shards.append(self._checked(paths[i], number, i))
            if sha256 != shards[i].header_sha256:
                raise EvaluationError(f'{paths[i]} is not the file that was written for this epoch: copy it again.')
        return Epoch(self.info, number, shards, paths)

    def missing_shards(self, number: int) -> list[int]:
        """Shards of an epoch that have to be computed: those that are not there, or not whole."""
        remove_leftovers(self.place.folder / _folder(number))
        return [i for i in range(self.info.shards) if not self._is_whole(number, i)]

    def write_shard(
        self,
        number: int,
        shard: int,
        labels: SoftLabels,
        images: Mapping[int, int],
        seeds: np.ndarray | None = None,
    ) -> None:
        """Write the labels of all positions of a shard.

        Args:
            number: Epoch.
            shard: Index of the shard.
            labels: Of `info.positions(shard)`.
            images: CRC32 of the view's image by position, for those that carry one.
            seeds: int32, one a position, from the released code's files.

        Raises:
            EvaluationError: If the labels are not valid, or the file cannot be written.
        """
        positions = self.info.positions(shard)
        if len(labels.ids) != len(positions):
            raise EvaluationError(f'{len(labels.ids)} labels for the {len(positions)} positions of shard {shard}.')
        records = self.info.record.encode(labels, number, np.arange(positions.start, positions.stop))
        named = {str(p): crc for p, crc in sorted(images.items())}
        about = {**self._about(number, shard), IMAGES: named, SEAL: json_hash(named)}
        write_shard(self._shard_path(number, shard), records, about, seeds)

    def finish(self, number: int) -> None:
        """Note that an epoch is whole. Raises: EvaluationError: If it is not, or the note cannot be written."""
        missing = self.missing_shards(number)
        if missing:
            raise EvaluationError(
                f'Epoch {number} of {self.place} lacks {count_of(len(missing), "shard")}, such as {missing[0]}.'
            )
        paths = [self._shard_path(number, i) for i in range(self.info.shards)]
        hashes = {path.name: open_shard(path).header_sha256 for path in paths}
        write_sealed(
            self.place.folder / _folder(number) / EPOCH, dict(epoch=number, store=self.info.identity, shards=hashes)
        )

    def _about(self, number: int, shard: int) -> dict[str, Any]:
        return dict(store=self.info.identity, epoch=number, first=self.info.positions(shard).start)

    def _shard_path(self, number: int, shard: int) -> Path:
        return self.place.folder / _shard_name(number, shard)

    def _checked(self, path: Path, number: int, shard: int) -> Shard:
        """A shard whose header fits its place. Raises: EvaluationError: If it does not."""
        opened = open_shard(path)
        expected = (len(self.info.positions(shard)), self.info.record.size)
        about = {k: v for k, v in opened.about.items() if k not in (IMAGES, SEAL)}
        named = isinstance(opened.about.get(IMAGES), dict)
        if opened.records.shape != expected or about != self._about(number, shard) or not named:
            raise EvaluationError(f'{path} belongs to another place, epoch or store: copy or save it again.')
        return opened

    def _is_whole(self, number: int, shard: int) -> bool:
        path = self._shard_path(number, shard)
        if not path.exists():
            return False
        positions = self.info.positions(shard)
        try:
            opened = self._checked(path, number, shard)
            self.info.record.decode(opened.records, number, np.arange(positions.start, positions.stop))
        except EvaluationError:
            return False
        return json_hash(opened.about[IMAGES]) == opened.about.get(SEAL)  # not yet, or again, in `epoch.json`


class LastEpoch:
    """Calls give an epoch of a store; the last one stays open, in its own process: maps of files are not sent on."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._epoch: Epoch | None = None

    def __call__(self, number: int) -> Epoch:
        """An epoch. Raises: EvaluationError: See `Store.epoch`."""
        if self._epoch is None or self._epoch.number != number:
            self._epoch = self.store.epoch(number)
        return self._epoch

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | dict(_epoch=None)


def _folder(number: int) -> str:
    return f'epoch-{number:04d}'


def _shard_name(number: int, shard: int) -> str:
    return f'{_folder(number)}/{shard:05d}.safetensors'


def _describes_a_store(content: Mapping[str, Any]) -> bool:
    """Whether a `store.json`, which may come from anybody, has what a store needs."""
    if content.keys() != {f.name for f in fields(StoreInfo)}:
        return False
    if not all(isinstance(value, TYPES.get(name, str)) for name, value in content.items()):
        return False
    return content['images'] > 0 and content['shard_size'] > 0


def _hashes(shards: Any) -> dict[str, str]:
    """Hashes by name of file; anything else in an `epoch.json` is none, and must not become part of a path."""
    if not isinstance(shards, Mapping):
        return {}
    return {k: v for k, v in shards.items() if isinstance(v, str) and re.fullmatch('[0-9a-f]{64}', v)}


def in_words(numbers: Sequence[int]) -> str:
    """Numbers of epochs in order as in 'epochs 0 to 3, 7'; 'epoch 3'; 'no epoch'."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][-1] + 1:
            parts[-1].append(n)
        else:
            parts.append([n])
    words = ', '.join(f'{p[0]} to {p[-1]}' if len(p) > 1 else str(p[0]) for p in parts)
    return f'{"epoch" if len(numbers) == 1 else "epochs"} {words}' if words else 'no epoch'


def _differences(one: Any, other: Any) -> tuple[Any, Any]:
    """Two values; of two mappings only the entries that differ."""
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return one, other
    same = {key for key in one.keys() & other.keys() if one[key] == other[key]}
    first, second = ({key: x[key] for key in sorted(x.keys() - same)} for x in (one, other))
    return first, second


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f'{text[:57]}...'
