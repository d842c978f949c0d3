"""The full protocol of a number as a job: the user's data, the released weights, and what the results have to say."""

import shlex
from typing import Any, cast

import timm
from timm.data import resolve_data_config

from tinyvit_zoo.data.registry import find_entry as find_data
from tinyvit_zoo.training.recipes import find_recipe

from ..few_shot import QUERIES, WAYS
from ..imagenet import UNCROPPED, protocol_overrides
from ..imagenet_c import ALEXNET_ERRORS, SEVERITIES
from .entries import ENTRIES, subject_of
from .numbers import Number
from .plans import OUT, ROOT, WEIGHTS, Plan
from .protocol import preprocessing_facts
from .record import DATA, Need, Subject, need_of

__all__ = ['full_plan', 'other_resolution']

EPISODES = 600  # TinyViT, section 5.3; the benchmark's own number
PROBE_EPOCHS = 90


def full_plan(number: Number) -> Plan | str:
    """The evaluator or trainer that measures a number by the full protocol, or why there is none, in a few words.

    Args:
        number: One whose weights are published; whether they or its data are there is not looked at.
    """
    need, subject = need_of(number.task, number.dataset), subject_of(number)
    if need in (Need.COCO, Need.ADE20K):
        return 'detectors and segmenters are not trained at this scale'
    if subject is None or not subject.weights or need not in (Need.IMAGENET, Need.TRANSFER):
        return 'no evaluator here measures it'
    other = other_resolution(number)
    if other:
        return other
    job = ENTRIES[number.entry].jobs[number.task]
    data = DATA[number.dataset].name
    if number.task == 'transfer_finetune':
        return _transfer(subject, data)
    arguments = shlex.split(job.format(name=subject.name, data=data, evaluate=subject.evaluate))
    return Plan(
        (*arguments, '--root', ROOT, '-o', OUT), protocol=_protocol(number, subject, data), weights=subject.name,
        data=data,
    )  # fmt: skip


def other_resolution(number: Number) -> str:
    """In what way the published weights are for other images than the number; empty if they are not."""
    subject = subject_of(number)
    if subject is None or not subject.weights or number.pixels is None or number.task == 'transfer_finetune':
        return ''
    side = _pixels(subject)[0]
    return '' if side == number.pixels else f'the released weights are for {side} px, the paper has {number.pixels}'


def _transfer(subject: Subject, data: str) -> Plan | str:
    if not subject.finetune:
        return 'the recipe of its transfer was not published'
    words = [WEIGHTS if word == 'FILE' else word for word in shlex.split(subject.finetune)]
    recipe = find_recipe(words[words.index('--recipe') + 1])
    config = _config_of(words[0]) | recipe.evaluation
    if recipe.img_size:
        config['input_size'] = (3, recipe.img_size, recipe.img_size)
    protocol = dict(
        evaluator='finetune', recipe=recipe.name, epochs=recipe.epochs, batch=recipe.batch_size,
        data=dict(train=_set(data, 'train'), test=_set(data, 'test')),
        trained_on=_images(data, 'train'), tested_on=_images(data, 'test'), **preprocessing_facts(config),
    )  # fmt: skip
    return Plan(
        ('finetune', *words, '-d', data, '--root', ROOT, '-o', OUT), protocol=protocol, weights=subject.name, data=data
    )


def _protocol(number: Number, subject: Subject, data: str) -> dict[str, Any]:
    if number.dataset == 'imagenet-c':
        sets = len(ALEXNET_ERRORS) * len(SEVERITIES)
        return dict(
            evaluator='evaluate', dtype='fp32', corruptions=sorted(ALEXNET_ERRORS),
            counted=sets * _images('imagenet-1k', 'test'), **preprocessing_facts(_config(subject) | UNCROPPED),
        )  # fmt: skip
    if number.task == 'classification':
        return dict(
            evaluator='evaluate', data=_set(data, 'test'), counted=_images(data, 'test'), dtype='fp32',
            **preprocessing_facts(_config(subject)),
        )  # fmt: skip
    if number.task == 'linear_probe':
        return dict(
            evaluator='linear-probe', mode='live', epochs=PROBE_EPOCHS, dtype='fp32', layers=['pooled'],
            pixels=_pixels(subject), train=_set(data, 'train'), test=_set(data, 'test'),
        )  # fmt: skip
    shots = int(number.task.removeprefix('few_shot_5way_').removesuffix('shot'))
    return dict(
        evaluator='few-shot', data=_set(data, 'all'), ways=WAYS, queries=QUERIES, episodes=EPISODES, solver='cdfsl',
        shots=[shots], drawn=[EPISODES], dtype='fp32', pixels=_pixels(subject), preprocessing="squashed, CD-FSL's",
    )  # fmt: skip


def _set(data: str, split: str) -> dict[str, Any]:
    """A whole split, as results say it."""
    entry = find_data(data)
    assert entry is not None
    return dict(
        name=data, split=split, images=_images(data, split), classes=entry.classes, complete=True, left_out=0,
        subset=None,
    )  # fmt: skip


def _images(data: str, split: str) -> int:
    entry = find_data(data)
    assert entry is not None
    return sum(entry.counts[part] for part in entry.splits[split])


def _pixels(subject: Subject) -> list[int]:
    return list(_config(subject)['input_size'][-2:])


def _config(subject: Subject) -> dict[str, Any]:
    """Preprocessing of the evaluation, without building the model: timm's, or what `--protocol` has in its place."""
    words = shlex.split(subject.evaluate)
    named = protocol_overrides(subject.name, words[words.index('--protocol') + 1]) if '--protocol' in words else {}
    return _config_of(subject.name) | named


def _config_of(name: str) -> dict[str, Any]:
    return resolve_data_config(pretrained_cfg=cast(Any, timm.get_pretrained_cfg(name)).to_dict())
