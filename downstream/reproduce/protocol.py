"""What an evaluator's results say of how they came about, and the number in them."""

import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from tinyvit_zoo.common.errors import EvaluationError

from ..statistics import wilson

__all__ = [
    'Reading', 'facts_of', 'first_difference', 'preprocessing_facts', 'read_number', 'start_hash_of', 'weights_hash_of',
]  # fmt: skip

Reading = tuple[float, tuple[float, float] | None]
"""A number in the unit of its metric, and its 95 % interval where the evaluator gives one."""

DETECTION = {
    'box_ap': ('coco/bbox_mAP', 100), 'box_ap50': ('coco/bbox_mAP_50', 100), 'box_ap75': ('coco/bbox_mAP_75', 100),
    'box_ap_s': ('coco/bbox_mAP_s', 100), 'box_ap_m': ('coco/bbox_mAP_m', 100), 'box_ap_l': ('coco/bbox_mAP_l', 100),
    'mask_ap': ('coco/segm_mAP', 100), 'miou': ('mIoU', 1), 'macc': ('mAcc', 1), 'aacc': ('aAcc', 1),
}  # fmt: skip
"""What mmdet and mmseg call a metric, and its unit in the published one."""

PLACES = {'-o', '--output', '--root'}
"""Options whose values are folders: where something lies is not part of a protocol."""

OF_A_JOB = re.compile(r'.*[/\\]([a-z]+-[0-9a-f]{16}[/\\]out\b.*)')
"""A path in the folder of a job, see `Plan.folder_name`; the group is what does not change when all of them move."""

IMPORTED = re.compile(r'.*[/\\](weights[/\\]\w+\.\w+)')
"""Where released weights were imported to; the group names them, see `checkpoints.imported_path`."""


def facts_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """How results came about, by their own words: evaluator, command, model, data, resolution, crop, shots, ...

    Args:
        results: Of a results.json.

    Raises:
        KeyError, TypeError, ValueError: If it is of no evaluator or trainer.
    """
    kind = results['evaluator']
    facts = dict(
        evaluator=kind,
        command=_command(results['command']),
        versions={name: results['versions'][name] for name in ('tinyvit_zoo', 'torch', 'timm')},
        data=_data(results['data']),
        seed=results['seed'],
    )
    return facts | _FACTS.get(kind, lambda _: {})(results)


def _command(command: str) -> list[str]:
    """Words after the program, without the values that are folders; of a job's folder its name is kept."""
    words = shlex.split(command)[1:]
    kept = [word for i, word in enumerate(words) if not i or words[i - 1] not in PLACES]
    return [IMPORTED.sub(r'\1', OF_A_JOB.sub(r'\1', word)) for word in kept]


def _data(data: Any) -> Any:
    """Name, split, number of images and completeness of each set that took part."""
    if data is None:
        return None
    if 'split' not in data:
        return {part: _data(of_part) for part, of_part in data.items()}
    return dict(
        name=data['name'], split=data['split'], images=data['images'], classes=data['classes'],
        complete=data['complete'], left_out=len(data['unreadable_left_out']), subset=data.get('subset'),
    )  # fmt: skip


def preprocessing_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Resolution, crop, interpolation and normalization of arguments of `timm.data.create_transform`."""
    return dict(
        pixels=list(config['input_size'][-2:]), crop=config['crop_pct'], crop_mode=config['crop_mode'],
        interpolation=config['interpolation'], mean=list(config['mean']), std=list(config['std']),
    )  # fmt: skip


def _of_evaluate(results: Mapping[str, Any]) -> dict[str, Any]:
    corruptions = sorted(results['ce']) if 'ce' in results else None
    facts = dict(dtype=results['dtype'], counted=results['images'], corruptions=corruptions)
    return facts | preprocessing_facts(results['preprocessing'])


def _of_probe(results: Mapping[str, Any]) -> dict[str, Any]:
    names = ('mode', 'layers', 'held_out', 'dtype', 'epochs', 'crop_scale', 'lrs', 'weight_decays')
    train, held_out, test = (_data(results['data'][part]) for part in ('train', 'held_out', 'test'))
    learned = dict(train, images=train['images'] + held_out['images'])
    return {name: results[name] for name in names} | dict(train=learned, test=test, pixels=_pixels(results))


def _of_few_shot(results: Mapping[str, Any]) -> dict[str, Any]:
    names = ('ways', 'queries', 'episodes', 'solver', 'layers', 'dtype', 'preprocessing')
    return {name: results[name] for name in names} | dict(
        pixels=_pixels(results), shots=[row['shots'] for row in results['results']],
        drawn=[row['episodes'] for row in results['results']],
    )  # fmt: skip


def _pixels(results: Mapping[str, Any]) -> list[int]:
    """Height and width of the images of a backbone."""
    return list(results['model']['input_size'][-2:])


def _of_finetune(results: Mapping[str, Any]) -> dict[str, Any]:
    recipe = results['recipe']
    facts = dict(
        recipe=recipe['name'], epochs=results['epochs'], batch=recipe['batch_size'],
        trained_on=results['training_images'] + results['validation_images'], tested_on=results['test_images'],
    )  # fmt: skip
    return facts | preprocessing_facts(results['test_preprocessing'])


_FACTS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    'evaluate': _of_evaluate,
    'linear-probe': _of_probe,
    'few-shot': _of_few_shot,
    'finetune': _of_finetune,
}
"""By evaluator; of a trainer whose accuracy another job measures, command and data are all there is to compare."""


def first_difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first fact that is not as a protocol has it, in words; empty if all are."""
    for name, value in wanted.items():
        if found.get(name) != value:
            return f'{name}: {found.get(name)}, not {value}'
    return ''


def weights_hash_of(results: Mapping[str, Any]) -> str:
    """sha256 (hex) of the weights that results are of."""
    return str(results['model']['weights_sha256'])


def start_hash_of(results: Mapping[str, Any]) -> str:
    """sha256 (hex) of the tensors in the file that a training started from."""
    return str(results['start']['tensors_sha256'])


def read_number(results: Mapping[str, Any], metric: str, dataset: str) -> Reading:
    """A number of a results.json and its interval.

    Args:
        results: Of an evaluator or trainer.
        metric: Of the published number: 'top1', 'top5', 'accuracy' or 'mce'; of `detect test`, one of `DETECTION`.
        dataset: Of the published number: of ReaL it is that over several right labels.

    Raises:
        EvaluationError: If these results have no such number.
    """
    if 'metrics' in results:
        # Without any object in any image there are no metrics; mmdet says -1 of a size that no object has.
        return max(0.0, results['metrics'].get(DETECTION[metric][0], 0.0) * DETECTION[metric][1]), None
    found = _NUMBERS.get((results.get('evaluator', ''), metric), lambda *_: None)(results, dataset)
    if found is None:
        raise EvaluationError(f'The results of {results.get("evaluator")} have no {metric}.')
    return found


def _top(results: Mapping[str, Any], dataset: str, k: int) -> Reading | None:
    real = dataset == 'imagenet-real' and 'real_images' in results
    prefix = 'real_' if real else ''
    value, images = results[f'{prefix}top{k}'], results[f'{prefix}images']
    return None if value is None else (float(value), wilson(value, images))


def _tested(results: Mapping[str, Any], _: str) -> Reading:
    low, high = results['test_ci95']
    return float(results['test_accuracy']), (low, high)


def _episodes(results: Mapping[str, Any], _: str) -> Reading | None:
    if len(results['results']) != 1:
        return None
    (row,) = results['results']
    return float(row['accuracy']), (row['accuracy'] - row['ci95'], row['accuracy'] + row['ci95'])


_NUMBERS: dict[tuple[str, str], Callable[[Mapping[str, Any], str], Reading | None]] = {
    ('evaluate', 'top1'): lambda results, dataset: _top(results, dataset, 1),
    ('evaluate', 'top5'): lambda results, dataset: _top(results, dataset, 5),
    ('evaluate', 'mce'): lambda results, _: (float(results['mce']), None) if 'mce' in results else None,
    ('linear-probe', 'top1'): _tested,
    ('few-shot', 'accuracy'): _episodes,
    ('finetune', 'top1'): _tested,
}
"""Where the number of a metric lies in the results of an evaluator."""
