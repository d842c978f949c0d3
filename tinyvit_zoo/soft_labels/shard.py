"""A shard: records of consecutive positions in one safetensors file, mapped into memory.

The file has one uint8 tensor `records` (n, R) and one entry of metadata, so that the same records are the same bytes.
Rows are read from the map itself: safetensors' own slices cost ten times as much.
"""

import hashlib
import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from ..common.errors import EvaluationError
from ..common.files import new_file
from ..common.text import reason

__all__ = ['Shard', 'open_shard', 'write_shard']

LONGEST_HEADER = 2**24


@dataclass(frozen=True)
class Shard:
    """Records of one file.

    Attributes:
        rows: (n,) of n records as opaque items of R bytes, which NumPy copies several times as fast as rows of bytes.
        about: What the writer noted.
        header_sha256: Hash (hex) of everything before the records.
    """

    rows: np.ndarray
    about: dict[str, Any]
    header_sha256: str

    @property
    def records(self) -> np.ndarray:
        """uint8 (n, R)."""
        return self.rows.view(np.uint8).reshape(len(self.rows), -1)


def write_shard(path: Path, records: np.ndarray, about: Mapping[str, Any]) -> None:
    """Write records, uint8 (n, R), whole or not at all.

    Raises:
        EvaluationError: If there is no room or no permission; what is there already stays.
    """
    try:
        with new_file(path) as new:
            save_file(dict(records=records), new, dict(about=json.dumps(about, sort_keys=True)))
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
        n, size = header['records']['shape']
        start, stop = header['records']['data_offsets']
        fits = header['records']['dtype'] == 'U8' and start == 0 and stop == n * size and size > 0 and len(header) == 2
        if not fits or len(mapped) != 8 + length + stop:
            raise ValueError('other sizes than its header says')
        about = json.loads(header['__metadata__']['about'])
    except OSError as e:
        raise EvaluationError(f'{path} cannot be read ({reason(e)}).') from e
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise EvaluationError(f'{path} is cut short, damaged or no shard of soft labels: copy or save it again.') from e
    rows = np.frombuffer(mapped, np.dtype((np.void, size)), n, 8 + length)
    return Shard(rows, about, hashlib.sha256(mapped[: 8 + length]).hexdigest())
