"""A small segmentation set in ADE20K's layout: red rectangles and blue ellipses on noise.

    root/images/{training,validation}/0000.jpg ...  root/annotations/{training,validation}/0000.png ...

In the annotations 0 is unlabelled, 1 background, 2 rectangle, 3 ellipse.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ('background', 'rectangle', 'ellipse')
PALETTE = [(90, 90, 90), (220, 40, 40), (40, 90, 230)]


def make_ade(root: Path, train: int = 8, val: int = 4, size: int = 128, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for part, count in dict(training=train, validation=val).items():
        for kind in ('images', 'annotations'):
            (root / kind / part).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image = Image.fromarray(rng.integers(0, 90, (size, size, 3), dtype=np.uint8))
            labels = Image.new('L', (size, size), 1)
            for _ in range(3):
                category = int(rng.integers(1, 3))
                w, h = (int(v) for v in rng.integers(size // 5, size // 3, 2))
                x, y = int(rng.integers(0, size - w)), int(rng.integers(0, size - h))
                color = np.array(PALETTE[category]) + rng.integers(-30, 31, 3)
                for canvas, fill in ((image, tuple(int(c) for c in color.clip(0, 255))), (labels, category + 1)):
                    draw = ImageDraw.Draw(canvas)
                    (draw.rectangle if category == 1 else draw.ellipse)([x, y, x + w, y + h], fill=fill)
            image.save(root / 'images' / part / f'{number:04d}.jpg', quality=95)
            labels.save(root / 'annotations' / part / f'{number:04d}.png')
    return root
