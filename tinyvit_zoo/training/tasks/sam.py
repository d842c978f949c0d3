"""The map of SAM's image encoder as the target of a smaller encoder: mean squared error, as in MobileSAM.

Paper: Faster Segment Anything, https://arxiv.org/abs/2306.14289, section 3.2 (decoupled distillation).
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.task import TrainingTask
from torch import nn

from ...distill.precision import in_full_precision
from ..feature_teacher import FeatureTeacher
from .features import resized

__all__ = ['SamDistillation', 'map_loss']


@in_full_precision
def map_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared error over all of a map, padding of the image included: the mask decoder sees that, too.

    Args:
        student: (B, C, h, w), resized to the teacher's grid (bilinear) if it has another one.
        teacher: (B, C, H, W).

    Returns:
        Scalar, float32 or wider.
    """
    height, width = teacher.shape[-2:]
    return F.mse_loss(resized(student, (height, width)), teacher)


class SamDistillation(TrainingTask):
    """The teacher goes with the task to its device, and is in no state and no optimizer of it.

    Args:
        student: Images (B, 3, H, W) to (B, C, H/16, W/16).
        teacher: Sees the same images; None where its maps come with them.
        dtype: Of the teacher's autocast; None for none.
    """

    def __init__(
        self, student: nn.Module, teacher: FeatureTeacher | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(verbose=False)
        self.trainable_module = student
        self.teacher, self.dtype_of_teacher = teacher, dtype

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> 'SamDistillation':
        if self.teacher is not None:
            self.teacher.model._apply(fn, *args, **kwargs)
        super()._apply(fn, *args, **kwargs)
        return self

    def forward(  # type: ignore[override]  # timm's base class knows (input, target) only
        self, images: torch.Tensor, second: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Losses of images (B, 3, h, w).

        Args:
            images: Of the student.
            second: The teacher's maps (B, C, H/16, W/16) where there is no teacher; its images (B, 3, H, W) where it
                takes other ones than the student; else None.
        """
        if self.teacher is None:
            assert second is not None
            target = second
        else:
            dense = self.teacher.features(images if second is None else second, self.dtype_of_teacher).dense
            assert dense is not None
            target = dense
        return dict(loss=map_loss(self.trainable_module(images), target))
