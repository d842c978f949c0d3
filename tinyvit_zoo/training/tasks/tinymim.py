"""TinyMIM: a student learns the relations, or the features, of a frozen teacher on the same crop."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from timm.task import TrainingTask

from ...pretrain import TinyMim

__all__ = ['TinyMimTask']


class TinyMimTask(TrainingTask):
    """Student and teacher of a `TinyMim` form; only the student is trained, wrapped and saved.

    Args:
        form: The pair with its objective.
        autocast: Makes the context that the teacher runs in, that of the student.
    """

    def __init__(self, form: TinyMim, autocast: Callable[[], AbstractContextManager] = nullcontext) -> None:
        super().__init__(verbose=False)
        self.trainable_module = form.student
        self.teacher = form.teacher  # goes to the device with the task
        self._form, self.autocast = [form], autocast  # in a list: it is not a module of the task a second time

    def forward(  # type: ignore[override]  # timm's base class knows (input, target) only
        self, student: torch.Tensor, teacher: torch.Tensor, noise: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Losses of images (B, 3, H, W) for the student and (B, 3, H', W') for the teacher; noise (B, N) or (B, 0)."""
        form = self._form[0]
        masking = form.masking(noise if noise.shape[1] else None)
        with self.autocast():
            target = self.teacher(teacher, masking)
        return form.losses(self.trainable_module(student, masking), target)
