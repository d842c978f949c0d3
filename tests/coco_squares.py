"""A COCO-format file and its images: one square a class in each image; entries are as a test wants them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = 64
COLORS = ((220, 40, 40), (40, 200, 60), (50, 70, 230), (220, 210, 40))


def make_squares(
    path: Path,
    names: Sequence[str] = ('a', 'b', 'c'),
    ids: dict[str, Any] | None = None,
    listed: Sequence[str] | None = None,
    change: Callable[[dict], object] | None = None,
) -> dict[str, Any]:
    """Write the file and two images beside it. Returns what it says.

    Args:
        path: The file.
        names: Of up to four classes.
        ids: Of the categories, by name; by default from 1 on.
        listed: Names in the order in which the file lists them.
        change: Changes the content before it is written.
    """
    ids = ids or {name: i for i, name in enumerate(names, 1)}
    content = dict(images=[], annotations=[], categories=[dict(id=ids[name], name=name) for name in listed or names])
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in (1, 2):
        pixels = np.random.default_rng(number).integers(90, 150, (SIZE, SIZE, 3)).astype(np.uint8)
        file = f'{path.stem}_{number}.png'
        content['images'].append(dict(id=number, file_name=file, width=SIZE, height=SIZE))
        for i, name in enumerate(names):
            x, y, side = i % 2 * 32 + 3, i // 2 * 32 + 3, 26 - number
            pixels[y : y + side, x : x + side] = COLORS[i]
            entry = dict(id=len(content['annotations']) + 1, image_id=number, category_id=ids[name], iscrowd=0)
            polygon = [x, y, x + side, y, x + side, y + side, x, y + side]
            content['annotations'].append(
                dict(entry, bbox=[x, y, side, side], area=side * side, segmentation=[polygon])
            )
        Image.fromarray(pixels).save(path.parent / file)
    if change:
        change(content)
    path.write_text(json.dumps(content))
    return content
