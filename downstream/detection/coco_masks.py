"""Masks of COCO-format annotations: read strictly, for pycocotools overwrites memory on runs that do not fit."""

from collections.abc import Sequence
from typing import Any

from pycocotools import mask as coco_mask

__all__ = ['Mask', 'area_of_mask', 'box_of_mask', 'is_number', 'read_mask']

FAR = 100  # sides of the image; pycocotools walks along outlines pixel by pixel, and ends the process at 1e8 of them
LONGEST = 30  # bits of a run's length, many more than images have

Mask = list[list[float]] | dict[str, Any]
"""Polygons, each x, y, x, y, ... of at least 3 points; or runs: `size` (height, width) and `counts`."""


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def read_mask(value: Any, size: tuple[int, int]) -> Mask:
    """The mask of an object; of several polygons those that are none are left out, as mmdet does.

    Args:
        value: What the annotation has as `segmentation`.
        size: (width, height) of the image.

    Raises:
        ValueError: If nothing is left. The message continues a sentence: 'has an empty mask'.
    """
    if not value:
        raise ValueError('has an empty mask')
    if isinstance(value, dict):
        return _read_runs(value, size)
    if not isinstance(value, list):
        raise ValueError('has a mask that is neither polygons nor runs')
    polygons = [value] if is_number(value[0]) else value
    kept = [polygon for polygon in polygons if _is_polygon(polygon)]
    if not kept:
        raise ValueError(_wrong_polygon(polygons[0]))
    _check_place(kept, size)
    return kept


def _is_polygon(value: Any) -> bool:
    if not isinstance(value, list) or len(value) < 6 or len(value) % 2:
        return False
    try:
        return abs(sum(value)) < 1e300  # not so with NaN
    except (TypeError, OverflowError):
        return False


def _wrong_polygon(value: Any) -> str:
    if isinstance(value, list) and all(is_number(v) for v in value):
        return f'has a polygon of {len(value)} numbers as its mask, and x, y of at least 3 points make one'
    return 'has a mask with something else than numbers in its polygons'


def _check_place(polygons: list[list[float]], size: tuple[int, int]) -> None:
    left, top, right, bottom = _extent(polygons)
    if left >= size[0] or top >= size[1] or right <= 0 or bottom <= 0:
        raise ValueError(f'has its mask outside its image of {size[0]}x{size[1]} pixels')
    farthest = max(-left, -top, right, bottom)
    if farthest > FAR * max(size):
        raise ValueError(f'has its mask {farthest:g} pixels away from its image of {size[0]}x{size[1]}')


def _extent(polygons: list[list[float]]) -> tuple[float, float, float, float]:
    xs, ys = [polygon[::2] for polygon in polygons], [polygon[1::2] for polygon in polygons]
    return min(map(min, xs)), min(map(min, ys)), max(map(max, xs)), max(map(max, ys))


def _read_runs(value: dict[str, Any], size: tuple[int, int]) -> Mask:
    width, height = size
    if value.get('size') != [height, width]:
        raise ValueError(f'has a mask of size {value.get("size")}, and its image has [{height}, {width}]')
    counts = value.get('counts')
    runs: list[int] = _decompressed(counts) if isinstance(counts, str) else counts if isinstance(counts, list) else []
    if not all(type(run) is int and run >= 0 for run in runs) or sum(runs) != height * width:
        raise ValueError(f'has a mask whose runs are damaged: they do not add up to {height * width} pixels')
    if not any(runs[1::2]):  # the first run is outside the object
        raise ValueError('has an empty mask')
    return dict(value, size=[height, width])


def _decompressed(text: str) -> list[int]:
    """Lengths of the runs that COCO's compressed text holds; too few where it is damaged.

    5 bits a character, the lowest first, the sixth saying that more follow; from the third run on the difference to
    the run before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return []
        value |= (bits & 31) << shift
        shift += 5
        if shift > 2 * LONGEST:
            return []
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs if not shift else []


def area_of_mask(mask: Mask, size: tuple[int, int]) -> float:
    """Its pixels, in an image of (width, height), as COCO counts them."""
    return float(coco_mask.area(_packed(mask, size)))


def box_of_mask(mask: Mask, size: tuple[int, int]) -> list[float]:
    """Left, top, width, height of a mask, in an image of (width, height)."""
    if isinstance(mask, list):
        left, top, right, bottom = _extent(mask)
        return [left, top, right - left, bottom - top]
    return [float(v) for v in coco_mask.toBbox(_packed(mask, size))]


def _packed(mask: Mask, size: Sequence[int]) -> dict[str, Any]:
    width, height = size
    if isinstance(mask, list):
        return coco_mask.merge(coco_mask.frPyObjects(mask, height, width))
    return mask if isinstance(mask['counts'], str) else coco_mask.frPyObjects(mask, height, width)
