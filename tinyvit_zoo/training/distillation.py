"""Training a student from a store of soft labels: the teacher is not needed any more."""

from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from torch import nn

from ..common.errors import EvaluationError
from ..data.image_dataset import ImageDataset
from ..data.transforms import data_config
from ..soft_labels.check import check_data
from ..soft_labels.store import Store
from .loop import RunSettings, Trained, train_task
from .recipes import Recipe
from .soft_label_views import SoftLabelViews, ViewSampler
from .tasks.tinyvit import SparseDistillation

__all__ = ['Distilled', 'distil_from_store']


@dataclass(frozen=True)
class Distilled(Trained):
    """A finished training from a store; the losses are 'loss', and 'soft' and 'hard' where there are both.

    Attributes:
        stored_epochs: Which epochs of the store were used.
    """

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
    killed resumes from its last complete epoch with the same losses to the bit, as in `TrainingLoop`.

    Args:
        student: Any timm model with the classes of the store. Trained in place; left in eval mode.
        dataset: The one that the store was saved from.
        store: With as many whole epochs as the recipe has.
        recipe: Its mixing and augmentation have no effect: the views are the stored ones.
        output: Folder for `state.pt`, all that a resumed run needs, and `best.pt`, the weights that result.
        reuse: Take the stored epochs in turn where there are fewer than the recipe has.
        hard_weight: Share of the true labels in the loss.
        **run: See `TrainingLoop`; `seed` is that of the order of images and of random numbers within the model.

    Raises:
        EvaluationError: If student, data, store and recipe do not fit, or for a reason of `TrainingLoop.run`.
    """
    if not 0 <= hard_weight <= 1:
        raise EvaluationError(f'The share of hard labels must be from 0 to 1, not {hard_weight:g}.')
    if student.num_classes != store.info.classes:
        raise EvaluationError(
            f'The student has {student.num_classes} classes, {store.place} is of {store.info.classes}: make it with '
            f'num_classes={store.info.classes}.'
        )
    check_data(store, dataset)
    stored = _stored_epochs(store, recipe, reuse)
    config = data_config(student)
    views = SoftLabelViews(dataset, store, tuple(config['input_size'][-2:]), config['mean'], config['std'])
    sampler = ViewSampler(len(dataset), recipe.batch_size, run.get('seed', 0), stored)
    identity = {'soft labels': store.info.identity, 'stored epochs': repr(stored), 'hard weight': repr(hard_weight)}
    task = SparseDistillation(student, hard_weight)
    trained = train_task(task, views, sampler, recipe, output, identity, **run)
    return Distilled(**vars(trained), stored_epochs=stored)


def _stored_epochs(store: Store, recipe: Recipe, reuse: bool) -> tuple[int, ...]:
    """The stored epochs to take in turn."""
    whole = store.epochs()
    if not whole:
        raise EvaluationError(f'{store.place} has no whole epoch yet: save one with `tinyvit-zoo distill save`.')
    if len(whole) < recipe.epochs and not reuse:
        raise EvaluationError(
            f'{store.place} has {len(whole)} whole epochs, the recipe {recipe.epochs}: save more, choose --epochs '
            f'{len(whole)}, or take them in turn with --reuse cycle.'
        )
    return tuple(whole[: recipe.epochs])
