"""A teacher at work: timm's wrapper of it, in the precision of the student; and whether it can teach at all."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from timm.task import DistillationTeacher
from torch import nn

from ...common.errors import EvaluationError
from ...common.text import reason
from ...data.transforms import data_config

__all__ = ['FrozenTeacher', 'check_teacher', 'trial_images']


class FrozenTeacher(DistillationTeacher):
    """timm's teacher: it stays in eval mode, and `normalize_input` gives it images with its own mean and std.

    Attributes:
        autocast: Makes the context that it runs in; the trainer sets that of the student.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.autocast: Callable[[], AbstractContextManager] = nullcontext

    def forward(self, input: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        """Logits (B, K) of images (B, 3, H, W), normalized for it."""
        with self.autocast():
            return super().forward(input, return_features)


def trial_images(student: nn.Module) -> torch.Tensor:
    """One image of noise (1, 3, H, W) at the size that a model takes, on its device; the same at every call."""
    parameter = next(student.parameters())
    image = torch.randn(1, 3, *data_config(student)['input_size'][-2:], generator=torch.Generator().manual_seed(0))
    return image.to(parameter)


def check_teacher(teacher: nn.Module, student: nn.Module) -> None:
    """Refuse a teacher of other classes than the student, or one that cannot take its images. Leaves it in eval mode.

    Raises:
        EvaluationError: If it cannot teach.
    """
    if teacher.num_classes != student.num_classes:
        raise EvaluationError(
            f'The teacher has {teacher.num_classes} classes and the data has {student.num_classes}: fine-tune it on '
            'the data first, or take one that knows them.'
        )
    image = trial_images(student)
    try:
        with torch.inference_mode():
            output = teacher.eval().to(image)(image)
    except (RuntimeError, ValueError, AssertionError) as e:
        size = 'x'.join(map(str, image.shape[-2:]))
        raise EvaluationError(
            f"The teacher cannot take the student's images of {size} pixels ({reason(e)}): make it for that size, or "
            'the student for another one (--img-size).'
        ) from e
    if not isinstance(output, torch.Tensor) or output.shape != (1, student.num_classes):
        raise EvaluationError('The teacher gives no logits (images, classes): only classifiers can teach here.')
