"""One record: what is kept of a teacher's output for one view, in bytes of a fixed number.

    exact     CRC32 (4) | ids, most probable first (2 or 4 each) | probabilities, float16 (2 each)
    compact   CRC32 (4) | mass (2) | range (1) | levels (1 each) | low parts of sorted ids (1 or 2 each) | high parts

All numbers are little-endian. The CRC32 covers the record's content, its epoch and its position in the data set: a
record that was changed, or read in another's place, does not pass for one. In `compact`, a level says how far a
probability lies below the largest one on a logarithmic scale, and the mass is the sum of all K; the ids are in
Elias-Fano form (Elias 1974, "Efficient storage and retrieval by content and address of static files"), without loss.

Shape legend: `n` records of `R` bytes, `K` classes each out of `C`.
"""

import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from ..common.errors import EvaluationError

__all__ = ['FORMS', 'Form', 'FormName', 'SoftLabels']

FormName = Literal['exact', 'compact']
FORMS: tuple[FormName, ...] = ('exact', 'compact')

CRC = np.dtype('<u4')
LEVELS = 255
RANGE_UNIT = 0.125  # octaves
MASS_UNIT = 2.0**-16
SPREAD = 0x9E3779B1  # odd: places of one epoch have different CRCs for the same content


class SoftLabels(NamedTuple):
    """The teacher's K most probable classes of n views: ids uint16 or uint32 (n, K), probabilities float (n, K).

    The ids of a row are different, and its probabilities sum to at most 1.
    """

    ids: np.ndarray
    probabilities: np.ndarray


class DamagedRecordError(EvaluationError):
    """A record's bytes are not those that were written for its epoch and position.

    Attributes:
        position: The first one.
    """

    def __init__(self, position: int) -> None:
        super().__init__(f'The record of position {position} is damaged.')
        self.position = position


@dataclass(frozen=True)
class Form:
    """How records are laid out.

    Attributes:
        name: 'exact': float16 probabilities, as the released code stores them. 'compact': 8 bits a probability.
        classes: C.
        k: K.
    """

    name: FormName
    classes: int
    k: int

    def __post_init__(self) -> None:
        if self.name not in FORMS:
            raise EvaluationError(f'Records are {" or ".join(FORMS)}, not {self.name!r}.')
        if not 0 < self.k <= self.classes:
            raise EvaluationError(f'K must be from 1 to the {self.classes} classes, not {self.k}.')

    @cached_property
    def size(self) -> int:
        """R, bytes of a record."""
        if self.name == 'exact':
            return CRC.itemsize + self.k * (self._ids.itemsize + 2)
        return CRC.itemsize + 3 + self.k * (1 + self._low.itemsize) + self._high_bytes

    def encode(self, labels: SoftLabels, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Records of views.

        Args:
            labels: n views; ids of any integer type, most probable first.
            epoch: Epoch of all of them.
            positions: Integers (n,), their places in the data set.

        Returns:
            uint8 (n, R).

        Raises:
            EvaluationError: If something is not what `SoftLabels` says, such as NaN from a teacher.
        """
        ids, probabilities = labels.ids, labels.probabilities.astype(np.float32)
        self._check(ids, probabilities)
        content = self._exact(ids, probabilities) if self.name == 'exact' else self._compact(ids, probabilities)
        records = np.empty((len(content), self.size), np.uint8)
        records[:, CRC.itemsize :] = content
        records[:, : CRC.itemsize] = self._checksums(records, epoch, positions).view(np.uint8).reshape(-1, 4)
        return records

    def decode(self, records: np.ndarray, epoch: int, positions: np.ndarray) -> SoftLabels:
        """What records hold, after checking each of them.

        Args:
            records: uint8 (n, R).
            epoch: Epoch that they belong to.
            positions: Integers (n,), their places in the data set.

        Returns:
            `exact`: views of `records`, most probable first, float16. `compact`: ids ascending, float32.

        Raises:
            DamagedRecordError: If a record does not have its CRC32.
        """
        stored = np.ascontiguousarray(records[:, : CRC.itemsize]).view(CRC)[:, 0]
        wrong = np.flatnonzero(stored != self._checksums(records, epoch, positions))
        if len(wrong):
            raise DamagedRecordError(int(positions[wrong[0]]))
        if self.name == 'exact':
            end = CRC.itemsize + self.k * self._ids.itemsize
            return SoftLabels(records[:, CRC.itemsize : end].view(self._ids), records[:, end:].view('<f2'))
        return self._from_compact(records)

    @property
    def _ids(self) -> np.dtype:
        return np.dtype('<u2' if self.classes <= 2**16 else '<u4')

    @property
    def _low(self) -> np.dtype:
        """The part of an id that is written out; the rest is counted in unary."""
        return np.dtype('u1' if self.classes <= 2**16 else '<u2')

    @property
    def _high_bytes(self) -> int:
        return -(-(self.k + ((self.classes - 1) >> (8 * self._low.itemsize))) // 8)

    def _check(self, ids: np.ndarray, p: np.ndarray) -> None:
        if ids.shape != p.shape or ids.shape[1:] != (self.k,):
            raise EvaluationError(f'Ids {ids.shape} and probabilities {p.shape} are not both (n, {self.k}).')
        if not (p.min(initial=0) >= 0 and p.sum(axis=1).max(initial=0) <= 1.001):  # also where one is NaN
            raise EvaluationError('Probabilities must be finite, at least 0, and sum to at most 1 for each view.')
        if ids.min(initial=0) < 0 or ids.max(initial=0) >= self.classes:
            raise EvaluationError(f'Ids must be from 0 to {self.classes - 1}.')
        ordered = np.sort(ids, axis=1)
        if (ordered[:, 1:] == ordered[:, :-1]).any():
            raise EvaluationError('The ids of a view must be different.')

    def _checksums(self, records: np.ndarray, epoch: int, positions: np.ndarray) -> np.ndarray:
        """CRC32 (n,) of each record's content, started from a number that belongs to its place alone."""
        places = np.asarray(positions, np.uint64) + np.uint64(epoch * SPREAD % 2**32)
        starts = (places & np.uint64(2**32 - 1)).tolist()
        crc32 = zlib.crc32
        return np.array([crc32(row, start) for row, start in zip(records[:, CRC.itemsize :], starts, strict=True)], CRC)

    def _exact(self, ids: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        parts = (ids.astype(self._ids), _halves(probabilities))
        return np.concatenate([np.ascontiguousarray(x).view(np.uint8).reshape(len(ids), -1) for x in parts], axis=1)

    def _compact(self, ids: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        order = ids.argsort(axis=1)
        ids = np.take_along_axis(ids, order, 1).astype(np.int64)
        p = np.take_along_axis(probabilities, order, 1).astype(np.float64)
        n, bits = len(ids), 8 * self._low.itemsize
        mass = np.minimum(p.sum(axis=1) / MASS_UNIT, 2**16 - 1).astype('<u2')
        with np.errstate(divide='ignore', invalid='ignore'):
            below = -np.log2(p / p.max(axis=1, keepdims=True))
        below = np.nan_to_num(below, nan=0.0, posinf=256 * RANGE_UNIT)
        units = np.ceil(below.max(axis=1) / RANGE_UNIT).clip(1, 255)
        levels = np.rint(below * (LEVELS / RANGE_UNIT) / units[:, None]).clip(0, LEVELS)
        high = np.zeros((n, 8 * self._high_bytes), np.uint8)
        np.put_along_axis(high, (ids >> bits) + np.arange(self.k), 1, axis=1)
        low = (ids & (2**bits - 1)).astype(self._low)
        parts = (mass[:, None], units[:, None].astype(np.uint8), levels.astype(np.uint8), low)
        columns = [np.ascontiguousarray(x).view(np.uint8).reshape(n, -1) for x in parts]
        return np.concatenate([*columns, np.packbits(high, axis=1)], axis=1)

    def _from_compact(self, records: np.ndarray) -> SoftLabels:
        n, start = len(records), CRC.itemsize + 3
        ends = start + self.k, start + self.k * (1 + self._low.itemsize)
        mass = np.ascontiguousarray(records[:, 4:6]).view('<u2')[:, 0] * np.float32(MASS_UNIT)
        table = _shares().reshape(-1)
        p = table.take(records[:, start : ends[0]] + (records[:, 6:7].astype(np.uint16) << np.uint16(8)))
        p *= (mass / p.sum(axis=1))[:, None]
        # Each row has K ones; the number of zeros before the i-th of them is the high part of the i-th id.
        ones = np.flatnonzero(np.unpackbits(records[:, ends[1] :], axis=1).view(bool)).reshape(n, self.k)
        ones -= np.arange(n)[:, None] * (8 * self._high_bytes) + np.arange(self.k)
        low = np.ascontiguousarray(records[:, ends[0] : ends[1]]).view(self._low)
        ids = (ones.astype(self._ids) << self._ids.type(8 * self._low.itemsize)) | low
        return SoftLabels(ids, p)


def _halves(probabilities: np.ndarray) -> np.ndarray:
    """As float16 (n, K), rounded to nearest; rows that would then sum to more than 1 are rounded down."""
    halves = probabilities.astype('<f2')
    # Summed in single precision, which is fast and close; the few rows near 1 are then summed exactly.
    for row in np.flatnonzero(halves.astype(np.float32).sum(axis=1) > 1 - 1e-5):
        if halves[row].sum(dtype=np.float64) <= 1:
            continue
        exact, half = probabilities[row], halves[row]
        half[half > exact] = np.nextafter(half[half > exact], np.float16(0))
        while half.sum(dtype=np.float64) > 1:  # the sum itself was above 1, by its own rounding
            half[half.argmax()] = np.nextafter(half.max(), np.float16(0))
    return halves


_TABLE: list[np.ndarray] = []


def _shares() -> np.ndarray:
    """float32 (256, 256): a probability as a share of the largest one, by range and level."""
    if not _TABLE:
        octaves = np.arange(256)[:, None] * (RANGE_UNIT / LEVELS) * np.arange(256)
        _TABLE.append(np.exp2(-octaves).astype(np.float32))
    return _TABLE[0]
