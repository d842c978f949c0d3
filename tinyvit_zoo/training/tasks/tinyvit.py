"""TinyViT's pretraining distillation: a student learns a teacher's soft labels, perhaps the true ones, too."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from timm.task import TrainingTask
from torch import nn

from ...distill.sparse import sparse_cross_entropy
from ...soft_labels.teacher import Teacher

__all__ = ['LiveDistillation', 'SparseDistillation', 'widened']


class SparseDistillation(TrainingTask):
    """Soft labels of a store as the targets.

    Args:
        model: The student, images to logits.
        hard_weight: Share of the cross-entropy with the true labels in the loss; 0, as in the paper, for none.
    """

    def __init__(self, model: nn.Module, hard_weight: float = 0.0) -> None:
        super().__init__(verbose=False)
        self.trainable_module = model
        self.hard_weight = hard_weight

    def forward(  # type: ignore[override]  # timm's base class knows (input, target) only
        self, image: torch.Tensor, label: torch.Tensor, ids: torch.Tensor, probabilities: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Losses of images (B, 3, H, W) with labels (B,), stored classes (B, K) and their probabilities (B, K)."""
        return self._losses(image, label, widened(ids), probabilities)

    def _losses(
        self, image: torch.Tensor, label: torch.Tensor, ids: torch.Tensor, probabilities: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        output = self.trainable_module(image)
        soft = sparse_cross_entropy(output, ids, probabilities)
        if not self.hard_weight:
            return dict(loss=soft, output=output)
        hard = F.cross_entropy(output.float(), label)
        return dict(loss=(1 - self.hard_weight) * soft + self.hard_weight * hard, soft=soft, hard=hard, output=output)


class LiveDistillation(SparseDistillation):
    """Soft labels that the teacher gives while the student learns: the K and the rounding of a store.

    The teacher goes with the task to its device, and is in no state and no optimizer of it.

    Args:
        model: The student, images to logits.
        teacher: In evaluation mode.
        k: Probabilities kept.
        hard_weight: See `SparseDistillation`.
    """

    def __init__(self, model: nn.Module, teacher: Teacher, k: int, hard_weight: float = 0.0) -> None:
        super().__init__(model, hard_weight)
        self.teacher, self.k = copy.copy(teacher), k  # not a module: nothing of it is trained, wrapped or saved

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> 'LiveDistillation':
        self.teacher.model._apply(fn, *args, **kwargs)
        super()._apply(fn, *args, **kwargs)
        self.teacher.device = self.device
        return self

    def forward(  # type: ignore[override]  # see SparseDistillation
        self, image: torch.Tensor, label: torch.Tensor, teacher_image: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Losses of images (B, 3, H, W) with labels (B,), which the teacher takes as (B, 3, H', W')."""
        return self._losses(image, label, *self.teacher.live_labels(teacher_image, self.k))


def widened(ids: torch.Tensor) -> torch.Tensor:
    """Classes as int64, from unsigned numbers that came as int16 or int32 of the same bits, to spare the way there."""
    return ids.long() & (0xFFFF if ids.dtype == torch.int16 else 0xFFFFFFFF)
