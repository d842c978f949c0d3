"""Training a student with shared weights by MiniViT's weight distillation: the teacher at work, or its stored answers.

Paper: MiniViT: Compressing Vision Transformers with Weight Multiplexing, https://arxiv.org/abs/2204.07154, Sec. 3.1.2
and 3.3. Released code: https://github.com/microsoft/Cream/tree/main/MiniViT.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..common.errors import EvaluationError
from ..common.hashes import state_hash
from ..common.plain import plain
from ..common.text import count_of, reason
from ..data.image_dataset import ImageDataset
from ..data.seeded import SeededDataset
from ..data.subsets import subset_identity
from ..data.transforms import data_config
from ..distill.losses import MINI_DEIT, MINI_SWIN, PAPER, WeightDistillation
from ..distill.taps import match_layers, stage_depths
from ..soft_labels.store import Store, StoreInfo
from .distillation import Distilled, model_input, stored_epochs, stored_images
from .ingredients import RepeatedAugSampler, create_mixup, create_transforms
from .loop import RunSettings
from .pretraining import Pretraining, autocast_of
from .recipes import Recipe
from .soft_label_views import SoftLabelViews, ViewSampler
from .tasks.minivit import PredictionDistillation, WeightDistillationTask
from .tasks.teacher import check_teacher, trial_images
from .train_task import Trained

__all__ = [
    'OBJECTIVES',
    'PredictionPlan',
    'WeightDistilled',
    'WeightPlan',
    'distil_predictions',
    'distil_weights',
    'plan_predictions',
    'plan_weights',
    'with_hard_weight',
]

OBJECTIVES = {'mini_swin': MINI_SWIN, 'mini_deit': MINI_DEIT, 'paper': PAPER}
"""What the losses may be, by the name of what they were released or published for."""


@dataclass(frozen=True)
class WeightDistilled(Trained):
    """A finished training with the teacher at work; its losses are 'loss' and those parts that the objective has:
    'prediction', 'relation', 'hidden' and 'truth', unweighted.

    Attributes:
        layers: Logical layers of the student and of the teacher, counted from 0, that were compared; empty where only
            predictions were.
        teacher_sha256: `state_hash` of its weights.
    """

    layers: tuple[tuple[int, ...], tuple[int, ...]]
    teacher_sha256: str


@dataclass(frozen=True, kw_only=True)
class WeightPlan(Pretraining):
    """A training with the teacher at work before it begins.

    Attributes:
        layers: See `WeightDistilled`, also for the other.
        teacher_sha256: Of the teacher.
    """

    layers: tuple[tuple[int, ...], tuple[int, ...]]
    teacher_sha256: str

    def distil(self, output: str | Path) -> WeightDistilled:
        """Train it, or resume an earlier run into the same folder.

        Raises:
            EvaluationError: For a reason of `TrainingLoop` or of its `run`.
        """
        return WeightDistilled(**vars(self.train(output)), layers=self.layers, teacher_sha256=self.teacher_sha256)


@dataclass(frozen=True, kw_only=True)
class PredictionPlan(Pretraining):
    """A training from stored predictions before it begins.

    Attributes:
        labels: See `Distilled`, also for the others.
        store: Where they lie.
        stored_epochs: Which epochs of the store are used.
    """

    labels: StoreInfo
    store: str
    stored_epochs: tuple[int, ...]

    def distil(self, output: str | Path) -> Distilled:
        """Train it, or resume an earlier run into the same folder.

        Raises:
            EvaluationError: For a reason of `TrainingLoop` or of its `run`.
        """
        own = {name: getattr(self, name) for name in ('labels', 'store', 'stored_epochs')}
        return Distilled(**vars(self.train(output)), **own)


def with_hard_weight(objective: WeightDistillation, hard_weight: float) -> WeightDistillation:
    """The objective with that share of the true labels in its part for predictions, as the released `alpha` divides it
    (1 - alpha in Mini-DeiT, alpha in Mini-Swin); 0 in both recipes.

    Raises:
        EvaluationError: If it is not a share.
    """
    if not 0 <= hard_weight <= 1:
        raise EvaluationError(f'The share of hard labels must be from 0 to 1, not {hard_weight:g}.')
    return replace(objective, prediction_weight=1 - hard_weight, truth_weight=hard_weight)


def distil_weights(
    student: nn.Module,
    dataset: ImageDataset,
    teacher: nn.Module,
    objective: WeightDistillation,
    recipe: Recipe,
    output: str | Path,
    **run: Unpack[RunSettings],
) -> WeightDistilled:
    """Train a student while a teacher sees the same images, or resume an earlier run into the same folder.

    Both see one view of an image, mixed with another by Mixup or CutMix as the recipe has it, as in the released code;
    the teacher sees it with its own mean and standard deviation. Which layers are compared follows from the depths of
    both, see `distill.match_layers`.

    Args:
        student: Any timm model with as many classes as `dataset`, made with `drop_path_rate=recipe.drop_path_of(name)`.
            Trained in place; left in eval mode.
        dataset: Images with labels of at least two classes, which mixing and a part for true labels need.
        teacher: A timm classifier with the same classes; for relations, a ViT or Swin with the student's grid and
            windows. Left as it is, in eval mode. One copy for each process, on its device.
        objective: Parts of the loss: `distill.MINI_SWIN`, `MINI_DEIT`, `PAPER`, or others.
        recipe: Its `batch_size` is that of an update, over all processes.
        output: Folder for `state.pt`, all that a resumed run needs, and `best.pt`, the weights that result.
        **run: See `TrainingLoop`; `seed` is also that of order and augmentation.

    Raises:
        EvaluationError: If student, teacher, data and recipe do not fit, all of it before the first batch, or for a
            reason of `TrainingLoop`.
    """
    return plan_weights(student, dataset, teacher, objective, recipe, **run).distil(output)


def plan_weights(
    student: nn.Module,
    dataset: ImageDataset,
    teacher: nn.Module,
    objective: WeightDistillation,
    recipe: Recipe,
    **run: Unpack[RunSettings],
) -> WeightPlan:
    """What `distil_weights` trains, to be trained or estimated. Arguments and errors are its own."""
    _check(student, len(dataset.classes), dataset, objective)
    if len(dataset) < recipe.batch_size:
        raise EvaluationError(
            f'{count_of(len(dataset), "image")} cannot fill a batch of {recipe.batch_size}: choose a smaller '
            '--batch-size.'
        )
    check_teacher(teacher, student)
    mixup = create_mixup(recipe, len(dataset.classes))
    layers = _layers(student, teacher, objective)
    task = WeightDistillationTask(student, teacher, objective, layers, mixup, recipe.label_smoothing)
    _try(task, student)
    task.teacher.autocast = autocast_of(run)
    views = SeededDataset(dataset.with_transform(create_transforms(student, recipe)[0]))
    sampler = RepeatedAugSampler(len(dataset), recipe.batch_size, recipe.repeats, run.get('seed', 0))
    teacher_hash = state_hash(teacher)
    identity = {
        'teacher': teacher_hash, 'objective': repr(objective), 'layers': repr(layers),
        'training images': dataset.fingerprint(), 'input': repr(sorted(plain(data_config(student)).items())),
        **subset_identity(dataset),
    }  # fmt: skip
    return WeightPlan(student, task, views, sampler, recipe, identity, run, layers=layers, teacher_sha256=teacher_hash)


def distil_predictions(
    student: nn.Module,
    dataset: ImageDataset,
    store: Store,
    objective: WeightDistillation,
    recipe: Recipe,
    output: str | Path,
    *,
    reuse: bool = False,
    **run: Unpack[RunSettings],
) -> Distilled:
    """Train a student from a teacher's stored predictions, or resume an earlier run into the same folder.

    One forward pass an update, where `distil_weights` has two. The views are the stored ones: images are neither mixed
    nor repeated within an epoch, as the teacher has not seen them so.

    Args:
        student: Any timm model with the classes of the store. Trained in place; left in eval mode.
        dataset: The one that the store was saved from, or a subset of it.
        store: With as many whole epochs as the recipe has.
        objective: Without parts for relations and hidden states, such as `distill.MINI_DEIT`.
        recipe: Its mixing, augmentation and repeats have no effect.
        output: Folder for `state.pt`, all that a resumed run needs, and `best.pt`, the weights that result.
        reuse: Take the stored epochs in turn where there are fewer than the recipe has.
        **run: See `TrainingLoop`; `seed` is that of the order of images and of random numbers within the model.

    Raises:
        EvaluationError: If student, data, store, objective and recipe do not fit, or for a reason of `TrainingLoop`.
    """
    return plan_predictions(student, dataset, store, objective, recipe, reuse=reuse, **run).distil(output)


def plan_predictions(
    student: nn.Module,
    dataset: ImageDataset,
    store: Store,
    objective: WeightDistillation,
    recipe: Recipe,
    *,
    reuse: bool = False,
    **run: Unpack[RunSettings],
) -> PredictionPlan:
    """What `distil_predictions` trains, to be trained or estimated. Arguments and errors are its own."""
    if objective.relation_weight or objective.hidden_weight:
        raise EvaluationError(
            'A store holds predictions only, and these losses compare relations of features: take the teacher itself '
            '(--teacher), or --losses mini_deit.'
        )
    _check(student, store.info.classes, dataset, objective)
    whole, positions = stored_images(store, dataset)
    stored = stored_epochs(store, recipe, reuse)
    views = SoftLabelViews(whole, store, model_input(student))
    sampler = ViewSampler(len(dataset), recipe.batch_size, run.get('seed', 0), stored, positions)
    identity = {
        'soft labels': store.info.identity, 'stored epochs': repr(stored), 'objective': repr(objective),
        'input': repr(sorted(plain(data_config(student)).items())), **subset_identity(dataset),
    }  # fmt: skip
    task = PredictionDistillation(student, objective, recipe.label_smoothing)
    return PredictionPlan(
        student, task, views, sampler, recipe, identity, run, labels=store.info, store=str(store.place),
        stored_epochs=stored,
    )  # fmt: skip


def _check(student: nn.Module, classes: int, dataset: ImageDataset, objective: WeightDistillation) -> None:
    if not (objective.prediction_weight or objective.truth_weight):
        raise EvaluationError('Without a loss of predictions nothing trains the classifier: give one of them a weight.')
    if student.num_classes != classes:
        raise EvaluationError(
            f'The student has {student.num_classes} classes, the teacher tells {classes} apart: make it with '
            f'num_classes={classes}.'
        )
    if len(np.unique(dataset.labels)) < 2:
        raise EvaluationError(
            f'All images of {dataset.name} ({dataset.split}) are of one class: there is nothing to learn.'
        )


def _layers(
    student: nn.Module, teacher: nn.Module, objective: WeightDistillation
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The logical layers to compare; none where only predictions are."""
    if not (objective.relation_weight or objective.hidden_weight):
        return (), ()
    image = trial_images(student)
    try:
        return match_layers(stage_depths(student.eval(), image), stage_depths(teacher, image))
    except (ValueError, RuntimeError) as e:
        raise _no_pair(e) from e


def _try(task: WeightDistillationTask, student: nn.Module) -> None:
    """Compare student and teacher on one image: what does not match is said before the first batch."""
    image, label = trial_images(student), torch.zeros(1, dtype=torch.int64)
    target = label if task.mixup is None else F.one_hot(label, cast(int, student.num_classes)).to(image)
    try:
        with torch.no_grad():
            task.losses(image, target)
    except (ValueError, RuntimeError) as e:
        raise _no_pair(e) from e


def _no_pair(e: Exception) -> EvaluationError:
    text = reason(e, longest=600).rstrip('.')
    return EvaluationError(
        f'This teacher cannot teach this student by its features ({text}): take one of the same design and size, or '
        'compare predictions only (--losses mini_deit).'
    )
