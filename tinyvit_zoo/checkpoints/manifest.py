"""Checksums: the sha256 list of a page, and the sha256 that the Hub itself gives for a large file."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from ..common.errors import CheckpointError
from ..common.paths import read_json

__all__ = ['MANIFEST', 'check_download', 'check_listed', 'file_sha256', 'read_manifest']

MANIFEST = 'manifest.json'

SHA256 = re.compile('[0-9a-f]{64}')


def file_sha256(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open('rb') as f:
        return hashlib.file_digest(f, 'sha256').hexdigest()


def read_manifest(path: Path, downloaded: bool = False) -> dict[str, str]:
    """sha256 of every file of a page by its path there, as `tinyvit-zoo pack` wrote it.

    Args:
        path: The manifest.
        downloaded: It is in the Hub's cache, and is removed from there if it cannot be read.

    Raises:
        CheckpointError: If it is not such a list, or names files outside its folder.
    """
    try:
        files = read_json(path)['sha256']
        readable = all(SHA256.fullmatch(sha256) and _inside(name) for name, sha256 in files.items())
    except (ValueError, KeyError, TypeError, AttributeError):
        readable = False
    if not readable:
        if downloaded:
            _forget(path)
        raise CheckpointError(f'{path} is not a list of the files of its folder with their sha256.')
    return files


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and '..' not in path.parts and '\\' not in name


def check_download(path: Path) -> None:
    """Compare a large file in the Hub's cache with the sha256 that the Hub gave; the client compares only lengths.

    In the cache, the name of such a file is that sha256. Small files have names of another kind and are skipped.

    Args:
        path: In the cache, as `hf_hub_download` returned it.

    Raises:
        CheckpointError: If it differs; it is then removed from the cache.
    """
    blob = path.resolve()
    if not SHA256.fullmatch(blob.name) or file_sha256(blob) == blob.name:
        return
    _forget(path)
    raise CheckpointError(
        f'{path.name} arrived with another sha256 than the Hub gives for it. It was removed from the cache; '
        'the next call downloads it again.'
    )


def check_listed(folder: Path, listed: Mapping[str, str], downloaded: bool = False) -> None:
    """Compare files with the sha256 that the manifest of their page gives.

    Args:
        folder: The page, or its copy in the Hub's cache.
        listed: sha256 by path, of the files to compare.
        downloaded: The folder is a copy in the cache: a file that differs is removed from it together with the
            manifest, since either may have been damaged on the way.

    Raises:
        CheckpointError: If one is missing or differs.
    """
    for name, sha256 in listed.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f'{path} is missing: {MANIFEST} lists it.')
        if file_sha256(path) == sha256:
            continue
        if not downloaded:
            raise CheckpointError(
                f'{path} is not the file that {MANIFEST} lists: its sha256 differs. If you changed it on purpose, '
                '`tinyvit-zoo pack` the folder again.'
            )
        for file in (path, folder / MANIFEST):
            _forget(file)
        raise CheckpointError(
            f'{name} does not have the sha256 that the {MANIFEST} of its page lists. Both were removed from the cache; '
            'the next call downloads them again.'
        )


def _forget(path: Path) -> None:
    """Remove a file from the Hub's cache, where it is a link to a blob."""
    blob = path.resolve()
    for file in (path, blob):
        file.unlink(missing_ok=True)
