"""Parts of mmdet's and mmseg's configs, wherever they are: data sets within wrappers, pipelines, heads, classes."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.fileio import list_from_file
from mmengine.registry import DATASETS

__all__ = [
    'LOADERS',
    'classes_of',
    'datasets_of',
    'evaluators_of',
    'heads_of',
    'kind_of',
    'own_classes_of',
    'pipeline_steps',
    'set_classes',
    'type_classes_of',
]

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def kind_of(part: Mapping[str, Any]) -> str:
    """Name of a part's type without the scope: 'CocoDataset' of 'mmdet.CocoDataset'."""
    kind = part.get('type', '')
    return (kind if isinstance(kind, str) else kind.__name__).rpartition('.')[2]


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


def evaluators_of(config: Config, loader: str) -> Sequence[Any]:
    """The configs of the metrics of the validation or the test."""
    found = config.get(loader.replace('dataloader', 'evaluator'))
    return found if isinstance(found, list | tuple) else [found] if found else []


def pipeline_steps(steps: Any) -> Iterator[Any]:
    """The steps of a pipeline, those within others too."""
    for step in steps if isinstance(steps, list | tuple) else ():
        if isinstance(step, Mapping):
            yield step
            yield from pipeline_steps(step.get('transforms'))
        else:
            yield from pipeline_steps(step)


def classes_of(dataset: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes of a data set's config: its own, or those of its type."""
    return own_classes_of(dataset) or type_classes_of(dataset)


def type_classes_of(dataset: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes of a data set's type, none if it has none of its own."""
    return tuple(getattr(_type_of(dataset), 'METAINFO', {}).get('classes', ()))


def _type_of(dataset: Mapping[str, Any]) -> Any:
    kind = dataset['type']
    # The root registry finds the names of mmdet and mmseg only with their scope before them.
    scopes = ('', f'{dataset.get("_scope_", "mmdet")}.', 'mmdet.', 'mmseg.')
    found = (DATASETS.get(f'{scope}{kind}') for scope in scopes) if isinstance(kind, str) else [kind]
    return next((each for each in found if each is not None), None)


def own_classes_of(dataset: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes that a data set's config has itself, none if it leaves them to its type.

    As for mmengine, a text may name a file with a class in each line.
    """
    classes = (dataset.get('metainfo') or {}).get('classes') or ()
    if isinstance(classes, str):
        return tuple(list_from_file(classes)) if os.path.isfile(classes) else (classes,)
    return tuple(classes)


def set_classes(config: Config, count: int) -> None:
    """Set the number of classes of every head of the model that has one."""
    for head in heads_of(config.model):
        head['num_classes'] = count


def heads_of(part: Any) -> Iterator[Any]:
    """Parts of a model's config that have `num_classes`, without its backbone."""
    if isinstance(part, Mapping):
        if 'num_classes' in part:
            yield part
        for key, value in part.items():
            if key != 'backbone':
                yield from heads_of(value)
    elif isinstance(part, list | tuple):
        for value in part:
            yield from heads_of(value)
