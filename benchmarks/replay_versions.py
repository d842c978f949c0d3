"""sha1 of a fixed set of views, to be compared between versions of NumPy, Pillow, torch and timm, and between machines.

Stored labels are worth something only where the same numbers give the same views. Each line is one step, so that a
difference says where it arises: tables, parameters, images of pixels in memory, files that Pillow decodes, tensors,
and the draws and images of official seeds, which need streams of NumPy that it does not promise.

    python benchmarks/replay_versions.py [--views 2000] [--compare FILE] [--json FILE]
"""

import argparse
import hashlib
import io
import json
import platform
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import PIL
import timm
import torch
from PIL import Image

from tinyvit_zoo.common.exact_tables import geometric, normal_quantiles
from tinyvit_zoo.data.rand_augment import OPERATIONS
from tinyvit_zoo.data.replay import Erasing, RandAugment, ViewSpec, draw_views, make_image, to_tensor
from tinyvit_zoo.soft_labels.official_views import draw_official_view, official_spec, official_tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPEC = ViewSpec(
    (96, 96),
    rand_augment=RandAugment(operations=tuple(OPERATIONS), layers=2, probability=0.8),
    color_jitter=(0.4, 0.4, 0.4, 0.1),
    erasing=Erasing(0.5, count=2),
)
SIZES = ((120, 160), (160, 120), (90, 200), (33, 47), (1, 50))


def sha1(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha1()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def picture(number: int) -> Image.Image:
    """Shapes and noise, from integers alone."""
    height, width = SIZES[number % len(SIZES)]
    y, x = np.mgrid[:height, :width]
    noise = (x * 7919 + y * 104729 + number * 31) ** 2 // 64 % 64
    channels = [(x * 2 + number) % 192, (y * 3 + x * x // 50) % 192, ((x - y) * number // 3) % 192]
    return Image.fromarray(np.stack([channel + noise for channel in channels], axis=-1).astype(np.uint8))


def photographs() -> list[Image.Image]:
    """Photographs of scikit-learn's and scikit-image's wheels, as Pillow decodes them; none without the wheels."""
    places = (('sklearn', 'datasets/images/china.jpg'), ('skimage', 'data/rocket.jpg'), ('skimage', 'data/coffee.png'))
    found = [(spec.origin, file) for package, file in places if (spec := find_spec(package)) and spec.origin]
    paths = [Path(origin).parent / file for origin, file in found]
    return [Image.open(io.BytesIO(path.read_bytes())).convert('RGB') for path in paths if path.is_file()]


def lines(views: int) -> Iterator[tuple[str, str]]:
    pictures, photos = [picture(i) for i in range(len(SIZES) * 3)], photographs()
    drawn = draw_views(SPEC, 5, 1, range(views), [(p.height, p.width) for p in (pictures * views)[:views]])
    yield 'tables', sha1(table.tobytes() for table in (normal_quantiles(), geometric(3 / 4, 4 / 3)))
    yield 'parameters', sha1(json.dumps(view.record()).encode() for view in drawn)
    images = [make_image(pictures[i % len(pictures)], view, SPEC) for i, view in enumerate(drawn)]
    yield 'images', sha1(image.tobytes() for image in images)
    yield (
        'tensors',
        sha1(
            to_tensor(image, view, SPEC, MEAN, STD).numpy().tobytes() for image, view in zip(images, drawn, strict=True)
        ),
    )
    for name in OPERATIONS:
        chosen = [image for image, view in zip(images, drawn, strict=True) if name in dict(view.operations)]
        yield f'images with {name}', sha1(image.tobytes() for image in chosen)
    yield f'{len(photos)} decoded files', sha1(photo.tobytes() for photo in photos)
    of_photos = draw_views(SPEC, 6, 0, range(len(photos)), [(p.height, p.width) for p in photos])
    yield (
        'views of decoded files',
        sha1(make_image(photo, view, SPEC).tobytes() for photo, view in zip(photos, of_photos, strict=True)),
    )
    spec = official_spec()
    official = [draw_official_view(seed, SIZES[0], spec) for seed in range(min(views, 300))]
    yield 'official draws', sha1(repr([(name, _plain(x)) for name, x in o.draws]).encode() for o in official)
    yield (
        'official tensors',
        sha1(official_tensor(pictures[0], o, spec, MEAN, STD).numpy().tobytes() for o in official[:100]),
    )


def _plain(value: object) -> object:
    return float(value) if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--views', type=int, default=2000)
    parser.add_argument('--json', type=Path, help='keep the lines in this file')
    parser.add_argument('--compare', type=Path, help='a file of --json, of the same number of views')
    args = parser.parse_args()
    versions = ', '.join(
        f'{name} {version}'
        for name, version in (
            ('Python', platform.python_version()),
            ('NumPy', np.__version__),
            ('Pillow', PIL.__version__),
            ('torch', torch.__version__),
            ('timm', timm.__version__),
        )
    )
    print(f'{platform.machine()}, {versions}, {args.views} views')
    found = dict(lines(args.views))
    before = json.loads(args.compare.read_text()) if args.compare else found
    for name, value in found.items():
        print(f'{value}  {name}' + ('' if before.get(name) == value else '   DIFFERENT'))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2))
    if before != found:
        raise SystemExit(1)


if __name__ == '__main__':
    main()
