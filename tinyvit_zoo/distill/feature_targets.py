"""Distillation of features, by smooth L1 on whitened targets or by cosine, and of the class token.

Paper: TinyMIM: An Empirical Study of Distilling MIM Pre-trained Models, https://arxiv.org/abs/2301.01296, Eq. 5 to 8.
TinyMIM compares them with its relations; none of it is in the released code.

Shape legend: `B` images, `N` tokens, `C` channels of the target.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F

from .precision import in_full_precision

__all__ = [
    'FEATURE_LOSSES',
    'SMOOTH_L1_BETA',
    'FeatureLossName',
    'class_token_loss',
    'feature_loss',
    'smooth_l1_loss',
    'whitened',
]

FeatureLossName = Literal['smooth_l1', 'cosine']
FEATURE_LOSSES: tuple[FeatureLossName, ...] = get_args(FeatureLossName)

SMOOTH_L1_BETA = 2.0
"""Below it the smooth L1 loss is quadratic (Eq. 8)."""


def whitened(features: torch.Tensor) -> torch.Tensor:
    """Layer norm without affine parameters, in at least float32: the target of Eq. 7.

    Args:
        features: (..., C).

    Returns:
        (..., C), each vector with mean 0 and variance 1.
    """
    return F.layer_norm(features.to(torch.promote_types(features.dtype, torch.float32)), features.shape[-1:])


@in_full_precision
def smooth_l1_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Eq. 8, mean over all elements.

    Args:
        student: (..., C), through its linear map.
        teacher: (..., C), `whitened`; no gradient goes into it.

    Returns:
        Scalar.
    """
    return F.smooth_l1_loss(student, teacher, beta=SMOOTH_L1_BETA)


@in_full_precision
def class_token_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Eq. 5 and 6: KL(teacher || student) of class tokens, mean over images.

    The paper takes the KL divergence of two features without saying what makes them distributions; here it is a softmax
    over channels, without temperature.

    Args:
        student: (B, C), through a linear map where the widths differ.
        teacher: (B, C); no gradient goes into it.

    Returns:
        Scalar, at least 0.
    """
    return F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction='batchmean', log_target=True)


@in_full_precision
def feature_loss(student: torch.Tensor, teacher: torch.Tensor, loss: FeatureLossName = 'smooth_l1') -> torch.Tensor:
    """Distance of mapped features, mean over all of them. No gradient goes into the teacher.

    Args:
        student: (..., C), already mapped to the teacher's C channels.
        teacher: (..., C), not whitened.
        loss: 'smooth_l1', to the whitened teacher (Eq. 7 and 8); 'cosine', 1 minus the cosine of each pair of vectors.

    Returns:
        Scalar, float32 or wider; its minimum is 0.

    Raises:
        ValueError: If the shapes differ, or there is no such loss.
    """
    if student.shape != teacher.shape:
        raise ValueError(f'Features {tuple(student.shape)} of the student, {tuple(teacher.shape)} of the teacher.')
    if loss == 'smooth_l1':
        return F.smooth_l1_loss(student, whitened(teacher), beta=SMOOTH_L1_BETA)
    if loss == 'cosine':
        return 1 - F.cosine_similarity(student, teacher, dim=-1).mean()
    raise ValueError(f"There is no feature loss '{loss}': take {' or '.join(FEATURE_LOSSES)}.")
