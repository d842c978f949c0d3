"""What files should be: the sha256 list of a page, and the sha256 that the Hub itself gives for a large file."""

import hashlib
import json
import re
from pathlib import Path, PurePosixPath

from .errors import CheckpointError

__all__ = ['MANIFEST', 'check_download', 'file_sha256', 'read_manifest']

MANIFEST = 'manifest.json'

SHA256 = re.compile('[0-9a-f]{64}')


def file_sha256(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open('rb') as f:
        return hashlib.file_digest(f, 'sha256').hexdigest()


def read_manifest(path: Path) -> dict[str, str]:
    """sha256 of every file of a page by its path there, as `tinyvit-zoo pack` wrote it.

    Raises:
        CheckpointError: If it is no such list, or names files outside its folder.
    """
    try:
        files = json.loads(path.read_text())['sha256']
        readable = all(SHA256.fullmatch(sha256) and _inside(name) for name, sha256 in files.items())
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise CheckpointError(f'{path} is no list of files with their sha256.') from e
    if not readable:
        raise CheckpointError(f'{path} lists what is no file of its folder, or no sha256.')
    return files


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and '..' not in path.parts and '\\' not in name


def check_download(path: Path) -> None:
    """Compare a large file in the Hub's cache with the sha256 that the Hub gave for it; the client compares lengths.

    The cache calls such a file by that sha256. Small files have names of another kind and are passed over.

    Args:
        path: In the cache, as `hf_hub_download` returned it.

    Raises:
        CheckpointError: If it differs. It is removed from the cache then.
    """
    blob = path.resolve()
    if not SHA256.fullmatch(blob.name) or file_sha256(blob) == blob.name:
        return
    for file in (path, blob):
        file.unlink(missing_ok=True)
    raise CheckpointError(
        f'{path.name} arrived with another sha256 than the Hub gives for it. It was removed from the cache; '
        'the next call downloads it again.'
    )
