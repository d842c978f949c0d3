"""Training a student from a teacher's soft labels: from a store of them, or from a live teacher."""

from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import numpy as np
from torch import nn

from ..common.errors import EvaluationError
from ..common.text import count_of
from ..data.image_dataset import ImageDataset
from ..data.replay import ModelInput, ViewSpec
from ..data.subsets import subset_identity
from ..data.transforms import data_config
from ..soft_labels.check import check_data
from ..soft_labels.save import check_output, store_info
from ..soft_labels.store import Store, StoreInfo
from ..soft_labels.teacher import Teacher
from .loop import RunSettings
from .recipes import Recipe
from .soft_label_views import LiveViews, SoftLabelViews, ViewSampler
from .tasks.tinyvit import LiveDistillation, SparseDistillation
from .train_task import Trained, train_task

__all__ = ['Distilled', 'distil_from_store', 'distil_live', 'model_input', 'stored_epochs', 'stored_images']


@dataclass(frozen=True)
class Distilled(Trained):
    """A finished training from soft labels; the losses are 'loss', and 'soft' and 'hard' where there are both.

    Attributes:
        labels: What the soft labels were made from, the teacher above all.
        store: Where they lie; None with a live teacher.
        stored_epochs: Which epochs of the store were used; none with a live teacher.
    """

    labels: StoreInfo
    store: str | None
    stored_epochs: tuple[int, ...]


def distil_from_store(
    student: nn.Module,
    dataset: ImageDataset,
    store: Store,
    recipe: Recipe,
    output: str | Path,
    *,
    reuse: bool = False,
    hard_weight: float = 0.0,
    **run: Unpack[RunSettings],
) -> Distilled:
    """Train a student on the views that a teacher saw, or resume an earlier run into the same folder.

    Epoch e of the training takes the e-th stored epoch; the order of the images is drawn anew for each. A run that is
    killed resumes with the same losses to the bit, as in `TrainingLoop`.

    Args:
        student: Any timm model with the classes of the store. Trained in place; left in eval mode.
        dataset: The one that the store was saved from, or that the released code saw where it was converted; or a
            subset of it, whose images have the views and labels that they have in the store.
        store: With as many whole epochs as the recipe has.
        recipe: Its mixing and augmentation have no effect: the views are the stored ones.
        output: Folder for `state.pt`, all that a resumed run needs, and `best.pt`, the weights that result.
        reuse: Take the stored epochs in turn where there are fewer than the recipe has.
        hard_weight: Share of the true labels in the loss.
        **run: See `TrainingLoop`; `seed` is that of the order of images and of random numbers within the model.

    Raises:
        EvaluationError: If student, data, store and recipe do not fit, or for a reason of `TrainingLoop.run`.
    """
    _check(student, store.info.classes, str(store.place), hard_weight)
    whole, positions = stored_images(store, dataset)
    stored = stored_epochs(store, recipe, reuse)
    input = model_input(student)
    views = SoftLabelViews(whole, store, input)
    sampler = ViewSampler(len(dataset), recipe.batch_size, run.get('seed', 0), stored, positions)
    identity = _identity(store.info, repr(stored), hard_weight, input) | subset_identity(dataset)
    trained = train_task(SparseDistillation(student, hard_weight), views, sampler, recipe, output, identity, **run)
    return Distilled(**vars(trained), labels=store.info, store=str(store.place), stored_epochs=stored)


def distil_live(
    student: nn.Module,
    dataset: ImageDataset,
    teacher: Teacher,
    spec: ViewSpec,
    recipe: Recipe,
    output: str | Path,
    *,
    k: int = 100,
    hard_weight: float = 0.0,
    **run: Unpack[RunSettings],
) -> Distilled:
    """Train a student while a teacher sees the same views, or resume an earlier run into the same folder.

    It learns what it would learn from a store that `soft_labels.save` writes in the form `exact` with the same seed,
    for the epochs from 0: the same views in the same order, the teacher's K most probable classes, their probabilities
    rounded to float16 as in a record. The losses are those of `distil_from_store` to rounding, because the teacher sees
    the images in other batches.

    Args:
        student: Any timm model with the classes of the data. Trained in place; left in eval mode.
        dataset: N images; each is decoded once a view.
        teacher: A classifier with the same classes. One copy for each process, on its device.
        spec: Settings of the views.
        recipe: Its mixing and augmentation have no effect: the views are those of `spec`.
        output: Folder for `state.pt`, all that a resumed run needs, and `best.pt`, the weights that result.
        k: Probabilities kept; as many as there are classes where those are fewer.
        hard_weight: Share of the true labels in the loss.
        **run: See `TrainingLoop`; `seed` is also that of the views.

    Raises:
        EvaluationError: If student, teacher, data and recipe do not fit, or for a reason of `TrainingLoop.run`.
    """
    seed = run.get('seed', 0)
    _check(student, len(dataset.classes), dataset.name, hard_weight)
    sampler = ViewSampler(len(dataset), recipe.batch_size, seed, range(recipe.epochs))
    with teacher.ready():
        check_output(teacher, dataset, spec)
        labels = store_info(teacher, dataset, spec, seed=seed, k=k)
        input, seen = model_input(student), ModelInput(teacher.size, teacher.mean, teacher.std)
        identity = _identity(labels, 'live', hard_weight, input) | subset_identity(dataset)
        views = LiveViews(dataset, spec, seed, input, seen)
        task = LiveDistillation(student, teacher, labels.k, hard_weight)
        trained = train_task(task, views, sampler, recipe, output, identity, **run)
    return Distilled(**vars(trained), labels=labels, store=None, stored_epochs=())


def model_input(student: nn.Module) -> ModelInput:
    """How a timm model takes images. Raises: EvaluationError: If they are not RGB."""
    config = data_config(student)
    return ModelInput(tuple(config['input_size'][-2:]), config['mean'], config['std'])


def _identity(labels: StoreInfo, stored: str, hard_weight: float, input: ModelInput) -> dict[str, str]:
    """What must be the same for a run to be resumed: soft labels, and how the student takes images."""
    return {
        'soft labels': labels.identity,
        'stored epochs': stored,
        'hard weight': repr(hard_weight),
        'input': repr(tuple(map(tuple, input))),  # a ConvNet's weights fit any size
    }


def _check(student: nn.Module, classes: int, owner: str, hard_weight: float) -> None:
    if not 0 <= hard_weight <= 1:
        raise EvaluationError(f'The share of hard labels must be from 0 to 1, not {hard_weight:g}.')
    if student.num_classes != classes:
        raise EvaluationError(
            f'The student has {student.num_classes} classes, {owner} is of {classes}: make it with '
            f'num_classes={classes}.'
        )


def stored_images(store: Store, dataset: ImageDataset) -> tuple[ImageDataset, np.ndarray | None]:
    """The images of a store, and which of them are trained on: int64 positions, or None for all.

    Args:
        store: Saved from the data set, or from the one that it is a subset of.
        dataset: Images to train on.

    Raises:
        EvaluationError: If the store is of other images.
    """
    selection = dataset.selection
    if selection is None or len(dataset) in (store.info.images, len(selection.whole)):
        check_data(store, dataset)
        return dataset, None
    check_data(store, selection.whole)
    return selection.whole, selection.positions


def stored_epochs(store: Store, recipe: Recipe, reuse: bool) -> tuple[int, ...]:
    """The stored epochs to take in turn. Damaged files of a folder are found here, not when their epoch begins.

    Raises:
        EvaluationError: If a file is damaged, or the epochs are too few and not to be reused.
    """
    whole = store.whole_epochs()
    if len(whole) < recipe.epochs and not reuse:
        raise EvaluationError(
            f'{store.place} has {count_of(len(whole), "whole epoch")}, the recipe {recipe.epochs}: save more, choose '
            f'--epochs {len(whole)}, or take them in turn with --reuse cycle.'
        )
    stored = tuple(whole[: recipe.epochs])
    if store.place.is_local:  # behind an address, that would fetch all of them
        for number in stored:
            store.epoch(number)
    return stored
