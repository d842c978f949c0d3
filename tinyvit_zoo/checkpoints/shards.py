"""Checkpoints in several files, with an index that says which tensor is where, as the Hub's tools save large models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..common.errors import CheckpointError, WeightsNotFoundError
from ..common.paths import read_json
from ..common.text import first_few, reason, shown

__all__ = ['INDEX_NAMES', 'INDEX_SUFFIX', 'read_shards']

INDEX_SUFFIX = '.index.json'
INDEX_NAMES = ('model.safetensors.index.json', 'pytorch_model.bin.index.json')


def read_shards(index: Path, read_file: Callable[[Path], Any]) -> dict[str, Any]:
    """All tensors of the files of an index.

    Args:
        index: The index: 'weight_map' gives the file of each tensor, which lies beside it.
        read_file: Gives the tensors of one file by name.

    Raises:
        WeightsNotFoundError: If one of the files is missing.
        CheckpointError: If it is not an index, names files elsewhere, or the files hold other tensors than it says.
    """
    file_of = _read_index(index)
    shards = list(dict.fromkeys(file_of.values()))
    absent = [name for name in shards if not (index.parent / name).is_file()]
    if absent:
        raise WeightsNotFoundError(
            f'{index} lists files that are not beside it, {len(absent)} of {len(shards)}: {first_few(absent)}.'
        )
    tensors: dict[str, Any] = {}
    for name in shards:
        found = read_file(index.parent / name)
        listed = [key for key, file in file_of.items() if file == name]
        if not isinstance(found, dict) or found.keys() != set(listed):
            differ = found.keys() ^ set(listed) if isinstance(found, dict) else listed
            raise CheckpointError(
                f'{index.parent / name} does not hold the tensors that {index.name} lists for it: '
                f'{first_few(set(differ))}. Is it of another checkpoint?'
            )
        tensors |= found
    return {key: tensors[key] for key in file_of}


def _read_index(index: Path) -> dict[str, str]:
    try:
        content = read_json(index)
    except (OSError, ValueError) as e:
        raise CheckpointError(f'{index} is not an index of a checkpoint ({reason(e)}).') from e
    file_of = content.get('weight_map') if isinstance(content, dict) else None
    if not isinstance(file_of, dict) or not file_of or not all(isinstance(name, str) for name in file_of.values()):
        raise CheckpointError(f"{index} is not an index of a checkpoint: it has no 'weight_map' from names to files.")
    for name in file_of.values():
        if name in ('', '.', '..') or any(c in name for c in '/\\:\0') or name.endswith(INDEX_SUFFIX):
            raise CheckpointError(f"{index} lists '{shown(name)}', which is not the name of a file beside it.")
    return file_of
