"""Packages of npm that tests use and nobody ships, kept in the ignored folder `build/`."""

import shutil
import subprocess
import tarfile
from pathlib import Path

from tinyvit_zoo.common.folders import swap_in

CACHE = Path(__file__).parent.parent / 'build' / 'npm'


def npm_package(name: str, version: str) -> Path | None:
    """The unpacked package, fetched by `npm pack` if it is not there; None where that is not possible."""
    folder = CACHE / f'{name}-{version}'
    if not folder.is_dir():
        npm = shutil.which('npm')
        if npm is None:
            return None
        with swap_in(folder) as new:
            done = subprocess.run(
                [npm, 'pack', '--silent', f'{name}@{version}'], cwd=new, capture_output=True, timeout=300, check=False
            )
            archives = list(new.glob('*.tgz'))
            if done.returncode == 0 and archives:
                with tarfile.open(archives[0]) as archive:
                    archive.extractall(new, filter='data')
                archives[0].unlink()
        if not (folder / 'package').is_dir():
            shutil.rmtree(folder)
            return None
    return folder / 'package'
