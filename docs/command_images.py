"""What scripts share that make images of the documentation: running commands, and small files."""

import shlex
import subprocess
import sys
from pathlib import Path

import matplotlib
from PIL import Image, ImageFont

__all__ = ['font', 'run', 'write_small']


def run(command: str, folder: Path) -> str:
    """Run a command of `tinyvit-zoo` in a folder; return what it prints."""
    print(command, flush=True)
    words = [sys.executable, '-m', 'tinyvit_zoo.cli', *shlex.split(command)[1:]]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout.replace(f'{folder}/', '')


def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """One of matplotlib's own fonts, which every machine has."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / 'fonts' / 'ttf' / name), size)


def write_small(image: Image.Image, target: Path, *, width: int, colors: int | None, most_bytes: int) -> None:
    """Write a PNG of few colors, or of all: noise does not compress, so it gets narrower until it is small enough."""
    while True:
        small = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
        if colors is not None:
            small = small.quantize(colors, dither=Image.Dither.NONE)
        small.save(target, optimize=True)
        if target.stat().st_size < most_bytes:
            return
        width = int(0.9 * width)
