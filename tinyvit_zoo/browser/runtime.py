"""onnxruntime-web for the page: three files of its npm package, and its license."""

import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..common.errors import ModelError
from ..common.paths import user_path

__all__ = ['FILES', 'LICENSE', 'PACKAGE', 'copy_runtime', 'packed_by_npm']

PACKAGE = 'onnxruntime-web@1.30.0'
"""The version that the page was tried with."""
FILES = ('ort.wasm.bundle.min.mjs', 'ort-wasm-simd-threaded.mjs', 'ort-wasm-simd-threaded.wasm')
LICENSE = """onnxruntime-web

MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""
"""The npm package says 'MIT' and holds no text of it."""
SECONDS = 300


def copy_runtime(package: str | Path, folder: Path) -> str:
    """Copy the files and the license of an unpacked npm package into a new folder.

    Args:
        package: Folder with the package.json of onnxruntime-web.
        folder: Is made.

    Returns:
        The version of the package.

    Raises:
        ModelError: If the package is another one, or lacks a file.
        OSError: If a file cannot be copied.
    """
    package = user_path(package)
    try:
        facts = json.loads((package / 'package.json').read_text(encoding='utf-8'))
        name, version = facts['name'], str(facts['version'])
    except (OSError, ValueError, KeyError, TypeError):
        name, version = '', ''
    missing = [file for file in FILES if not (package / 'dist' / file).is_file()]
    if name != 'onnxruntime-web' or missing:
        raise ModelError(
            f'{package} is not an unpacked npm package onnxruntime-web with dist/{(missing or FILES)[0]}: unpack what '
            f'`npm pack {PACKAGE}` fetches and give its folder `package`, or let --npm do it.'
        )
    folder.mkdir()
    for file in FILES:
        shutil.copyfile(package / 'dist' / file, folder / file)
    (folder / 'LICENSE.txt').write_text(LICENSE, encoding='utf-8')
    return version


@contextmanager
def packed_by_npm() -> Iterator[Path]:
    """A temporary folder with the package as `npm pack` fetches it, unpacked.

    Raises:
        ModelError: If npm is missing or cannot fetch it.
    """
    npm = shutil.which('npm')
    if npm is None:
        raise ModelError('--npm needs npm, which is not installed: give the unpacked package by --runtime instead.')
    with tempfile.TemporaryDirectory() as temporary:
        try:
            command = [npm, 'pack', '--silent', PACKAGE]
            done = subprocess.run(command, cwd=temporary, capture_output=True, text=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired as e:
            raise ModelError(f'npm did not fetch {PACKAGE} within {SECONDS} s: try again, or use --runtime.') from e
        archives = list(Path(temporary).glob('*.tgz'))
        if done.returncode or not archives:
            words = (done.stderr.strip().splitlines() or ['it gave no reason'])[0]
            raise ModelError(f'npm cannot fetch {PACKAGE} ({words}): give the unpacked package by --runtime instead.')
        with tarfile.open(archives[0]) as archive:
            archive.extractall(temporary, filter='data')
        yield Path(temporary) / 'package'
