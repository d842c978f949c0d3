"""Fine-tuning of any timm model by a recipe: resumable, on one process or many (`torchrun`, `accelerate launch`).

The same images, augmentations and updates come out of any number of processes, workers and accumulated steps; random
numbers within the model (drop path, Mixup) are drawn by each process for its part of the batch, over which BatchNorm
takes its statistics, too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.hashes import state_hash
from tinyvit_zoo.common.per_class import at_zero, mean_per_class
from tinyvit_zoo.common.plain import plain
from tinyvit_zoo.common.text import count_of
from tinyvit_zoo.data.augment import create_transform
from tinyvit_zoo.data.class_map import readable
from tinyvit_zoo.data.image_dataset import ImageDataset
from tinyvit_zoo.data.seeded import SeededDataset
from tinyvit_zoo.data.split import stratified_split
from tinyvit_zoo.data.subsets import subset_identity
from tinyvit_zoo.data.transforms import data_config
from tinyvit_zoo.training.ingredients import RepeatedAugSampler, create_transforms, evaluation_config, reset_head
from tinyvit_zoo.training.loop import Record, RunSettings, TrainingLoop, best_epoch
from tinyvit_zoo.training.recipes import Recipe
from tinyvit_zoo.training.tasks.classification import Teaching, classification_task, has_token
from tinyvit_zoo.training.tasks.teacher import check_teacher
from tinyvit_zoo.training.train_task import unreached_frozen

__all__ = ['Epoch', 'Finetuned', 'Measured', 'finetune']


LEFT_OF_START = 0.1  # share of the initial weights in a moving average from which on it is said


@dataclass(frozen=True)
class Epoch:
    """Mean training loss of an epoch, the learning rate of its last update; validation loss, accuracy and the mean of
    the classes' accuracies (%).
    """

    loss: float
    lr: float
    validation_loss: float | None
    validation_accuracy: float | None
    validation_mean_per_class: float | None


@dataclass(frozen=True)
class Measured:
    """A model on labelled images.

    Attributes:
        predictions: (N,) int64.
        loss: Mean cross entropy.
        accuracy: In %.
        mean_per_class: In %, every class that occurs counting the same.
        classes_at_zero: Readable names of the classes that occur and of which nothing is right.
        preprocessing: Arguments of `timm.data.create_transform`.
    """

    predictions: np.ndarray
    loss: float
    accuracy: float
    mean_per_class: float
    classes_at_zero: tuple[str, ...]
    preprocessing: dict[str, Any]


@dataclass(frozen=True)
class Finetuned:
    """A finished training run; the model has the weights of `best_epoch`.

    Attributes:
        history: One record an epoch.
        best_epoch: Counted from 1: the first with the highest validation accuracy, or the last without validation.
        tied_epochs: How many epochs have that accuracy; 0 without validation.
        chosen_by: What chose it, in words.
        training_images: How many images were trained on.
        validation_images: How many images it was chosen with; 0 if nothing was chosen.
        validation: On those, where there are no test images; else None.
        test: On the test images, which nothing was chosen with, as the recipe evaluates; None without them.
        test_own: The same as the model's own configuration has it, where that differs; else None.
        recipe: As it was trained by; its batch may be smaller than that of the recipe asked for, see `Recipe.fitted`.
        precision: 'no' (float32), 'bf16' or 'fp16'.
        processes: How many trained together.
    """

    history: tuple[Epoch, ...]
    best_epoch: int
    tied_epochs: int
    chosen_by: str
    training_images: int
    validation_images: int
    validation: Measured | None
    test: Measured | None
    test_own: Measured | None
    recipe: Recipe
    precision: str
    processes: int


def finetune(
    model: nn.Module,
    train: ImageDataset,
    recipe: Recipe,
    output: str | Path,
    *,
    validation: ImageDataset | None = None,
    test: ImageDataset | None = None,
    held_out: float | None = None,
    teaching: Teaching | None = None,
    **run: Unpack[RunSettings],
) -> Finetuned:
    """Train, or resume an earlier run into the same folder.

    A run that is killed at any moment resumes from its last state, after an epoch or within one, with the same losses
    to the bit (on the same machine, with as many threads and processes).

    Args:
        model: Any timm model with as many classes as `train`, made with `drop_path_rate=recipe.drop_path_of(name)` and
            at the recipe's size: neither can be set here. Trained in place; left in eval mode. To start from the
            encoder of a pre-training, make it with `as_init=True`.
        train: Images to learn from.
        recipe: Its `batch_size` is that of an update, over all processes; it may shrink for few images, see
            `Recipe.fitted`.
        output: Folder for `state.pt`, all that a resumed run needs, and `best.pt`, the weights that result.
        validation: Images to choose the epoch with. None: a part of `train` is held out for it.
        test: Images for the one number at the end.
        held_out: Share of `train`, of each class alike; 0 to train on all of it and take the last epoch. None: as the
            recipe has it. Without effect where there are images to choose with.
        teaching: A teacher's part in the loss, as in DeiT. It sees the mixed images of the model, with its own mean and
            standard deviation, and stays as it is, in eval mode.
        **run: See `TrainingLoop`; `seed` is also that of order, augmentation, held-out images and a head of
            `recipe.head_std`.

    Raises:
        EvaluationError: If classes do not fit, those of a teacher included, the model takes other images than RGB, the
            batch does not fit images or processes, the folder holds the state of another run or another run is writing
            to it, the device has no such precision, or the loss is no longer a number.
    """
    seed = run.get('seed', 0)
    _check_classes(model, train, validation, test)
    train, validation, plan = _plan(train, validation, recipe, held_out, seed)
    recipe = recipe.fitted(len(train))
    _check_batch(train, recipe, plan)
    reset_head(model, recipe.head_std, seed)
    if teaching is not None:
        check_teacher(teaching.teacher, model)
    task = classification_task(model, recipe, len(train.classes), teaching)
    with unreached_frozen(model):
        loop = TrainingLoop(task, recipe, Path(output), **run)
        if teaching is not None:
            cast(Any, task).teacher.autocast = loop.accelerator.autocast
        loop.say(plan.words)
        _warn_of_average(recipe, len(train), loop.say)
        training_transform, evaluation_transform = create_transforms(model, recipe)
        held_loader = None if validation is None else loop.loader(validation.with_transform(evaluation_transform))

        def evaluate(result: nn.Module) -> Record:
            if held_loader is None or validation is None:
                return dict(validation_loss=None, validation_accuracy=None, validation_mean_per_class=None)
            predictions, loss, accuracy = _predict(loop, result, held_loader)
            per_class = mean_per_class(validation.labels, predictions)
            return dict(validation_loss=loss, validation_accuracy=accuracy, validation_mean_per_class=per_class)

        history = loop.run(
            loop.loader(
                SeededDataset(train.with_transform(training_transform)),
                RepeatedAugSampler(len(train), recipe.batch_size, recipe.repeats, seed),
            ),
            _identity(model, train, validation, teaching),
            evaluate=evaluate,
            chosen_by='validation_accuracy',
            describe=_in_words,
        )
    if has_token(model):
        cast(Any, model).set_distilled_training(False)
    ours, own = evaluation_config(model, recipe), evaluation_config(model)
    best = best_epoch(history, 'validation_accuracy')
    scores = [record['validation_accuracy'] for record in history]
    return Finetuned(
        history=tuple(_epoch(record) for record in history),
        best_epoch=best,
        tied_epochs=0 if validation is None else scores.count(scores[best - 1]),
        chosen_by=plan.chosen_by,
        training_images=len(train),
        validation_images=0 if validation is None else len(validation),
        validation=_measure(loop, model, validation, ours) if test is None else None,
        test=_measure(loop, model, test, ours),
        test_own=_measure(loop, model, test, own) if own != ours else None,
        recipe=recipe,
        precision=loop.accelerator.mixed_precision,
        processes=loop.accelerator.num_processes,
    )


@dataclass(frozen=True)
class _Plan:
    """Which images are trained on and which choose the epoch: said before the first epoch, and kept in the results."""

    words: str
    chosen_by: str
    held_out: int = 0


def _plan(
    train: ImageDataset, validation: ImageDataset | None, recipe: Recipe, held_out: float | None, seed: int
) -> tuple[ImageDataset, ImageDataset | None, _Plan]:
    """The images to train on and to choose the epoch with."""
    share, total = recipe.held_out if held_out is None else held_out, len(train)
    everything = f'Trained on: all {total:,} images of {train.name} ({train.split})'
    if validation is not None:
        words = f'{everything}; the epoch is chosen with the {len(validation):,} of {validation.split}'
        if held_out is not None:
            words += ', so --held-out has no effect'
        return train, validation, _Plan(f'{words}.', f'{validation.split} images')
    if not share:
        words = f'{everything}; none is held out, so the last epoch is the result (--held-out 0.1 would choose one).'
        return train, None, _Plan(words, 'nothing: it is the last one')
    try:
        rest, held = stratified_split(train.labels, share, seed)
    except EvaluationError as e:
        raise EvaluationError(f'{str(e).removesuffix(".")}, or train on all of them (--held-out 0).') from e
    words = (
        f'Held out: {len(held):,} of the {total:,} images of {train.name} ({train.split}), about {share:.0%} of each '
        f'class, with which the epoch is chosen; {len(rest):,} are trained on (--held-out 0 for all).'
    )
    return train.subset(rest), train.subset(held), _Plan(words, 'held-out images', len(held))


def _check_batch(train: ImageDataset, recipe: Recipe, plan: _Plan) -> None:
    if len(train) >= recipe.batch_size:
        return
    if len(train) + plan.held_out >= recipe.batch_size:
        raise EvaluationError(
            f'{count_of(len(train), "training image")} cannot fill a batch of {recipe.batch_size}, without the '
            f'{count_of(plan.held_out, "image")} held out: choose a smaller --batch-size or --held-out.'
        )
    raise EvaluationError(
        f'{count_of(len(train), "training image")} cannot fill a batch of {recipe.batch_size}: choose a smaller '
        '--batch-size.'
    )


def _warn_of_average(recipe: Recipe, images: int, say: Callable[[str], None]) -> None:
    """A moving average starts as the initial weights, of which a short training leaves it full."""
    updates = recipe.epochs * (images // recipe.batch_size)
    left = (recipe.ema_decay or 0.0) ** updates
    if left > LEFT_OF_START:
        say(
            f'The result, a moving average of decay {recipe.ema_decay:g}, will be made of the initial weights by '
            f'{left:.0%} after {count_of(updates, "update")}: choose a lower --ema-decay or more --epochs.'
        )


def _identity(
    model: nn.Module, train: ImageDataset, validation: ImageDataset | None, teaching: Teaching | None
) -> dict[str, str]:
    """Everything about the images and the teacher that must be the same for a run to be resumed."""
    images = {'training images': train.fingerprint(), **subset_identity(train)}
    if validation is not None:
        images['validation images'] = validation.fingerprint()
    if teaching is not None:
        images['teacher'] = state_hash(teaching.teacher)
        images['distillation'] = repr((teaching.kind_for(model), teaching.alpha, teaching.tau))
    return dict(images, input=repr(sorted(plain(data_config(model)).items())))  # a ConvNet's weights fit any size


def _epoch(record: Record) -> Epoch:
    return Epoch(
        loss=cast(float, record['loss']),
        lr=cast(float, record['lr']),
        validation_loss=record['validation_loss'],
        validation_accuracy=record['validation_accuracy'],
        validation_mean_per_class=record.get('validation_mean_per_class'),  # absent in the states of earlier versions
    )


def _check_classes(model: nn.Module, train: ImageDataset, *others: ImageDataset | None) -> None:
    if model.num_classes != len(train.classes):
        raise EvaluationError(
            f'The model has {model.num_classes} classes and {train.name} has {len(train.classes)}: make it with '
            f'num_classes={len(train.classes)}.'
        )
    if len(np.unique(train.labels)) < 2:
        raise EvaluationError(
            f'All images of {train.name} ({train.split}) are of one class: there is nothing to learn.'
        )
    for other in others:
        if other is not None and other.classes != train.classes:
            raise EvaluationError(f'The classes of {other.name} ({other.split}) are not those of {train.name}.')


def _measure(
    loop: TrainingLoop, model: nn.Module, dataset: ImageDataset | None, config: dict[str, Any]
) -> Measured | None:
    """A model on labelled images with these arguments of `create_transform`; None without images."""
    if dataset is None:
        return None
    loader = loop.loader(dataset.with_transform(create_transform(**config)))
    predictions, loss, accuracy = _predict(loop, model, loader)
    return Measured(
        predictions=predictions,
        loss=loss,
        accuracy=accuracy,
        mean_per_class=mean_per_class(dataset.labels, predictions),
        classes_at_zero=tuple(at_zero(dataset.labels, predictions, readable(dataset.classes))),
        preprocessing=config,
    )


def _predict(loop: TrainingLoop, model: nn.Module, loader: DataLoader) -> tuple[np.ndarray, float, float]:
    """Predictions (N,) int64, mean cross entropy and accuracy in %, in the precision of the loop. Leaves the model in
    eval mode.
    """
    model.eval()
    parts = []
    with torch.inference_mode():
        for images, labels in loader:
            with loop.accelerator.autocast():
                logits = model(images).float()
            answers = logits.argmax(dim=1), F.cross_entropy(logits, labels, reduction='none'), labels
            parts.append([part.cpu() for part in loop.accelerator.gather_for_metrics(answers)])
    predictions, losses, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    if losses.isnan().any():
        raise EvaluationError(
            'The model returns NaN after the training: choose another --output and a lower --lr, or --precision no.'
        )
    accuracy = (predictions == labels).double().mean().item() * 100
    return predictions.numpy(), losses.double().mean().item(), accuracy


def _in_words(record: Record) -> str:
    words, accuracy = f'loss {record["loss"]:.4f}', record['validation_accuracy']
    if accuracy is None:
        return words
    return f'{words}, held-out accuracy {accuracy:.1f} %, mean per class {record["validation_mean_per_class"]:.1f} %'
