"""COCO-format annotation files: read, checked and completed, with the categories in the order of a model's classes.

mmdet numbers classes by the order in which a file lists its categories, and takes keys for granted that exporters leave
out. What `read_coco` returns can be counted on: every entry is complete, and a class is found by its name alone.
"""

import json
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.text import count_of, first_few, reason, shown

from .coco_masks import is_number
from .coco_objects import complete_object

__all__ = ['CocoFile', 'category_names', 'file_name_of', 'key_of', 'read_annotations', 'read_coco', 'tidy']

PARTS = ('images', 'annotations', 'categories')

Entry = dict[str, Any]


@dataclass
class CocoFile:
    """What an annotation file says, completed.

    Attributes:
        path: The file.
        content: As in COCO's format. Its categories are the classes, in their order; ids ascend in that order.
        category_ids: What the file itself calls each class, None where it lacks it.
        notes: Sentences about what was left out.
    """

    path: Path
    content: Entry
    category_ids: list[Any]
    notes: list[str] = field(default_factory=list)

    def counts(self, learned: bool = False) -> Counter[str]:
        """Number of objects by class, without crowds, which are neither learned nor found.

        Args:
            learned: Leave out what has `ignore` as well: mmdet measures with it, but does not train on it.
        """
        names = {category['id']: category['name'] for category in self.content['categories']}
        objects = (found for found in self.content['annotations'] if not found['iscrowd'])
        return Counter(names[found['category_id']] for found in objects if not (learned and found.get('ignore')))


def read_annotations(path: str | Path) -> Entry:
    """An annotation file in COCO's format, in any encoding that JSON may have.

    Raises:
        EvaluationError: If it is missing, not JSON, or not in that format.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as e:
        raise EvaluationError(f'The annotations {path} cannot be read: {e.strerror or e}.') from e
    except (ValueError, RecursionError) as e:
        raise EvaluationError(f'{path} is not a JSON file ({reason(e)}).') from e
    if isinstance(content, dict):
        content.setdefault('annotations', [])  # files of images to submit results for have none
    absent = [key for key in PARTS if not isinstance(content, dict) or content.get(key) is None]
    if absent:
        raise EvaluationError(f"{path} is not in COCO's format: it has no {', '.join(absent)}.")
    for key in PARTS:
        if not isinstance(content[key], list) or not all(isinstance(entry, dict) for entry in content[key]):
            raise EvaluationError(f"{path} is not in COCO's format: its {key} are not a list of objects with keys.")
    if not content['images']:
        raise EvaluationError(f'{path} names no images.')
    return content


def read_coco(
    path: str | Path,
    classes: Sequence[str],
    size_of: Callable[[Entry], tuple[int, int]] | None = None,
    masks: bool = False,
) -> CocoFile:
    """An annotation file for a model of certain classes.

    Args:
        path: The file.
        classes: Names in the order of the model's outputs. Objects of other categories are left out.
        size_of: Gives (width, height) of an image whose entry lacks them.
        masks: Every object needs a mask.

    Raises:
        EvaluationError: If the file cannot be read, lacks what cannot be derived, or contradicts itself.
    """
    path = Path(path)
    content = read_annotations(path)
    names = _named_as(classes, _check_categories(content['categories'], path), content['categories'])
    images = _check_images(content['images'], path, size_of)
    marks = [found.get('id') for found in content['annotations']]
    _check_ids(content['annotations'], path)
    objects, notes, others = [], [], Counter[str]()
    for number, (mark, found) in enumerate(zip(marks, content['annotations'], strict=True), 1):
        where = _where(mark, number, found, path)
        image = images.get(key_of(found.get('image_id')) or '')
        if image is None:
            raise EvaluationError(f'{where} belongs to no image of the file: correct its image_id, or delete it.')
        name = names.get(key_of(found.get('category_id')) or '')
        if name is None:
            kind = found.get('category_id')
            what = 'has no category_id' if kind is None else f'is of category {kind}, which the file does not list'
            raise EvaluationError(f'{where} {what}: correct its category_id, or add the category.')
        if name not in classes:
            others[name] += 1
            continue
        found['image_id'], found['category_id'] = image['id'], name
        note = complete_object(found, (image['width'], image['height']), masks, where)
        if note:
            notes.append(note)
        else:
            objects.append(found)
    content['annotations'] = objects
    own_ids = _use_classes(content, classes)
    return CocoFile(path, content, own_ids, [*_of_other_categories(others, path), *_shortened(notes)])


def _of_other_categories(others: Counter[str], path: Path) -> list[str]:
    if not others:
        return []
    return [
        f'Left out of {path}, as no class of the model: {count_of(others.total(), "object")} ({first_few(others)}).'
    ]


def _where(mark: Any, number: int, found: Entry, path: Path) -> str:
    return f'Object {f"number {number}" if mark is None else mark} of image {found.get("image_id")} in {path}'


def _shortened(notes: list[str]) -> list[str]:
    rest = f' The same of {count_of(len(notes) - 1, "other object")}.' if len(notes) > 1 else ''
    return [notes[0] + rest] if notes else []


def key_of(value: Any) -> str | None:
    """An id as text, so that 1, 1.0 and '1' are the same; None if it is none."""
    if is_number(value):
        return str(int(value)) if value == int(value) else str(value)
    return value.strip() or None if isinstance(value, str) else None


def tidy(name: str) -> str:
    """A class's name without spaces around it, each letter in the one way to write it: 'é' has two."""
    return unicodedata.normalize('NFC', name.strip())


def file_name_of(image: Entry) -> str | None:
    """The name of an image's file with / between folders, where annotation tools on Windows write a backslash."""
    name = image.get('file_name')
    return name.replace('\\', '/') if isinstance(name, str) and name.strip() else None


def _named_as(classes: Sequence[str], names: dict[str, str], categories: list[Entry]) -> dict[str, str]:
    """Call the categories as the classes are written. Returns their names by the text of their ids."""
    written = {tidy(name): name for name in classes}
    if len(written) < len(classes):
        raise EvaluationError(
            f'The config has several classes of one name ({first_few(classes, 10)}): name them apart.'
        )
    for category in categories:
        category['name'] = written.get(category['name'], category['name'])
    return {key: written.get(name, name) for key, name in names.items()}


def category_names(content: Entry, path: Path) -> tuple[str, ...]:
    """Names of the categories in the order of their ids, or as listed if an id is not a number."""
    names = _check_categories(content['categories'], path)
    if all(key.lstrip('-').isdecimal() for key in names):
        return tuple(names[key] for key in sorted(names, key=int))
    return tuple(names.values())


def _check_categories(categories: list[Entry], path: Path) -> dict[str, str]:
    """Names of the categories by the text of their ids."""
    ids = [_id_of(category, number, 'category', path) for number, category in enumerate(categories, 1)]
    for category, key in zip(categories, ids, strict=True):
        name = category.get('name')
        if is_number(name):
            category['name'] = name = str(name)
        if not isinstance(name, str) or not name.strip():
            raise EvaluationError(f'{path} has a category without a name, of id {key}: name it.')
        if '{{' in name:  # mmengine puts something else there when it reads the config again
            raise EvaluationError(f'{path} has a category called {shown(name)}, which configs cannot hold: rename it.')
        category['name'] = tidy(name)
    _refuse_twice(ids, 'categories of id', path)
    _refuse_twice([category['name'] for category in categories], 'categories called', path)
    return dict(zip(ids, [category['name'] for category in categories], strict=True))


def _check_images(
    images: list[Entry], path: Path, size_of: Callable[[Entry], tuple[int, int]] | None
) -> dict[str, Entry]:
    """The images, each with its size, by the text of their ids."""
    ids = [_id_of(image, number, 'image', path) for number, image in enumerate(images, 1)]
    _refuse_twice(ids, 'images of id', path)
    same_kind = len({isinstance(image['id'], str) for image in images}) == 1
    for image, key in zip(images, ids, strict=True):
        name = image['file_name'] = file_name_of(image)
        if name is None:
            raise EvaluationError(f'Image {key} of {path} has no file_name: add it.')
        if not same_kind:
            image['id'] = key
        sides = [_side(image.get(side)) for side in ('width', 'height')]
        if None in sides:
            if size_of is None:
                raise EvaluationError(f'Image {name} of {path} has no width and height: add them.')
            sides = list(size_of(image))
        image['width'], image['height'] = sides
    _refuse_twice([os.path.normpath(image['file_name']) for image in images], 'images with the file name', path)
    return dict(zip(ids, images, strict=True))


def _side(value: Any) -> int | None:
    """A width or height, None if it is not usable."""
    key = key_of(value)
    return int(key) if key and key.isdecimal() and int(key) > 0 else None


def _id_of(entry: Entry, number: int, kind: str, path: Path) -> str:
    key = key_of(entry.get('id'))
    if key is None:
        raise EvaluationError(f'The {kind} number {number} of {path} has no id that is a number or a text: add it.')
    return key


def _refuse_twice(values: Iterable[str], kind: str, path: Path) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise EvaluationError(f'{path} has several {kind} {first_few(twice)}: each must be there once.')


def _check_ids(objects: list[Entry], path: Path) -> None:
    """Refuse an id twice, and number the objects anew where ids are missing or none that pycocotools counts right."""
    _refuse_twice(filter(None, (key_of(found.get('id')) for found in objects)), 'objects of id', path)
    if not all(type(found.get('id')) is int and found['id'] > 0 for found in objects):
        for number, found in enumerate(objects, 1):
            found['id'] = number  # pycocotools takes a match with 0 for none


def _use_classes(content: Entry, classes: Sequence[str]) -> list[Any]:
    """Put the classes in the place of the categories, in their order. Returns what the file called them."""
    listed = {category['name']: category for category in content['categories']}
    own: list[Any] = [listed[name]['id'] if name in listed else None for name in classes]
    usual = all(type(i) is int for i in own) and own == sorted(own)
    ids = dict(zip(classes, own if usual else range(1, len(classes) + 1), strict=True))
    content['categories'] = [{**listed.get(name, {}), 'id': ids[name], 'name': name} for name in classes]
    for found in content['annotations']:
        found['category_id'] = ids[found['category_id']]
    return own
