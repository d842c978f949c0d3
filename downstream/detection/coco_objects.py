"""One object of a COCO-format file: its box, area and mask are checked, and derived from each other where missing."""

from typing import Any

from tinyvit_zoo.common.errors import EvaluationError

from .coco_masks import Mask, area_of_mask, box_of_mask, is_number, read_mask

__all__ = ['complete_object']


def complete_object(found: dict[str, Any], size: tuple[int, int], masks: bool, where: str) -> str:
    """Give an annotation the keys that mmdet and pycocotools take for granted.

    Args:
        found: The annotation, changed in place.
        size: (width, height) of its image.
        masks: It needs a mask.
        where: Names it: the start of a sentence.

    Returns:
        A sentence if it must be left out, as it has no extent; else ''.

    Raises:
        EvaluationError: If something is wrong with it.
    """
    found['iscrowd'] = _flag(found.get('iscrowd'), 'iscrowd', where)
    if 'ignore' in found:
        found['ignore'] = _flag(found['ignore'], 'ignore', where)  # mmdet takes '0' for true
    mask, fault = _mask_of(found, size)
    box = _box_of(found, where)
    if mask is not None and (box is None or min(box[2:]) == 0):
        box = box_of_mask(mask, size)
    if box is None:
        raise EvaluationError(f'{where} has neither a box nor a mask that can be read: correct or delete it.')
    found['bbox'] = box
    if min(box[2:]) == 0:
        return f'{where} has a box of {box[2]:g}x{box[3]:g} pixels and is left out.'
    _check_place(box, size, where)
    if mask is not None:
        found['segmentation'] = mask
    else:
        found.pop('segmentation', None)
        if masks and (found.get('ignore') or min(box[2:]) < 1):  # mmdet does not train on these
            return f'{where} {fault} and a box that mmdet ignores, so it is left out.'
        if masks:
            raise EvaluationError(f'{where} {fault}: delete it, or train a detector without masks (RetinaNet).')
    area = found.get('area')
    if area is None or not is_number(area) or area <= 0:
        found['area'] = (area_of_mask(mask, size) if mask is not None else 0) or box[2] * box[3]
    return ''


def _flag(value: Any, name: str, where: str) -> int:
    if value in (None, 0, 1, '0', '1', ''):
        return int(value or 0)
    raise EvaluationError(f'{where} has {name} {_shown(value)}: it is 0 or 1.')


def _mask_of(found: dict[str, Any], size: tuple[int, int]) -> tuple[Mask | None, str]:
    """The mask, or what is wrong with it."""
    try:
        return read_mask(found.get('segmentation'), size), ''
    except ValueError as e:
        return None, str(e)


def _box_of(found: dict[str, Any], where: str) -> list[float] | None:
    """Left, top, width and height, None if the annotation has no box."""
    box = found.get('bbox')
    if box is None or box == []:
        return None
    if not isinstance(box, list) or len(box) != 4 or not all(is_number(v) for v in box):
        raise EvaluationError(
            f'{where} has the box {_shown(box)}, and left, top, width and height are needed: correct it.'
        )
    if min(box[2:]) < 0:
        raise EvaluationError(
            f'{where} has the box {_shown(box)}, whose width or height is negative: it holds left, top, width and '
            'height, not two corners.'
        )
    return box


def _check_place(box: list[float], size: tuple[int, int], where: str) -> None:
    left, top, width, height = box
    if left >= size[0] or top >= size[1] or left + width <= 0 or top + height <= 0:
        raise EvaluationError(
            f'{where} has the box {_shown(box)}, which is outside its image of {size[0]}x{size[1]} pixels: correct it.'
        )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f'{text[:77]}...'
