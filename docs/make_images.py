"""Make the thumbnails of the README again, by the commands that stand beside them: `python docs/make_images.py`.

It takes about nine minutes on a CPU and needs the extra `dev`. The detector is trained first, on 8 images of shapes
that the tests make; everything else comes from the demo and from random weights, as the README says.
"""

import re
import sys
import tempfile
import textwrap
from pathlib import Path

from command_images import font, run, write_small
from PIL import Image, ImageDraw

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
WIDTH = 560  # twice what the README shows
COLORS = 64
MOST_BYTES = 40_000
# Name of a thumbnail -> the file that its command writes. The others show what their command prints.
WRITTEN = {
    'demo': 'demo_output/contact_sheet.png',
    'finetune': 'finetuned/accuracy.png',
    'distill': 'distilled/loss.png',
    'pretrain': 'pretrained/loss.png',
    'fewshot': 'few_shot/accuracy.png',
    'compare': 'compared/differences.png',
    'detect': 'drawn/0001.png',
}
COLUMNS, ROWS = 55, 12  # of a terminal

sys.path.insert(0, str(ROOT / 'tests'))
from synthetic_coco import make_shapes  # noqa: E402


def commands() -> dict[str, list[str]]:
    """Name of each thumbnail -> the commands in its row of the README; the thumbnail is that of the last one."""
    rows = re.findall(r'^\| (.*) \| <img src="docs/images/(\w+)\.png"', (ROOT / 'README.md').read_text(), re.MULTILINE)
    return {name: re.findall('`(tinyvit-zoo [^`]+)`', row) for row, name in rows}


def train_detector(folder: Path) -> tuple[str, str, str]:
    """Train the small Mask R-CNN of the tests; return what stands for CONFIG.py, CHECKPOINT.pth and images."""
    make_shapes(folder / 'shapes')
    name = 'ci_cascade_mask_rcnn_tinyvit_5m'
    annotations = '--train-annotations train.json --validation-annotations val.json'
    run(f'tinyvit-zoo detect train {name} --data shapes {annotations} --work-dir run', folder)
    last = (folder / 'run' / 'last_checkpoint').read_text()  # mmengine writes its path
    return f'run/{name}.py', last, 'shapes/val'


def draw_text(text: str) -> Image.Image:
    """What a terminal shows, cut to a few short lines."""
    lines = [line for text in text.rstrip().splitlines() for line in textwrap.wrap(text, COLUMNS) or ['']][:ROWS]
    image = Image.new('RGB', (WIDTH, 24 + 21 * len(lines)), '#0d1117')
    for i, line in enumerate(lines):
        ImageDraw.Draw(image).text((12, 10 + 21 * i), line, fill='#e6edf3', font=font('DejaVuSansMono.ttf', 16))
    return image


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, row in commands().items():
            if name == 'detect':
                names = zip(('CONFIG.py', 'CHECKPOINT.pth', 'images'), train_detector(folder), strict=True)
                for placeholder, real in names:
                    row = [command.replace(placeholder, real) for command in row]
            printed = [run(command, folder) for command in row][-1]
            make(name, f'$ {row[-1]}\n{printed}', folder)


def make(name: str, shown: str, folder: Path) -> None:
    """Write a thumbnail: of the file that the command wrote, or of what the terminal shows."""
    image = Image.open(folder / WRITTEN[name]).convert('RGB') if name in WRITTEN else draw_text(shown)
    write_small(image, DOCS / 'images' / f'{name}.png', width=WIDTH, colors=COLORS, most_bytes=MOST_BYTES)


if __name__ == '__main__':
    main()
