"""The job of a number on digits and textures: the full one with other data, image size, epochs and batch.

Published weights know nothing of digits. The models of these rows are trained on digits from random weights by the
row's own trainer, or by the recipe `small` where its weights are published and no trainer is named.
"""

import re
import shlex
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

from timm.models._input import get_model_input_config

from tinyvit_zoo.build import build_model
from tinyvit_zoo.info import profile_model

from ..few_shot import WAYS
from .entries import subject_of
from .numbers import Number
from .plans import OUT, ROOT, Plan
from .record import Need, Subject, need_of

__all__ = ['LIMIT', 'digits_plan', 'replaced']

LIMIT = 30
"""Millions of parameters, of a student or teacher: one epoch of a larger model on digits takes a minute of a CPU, and
all tables together have 20."""
MACS_LIMIT = 0.5
"""GMACs of an image of digits: few parameters, each used by many layers, take as long."""

Options = tuple[tuple[str, Any], ...]

EPOCHS, BATCH = 1, 32
BATCH_OF_1_PERCENT = 8  # of the 10 images that 1 % of digits come to
SIDE, PATCH_SIDE, LARGE_SIDE = 32, 48, 48
"""Pixels: of all models; of those that begin with patches of 16 pixels; in place of 300 and more."""
LARGE = 300

ITERATIONS = 10  # of a detector or segmenter

CI_CONFIGS: dict[str, tuple[str, tuple[str, ...]]] = {
    'cascade_mask_rcnn_mini_swin_tiny_fpn_1x_coco': ('ci_cascade_mask_rcnn_mini_swin_tiny', ()),
    'cascade_mask_rcnn_swin_tiny_fpn_1x_coco': ('ci_cascade_mask_rcnn_swin_tiny', ()),
    'distilled_cascade_mask_rcnn_mini_swin_tiny_fpn_1x_coco': ('ci_distilled_cascade_mini_swin_tiny', ()),
    'cascade_mask_rcnn_tinyvit_21m_fpn_1x_coco': (
        'ci_cascade_mask_rcnn_tinyvit_5m',
        ('model.backbone.model_name=tinyvit_21m_224', 'model.neck.in_channels=[96,192,384,576]'),
    ),
    'mask_rcnn_vitdet_mae_lite_tiny_lsj640_100ep_coco': (
        'ci_mask_rcnn_vit_pyramid_tinymim', ('model.backbone.model_name=mae_lite_vit_tiny_patch16_224',),
    ),
    'cascade_mask_rcnn_mini_swin_tiny_ws_wt_fpn_1x_coco': ('ci_cascade_mask_rcnn_mini_swin_tiny', ()),
    'cascade_mask_rcnn_mini_swin_tiny_ws_fpn_1x_coco': (
        'ci_cascade_mask_rcnn_swin_tiny',
        ('model.backbone.model_name=multiplexed', 'model.backbone.base=swin_tiny_patch4_window7_224',
         'model.backbone.share_every=stage', 'model.backbone.transform=False', 'model.backbone.share_norms=True',
         'optim_wrapper.paramwise_cfg.bypass_duplicate=True'),
    ),
    'upernet_tinymim_star_tiny_160k_ade20k': ('ci_upernet_tinymim_star_tiny', ()),
    **{
        f'upernet_tinymim_{size}_160k_ade20k': (
            'ci_upernet_tinymim_star_tiny',
            (f'model.backbone.model_name=tinymim_{size}_seg', f'model.auxiliary_head.in_channels={width}',
             f'model.decode_head.in_channels=[{width},{width},{width},{width}]'),
        )
        for size, width in (('tiny', 192), ('small', 384))
    },
}  # fmt: skip
"""By packaged config: that of CI's size with the same detector and backbone, and what it takes to make it so."""

PREDICTIONS = {('--relation-weight', '0'), ('--hidden-weight', '0')}  # of `pretrain minivit`: no features
TEACHER = 'tinyvit_5m_224'
MAE_TEACHER = 'small'  # of D-MAE and of TinyMIM's tiny student
ENCODER = re.compile(r'mae_lite_vit_(tiny|small)_encoder_patch16_224\.(mae|mocov3|dmae)_in1k')
FINETUNED = {'mae': 'mae_lite_improved', 'mocov3': 'mae_lite_improved', 'tinymim': 'tinymim'}
"""Recipe that fine-tunes what was pre-trained, by the trainer."""


def digits_plan(number: Number) -> Plan | str:
    """The evaluator or trainer that takes the place of a number's own on digits or textures, or why there is none.

    Args:
        number: One that needs data.
    """
    need, subject = need_of(number.task, number.dataset), subject_of(number)
    if need not in (Need.IMAGENET, Need.TRANSFER, Need.COCO, Need.ADE20K) or number.metric == 'top1_delta':
        return 'no evaluator or trainer measures it'
    if number.metric == 'mce':
        return 'there are no corrupted digits'
    if subject is None or not subject.name:
        return 'nothing here builds the model'
    if subject.name.startswith('crossvit'):
        return 'the grids of its two branches do not fit images of 32 pixels'
    detector = need in (Need.COCO, Need.ADE20K)
    if '&&' in subject.trainer and not detector:  # a detector starts from random weights
        return 'another command makes the student of its trainer, and this scale does not run it'
    return _too_large(subject) or (_detector(subject) if detector else _of_task(number, subject))


def _too_large(subject: Subject) -> str:
    """Why a model is not trained on digits, or nothing."""
    built = subject.name.partition('.')[0], tuple(subject.options.items())
    reason = 'as all tables are to take a CPU 20 minutes'
    if (millions := _millions(*built)) > LIMIT:
        return f'{millions:.1f} M parameters; the limit is {LIMIT} M, {reason}'
    if (macs := _gmacs(*built)) > MACS_LIMIT:
        return f'about {macs:.1f} GMACs at {_side(built[0])[1]} pixels; the limit is {MACS_LIMIT}, {reason}'
    return ''


def _detector(subject: Subject) -> Plan | str:
    """A detector or segmenter of CI's size on drawn shapes, trained and then tested."""
    if not subject.config:
        return 'no config here trains it'
    if subject.config not in CI_CONFIGS:
        return "no config of CI's size trains it"
    small, options = CI_CONFIGS[subject.config]
    coco = 'upernet' not in small
    data, more = ('shapes', ('--validation-annotations', 'val.json')) if coco else ('shapes_ade', ())
    trained = Plan(
        ('detect', 'train', small, '-d', ROOT, *(('--train-annotations', 'train.json') if coco else ()), *more,
         '--work-dir', OUT, '--resume', '--cfg-options', f'train_cfg.max_iters={ITERATIONS}',
         f'train_cfg.val_interval={ITERATIONS}', *options),
        data=data, results='curves.csv',
    )  # fmt: skip
    checkpoint = f'{{0}}/iter_{ITERATIONS}.pth'
    return Plan(
        ('detect', 'test', f'{{0}}/{small}.py', checkpoint, '-d', ROOT, *more, '--work-dir', OUT), (trained,),
        data=data, results='test_results.json',
    )  # fmt: skip


def _of_task(number: Number, subject: Subject) -> Plan | str:
    data = 'digits' if number.dataset.startswith('imagenet') else 'textures'
    if number.task == 'transfer_finetune':
        return _transfer(subject, data)
    if number.task == 'classification':
        model = _classifier(subject)
        if isinstance(model, str):
            return model
        words = ('evaluate', '{0}/model', '-d', data, *shlex.split(subject.evaluate))
        return Plan((*words, '-o', OUT), (model,), dict(evaluator='evaluate', dtype='fp32'))
    model = _backbone(subject)
    if isinstance(model, str):
        return model
    if number.task == 'linear_probe':
        words = ('probe', '{0}/model', '-d', data, '--epochs', str(EPOCHS), '--step-batch', str(BATCH))
        return Plan((*words, '-o', OUT), (model,), dict(evaluator='linear-probe', mode='live'))
    shots = number.task.removeprefix('few_shot_5way_').removesuffix('shot')
    words = ('fewshot', '{0}/model', '-d', data, '--shots', shots)
    return Plan((*words, '-o', OUT), (model,), dict(evaluator='few-shot', ways=WAYS, shots=[int(shots)]))


def _transfer(subject: Subject, data: str) -> Plan | str:
    """Fine-tuning by the recipe of the transfer, from weights that digits have made."""
    model = _backbone(subject)
    if isinstance(model, str):
        return model
    if not subject.finetune:
        return 'the recipe of its transfer was not published'
    name, *rest = shlex.split(subject.finetune)
    rest = ['{0}/model' if word == 'FILE' else word for word in rest]
    start = (name, *rest, *_side(name)) if '--weights' in rest else ('{0}/model', *rest)
    return Plan(('finetune', *start, '-d', data, *_short(), '-o', OUT), (model,), dict(evaluator='finetune'))


def _backbone(subject: Subject) -> Plan | str:
    """What makes the weights that a frozen or transferred backbone has, in its folder `model`."""
    encoder = ENCODER.fullmatch(subject.name)
    if encoder and subject.weights:
        return _pretrained(encoder[2], encoder[1])
    return _classifier(subject)


def _classifier(subject: Subject) -> Plan | str:
    """What trains the classifier of a row on digits, in its folder `model`."""
    architecture = subject.name.partition('.')[0]
    if subject.weights:
        return _from_scratch(architecture, 'small')
    if not subject.trainer:
        return 'nobody has published its weights, and no command trains it'
    words = _without(shlex.split(subject.trainer), '-d', '-o', '--epochs')
    if words[0] == 'finetune':
        if '--subset' in words:
            return 'its images are those that hard-samples keeps of ImageNet-22k'
        return _from_scratch(architecture, words[words.index('--recipe') + 1])
    if words[1] == 'minivit' and 'swin' in architecture and not PREDICTIONS <= set(pairwise(words)):
        return 'it learns the features of a Swin, whose windows differ from its own at 32 pixels'
    if words[0] == 'distill' or words[1] == 'minivit':
        words = [*_without(words, '--teacher'), '--teacher', '{0}/model']
        taught = (*words, '-d', 'digits', *_short(words), *_side(architecture), '-o', OUT)
        return Plan(taught, (_from_scratch(TEACHER, 'small'),))
    return _finetuned(words, architecture)


def _finetuned(words: list[str], architecture: str) -> Plan | str:
    """A pre-training, and the fine-tuning that the paper has after it."""
    pretrained = _pretraining(words)
    if isinstance(pretrained, str):
        return pretrained
    start = ('finetune', architecture, '--weights', '{0}/model', '--as-init', *_side(architecture))
    recipe = ('--recipe', FINETUNED[words[1]])
    return Plan((*start, *recipe, '-d', 'digits', *_short(), '-o', OUT), (pretrained,))


def _pretraining(words: list[str]) -> Plan | str:
    if words[1] != 'tinymim':
        return Plan((*words, '-d', 'digits', *_pretrain_options(words), '-o', OUT))
    teacher = words[words.index('--teacher') + 1] if '--teacher' in words else 'a chain from ViT-B or ViT-L'
    if teacher != 'TEACHER':
        return f'its teacher, {teacher}, has more than {LIMIT} M parameters'
    taught = [*_without(words, '--teacher'), '--teacher', '{0}/model']
    return Plan((*taught, '-d', 'digits', *_pretrain_options(taught), '-o', OUT), (_pretrained('mae', MAE_TEACHER),))


def _pretrained(kind: str, size: str) -> Plan:
    """An encoder of MAE-Lite."""
    words: tuple[str, ...] = {'mae': ('mae', '--size', size), 'mocov3': ('mocov3',)}.get(kind, ())
    needs: tuple[Plan, ...] = ()
    if kind == 'dmae':
        words, needs = ('d_mae', '--size', size, '--teacher', '{0}/model'), (_pretrained('mae', MAE_TEACHER),)
    return Plan(('pretrain', *words, '-d', 'digits', *_pretrain_options(), '-o', OUT), needs)


def _from_scratch(architecture: str, recipe: str) -> Plan:
    start = ('finetune', architecture, '--random', *_side(architecture))
    return Plan((*start, '--recipe', recipe, '-d', 'digits', *_short(), '-o', OUT))


def _short(words: Sequence[str] = ()) -> tuple[str, ...]:
    batch = BATCH_OF_1_PERCENT if '1%' in words else BATCH
    return '--epochs', str(EPOCHS), '--batch-size', str(batch)


def _pretrain_options(words: Sequence[str] = ()) -> tuple[str, ...]:
    return *_short(words), '--img-size', str(PATCH_SIDE)


def _side(architecture: str) -> tuple[str, ...]:
    found = re.search(r'_(\d{3})$', architecture)
    large = found is not None and int(found[1]) >= LARGE
    patches = re.search(r'patch(16|32)', architecture) is not None
    return '--img-size', str(PATCH_SIDE if patches else LARGE_SIDE if large else SIDE)


def _without(words: list[str], *options: str) -> list[str]:
    """Words without some options and their values."""
    return [word for i, word in enumerate(words) if word not in options and (not i or words[i - 1] not in options)]


@cache
def _millions(architecture: str, options: Options) -> float:
    return sum(p.numel() for p in build_model(architecture, device='meta', **dict(options)).parameters()) / 1e6


@cache
def _gmacs(architecture: str, options: Options) -> float:
    """Those of an image of digits, by the number of pixels from those of the model's own size."""
    model = build_model(architecture, device='meta', **dict(options))
    own = get_model_input_config(model)['input_size'][-1]
    return profile_model(model).macs / 1e9 * (int(_side(architecture)[1]) / own) ** 2


def replaced(number: Number) -> str:
    """What a job on digits has in place of the full one's, in one line."""
    task = 'few_shot' if number.task.startswith('few_shot') else number.task
    name = task.removesuffix('_finetune').replace('_', ' ')
    if task in _DRAWN:
        return f'{name}: drawn shapes for {_DRAWN[task]}; {_DETECTOR}'
    data = 'digits for ImageNet' if number.dataset.startswith('imagenet') else 'textures for the transfer set'
    return f'{name}: {data}; {_REPLACED[task]}'


_DRAWN = {'object_detection': 'COCO', 'instance_segmentation': 'COCO', 'semantic_segmentation': 'ADE20K'}
_DETECTOR = f"from random weights, with heads of CI's size; {ITERATIONS} updates"
_PIXELS = f'images of {" or ".join(map(str, sorted({SIDE, PATCH_SIDE, LARGE_SIDE})))} pixels'
_REPLACED = {
    'classification': (
        "weights made on digits by the row's own trainer, or from random ones by the recipe small where they are "
        f'published; epochs: {EPOCHS}, batches of {BATCH} (of {BATCH_OF_1_PERCENT} for 1 % of the '
        f"images), {_PIXELS}; the teacher is TinyViT-5M or MAE's ViT-S, trained on digits"
    ),
    'linear_probe': f'weights made on digits; epochs: {EPOCHS}, batches of {BATCH}, {_PIXELS}',
    'few_shot': f'weights made on digits, {_PIXELS}',
    'transfer_finetune': f'weights made on digits; epochs: {EPOCHS}, batches of {BATCH}, images of {PATCH_SIDE} pixels',
}
"""By task: what is other than in the full job, beside the data."""
