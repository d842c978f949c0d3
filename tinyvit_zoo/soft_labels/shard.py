"""A shard: records of consecutive positions in one safetensors file, mapped into memory.

The file has one uint8 tensor `records` (n, R), one int32 tensor `seeds` (n,) where it was converted from the released
code's files, and one entry of metadata: the same records are the same bytes. Rows are read from the map itself;
safetensors' own slices cost ten times as much.
"""

import hashlib
import json
import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save as to_bytes

from ..common.errors import EvaluationError
from ..common.files import new_file
from ..common.text import reason

__all__ = ['Shard', 'open_shard', 'write_shard']

LONGEST_HEADER = 2**24
DTYPES = {'U8': 'u1', 'I32': '<i4'}
SEEDS = 'seeds_sha256'


@dataclass(frozen=True)
class Shard:
    """Records of one file.

    Attributes:
        rows: (n,) of n records as opaque items of R bytes, which NumPy copies several times as fast as rows of bytes.
        seeds: int32 (n,), of the released code's augmentation; None in stores of our own.
        about: What the writer noted.
        header_sha256: Hash (hex) of everything before the records.
    """

    rows: np.ndarray
    seeds: np.ndarray | None
    about: dict[str, Any]
    header_sha256: str

    @property
    def records(self) -> np.ndarray:
        """uint8 (n, R)."""
        return self.rows.view(np.uint8).reshape(len(self.rows), -1)


def write_shard(path: Path, records: np.ndarray, about: Mapping[str, Any], seeds: np.ndarray | None = None) -> None:
    """Write records, uint8 (n, R), and perhaps int32 seeds (n,), whole or not at all.

    Raises:
        EvaluationError: If there is no room or no permission; what is there already stays.
    """
    tensors = dict(records=records)
    if seeds is not None:
        tensors['seeds'] = seeds.astype('<i4')
        about = dict(about, **{SEEDS: hashlib.sha256(tensors['seeds'].tobytes()).hexdigest()})
    try:
        with new_file(path) as new:
            # Not `save_file`: it writes to a name of its own, which nobody would remove after a kill.
            new.write_bytes(to_bytes(tensors, dict(about=json.dumps(about, sort_keys=True))))
    except (OSError, SafetensorError) as e:
        raise EvaluationError(
            f'{path} cannot be written ({reason(e)}): make room and run the command again; finished shards stay.'
        ) from e


def open_shard(path: Path) -> Shard:
    """Map a shard into memory; its records are not checked here.

    Raises:
        EvaluationError: If the file is missing, cut, longer than it says, or no shard.
    """
    try:
        with path.open('rb') as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        length = int.from_bytes(mapped[:8], 'little')
        if length > LONGEST_HEADER:
            raise ValueError('no header')
        header = json.loads(mapped[8 : 8 + length])
        about = json.loads(header.pop('__metadata__')['about'])
        tensors = {name: _tensor(mapped, 8 + length, entry) for name, entry in header.items()}
        records, seeds = tensors.pop('records'), tensors.pop('seeds', None)
        if tensors or len(mapped) != 8 + length + records.nbytes + (0 if seeds is None else seeds.nbytes):
            raise ValueError('other sizes than its header says')
        noted = about.pop(SEEDS, None)
        if noted != (None if seeds is None else hashlib.sha256(seeds.tobytes()).hexdigest()):
            raise ValueError('other seeds than were written')
        rows = records.view(np.dtype((np.void, records.shape[1])))[:, 0]
    except OSError as e:
        raise EvaluationError(f'{path} cannot be read ({reason(e)}).') from e
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as e:
        raise EvaluationError(f'{path} is cut short, damaged or no shard of soft labels: copy or save it again.') from e
    return Shard(rows, seeds, about, hashlib.sha256(mapped[: 8 + length]).hexdigest())


def _tensor(mapped: mmap.mmap, start: int, entry: Mapping[str, Any]) -> np.ndarray:
    """One tensor of the file. Raises: ValueError and others: If the file has not all of it."""
    first, last = entry['data_offsets']
    dtype, shape = np.dtype(DTYPES[entry['dtype']]), entry['shape']
    array = np.frombuffer(mapped, dtype, math.prod(shape), start + first).reshape(shape)
    if array.nbytes != last - first or not array.nbytes:
        raise ValueError('other sizes than its header says')
    return array
