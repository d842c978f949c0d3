"""How far a student's features are from a teacher's: smooth L1 on whitened targets, or cosine."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F

from .feature_targets import smooth_l1_loss, whitened
from .precision import in_full_precision

__all__ = ['FEATURE_LOSSES', 'FeatureLossName', 'feature_loss']

FeatureLossName = Literal['smooth_l1', 'cosine']
FEATURE_LOSSES: tuple[FeatureLossName, ...] = get_args(FeatureLossName)


@in_full_precision
def feature_loss(student: torch.Tensor, teacher: torch.Tensor, loss: FeatureLossName = 'smooth_l1') -> torch.Tensor:
    """Distance of mapped features, mean over all of them. No gradient goes into the teacher.

    'smooth_l1': to the teacher's whitened features, as in `feature_targets`. 'cosine': 1 minus the cosine of each pair of
    vectors.

    Args:
        student: (..., C), already mapped to the teacher's C channels.
        teacher: (..., C).
        loss: One of `FEATURE_LOSSES`.

    Returns:
        Scalar, float32 or wider; its minimum is 0.

    Raises:
        ValueError: If the shapes differ, or there is no such loss.
    """
    if student.shape != teacher.shape:
        raise ValueError(f'Features {tuple(student.shape)} of the student, {tuple(teacher.shape)} of the teacher.')
    if loss == 'smooth_l1':
        return smooth_l1_loss(student, whitened(teacher))
    if loss == 'cosine':
        return 1 - F.cosine_similarity(student, teacher, dim=-1).mean()
    raise ValueError(f"There is no feature loss '{loss}': take {' or '.join(FEATURE_LOSSES)}.")
