"""Checks of the data of a config before hours are spent on it: annotations, images, classes."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mmengine.config import Config

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.text import count_of, first_few, shown
from tinyvit_zoo.data.image_file import upright_size

from .coco_file import CocoFile, read_coco
from .config_parts import (
    LOADERS,
    classes_of,
    datasets_of,
    evaluators_of,
    heads_of,
    kind_of,
    pipeline_steps,
    type_classes_of,
)
from .label_maps import check_label_maps

__all__ = ['check_data']

COCO_KINDS = ('CocoDataset', 'ZooCocoDataset')
METRICS = ('CocoMetric', 'ZooCocoMetric')
LABEL_MAPS = ('BaseSegDataset', 'ADE20KDataset')
OPTIONS = dict(
    train_dataloader='--train-annotations', val_dataloader='--validation-annotations',
    test_dataloader='--validation-annotations',
)  # fmt: skip


def check_data(config: Config, training: bool, say: Callable[[str], None] = print) -> None:
    """Check annotations and images before anything is computed.

    Args:
        config: Of a detector with data in COCO's format, or a segmenter with label maps; other data sets check
            themselves.
        training: Check the training and validation data, else the test data.
        say: Prints what is left out, and classes without objects.

    Raises:
        EvaluationError: If a file is missing or contradicts itself, an image has another size than its annotations say,
            classes do not agree with heads, or an object has no mask where masks are learned or measured.
    """
    for loader in LOADERS[:2] if training else LOADERS[2:]:
        for dataset in datasets_of(config.get(loader)):
            if kind_of(dataset) in COCO_KINDS:
                _check_coco(dataset, config, loader, say)
            elif kind_of(dataset) in LABEL_MAPS:
                _check_heads(classes_of(dataset), config.model)
                labels = type_classes_of(dataset) or classes_of(dataset)  # mmseg selects classes after it read labels
                check_label_maps(dataset, labels, loader == LOADERS[0], say)


def _check_coco(dataset: Mapping[str, Any], config: Config, loader: str, say: Callable[[str], None]) -> None:
    root = Path(dataset.get('data_root') or '')
    annotations = root / dataset.get('ann_file', '')
    if not annotations.is_file():
        raise EvaluationError(
            f'The config reads {annotations}, and there is no such file: name your annotations with --data DIR '
            f'{OPTIONS[loader]} FILE.'
        )
    folder = root / (dataset.get('data_prefix') or {}).get('img', '')
    classes, learned = classes_of(dataset), loader == LOADERS[0]
    _check_heads(classes, config.model)
    metrics = [] if learned else [m for m in evaluators_of(config, loader) if kind_of(m) in METRICS]
    sizes = _Sizes(folder, annotations)
    masks = any(step.get('with_mask') for step in pipeline_steps(dataset.get('pipeline')))
    masks = masks or any('segm' in metric.get('metric', ()) for metric in metrics)
    file = read_coco(annotations, classes, sizes, masks)
    _check_images(file, folder, sizes, say)
    _check_shapes(file, dataset)
    if not (metrics and all(metric.get('format_only') for metric in metrics)):  # else results are written alone
        _check_objects(file, dataset, learned, say)
    for metric in metrics:
        _check_metric(metric, file, sizes)


def _check_heads(classes: Sequence[str], model: Mapping[str, Any]) -> None:
    for head in heads_of(model):
        if head['num_classes'] != len(classes):
            raise EvaluationError(
                f'{head.get("type", "A head")} has {head["num_classes"]} classes, the data set {len(classes)} '
                f'({first_few(classes)}): give --classes or --data, which set both, or num_classes and metainfo.'
            )


class _Sizes:
    """Sizes of images by their entry, each file opened once."""

    def __init__(self, folder: Path, annotations: Path) -> None:
        self.folder = folder
        self.annotations = annotations
        self.known: dict[str, tuple[tuple[int, int], int]] = {}

    def __call__(self, image: Mapping[str, Any]) -> tuple[int, int]:
        """(width, height) of the image as it is read."""
        return self.look(image['file_name'])[0]

    def look(self, name: str) -> tuple[tuple[int, int], int]:
        """The size and the EXIF orientation.

        Raises:
            EvaluationError: If the file is missing or no image.
        """
        if name not in self.known:
            if not os.path.isfile(self.folder / name):  # a name may be too long to ask for
                raise EvaluationError(f"The image '{shown(name)}' of {self.annotations} is not in {self.folder}.")
            self.known[name] = upright_size(self.folder / name)
        return self.known[name]


def _check_images(file: CocoFile, folder: Path, sizes: _Sizes, say: Callable[[str], None]) -> None:
    """Refuse absent images, one under two names, and those whose size the annotations do not have."""
    images = file.content['images']
    names = [image['file_name'] for image in images]
    absent = [name for name in names if not os.path.isfile(folder / name)]
    if absent:
        raise EvaluationError(
            f'{len(absent)} of {len(names)} images of {file.path} are not in {folder}: {first_few(absent)}.'
        )
    places = Counter(os.path.normpath(folder / name) for name in names)
    twice = [place for place, count in places.items() if count > 1]
    if twice:
        raise EvaluationError(f'{file.path} has several entries for one image ({first_few(twice)}): keep one of each.')
    unclear = []
    with ThreadPoolExecutor() as pool:  # waits for disks
        for image, (size, orientation) in zip(images, pool.map(sizes.look, names), strict=True):
            told = (image['width'], image['height'])
            if told != size:
                raise EvaluationError(_other_size(folder / image['file_name'], size, orientation, told, file.path))
            if orientation in (2, 3, 4) or (orientation > 1 and size[0] == size[1]):
                unclear.append(image['file_name'])
    if unclear:
        say(
            f'{file.path}: {count_of(len(unclear), "image")} turned or mirrored by the EXIF orientation, where the '
            f'size does not tell whether the boxes are too: they are taken to be ({first_few(unclear)}).'
        )


def _other_size(path: Path, size: Sequence[int], orientation: int, told: Sequence[int], annotations: Path) -> str:
    turned = f' as its EXIF orientation ({orientation}) turns it' if orientation > 1 else ''
    return (
        f'{path.name} has {size[0]}x{size[1]} pixels{turned}, and {annotations} says {told[0]}x{told[1]}: its boxes '
        'would lie off the objects; annotate the image as it is shown, or save it without EXIF orientation in the size '
        f'that was annotated ({path}).'
    )


def _check_shapes(file: CocoFile, dataset: Mapping[str, Any]) -> None:
    """Refuse an image that OpenCV would have to make less than a pixel wide or high, which ends the run."""
    longest = min(_longest_sides(dataset.get('pipeline')), default=None)
    least = (dataset.get('filter_cfg') or {}).get('min_size', 0) if not dataset.get('test_mode') else 0
    for image in file.content['images'] if longest else ():
        short, long = sorted((image['width'], image['height']))
        if short >= least and 2 * short * longest < long:
            raise EvaluationError(
                f'{image["file_name"]} of {file.path} has {image["width"]}x{image["height"]} pixels, too narrow for a '
                f'config that makes its long side {longest:g}: crop it, or leave it out.'
            )


def _longest_sides(pipeline: Any) -> Iterator[float]:
    """The long side that each step of a pipeline gives to images, at the least."""
    for step in pipeline_steps(pipeline):
        scales = step.get('scales') or ([step['scale']] if 'scale' in step else [])
        for scale in scales:
            if isinstance(scale, list | tuple) and all(isinstance(side, int | float) for side in scale):
                yield max(scale) * (step.get('ratio_range') or (1,))[0]


def _check_objects(file: CocoFile, dataset: Mapping[str, Any], learned: bool, say: Callable[[str], None]) -> None:
    """Refuse a file without objects to learn or to find; tell of classes without any, and of what mmdet leaves out."""
    for note in file.notes:
        say(note)
    classes = [category['name'] for category in file.content['categories']]
    names = [name for name, i in zip(classes, file.category_ids, strict=True) if i is not None]
    if not names:
        raise EvaluationError(
            f'None of the classes of the config ({first_few(classes)}) is a category of {file.path}: name them alike, '
            'or give --data, which takes its categories for the classes.'
        )
    counts = file.counts(learned)
    if not counts:
        but, what = ('crowds and those to ignore', 'learn') if learned else ('crowds', 'measure')
        raise EvaluationError(
            f'{file.path} has no objects of the classes ({first_few(classes)}) but {but}, so there is nothing to '
            f'{what}: annotate some.'
        )
    _check_boxes(file, dataset, learned, say)
    empty = [name for name in classes if not counts[name]]
    if empty:
        what = 'cannot be learned' if learned else 'do not count in the metric'
        shown = first_few(empty, 10)
        say(f'{file.path} has no object of {len(empty)} of {len(classes)} classes, which {what}: {shown}.')


def _check_boxes(file: CocoFile, dataset: Mapping[str, Any], learned: bool, say: Callable[[str], None]) -> None:
    """Refuse a file from which mmdet takes nothing, as its boxes or images are too small; tell of odd boxes."""
    objects = [found for found in file.content['annotations'] if not found['iscrowd']]
    tiny = [found for found in objects if min(found['bbox'][2:]) < 1]
    if len(tiny) == len(objects):
        raise EvaluationError(
            f'{file.path} has no box of at least 1x1 pixels, the least that mmdet trains on (object {tiny[0]["id"]} '
            f'has {tiny[0]["bbox"]}): boxes are in pixels, not in parts of the image.'
        )
    images = {image['id']: image for image in file.content['images']}
    beyond = [found for found in objects if _reaches_out(found['bbox'], images[found['image_id']])]
    if beyond:
        say(
            f'{len(beyond)} of {len(objects)} boxes of {file.path} reach out of their image (object {beyond[0]["id"]}: '
            f'{beyond[0]["bbox"]}): they hold left, top, width and height, not two corners.'
        )
    if learned:
        _check_left_out(file, objects, tiny, dataset, say)


def _reaches_out(box: Sequence[float], image: Mapping[str, Any]) -> bool:
    """By more than is rounded."""
    left, top, width, height = box
    return left + width > image['width'] + 2 or top + height > image['height'] + 2 or min(left, top) < -2


def _check_left_out(
    file: CocoFile,
    objects: Sequence[Mapping[str, Any]],
    tiny: Sequence[Mapping[str, Any]],
    dataset: Mapping[str, Any],
    say: Callable[[str], None],
) -> None:
    """Tell what mmdet leaves out of the training; refuse a file of which nothing remains."""
    least = (dataset.get('filter_cfg') or {}).get('min_size', 0)
    small = {image['id']: image for image in file.content['images'] if min(image['width'], image['height']) < least}
    ignored = [found for found in objects if found.get('ignore')]
    skipped = {found['id'] for found in (*tiny, *ignored)}
    left = [found for found in objects if found['id'] not in skipped]
    if not left:
        raise EvaluationError(
            f'{file.path} has only objects that are to be ignored or below 1 pixel, so there is nothing to learn: '
            'annotate some.'
        )
    if all(found['image_id'] in small for found in left):
        raise EvaluationError(
            f'{file.path} has objects to learn only in images below {least} pixels, which the config leaves out: give '
            'larger images or another train_dataloader.dataset.filter_cfg.min_size.'
        )
    if ignored:
        say(
            f'{len(ignored)} of {len(objects)} objects of {file.path} are to be ignored and are not trained on '
            f'(object {ignored[0]["id"]}).'
        )
    if tiny:
        say(f'{file.path}: {count_of(len(tiny), "object")} below 1 pixel, not trained on (object {tiny[0]["id"]}).')
    if small:
        shown = first_few(image['file_name'] for image in small.values())
        say(f'{file.path}: {count_of(len(small), "image")} below {least} pixels, not trained on: {shown}.')


def _check_metric(metric: Mapping[str, Any], file: CocoFile, sizes: _Sizes) -> None:
    """Refuse a metric on the annotations of other images than the data set's."""
    path = metric.get('ann_file')
    if not path or Path(path).absolute() == file.path.absolute():
        return
    if not Path(path).is_file():
        raise EvaluationError(
            f'The metric reads {path}, and there is no such file: give --data, which sets it, or the ann_file of '
            'val_evaluator and test_evaluator.'
        )
    classes = [category['name'] for category in file.content['categories']]
    other = read_coco(path, classes, sizes, 'segm' in metric.get('metric', ()))
    known = set(_marks(other.content['images']))
    absent = [mark for mark in _marks(file.content['images']) if mark not in known]
    if absent:
        raise EvaluationError(
            f'The metric reads {path}, which lacks {count_of(len(absent), "image")} of {file.path} (id '
            f'{absent[0][0]}): give both the same file.'
        )


def _marks(images: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Any, str]]:
    for image in images:
        yield image['id'], Path(image['file_name']).name
