"""Features on disk: one safetensors file per shard, written whole or not at all.

Every key has a folder with `key.json` (the values behind the key) and files such as `view0-00003.safetensors`. Every
process that computes a shard writes the same bytes, so it does not matter which of several concurrent runs is last.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from tinyvit_zoo.common.files import remove_leftovers, write_whole
from tinyvit_zoo.common.hashes import json_hash
from tinyvit_zoo.common.text import reason

from .shards import Shard

__all__ = ['Cache']

_logger = logging.getLogger(__name__)


class Cache:
    """Shards of one key.

    Args:
        folder: Holds the caches of all keys; made if it is missing.
        parts: Everything the features depend on, as JSON values.

    Raises:
        EvaluationError: If the folder cannot be written to.
    """

    def __init__(self, folder: str | Path, parts: Mapping[str, Any]) -> None:
        self.key = json_hash(parts)
        self.folder = Path(folder) / self.key[:32]
        text = (json.dumps(parts, indent=2, sort_keys=True) + '\n').encode()
        if not (self.folder / 'key.json').is_file() or (self.folder / 'key.json').read_bytes() != text:
            write_whole(self.folder / 'key.json', text)
        remove_leftovers(self.folder)

    def path(self, shard: Shard) -> Path:
        """The file of a shard."""
        return self.folder / f'view{shard.view}-{shard.number:05d}.safetensors'

    def read(self, shard: Shard) -> torch.Tensor | None:
        """The values (images, D) of a shard, or None if its file is missing or damaged; the log names a damaged one."""
        path = self.path(shard)
        try:
            with safe_open(path, 'pt') as file:
                values = file.get_tensor('values')
                metadata = json.loads(file.metadata()['shard'])
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as e:
            problem = reason(e)
        else:
            if metadata == self._metadata(shard, values):
                return values
            problem = 'its contents do not match its checksum'
        _logger.warning('%s is damaged (%s) and is computed again.', path, problem)
        return None

    def write(self, shard: Shard, values: torch.Tensor) -> None:
        """Write the values (images, D) of a shard.

        Raises:
            EvaluationError: If the file cannot be written.
        """
        # One entry only: safetensors keeps several in no fixed order.
        metadata = dict(shard=json.dumps(self._metadata(shard, values), sort_keys=True))
        write_whole(self.path(shard), save(dict(values=values.contiguous()), metadata))

    def _metadata(self, shard: Shard, values: torch.Tensor) -> dict[str, Any]:
        data = values.contiguous().reshape(-1).view(torch.uint8).numpy().data
        sha256 = hashlib.sha256(data).hexdigest()
        return dict(key=self.key, view=shard.view, start=shard.start, stop=shard.stop, sha256=sha256)
