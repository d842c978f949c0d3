"""MiniViT's weight distillation: what a student learns from a teacher at work, or from its predictions in a store."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from timm.data import Mixup
from timm.loss import create_classification_loss
from timm.task import TrainingTask
from torch import nn

from ...distill.losses import WeightDistillation
from ...distill.sparse import dense_log_probabilities
from ...distill.taps import FeatureTap, LayerFeatures
from .teacher import FrozenTeacher
from .tinyvit import widened

__all__ = ['PredictionDistillation', 'WeightDistillationTask']

NOTHING = LayerFeatures((), [], [])


class WeightDistillationTask(TrainingTask):
    """A student and its teacher on the same images, which Mixup and CutMix have mixed for both, as released.

    Args:
        model: The student, images to logits.
        teacher: A classifier with the same classes; left in eval mode. It goes with the task to its device.
        objective: Which parts the loss has, and their weights.
        layers: Logical layers of the student and of the teacher whose features are compared; without effect where the
            objective compares predictions only.
        mixup: timm's; None for images as they are.
        smoothing: Of the true labels, where the objective has a part for them.

    Attributes:
        compiles: Whether the student may be compiled: only where no features are taken, for hooks take them.
    """

    student_mean: torch.Tensor
    student_std: torch.Tensor

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        objective: WeightDistillation,
        layers: tuple[Sequence[int], Sequence[int]] = ((), ()),
        mixup: Mixup | None = None,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__(verbose=False)
        self.trainable_module = model
        self.teacher = FrozenTeacher(teacher)
        self.objective, self.layers, self.mixup = objective, layers, mixup
        self.criterion = create_classification_loss(soft_targets=mixup is not None, smoothing=smoothing)
        self.compiles = not (objective.relation_weight or objective.hidden_weight)
        # Class tokens that only one of them has are not partners of any patch.
        self.drop_prefix = getattr(model, 'num_prefix_tokens', 0) != getattr(teacher, 'num_prefix_tokens', 0)
        cfg = cast(Any, model).pretrained_cfg
        for name in ('mean', 'std'):
            of_student = torch.tensor(cfg[name]).view(1, -1, 1, 1)
            self.register_buffer(f'student_{name}', of_student, persistent=False)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Losses of images (B, 3, H, W), normalized for the student, with labels (B,); B even where they are mixed."""
        if self.mixup is not None:
            input, target = self.mixup(input, target)
        return self.losses(input, target)

    def losses(self, input: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Losses of images as they are; labels (B,), or (B, K) where there is Mixup."""
        output, ours = self._features(self.trainable_module, input, self.layers[0], grad=True)
        seen = self.teacher.normalize_input(input, self.student_mean, self.student_std)
        with self.teacher.autocast():
            answer, theirs = self._features(self.teacher.model, seen, self.layers[1], grad=False)
        parts = self.objective(
            output, answer, student_qkv=ours.qkv, teacher_qkv=theirs.qkv, student_hidden=ours.hidden,
            teacher_hidden=theirs.hidden, truth=self.criterion(output, target) if self.objective.truth_weight else None,
        )  # fmt: skip
        return dict(loss=parts.pop('total'), **parts, output=output)

    def _features(
        self, model: nn.Module, images: torch.Tensor, layers: Sequence[int], grad: bool
    ) -> tuple[torch.Tensor, LayerFeatures]:
        """Logits, and the features that the objective compares. A tap is open for this call only: what the loop wraps,
        copies and saves has no hooks.
        """
        if self.compiles:
            with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
                return model(images), NOTHING
        wanted = dict(qkv=bool(self.objective.relation_weight), hidden=bool(self.objective.hidden_weight))
        with FeatureTap(model, layers, grad=grad, drop_prefix_tokens=self.drop_prefix, **wanted) as tap:
            return tap(images)


class PredictionDistillation(TrainingTask):
    """The same objective with a teacher's stored predictions: one forward pass instead of two.

    Args:
        model: The student, images to logits.
        objective: With parts for predictions, and perhaps true labels, only.
        smoothing: Of the true labels.
    """

    def __init__(self, model: nn.Module, objective: WeightDistillation, smoothing: float = 0.0) -> None:
        super().__init__(verbose=False)
        self.trainable_module = model
        self.objective = objective
        self.criterion = create_classification_loss(smoothing=smoothing)

    def forward(  # type: ignore[override]  # timm's base class knows (input, target) only
        self, image: torch.Tensor, label: torch.Tensor, ids: torch.Tensor, probabilities: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Losses of images (B, 3, H, W) with labels (B,), stored classes (B, K) and their probabilities (B, K)."""
        output = self.trainable_module(image)
        answer = dense_log_probabilities(widened(ids), probabilities, output.shape[1])
        truth = self.criterion(output, label) if self.objective.truth_weight else None
        parts = self.objective(output, answer, truth=truth)
        return dict(loss=parts.pop('total'), **parts, output=output)
