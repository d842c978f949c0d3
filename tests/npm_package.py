"""Packages of npm that tests use and nobody ships, kept in the ignored folder `build/`."""

import shutil
import subprocess
import tarfile
from pathlib import Path

from filelock import FileLock

from tinyvit_zoo.common.folders import swap_in

CACHE = Path(__file__).parent.parent / 'build' / 'npm'
SECONDS = 300


def npm_package(name: str, version: str) -> Path | None:
    """The unpacked package, fetched by `npm pack` if it is not there; None where that is not possible."""
    folder = CACHE / f'{name}-{version}'
    npm = shutil.which('npm')
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / f'{name}-{version}.lock'):  # two processes of pytest may want it at once
        if folder.is_dir() or (npm is not None and _fetched(npm, f'{name}@{version}', folder)):
            return folder / 'package'
    return None


def _fetched(npm: str, package: str, folder: Path) -> bool:
    """Whether the package could be fetched; nothing is left where not. A registry out of reach ends in a minute."""
    command = [npm, 'pack', '--silent', '--fetch-retries=1', '--fetch-timeout=60000', package]
    try:
        with swap_in(folder) as new:
            subprocess.run(command, cwd=new, capture_output=True, timeout=SECONDS, check=True)
            archive_path = next(new.glob('*.tgz'))
            with tarfile.open(archive_path) as archive:
                archive.extractall(new, filter='data')
            archive_path.unlink()
    except (subprocess.SubprocessError, StopIteration):
        return False
    return True
