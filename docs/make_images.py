"""Make the thumbnails of the README again, by the commands that stand beside them: `python docs/make_images.py`.

It takes about six minutes on a CPU and needs the extra `dev`. The detector is trained first, on 8 images of shapes that
the tests make; everything else comes from the demo and from random weights, as the README says.
"""

import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
WIDTH = 560  # twice what the README shows
COLORS = 64
# Name of a thumbnail -> the file that its command writes. The others show what their command prints.
WRITTEN = {
    'demo': 'demo_output/contact_sheet.png',
    'finetune': 'finetuned/history.png',
    'fewshot': 'few_shot/accuracy.png',
    'compare': 'compared/differences.png',
    'detect': 'drawn/0001.png',
}
COLUMNS, ROWS = 56, 12

sys.path.insert(0, str(ROOT / 'tests'))
from synthetic_coco import make_shapes  # noqa: E402


def commands() -> dict[str, str]:
    """Name of each thumbnail -> the command in its row of the README."""
    rows = re.findall(r'`(tinyvit-zoo [^`]+)` \| <img src="docs/images/(\w+)\.png"', (ROOT / 'README.md').read_text())
    return {name: command for command, name in rows}


def run(command: str, folder: Path) -> str:
    """Run a command of `tinyvit-zoo` in a folder; return what it prints."""
    print(command, flush=True)
    words = [sys.executable, '-m', 'tinyvit_zoo.cli', *shlex.split(command)[1:]]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def train_detector(folder: Path) -> tuple[str, str, str]:
    """Train the small Mask R-CNN of the tests; return what stands for CONFIG.py, CHECKPOINT.pth and images."""
    make_shapes(folder / 'shapes')
    name = 'ci_cascade_mask_rcnn_tinyvit_5m'
    annotations = '--train-annotations train.json --validation-annotations val.json'
    run(f'tinyvit-zoo detect train {name} --data shapes {annotations} --work-dir run', folder)
    (checkpoint,) = (folder / 'run').glob('iter_*.pth')
    return f'run/{name}.py', f'run/{checkpoint.name}', 'shapes/val'


def draw_text(text: str) -> Image.Image:
    """What a terminal shows, cut to a few short lines."""
    font_file = Path(matplotlib.get_data_path()) / 'fonts' / 'ttf' / 'DejaVuSansMono.ttf'
    font = ImageFont.truetype(str(font_file), 15)
    lines = [line if len(line) <= COLUMNS else line[: COLUMNS - 1] + '…' for line in text.rstrip().splitlines()[:ROWS]]
    image = Image.new('RGB', (WIDTH, 24 + 20 * len(lines)), '#0d1117')
    for i, line in enumerate(lines):
        ImageDraw.Draw(image).text((12, 10 + 20 * i), line, fill='#e6edf3', font=font)
    return image


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, command in commands().items():
            if name == 'detect':
                for placeholder, real in zip(
                    ('CONFIG.py', 'CHECKPOINT.pth', 'images'), train_detector(folder), strict=True
                ):
                    command = command.replace(placeholder, real)
            printed = run(command, folder)
            image = Image.open(folder / WRITTEN[name]).convert('RGB') if name in WRITTEN else draw_text(printed)
            image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
            image.quantize(COLORS, dither=Image.Dither.NONE).save(DOCS / 'images' / f'{name}.png', optimize=True)


if __name__ == '__main__':
    main()
