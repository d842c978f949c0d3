"""Labelled images and a classifier: timm's tasks, on batches that Mixup and CutMix have mixed where a recipe says so.

A teacher may take part, as in DeiT: by timm's `TokenDistillationTask` where the model has a classifier of its own for
it, else by timm's `LogitDistillationTask`. The teacher sees the mixed images.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.data import Mixup
from timm.task import ClassificationTask, LogitDistillationTask, TokenDistillationTask, TrainingTask
from torch import nn

from ...common.errors import EvaluationError
from ..ingredients import create_mixup
from ..recipes import Recipe
from .teacher import FrozenTeacher

__all__ = ['Teaching', 'classification_task']


@dataclass(frozen=True)
class Teaching:
    """A teacher's part in the loss of a classifier: (1 - alpha) * labels + alpha * teacher.

    Attributes:
        teacher: A classifier with the same classes.
        kind: 'soft': divergence of the predictions, mean over images, times tau squared (the released DeiT divides by
            the number of classes, too). 'hard': cross-entropy with the teacher's most probable class, which timm has
            for models with a distillation token only. None: 'hard' for those, 'soft' for others.
        alpha: From 0 to 1.
        tau: Temperature of 'soft', above 0.
    """

    teacher: nn.Module
    kind: Literal['soft', 'hard'] | None = None
    alpha: float = 0.5
    tau: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1 or not self.tau > 0:
            raise EvaluationError(
                f'The part of a teacher has a weight from 0 to 1 and a temperature above 0, not {self.alpha:g} and '
                f'{self.tau:g}: choose another --distillation-alpha or --distillation-tau.'
            )

    def kind_for(self, model: nn.Module) -> Literal['soft', 'hard']:
        """The kind of loss for a model. Raises: EvaluationError: If timm has none of that kind for it."""
        if self.kind == 'hard' and not has_token(model):
            raise EvaluationError(
                'Hard labels of a teacher need a model with a distillation token, such as TinyMIM*-T, which this one '
                'is not: choose --distillation soft.'
            )
        return self.kind or ('hard' if has_token(model) else 'soft')


def has_token(model: nn.Module) -> bool:
    """Whether a model has a classifier of its own for what a teacher says."""
    return hasattr(model, 'set_distilled_training')


def classification_task(
    model: nn.Module, recipe: Recipe, num_classes: int, teaching: Teaching | None = None
) -> TrainingTask:
    """The task of a recipe: cross entropy with its label smoothing, its Mixup and its CutMix; with a teacher's part.

    A task with a teacher has it as `teacher`, a `FrozenTeacher`.

    Raises:
        EvaluationError: If timm has no such loss for the model.
    """
    mixup = create_mixup(recipe, num_classes)
    kwargs: dict[str, Any] = dict(
        mixup=mixup,
        criterion_kwargs=dict(soft_targets=mixup is not None, smoothing=recipe.label_smoothing),
        verbose=False,
    )
    if teaching is None:
        return MixedClassification(model, **kwargs)
    kind, teacher = teaching.kind_for(model), FrozenTeacher(teaching.teacher)
    kwargs |= dict(task_loss_weight=1 - teaching.alpha, temperature=teaching.tau)
    if has_token(model):
        return MixedTokenDistillation(model, teacher, distill_type=kind, **kwargs)
    return MixedLogitDistillation(model, teacher, **kwargs)


class _Mixed(TrainingTask):
    """What a task of timm becomes on mixed images and soft targets; mixing draws from NumPy's global generator."""

    def __init__(self, *args: Any, mixup: Mixup | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mixup = mixup

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Losses and output for images (B, C, H, W), with B even where they are mixed, and labels (B,)."""
        if self.mixup is not None:
            input, target = self.mixup(input, target)
        return super().forward(input, target)


class MixedClassification(_Mixed, ClassificationTask):
    """Classification."""


class MixedLogitDistillation(_Mixed, LogitDistillationTask):
    """Classification, and the predictions of a teacher."""


class MixedTokenDistillation(_Mixed, TokenDistillationTask):
    """Classification, and the predictions of a teacher for a classifier of their own."""
