"""A user's own data in a config: COCO-format annotations for detectors, ADE20K's layout for segmenters."""

import colorsys
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.text import first_few, shown

from .coco_file import category_names, file_name_of, key_of, read_annotations, tidy
from .config_parts import (
    LOADERS,
    classes_of,
    datasets_of,
    evaluators_of,
    kind_of,
    own_classes_of,
    pipeline_steps,
    set_classes,
)

__all__ = ['CustomData', 'colors', 'match_by_name', 'use_custom_data']


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
            of their ids, or the config's if it keeps its training annotations. Other categories are left out.
    """

    root: Path
    train_annotations: Path | None = None
    train_images: Path | None = None
    validation_annotations: Path | None = None
    validation_images: Path | None = None
    classes: tuple[str, ...] = ()


def use_custom_data(config: Config, data: CustomData, trained: bool = False) -> tuple[str, ...]:
    """Put a user's data into a config: files, folders, classes, and the number of classes of every head.

    Categories are matched with the classes by name, in every file.

    Args:
        config: Of mmdet or mmseg; changed in place.
        data: Where the data is.
        trained: The config is of a trained model, whose classes stay as they are.

    Returns:
        The classes.

    Raises:
        EvaluationError: If a file or folder is missing, an annotation file is not in COCO's format, or its categories
            do not fit the classes.
    """
    if not data.root.is_dir():
        raise EvaluationError(f'There is no folder {data.root}: give the folder of your data.')
    twice = [name for name, count in Counter(map(tidy, data.classes)).items() if count > 1]
    if twice:
        raise EvaluationError(f"--classes names '{twice[0]}' several times: name each class once.")
    if trained:
        _check_names(config, data.classes)
    if config.get('default_scope') == 'mmseg':
        return _use_ade_layout(config, data)
    train, val = (_found(data.root, path) for path in (data.train_annotations, data.validation_annotations))
    if train is None and val is None:
        raise EvaluationError('Give --train-annotations, --validation-annotations or both: COCO-format JSON files.')
    classes = _classes(config, data, train, val, trained)
    for loader in LOADERS:
        training = loader == 'train_dataloader'
        annotations, images = (train, data.train_images) if training else (val, data.validation_images)
        for dataset in datasets_of(config.get(loader)):
            dataset.metainfo = dict(classes=classes)
            if annotations is not None:
                folder = _found(data.root, images) if images else _folder_of(annotations, data.root)
                dataset.update(data_root='', ann_file=str(annotations), data_prefix=dict(img=str(folder)))
        for evaluator in evaluators_of(config, loader):
            if val is not None and 'ann_file' in evaluator:
                evaluator.ann_file = str(val)
    set_classes(config, len(classes))
    match_by_name(config)
    return classes


def match_by_name(config: Config) -> None:
    """Let our data set and metric take the place of mmdet's for COCO-format files, see `coco_dataset`.

    The images of a user's own classes are read by the reader of `classify`; those of COCO as mmdet reads them.
    """
    for loader in LOADERS:
        for dataset in datasets_of(config.get(loader)):
            if kind_of(dataset) == 'CocoDataset':
                dataset.type = 'ZooCocoDataset'
            if own_classes_of(dataset):
                _use_reader(dataset)
        for evaluator in evaluators_of(config, loader):
            if kind_of(evaluator) == 'CocoMetric':
                evaluator.type = 'ZooCocoMetric'
    _import_ours(config)


def _use_reader(dataset: Config) -> None:
    for step in pipeline_steps(dataset.get('pipeline')):
        usual = step.get('color_type', 'color') == 'color' and step.get('imdecode_backend', 'cv2') == 'cv2'
        if kind_of(step) == 'LoadImageFromFile' and usual:
            to_float32 = step.get('to_float32', False)
            step.clear()
            step.update(type='ZooLoadImage', to_float32=to_float32)


def _import_ours(config: Config) -> None:
    """So that mmdet's own tools find our classes in the config that is written."""
    room = (
        f'{__package__.rpartition(".")[0]}.{"segmentation" if config.get("default_scope") == "mmseg" else "detection"}'
    )
    imports = config.get('custom_imports') or dict(imports=[], allow_failed_imports=False)
    names = [imports['imports']] if isinstance(imports['imports'], str) else list(imports['imports'])
    if room not in names:
        config.custom_imports = dict(imports, imports=[*names, room])


# ---- classes


def _check_names(config: Config, classes: Sequence[str]) -> None:
    """Refuse other names for the outputs of a trained model."""
    own = _own(config)
    if own and classes and [*map(tidy, classes)] != [*map(tidy, own)]:
        raise EvaluationError(
            f'The model was trained with the classes {first_few(own, 10)}, in this order, and --classes '
            f'{",".join(classes)} would rename its outputs: leave --classes out, or give them as they are.'
        )


def _classes(config: Config, data: CustomData, train: Path | None, val: Path | None, trained: bool) -> tuple[str, ...]:
    """The classes of a detector, each of them in the training annotations, and those of the others among them."""
    listed = category_names(read_annotations(train), train) if train else ()
    given = (_own(config) if trained else ()) or tuple(map(tidy, data.classes))
    classes = given or (listed if train else _kept(config))
    if train and not classes:
        raise EvaluationError(f'{train} lists no categories: add them, with a name and an id each.')
    strange = [name for name in classes if train and name not in listed]
    if strange:
        raise EvaluationError(
            f"{train} has no category '{strange[0]}', which --classes names: it has {first_few(listed, 10)}."
        )
    if val and not data.classes:
        _check_others(val, classes, trained or not train)
    return classes


def _own(config: Config) -> tuple[str, ...]:
    """The classes that the config names, none if it leaves them to COCO."""
    return next((own_classes_of(dataset) for dataset in datasets_of(config.get('test_dataloader'))), ())


def _kept(config: Config) -> tuple[str, ...]:
    """The classes that the config has as it is."""
    return next((classes_of(dataset) for dataset in datasets_of(config.get('test_dataloader'))), ())


def _check_others(path: Path, classes: tuple[str, ...], trained: bool) -> None:
    """Refuse objects that the model cannot know."""
    content = read_annotations(path)
    category_names(content, path)
    known = set(map(tidy, classes))
    names = {key_of(category['id']): category['name'] for category in content['categories']}
    used = {names.get(key_of(found.get('category_id'))) for found in content['annotations']}
    strange = [name for name in names.values() if name in used and name not in known]
    where = 'the config' if trained else 'the training annotations'
    if not known & set(names.values()):
        raise EvaluationError(
            f'None of the classes of {where} ({first_few(classes)}) is a category of {path}, which has '
            f'{first_few(names.values()) or "none"}: name them alike.'
        )
    if strange:
        raise EvaluationError(
            f"{path} has objects of '{strange[0]}', which is not a class of {where} ({first_few(classes, 10)}): name "
            'them alike, or leave other objects out with --classes and the names of the classes.'
        )


def _use_ade_layout(config: Config, data: CustomData) -> tuple[str, ...]:
    for loader in LOADERS:
        for dataset in datasets_of(config.get(loader)):
            dataset.data_root = str(data.root)
            if data.classes:
                _name_labels(dataset, data.classes)
            _use_reader(dataset)
    if data.classes:
        set_classes(config, len(data.classes))
    _import_ours(config)
    return data.classes


def _name_labels(dataset: Config, classes: tuple[str, ...]) -> None:
    """Label 1 is the first class, and so on. ADE20KDataset would take names that ADE20K has for its labels instead."""
    dataset.metainfo = dict(classes=classes, palette=colors(len(classes)))
    if kind_of(dataset) == 'ADE20KDataset':
        dataset.type = 'BaseSegDataset'
        dataset.setdefault('reduce_zero_label', True)


def colors(count: int) -> list[tuple[int, int, int]]:
    """Distinct colors, as (red, green, blue) from 0 to 255."""
    hues = [(i * 0.381966 + 0.58) % 1 for i in range(count)]  # the golden angle keeps neighbors apart
    shades = [colorsys.hsv_to_rgb(hue, 0.85, 0.8 + 0.2 * (i % 2)) for i, hue in enumerate(hues)]
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in shades]


# ---- files


def _found(root: Path, path: Path | None) -> Path | None:
    if path is None:
        return None
    for candidate in (root / path, path):
        if candidate.exists():
            return candidate
    raise EvaluationError(f'There is neither {root / path} nor {path}.')


def _folder_of(annotations: Path, root: Path) -> Path:
    """Folder of the first image of an annotation file: the file's own, `root`, or a folder with the file's name."""
    first = file_name_of(read_annotations(annotations)['images'][0])
    if first is None:
        raise EvaluationError(f'The first image of {annotations} has no file_name: add it.')
    folders = (
        annotations.parent,
        root,
        root / annotations.stem,
        annotations.parent / annotations.stem,
        root / 'images',
    )
    for folder in folders:
        if os.path.isfile(folder / first):  # a name may be too long to ask for
            return folder
    places = ', '.join(dict.fromkeys(map(str, folders)))
    raise EvaluationError(
        f"'{shown(first)}' of {annotations} is not in {places}: give the folder of the images (--train-images, "
        '--validation-images).'
    )
