"""Two small instance segmentation sets in COCO's format, made in a second: shapes on noise, and blobs cut from photos.

    root/train.json  root/train/0001.png ...  root/val.json  root/val/0001.png ...

The images of train and val are drawn independently; the blobs of val are cut from parts of the photographs that no
blob of train shows.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ('rectangle', 'circle')
TEXTURES = {'retina': 'retina.jpg', 'galaxies': 'hubble_deep_field.jpg'}
BACKGROUNDS = ('grass.png', 'gravel.png')
INSIDE = 0.2  # of each side of a photograph is left out: the retina is round, on black
TRAIN_SHARE = 0.6  # of the width of each photograph

Polygon = np.ndarray  # (points, 2) of x, y
Canvas = Image.Image


def make_shapes(root: Path, train: int = 8, val: int = 4, size: int = 256, seed: int = 0) -> Path:
    """Rectangles and circles, each of a color that varies, on noise."""

    def paint(image: Canvas, polygon: Polygon, category: int, rng: np.random.Generator, part: str) -> None:
        color = np.array([(210, 60, 50), (50, 90, 215)][category]) + rng.integers(-35, 36, 3)
        ImageDraw.Draw(image).polygon([tuple(p) for p in polygon], fill=tuple(int(c) for c in color.clip(0, 255)))

    def background(rng: np.random.Generator, part: str) -> Canvas:
        return Image.fromarray(rng.integers(0, 90, (size, size, 3), dtype=np.uint8))

    def outline(rng: np.random.Generator, category: int) -> Polygon:
        w, h = rng.integers(size // 5, size // 3, 2)
        if category == 0:
            return np.array([(0, 0), (w, 0), (w, h), (0, h)], dtype=float)
        angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        return w / 2 * (1 + np.stack([np.cos(angle), np.sin(angle)], axis=1))

    return _write(root, SHAPES, dict(train=train, val=val), size, seed, background, outline, paint)


def make_textured(root: Path, train: int = 8, val: int = 4, size: int = 256, seed: int = 0) -> Path:
    """Blobs of a retina and of the sky between galaxies, on grass and gravel: distinguished only by their content."""
    import skimage

    folder = Path(skimage.__file__).parent / 'data'
    photos = {name: _middle(Image.open(folder / name).convert('RGB')) for name in (*TEXTURES.values(), *BACKGROUNDS)}

    def cut(name: str, w: int, h: int, rng: np.random.Generator, part: str) -> Canvas:
        photo = photos[name]
        middle = int(TRAIN_SHARE * photo.width)
        first, last = (0, middle) if part == 'train' else (middle, photo.width)
        w, h = min(w, last - first), min(h, photo.height)
        x, y = rng.integers(first, last - w + 1), rng.integers(0, photo.height - h + 1)
        return photo.crop((int(x), int(y), int(x) + w, int(y) + h))

    def background(rng: np.random.Generator, part: str) -> Canvas:
        side = size // 2  # they are small, and gravel need not be sharp
        return cut(BACKGROUNDS[rng.integers(len(BACKGROUNDS))], side, side, rng, part).resize((size, size))

    def outline(rng: np.random.Generator, category: int) -> Polygon:
        angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        a, b = rng.uniform(size / 9, size / 6, 2)
        bumps = 1 + 0.2 * np.sin(rng.integers(2, 5) * angle + rng.uniform(0, 6))
        polygon = np.stack([a * bumps * np.cos(angle), b * bumps * np.sin(angle)], axis=1)
        return polygon - polygon.min(axis=0)

    def paint(image: Canvas, polygon: Polygon, category: int, rng: np.random.Generator, part: str) -> None:
        left, top = (int(v) for v in polygon.min(axis=0))
        w, h = (int(v) + 2 for v in polygon.max(axis=0) - polygon.min(axis=0))
        patch = cut(list(TEXTURES.values())[category], w, h, rng, part).resize((w, h))
        mask = Image.new('L', (w, h))
        ImageDraw.Draw(mask).polygon([(x - left, y - top) for x, y in polygon], fill=255)
        image.paste(patch, (left, top), mask)

    return _write(root, tuple(TEXTURES), dict(train=train, val=val), size, seed, background, outline, paint)


def _middle(photo: Canvas) -> Canvas:
    x, y = (int(INSIDE * side) for side in photo.size)
    return photo.crop((x, y, photo.width - x, photo.height - y))


def _write(
    root: Path,
    classes: tuple[str, ...],
    counts: dict[str, int],
    size: int,
    seed: int,
    background: Callable,
    outline: Callable,
    paint: Callable,
) -> Path:
    """Two or three objects per image that overlap by at most a tenth of the smaller one."""
    rng = np.random.default_rng(seed)
    for part, count in counts.items():
        (root / part).mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for number in range(1, count + 1):
            image, boxes = background(rng, part), []
            for _ in range(rng.integers(2, 4)):
                category = int(rng.integers(len(classes)))
                polygon = outline(rng, category)
                if (placed := _place(polygon, boxes, size, rng)) is None:
                    continue
                paint(image, placed, category, rng, part)
                (x0, y0), (x1, y1) = placed.min(axis=0), placed.max(axis=0)
                boxes.append((x0, y0, x1, y1))
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=number,
                        category_id=category + 1,
                        bbox=[float(v) for v in (x0, y0, x1 - x0, y1 - y0)],
                        area=_area(placed),
                        iscrowd=0,
                        segmentation=[[round(float(v), 2) for v in placed.reshape(-1)]],
                    )
                )
            image.save(root / part / f'{number:04d}.png')
            images.append(dict(id=number, file_name=f'{number:04d}.png', width=size, height=size))
        categories = [dict(id=i, name=name) for i, name in enumerate(classes, 1)]
        content = dict(info={}, licenses=[], images=images, annotations=annotations, categories=categories)
        (root / f'{part}.json').write_text(json.dumps(content))
    return root


def _place(
    polygon: Polygon, boxes: list[tuple[float, ...]], size: int, rng: np.random.Generator, attempts: int = 20
) -> Polygon | None:
    w, h = polygon.max(axis=0)
    for _ in range(attempts):
        x, y = rng.integers(0, size - int(w) - 1), rng.integers(0, size - int(h) - 1)
        if all(_overlap((x, y, x + w, y + h), box) < 0.1 for box in boxes):
            return polygon + np.array((x, y))
    return None


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(w, 0) * max(h, 0) / smaller


def _area(polygon: Polygon) -> float:
    x, y = polygon.T
    return float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2)
