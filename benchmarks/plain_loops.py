"""The CPU time of an update of each pre-training beside a plain loop, update by update; and what a teacher adds to it.

Trainer and plain loop train equal models on the same views, in one process, in turn: when the trainer's student gets a
batch, its clock stops and the plain loop makes one whole update, from the images to AdamW. Every update of the trainer
is compared with the two of the plain loop around it; the first and the last of an epoch, which begin a pass over the
images or save a state, are left out. In the end both models must have the same weights.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from tinyvit_zoo.common.paired_timing import measure, median_interval, timed
from tinyvit_zoo.common.seeding import Seeds, seeded
from tinyvit_zoo.data import load_dataset
from tinyvit_zoo.data.image_dataset import ImageDataset
from tinyvit_zoo.data.seeded import SeededDataset
from tinyvit_zoo.distill import MINI_SWIN, FeatureTap, match_layers, relation_distillation_loss
from tinyvit_zoo.distill.feature_targets import feature_loss
from tinyvit_zoo.distill.taps import stage_depths
from tinyvit_zoo.pretrain import (
    DMae,
    TinyMim,
    cosine_momentum,
    mae_lite_tiny,
    mocov3_tiny,
    tinymim_student,
    tinymim_teacher,
)
from tinyvit_zoo.training.feature_teacher import FeatureTeacher
from tinyvit_zoo.training.features import plan_features
from tinyvit_zoo.training.ingredients import RepeatedAugSampler, create_mixup, create_transforms
from tinyvit_zoo.training.pretraining import Pretraining, d_mae, mae, mocov3, tinymim
from tinyvit_zoo.training.recipes import PRETRAINING, WEIGHT_DISTILLATION, Recipe
from tinyvit_zoo.training.recipes.features import FEATURES
from tinyvit_zoo.training.tasks.classification import Teaching, classification_task
from tinyvit_zoo.training.weight_distillation import distil_weights

__all__ = ['LIMIT', 'TRAINERS', 'Timed', 'compare', 'share_of_teacher', 'with_teacher']

LIMIT = 1.03
SEED, SIDE, BATCH, PER_EPOCH, EPOCHS = 0, 32, 32, 12, 4
QUIET: dict[str, Any] = dict(seed=SEED, device=torch.device('cpu'), say=lambda text: None)
Batch = list[torch.Tensor]


@dataclass(frozen=True)
class Training:
    """What the trainer is given, and what a plain loop makes of the same.

    Attributes:
        student: What is trained.
        recipe: By which.
        views: Images as both see them.
        sampler: Their order.
        train: The trainer, which leaves its files in a folder.
        loss: Of a batch in the update of that number, from 0.
        alone: What the student would have to minimize without a teacher; None where there is none.
        teacher: None where there is none.
        spared: Whether vectors, and what the student names, are spared the weight decay.
    """

    student: nn.Module
    recipe: Recipe
    views: Dataset
    sampler: Sampler
    train: Callable[[Path], object]
    loss: Callable[[Batch, int], torch.Tensor]
    alone: Callable[[Batch], torch.Tensor] | None = None
    teacher: nn.Module | None = None
    spared: bool = True


def plain_loop(training: Training) -> Iterator[None]:
    """The updates of a training without the trainer, one at each step: torch's AdamW, half a cosine, clipped gradients.

    No state is saved and no loss is recorded.
    """
    student, recipe = training.student, training.recipe
    named = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
    listed = getattr(student, 'no_weight_decay', set)()
    spared = {name for name, p in named if training.spared and (p.ndim <= 1 or name in listed)}
    groups = [
        dict(params=[p for name, p in named if (name in spared) == spare], weight_decay=0 if spare else decay)
        for spare, decay in ((True, 0.0), (False, recipe.weight_decay))
    ]
    adamw = torch.optim.AdamW([group for group in groups if group['params']], betas=recipe.betas or (0.9, 0.999))
    rates, updates, update = recipe.rates(recipe.batch_size), recipe.epochs * PER_EPOCH, 0
    own = torch.Generator()  # of the loader: it draws nothing that the model would draw
    student.train()
    for epoch in range(recipe.epochs):
        training.sampler.set_epoch(epoch)
        for batch in DataLoader(training.views, recipe.batch_size, sampler=training.sampler, generator=own):
            for group in adamw.param_groups:
                cosine = (1 + math.cos(math.pi * update / updates)) / 2
                group['lr'] = rates.min_lr + (rates.lr - rates.min_lr) * cosine
            training.loss(batch, update).backward()
            if recipe.clip_grad:
                nn.utils.clip_grad_norm_([p for _, p in named], recipe.clip_grad)
            adamw.step()
            adamw.zero_grad()  # here: else the other side would compute beside these gradients, in memory of its own
            update += 1
            yield


# trainers, each with random weights that are the same at every call


def tinymim_training(data: ImageDataset, **shape: Any) -> Training:
    torch.manual_seed(1)
    teacher = tinymim_teacher('small', last_heads=12, block=shape.get('depth'), **shape)
    form = TinyMim(tinymim_student('tiny', **shape), teacher)

    def loss(batch: Batch, update: int) -> torch.Tensor:
        return relation_distillation_loss(form.student.encoder(batch[0]), form.teacher.encoder(batch[1])).total

    def alone(batch: Batch) -> torch.Tensor:
        return sum(part.sum() for part in form.student.encoder(batch[0]))

    return _of_plan(tinymim, form, data, form.student, loss, alone, teacher.vit)


def mae_training(data: ImageDataset, **shape: Any) -> Training:
    torch.manual_seed(1)
    form = mae_lite_tiny(**shape)
    return _of_plan(mae, form, data, form, lambda batch, update: form(batch[0], noise=batch[1]).loss)


def d_mae_training(data: ImageDataset, **shape: Any) -> Training:
    torch.manual_seed(1)
    teacher = tinymim_teacher('small', **shape).vit
    form = DMae(mae_lite_tiny(**shape), teacher, attention_blocks=(shape.get('depth', 12),))
    return _of_plan(
        d_mae, form, data, form.model, lambda batch, update: form(batch[0], noise=batch[1]).loss,
        lambda batch: form.model(batch[0], noise=batch[1]).loss, form.tch_model,
    )  # fmt: skip


def mocov3_training(data: ImageDataset, **shape: Any) -> Training:
    torch.manual_seed(1)
    form = mocov3_tiny(**shape)

    def loss(batch: Batch, update: int) -> torch.Tensor:
        return form(batch[0], batch[1], cosine_momentum(update, EPOCHS * PER_EPOCH))

    return _of_plan(mocov3, form, data, form, loss, spared=False)


def _of_plan(
    plan: Callable[..., Pretraining],
    form: nn.Module,
    data: ImageDataset,
    student: nn.Module,
    loss: Callable[[Batch, int], torch.Tensor],
    alone: Callable[[Batch], torch.Tensor] | None = None,
    teacher: nn.Module | None = None,
    spared: bool = True,
) -> Training:
    recipe = PRETRAINING[f'{plan.__name__}_small'].changed(epochs=EPOCHS, warmup_epochs=0, batch_size=BATCH)
    planned = plan(form, data, recipe, **QUIET)
    return Training(
        planned.task.trainable_module, planned.recipe, planned.views, planned.sampler, planned.train, loss, alone,
        teacher, spared,
    )  # fmt: skip


def minivit_training(data: ImageDataset) -> Training:
    """Mini-Swin's losses, with relations, on two stages of two layers that share weights in pairs."""
    torch.manual_seed(1)
    shape: dict[str, Any] = dict(img_size=SIDE, window_size=4, depths=(2, 2), num_classes=10)
    teacher = timm.create_model('swin_base_patch4_window7_224', num_heads=(4, 8), **shape)
    student = timm.create_model('mini_swin_tiny_patch4_window7_224', num_heads=(3, 6), repeats=2, **shape)
    recipe = WEIGHT_DISTILLATION['mini_swin'].changed(epochs=EPOCHS, warmup_epochs=0, batch_size=BATCH)
    mixup = create_mixup(recipe, 10)
    image = torch.zeros(1, 3, SIDE, SIDE)
    layers = match_layers(stage_depths(student.eval(), image), stage_depths(teacher.eval(), image))

    def loss(batch: Batch, update: int) -> torch.Tensor:
        images, _ = mixup(*batch)
        with FeatureTap(student, layers[0]) as tap, FeatureTap(teacher, layers[1], grad=False) as teacher_tap:
            (output, ours), (answer, theirs) = tap(images), teacher_tap(images)
        return MINI_SWIN(
            output, answer, student_qkv=ours.qkv, teacher_qkv=theirs.qkv, student_hidden=ours.hidden,
            teacher_hidden=theirs.hidden,
        )['total']  # fmt: skip

    def alone(batch: Batch) -> torch.Tensor:
        images, labels = mixup(*batch)
        return F.cross_entropy(student(images), labels)

    return Training(
        student, recipe, SeededDataset(data.with_transform(create_transforms(student, recipe)[0])),
        RepeatedAugSampler(len(data), BATCH, recipe.repeats, SEED),
        lambda folder: distil_weights(student, data, teacher, MINI_SWIN, recipe, folder, **QUIET), loss, alone, teacher,
    )  # fmt: skip


def features_training(data: ImageDataset) -> Training:
    """A ViT of width 192 under one of width 384, with the same patches."""
    student, teacher = vit(192, 3), vit(384, 6)
    recipe = FEATURES.changed(epochs=EPOCHS, warmup_epochs=0, batch_size=BATCH)
    plan = plan_features(student, FeatureTeacher.of_timm(teacher, 'small'), data, recipe, **QUIET)
    module: Any = plan.task.trainable_module

    def loss(batch: Batch, update: int) -> torch.Tensor:
        with torch.no_grad():
            targets = teacher.forward_features(batch[-1])
        tokens = student.forward_features(batch[0])
        pooled = feature_loss(module.pooled_map(tokens[:, 0]), targets[:, 0])
        return 0.5 * pooled + 0.5 * feature_loss(module.dense_map(tokens[:, 1:]), targets[:, 1:])

    def alone(batch: Batch) -> torch.Tensor:
        tokens = student.forward_features(batch[0])
        return module.pooled_map(tokens[:, 0]).sum() + module.dense_map(tokens[:, 1:]).sum()

    return Training(module, plan.recipe, plan.views, plan.sampler, plan.train, loss, alone, teacher)


TRAINERS: dict[str, Callable[[ImageDataset], Training]] = {
    'tinymim': partial(tinymim_training, img_size=SIDE, patch_size=8),
    'mae': partial(mae_training, img_size=SIDE, patch_size=4),
    'd_mae': partial(d_mae_training, img_size=SIDE, patch_size=4),
    'mocov3': partial(mocov3_training, img_size=SIDE, patch_size=8),
    'minivit': minivit_training,
    'features, ViT': features_training,
}


# time of an update


@dataclass(frozen=True)
class Timed:
    """CPU seconds of updates in turn.

    Attributes:
        ours: Of the trainer's.
        plain: Of the plain loop's, each the mean of the two around the trainer's update.
        ratio: Median of their quotients.
        interval: 95 % interval of that median.
        apart: Largest difference between the weights that result.
    """

    ours: list[float]
    plain: list[float]
    ratio: float
    interval: tuple[float, float]
    apart: float


class Turns:
    """Runs an update of a plain loop whenever a student gets a batch, and keeps the time of both."""

    def __init__(self, student: nn.Module, plain: Iterator[None]) -> None:
        self.ours: list[float] = []
        self.plain: list[float] = []
        self._loop, self._since = plain, 0.0
        student.register_forward_pre_hook(self._called)

    def _called(self, student: nn.Module, args: tuple) -> None:
        if len(args[0]) != BATCH:  # a trial before the training
            return
        if self.plain:
            self.ours.append(time.process_time() - self._since)
        epoch, step = divmod(len(self.plain), PER_EPOCH)
        with seeded(Seeds.spawned(SEED, epoch, step, 0)):  # what the trainer's update draws from
            self.plain.append(timed(lambda: next(self._loop))[0])
        self._since = time.process_time()


def compare(name: str) -> Timed:
    """Train by the trainer and by the plain loop, in turn. Needs some minutes."""
    data = images()
    training, other = TRAINERS[name](data), TRAINERS[name](data)
    turns = Turns(training.student, plain_loop(other))
    with tempfile.TemporaryDirectory() as folder:
        training.train(Path(folder))
    inside = [i for i in range(len(turns.ours)) if i % PER_EPOCH not in (0, PER_EPOCH - 1)]
    around = [statistics.mean(pair) for pair in pairwise(turns.plain)]
    ours, plain = ([times[i] for i in inside] for times in (turns.ours, around))
    ratios = [a / b for a, b in zip(ours, plain, strict=True)]
    weights = other.student.state_dict()
    apart = max((value - weights[key]).abs().max().item() for key, value in training.student.state_dict().items())
    return Timed(ours, plain, statistics.median(ratios), median_interval(ratios), apart)


def images() -> ImageDataset:
    return load_dataset('digits', 'train').subset(range(BATCH * PER_EPOCH))


# what a teacher adds


@dataclass(frozen=True)
class Share:
    """The teacher's part in an update without its images and without AdamW: forward and backward pass.

    Attributes:
        alone: CPU seconds of the student without a teacher, in each round.
        both: Of the student with its teacher.
        share: Median of 1 - alone / both.
        interval: 95 % interval of that median.
        blocks: Blocks of the teacher that run as a whole, and how many it has.
    """

    alone: list[float]
    both: list[float]
    share: float
    interval: tuple[float, float]
    blocks: tuple[int, int]


def with_teacher() -> tuple[str, ...]:
    """The methods that have a teacher."""
    return (*(name for name in TRAINERS if name not in ('mae', 'mocov3')), 'finetune --teacher')


def share_of_teacher(name: str, rounds: int) -> Share:
    """Student alone against student and teacher on one batch, in turn."""
    alone, both, teacher = _passes(name)
    blocks = [m for m in teacher.modules() if hasattr(m, 'attn') and hasattr(m, 'mlp')]
    seconds = measure({'alone': alone, 'both': both}, rounds)
    run: set[int] = set()
    handles = [block.register_forward_hook(lambda module, args, out: run.add(id(module))) for block in blocks]
    both()
    for handle in handles:
        handle.remove()
    shares = [1 - a / b for a, b in zip(seconds['alone'], seconds['both'], strict=True)]
    return Share(
        seconds['alone'], seconds['both'], statistics.median(shares), median_interval(shares), (len(run), len(blocks))
    )


def _passes(name: str) -> tuple[Callable[[], object], Callable[[], object], nn.Module]:
    """Both passes of the student alone, those of student and teacher, and the teacher."""
    if name in TRAINERS:
        training = TRAINERS[name](images())
        training.student.train()
        batch = first_batch(training.views, training.sampler)
        assert training.alone is not None
        assert training.teacher is not None
        alone, teacher = training.alone, training.teacher
        return lambda: alone(batch).backward(), lambda: training.loss(batch, 0).backward(), teacher
    student, teacher, recipe = vit(192, 3, 10), vit(384, 6, 10), WEIGHT_DISTILLATION['mini_deit']
    tasks = [classification_task(student, recipe, 10, teaching) for teaching in (None, Teaching(teacher))]
    pixels, labels = torch.randn(BATCH, 3, SIDE, SIDE), torch.arange(BATCH) % 10
    alone, both = (lambda task=task: task(pixels, labels)['loss'].backward() for task in tasks)
    return alone, both, teacher


def vit(width: int, heads: int, classes: int = 0) -> nn.Module:
    """A ViT of 12 blocks with patches of 8 pixels, on images of 32."""
    torch.manual_seed(width)
    return timm.create_model(
        'deit_tiny_patch16_224', img_size=SIDE, patch_size=8, embed_dim=width, num_heads=heads, num_classes=classes
    )


def first_batch(views: Dataset, sampler: Sampler) -> Batch:
    """Of the first epoch."""
    sampler.set_epoch(0)
    return next(iter(DataLoader(views, BATCH, sampler=sampler)))
