"""Fine-tuning of any timm model by a recipe: resumable, on one process or many (`torchrun`, `accelerate launch`).

The same images, augmentations and updates come out of any number of processes, workers and accumulated steps; random
numbers within the model (drop path, Mixup) are drawn by each process for its part of the batch, over which BatchNorm
takes its statistics, too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.plain import plain
from tinyvit_zoo.data.image_dataset import ImageDataset
from tinyvit_zoo.data.seeded import SeededDataset
from tinyvit_zoo.data.split import stratified_split
from tinyvit_zoo.data.transforms import data_config
from tinyvit_zoo.training.ingredients import RepeatedAugSampler, create_transforms, reset_head
from tinyvit_zoo.training.loop import Record, TrainingLoop, best_epoch
from tinyvit_zoo.training.recipes import Recipe
from tinyvit_zoo.training.tasks.classification import classification_task

__all__ = ['Epoch', 'Finetuned', 'Measured', 'finetune']


@dataclass(frozen=True)
class Epoch:
    """Mean training loss of an epoch, the learning rate of its last update, and validation loss and accuracy (%)."""

    loss: float
    lr: float
    validation_loss: float | None
    validation_accuracy: float | None


@dataclass(frozen=True)
class Measured:
    """A model on labelled images: predictions (N,) int64, mean cross entropy, accuracy in %."""

    predictions: np.ndarray
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Finetuned:
    """A finished training run; the model has the weights of `best_epoch`.

    Attributes:
        history: One record an epoch.
        best_epoch: Counted from 1: the first with the highest validation accuracy, or the last without validation.
        validation_images: How many images it was chosen with; 0 if nothing was chosen.
        test: On the test images, which nothing was chosen with; None without them.
        recipe: As it was trained by; its batch may be smaller than that of the recipe asked for, see `Recipe.fitted`.
        precision: 'no' (float32), 'bf16' or 'fp16'.
        processes: How many trained together.
    """

    history: tuple[Epoch, ...]
    best_epoch: int
    validation_images: int
    test: Measured | None
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
    held_out: float = 0.1,
    micro_batch: int | None = None,
    precision: str | None = None,
    device: torch.device | None = None,
    workers: int = 0,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> Finetuned:
    """Train, or resume an earlier run into the same folder.

    A run that is killed at any moment resumes from its last complete epoch with the same losses to the bit (on the same
    machine, with as many threads and processes).

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
        held_out: Share of `train`, of each class alike; 0 to train on all of it and take the last epoch.
        micro_batch: Images that a process takes at once; gradients add up to a batch. None: its part of the batch.
        precision: 'no', 'bf16' or 'fp16'. None: 'bf16' on CUDA, else 'no'.
        device: None: the best one, or with several processes that of each.
        workers: Processes that read and transform images.
        seed: Of order, augmentation, held-out images, a head of `recipe.head_std` and drop path.
        say: Prints a line.

    Raises:
        EvaluationError: If classes do not fit, the model takes other images than RGB, the batch does not fit images or
            processes, the folder holds the state of another run or another run is writing to it, the device has no such
            precision, or the loss is no longer a number.
    """
    _check_classes(model, train, validation, test)
    if validation is None and held_out:
        rest, held = stratified_split(train.labels, held_out, seed)
        train, validation = train.subset(rest), train.subset(held)
    recipe = recipe.fitted(len(train))
    if len(train) < recipe.batch_size:
        raise EvaluationError(
            f'{len(train)} training images make no batch of {recipe.batch_size}: choose a smaller --batch-size.'
        )
    reset_head(model, recipe.head_std, seed)
    loop = TrainingLoop(
        classification_task(model, recipe, len(train.classes)),
        recipe,
        Path(output),
        micro_batch=micro_batch,
        precision=precision,
        device=device,
        workers=workers,
        seed=seed,
        say=say,
    )
    training_transform, evaluation_transform = create_transforms(model, recipe)
    held_loader = None if validation is None else loop.loader(validation.with_transform(evaluation_transform))

    def evaluate(result: nn.Module) -> Record:
        if held_loader is None:
            return dict(validation_loss=None, validation_accuracy=None)
        measured = _measure(loop, result, held_loader)
        return dict(validation_loss=measured.loss, validation_accuracy=measured.accuracy)

    history = loop.run(
        loop.loader(
            SeededDataset(train.with_transform(training_transform)),
            RepeatedAugSampler(len(train), recipe.batch_size, recipe.repeats, seed),
        ),
        _identity(model, train, validation),
        evaluate=evaluate,
        chosen_by='validation_accuracy',
        describe=_in_words,
    )
    test_loader = None if test is None else loop.loader(test.with_transform(evaluation_transform))
    return Finetuned(
        history=tuple(_epoch(record) for record in history),
        best_epoch=best_epoch(history, 'validation_accuracy'),
        validation_images=0 if validation is None else len(validation),
        test=None if test_loader is None else _measure(loop, model, test_loader),
        recipe=recipe,
        precision=loop.accelerator.mixed_precision,
        processes=loop.accelerator.num_processes,
    )


def _identity(model: nn.Module, train: ImageDataset, validation: ImageDataset | None) -> dict[str, str]:
    """Everything about the images that must be the same for a run to be resumed."""
    images = {'training images': train.fingerprint()}
    if validation is not None:
        images['validation images'] = validation.fingerprint()
    return dict(images, input=repr(sorted(plain(data_config(model)).items())))  # a ConvNet's weights fit any size


def _epoch(record: Record) -> Epoch:
    return Epoch(
        loss=cast(float, record['loss']),
        lr=cast(float, record['lr']),
        validation_loss=record['validation_loss'],
        validation_accuracy=record['validation_accuracy'],
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


def _measure(loop: TrainingLoop, model: nn.Module, loader: DataLoader) -> Measured:
    """A model on labelled images, in the precision of the loop. Leaves the model in eval mode."""
    model.eval()
    parts = []
    with torch.inference_mode():
        for images, labels in loader:
            with loop.accelerator.autocast():
                logits = model(images).float()
            answers = logits.argmax(dim=1), F.cross_entropy(logits, labels, reduction='none'), labels
            parts.append([part.cpu() for part in loop.accelerator.gather_for_metrics(answers)])
    predictions, losses, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    accuracy = (predictions == labels).double().mean().item() * 100
    return Measured(predictions.numpy(), losses.double().mean().item(), accuracy)


def _in_words(record: Record) -> str:
    accuracy = record['validation_accuracy']
    return f'loss {record["loss"]:.4f}' + ('' if accuracy is None else f', held-out accuracy {accuracy:.1f} %')
