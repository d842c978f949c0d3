"""A user's own COCO-format data in a config, and checks of the data before hours are spent on it."""

import colorsys
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.text import first_few, reason

__all__ = ['CustomData', 'check_data', 'classes_of', 'colors', 'datasets_of', 'use_custom_data']

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
EVALUATORS = ('val_evaluator', 'test_evaluator')


@dataclass(frozen=True)
class CustomData:
    """Locations of a user's data. Paths of files and folders are tried relative to `root`, then as given.

    Attributes:
        root: Folder of everything.
        train_annotations: COCO-format file to train on, None to keep the config's.
        train_images: Folder of its images; by default it is found from the annotations.
        validation_annotations: COCO-format file to validate and test on, None to keep the config's.
        validation_images: Folder of its images; by default it is found from the annotations.
        classes: Names in the order of the model's outputs; by default those of the training annotations, in the order
            of their ids.
    """

    root: Path
    train_annotations: Path | None = None
    train_images: Path | None = None
    validation_annotations: Path | None = None
    validation_images: Path | None = None
    classes: tuple[str, ...] = ()


def use_custom_data(config: Config, data: CustomData) -> tuple[str, ...]:
    """Put a user's data into a config: files, folders, classes, and the number of classes of every head.

    Returns:
        The classes.

    Raises:
        EvaluationError: If a file or folder is missing, or an annotation file is not in COCO's format.
    """
    if not data.root.is_dir():
        raise EvaluationError(f'There is no folder {data.root}: give the folder of your data.')
    if config.get('default_scope') == 'mmseg':
        return _use_ade_layout(config, data)
    train, val = (_found(data.root, path) for path in (data.train_annotations, data.validation_annotations))
    source = train or val
    if source is None:
        raise EvaluationError('Give --train-annotations, --validation-annotations or both: COCO-format JSON files.')
    classes = data.classes or _categories(source)
    for loader in LOADERS:
        training = loader == 'train_dataloader'
        annotations, images = (train, data.train_images) if training else (val, data.validation_images)
        for dataset in datasets_of(config.get(loader)):
            dataset.metainfo = dict(classes=classes)
            if annotations is not None:
                folder = _found(data.root, images) if images else _folder_of(annotations, data.root)
                dataset.update(data_root='', ann_file=str(annotations), data_prefix=dict(img=str(folder)))
    for key in EVALUATORS:
        for evaluator in _each(config.get(key)):
            if val is not None and 'ann_file' in evaluator:
                evaluator.ann_file = str(val)
    set_classes(config, len(classes))
    return tuple(classes)


def _use_ade_layout(config: Config, data: CustomData) -> tuple[str, ...]:
    for loader in LOADERS:
        for dataset in datasets_of(config.get(loader)):
            dataset.data_root = str(data.root)
            if data.classes:
                dataset.metainfo = dict(classes=data.classes, palette=colors(len(data.classes)))
    if data.classes:
        set_classes(config, len(data.classes))
    return data.classes


def colors(count: int) -> list[tuple[int, int, int]]:
    """Distinct colours, as (red, green, blue) from 0 to 255."""
    hues = [(i * 0.381966 + 0.58) % 1 for i in range(count)]  # the golden angle keeps neighbours apart
    shades = [colorsys.hsv_to_rgb(hue, 0.85, 0.8 + 0.2 * (i % 2)) for i, hue in enumerate(hues)]
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in shades]


def datasets_of(loader: Any) -> Iterator[Any]:
    """The configs of the data sets that a loader reads from, without their wrappers."""
    dataset = (loader or {}).get('dataset')
    while isinstance(dataset, Mapping) and 'dataset' in dataset:
        dataset = dataset['dataset']
    if isinstance(dataset, Mapping) and 'datasets' in dataset:
        for part in dataset['datasets']:
            yield from datasets_of(dict(dataset=part))
    elif isinstance(dataset, Mapping):
        yield dataset


def _each(evaluators: Any) -> Sequence[Any]:
    return evaluators if isinstance(evaluators, list | tuple) else [evaluators] if evaluators else []


def set_classes(config: Config, count: int) -> None:
    """Set the number of classes of every head of the model that has one."""
    for head in _heads(config.model):
        head['num_classes'] = count


def _heads(part: Any) -> Iterator[Any]:
    """Parts of a model's config that have `num_classes`, without its backbone."""
    if isinstance(part, Mapping):
        if 'num_classes' in part:
            yield part
        for key, value in part.items():
            if key != 'backbone':
                yield from _heads(value)
    elif isinstance(part, list | tuple):
        for value in part:
            yield from _heads(value)


def _found(root: Path, path: Path | None) -> Path | None:
    if path is None:
        return None
    for candidate in (root / path, path):
        if candidate.exists():
            return candidate
    raise EvaluationError(f'There is neither {root / path} nor {path}.')


def _folder_of(annotations: Path, root: Path) -> Path:
    """Folder of the first image of an annotation file: the file's own, `root`, or a folder with the file's name."""
    images = read_annotations(annotations)['images']
    if not images:
        raise EvaluationError(f'{annotations} names no images.')
    first = images[0]['file_name']
    folders = (
        annotations.parent,
        root,
        root / annotations.stem,
        annotations.parent / annotations.stem,
        root / 'images',
    )
    for folder in folders:
        if (folder / first).is_file():
            return folder
    raise EvaluationError(
        f"'{first}' of {annotations} is not in {', '.join(dict.fromkeys(map(str, folders)))}: give the folder of the "
        'images (--train-images, --validation-images).'
    )


def read_annotations(path: str | Path) -> dict[str, Any]:
    """An annotation file in COCO's format.

    Raises:
        EvaluationError: If it is missing, not JSON, or not in that format.
    """
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
    except OSError as e:
        raise EvaluationError(f'The annotations {path} cannot be read: {e.strerror or e}.') from e
    except ValueError as e:
        raise EvaluationError(f'{path} is not a JSON file ({reason(e)}).') from e
    absent = [
        key for key in ('images', 'annotations', 'categories') if not isinstance(content, dict) or key not in content
    ]
    if absent:
        raise EvaluationError(f"{path} is not in COCO's format: it has no {', '.join(absent)}.")
    return content


def _categories(path: Path) -> tuple[str, ...]:
    categories = read_annotations(path)['categories']
    return tuple(category['name'] for category in sorted(categories, key=lambda c: c['id']))


# ---- checks


def check_data(config: Config, training: bool) -> None:
    """Check annotations and images before anything is computed.

    Args:
        config: Of a detector with CocoDatasets; other data sets check themselves.
        training: Check the training and validation data, else the test data.

    Raises:
        EvaluationError: If a file is missing, classes do not agree with categories or heads, or an object has no mask
            where masks are learned.
    """
    for loader in LOADERS[:2] if training else LOADERS[2:]:
        for dataset in datasets_of(config.get(loader)):
            if str(dataset.get('type', '')).rpartition('.')[2] == 'CocoDataset':
                _check_coco(dataset, config.model, learned=loader == 'train_dataloader')


def _check_coco(dataset: Mapping[str, Any], model: Mapping[str, Any], learned: bool) -> None:
    root = Path(dataset.get('data_root') or '')
    annotations = root / dataset['ann_file']
    content = read_annotations(annotations)
    classes = classes_of(dataset)
    for head in _heads(model):
        if head['num_classes'] != len(classes):
            raise EvaluationError(
                f'{head.get("type", "A head")} has {head["num_classes"]} classes, the data set {len(classes)} '
                f'({first_few(classes)}): give --classes or --data, which set both, or num_classes and metainfo.'
            )
    categories = [category['name'] for category in content['categories']]
    if not set(classes) & set(categories):
        raise EvaluationError(
            f'None of the classes of the config ({first_few(classes)}) is a category of {annotations}, which has '
            f'{first_few(categories)}.'
        )
    folder = root / dataset.get('data_prefix', {}).get('img', '')
    _check_images([image['file_name'] for image in content['images']], folder, annotations)
    if learned and _loads_masks(dataset):
        _check_masks(content['annotations'], annotations)


def classes_of(dataset: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes of a data set's config: its own, or those of its type."""
    classes = dataset.get('metainfo', {}).get('classes') or DATASETS.get(dataset['type']).METAINFO['classes']
    return (classes,) if isinstance(classes, str) else tuple(classes)


def _check_images(names: list[str], folder: Path, annotations: Path) -> None:
    if not names:
        raise EvaluationError(f'{annotations} names no images.')
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise EvaluationError(
            f'{len(absent)} of {len(names)} images of {annotations} are not in {folder}: {first_few(absent)}.'
        )


def _loads_masks(dataset: Mapping[str, Any]) -> bool:
    return any(step.get('with_mask') for step in dataset.get('pipeline', ()))


def _check_masks(objects: list[dict[str, Any]], annotations: Path) -> None:
    """Refuse an object without a mask: mmdet drops objects without area, but other ones would crash the training."""
    for found in objects:
        box, area = found.get('bbox', (0, 0, 0, 0)), found.get('area', 0)
        if found.get('ignore') or area <= 0 or min(box[2:]) < 1:
            continue
        if not found.get('segmentation'):
            raise EvaluationError(
                f'Object {found.get("id")} of image {found.get("image_id")} in {annotations} has an empty mask: '
                'delete it, or train a detector without masks (RetinaNet).'
            )
