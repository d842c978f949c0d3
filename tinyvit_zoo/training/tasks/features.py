"""Features of a frozen teacher as targets: a student fits them through linear maps that are thrown away afterwards."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.task import TrainingTask
from torch import nn

from ...distill.feature_targets import FeatureLossName, feature_loss
from ..feature_readers import FeatureReader, Features
from ..feature_teacher import FeatureTeacher

__all__ = ['FeatureDistillation', 'MappedStudent', 'resized']


class MappedStudent(nn.Module):
    """A student and the linear maps from its features to the teacher's.

    Dense features are resized from the student's grid (h, w) to the teacher's (H, W) (bilinear, with antialiasing where
    that has fewer places). As map and resize commute, the map comes first where the student has fewer places.

    Args:
        student: Images (B, 3, _, _) to features, by `read`.
        read: Of the student's features; those that it leaves out are not mapped.
        found: Of the student, for one image.
        targets: Of the teacher, for one image.
    """

    def __init__(self, student: nn.Module, read: FeatureReader, found: Features, targets: Features) -> None:
        super().__init__()
        self.student, self.read = student, read
        self.pooled_map, self.dense_map = (
            None if of_student is None or target is None else nn.Linear(of_student.shape[1], target.shape[1])
            for of_student, target in zip(found, targets, strict=True)
        )

    def no_weight_decay(self) -> set[str]:
        """The student's, by their names here."""
        return {f'student.{name}' for name in getattr(self.student, 'no_weight_decay', set)()}

    def forward(self, images: torch.Tensor, grid: tuple[int, int] | None = None) -> Features:
        """Mapped features: (B, C), and (B, C', H, W) for the teacher's grid (H, W); None where there is no map."""
        pooled, dense = self.read(self.student, images)
        if self.pooled_map is not None and pooled is not None:
            pooled = self.pooled_map(pooled)
        if self.dense_map is not None and dense is not None and grid is not None:
            fewer = dense.shape[-2] * dense.shape[-1] < grid[0] * grid[1]
            dense = resized(self._mapped(dense), grid) if fewer else self._mapped(resized(dense, grid))
        return Features(pooled, dense)

    def _mapped(self, dense: torch.Tensor) -> torch.Tensor:
        assert self.dense_map is not None
        return self.dense_map(dense.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def resized(dense: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """(B, C, h, w) on another grid (H, W): bilinear, with antialiasing where that has fewer places."""
    if dense.shape[-2:] == grid:
        return dense
    return F.interpolate(dense, grid, mode='bilinear', align_corners=False, antialias=True)


class FeatureDistillation(TrainingTask):
    """The teacher goes with the task to its device, and is in no state and no optimizer of it.

    Args:
        model: The student with its maps.
        teacher: Sees the same views.
        loss: 'smooth_l1' on whitened targets, or 'cosine'; see `feature_loss`.
        dense_weight: Share of the dense features in the loss, from 0 to 1.
        dtype: Of the teacher's autocast; None for none.
    """

    def __init__(
        self,
        model: MappedStudent,
        teacher: FeatureTeacher,
        loss: FeatureLossName = 'smooth_l1',
        dense_weight: float = 0.5,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(verbose=False)
        self.trainable_module = model
        self.teacher, self.loss, self.dense_weight, self.dtype_of_teacher = teacher, loss, dense_weight, dtype

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> 'FeatureDistillation':
        self.teacher.model._apply(fn, *args, **kwargs)
        super()._apply(fn, *args, **kwargs)
        return self

    def forward(  # type: ignore[override]  # timm's base class knows (input, target) only
        self, images: torch.Tensor, teacher_images: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Losses of images (B, 3, h, w), which the teacher takes as (B, 3, H, W); None where those are the same."""
        targets = self.teacher.features(images if teacher_images is None else teacher_images, self.dtype_of_teacher)
        assert targets.dense is not None
        height, width = targets.dense.shape[-2:]
        student = self.trainable_module(images, (height, width))
        losses = {
            name: feature_loss(channels_last(ours), channels_last(theirs), self.loss)
            for name, ours, theirs in zip(Features._fields, student, targets, strict=True)
            if ours is not None and theirs is not None
        }
        weights = dict(pooled=1 - self.dense_weight, dense=self.dense_weight)
        total = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        return dict(loss=total, **losses)


def channels_last(features: torch.Tensor) -> torch.Tensor:
    """(B, C) as it is, (B, C, h, w) as (B, h, w, C)."""
    return features.movedim(1, -1)
