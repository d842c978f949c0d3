"""Features on disk: one safetensors file a shard, there whole or not at all.

A folder a key, in it `key.json` (what the key stands for) and files such as `view0-00003.safetensors`. Every process
that computes a shard writes the same bytes, so it does not matter which of several runs at once is the last.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from tinyvit_zoo.common.files import remove_leftovers, write_whole

__all__ = ['Cache', 'Shard', 'key_of']

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard:
    """Images `start` to `stop` (excluded), by their position in the data set, in one view."""

    view: int
    number: int
    start: int
    stop: int

    @property
    def file_name(self) -> str:
        return f'view{self.view}-{self.number:05d}.safetensors'


def key_of(parts: Mapping[str, Any]) -> str:
    """sha256 (hex) of JSON-able values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Cache:
    """Shards of one key.

    Args:
        folder: Holds the caches of all keys; made if it is not there.
        parts: What the features depend on, JSON-able.

    Raises:
        EvaluationError: If the folder cannot be written to.
    """

    def __init__(self, folder: str | Path, parts: Mapping[str, Any]) -> None:
        self.key = key_of(parts)
        self.folder = Path(folder) / self.key[:32]
        explained = (json.dumps(parts, indent=2, sort_keys=True) + '\n').encode()
        if not (self.folder / 'key.json').is_file() or (self.folder / 'key.json').read_bytes() != explained:
            write_whole(self.folder / 'key.json', explained)
        remove_leftovers(self.folder)

    def read(self, shard: Shard) -> torch.Tensor | None:
        """Its values (images, D), or None if it is not there or damaged."""
        path = self.folder / shard.file_name
        try:
            with safe_open(path, 'pt') as file:
                values = file.get_tensor('values')
                metadata = json.loads(file.metadata()['shard'])
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as e:
            return _damaged(path, e)
        if metadata != self._metadata(shard, values):
            return _damaged(path, 'its contents do not match its checksum')
        return values

    def write(self, shard: Shard, values: torch.Tensor) -> None:
        """Raises: EvaluationError: If there is no room."""
        # One entry only: safetensors keeps several in no fixed order.
        metadata = dict(shard=json.dumps(self._metadata(shard, values), sort_keys=True))
        write_whole(self.folder / shard.file_name, save(dict(values=values.contiguous()), metadata))

    def _metadata(self, shard: Shard, values: torch.Tensor) -> dict[str, Any]:
        data = values.contiguous().reshape(-1).view(torch.uint8).numpy()
        sha256 = hashlib.sha256(data).hexdigest()
        return dict(key=self.key, view=shard.view, start=shard.start, stop=shard.stop, sha256=sha256)


def _damaged(path: Path, reason: object) -> None:
    _logger.warning('%s is damaged (%s) and computed again.', path, ' '.join(str(reason).split()))
