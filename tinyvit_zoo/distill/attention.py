"""D-MAE's attention distillation: the student's attention, mapped to the teacher's heads, against the teacher's.

Paper: A Closer Look at Self-Supervised Lightweight Vision Transformers, https://arxiv.org/abs/2205.14443, Eq. 3.
Released code: https://github.com/wangsr126/MAE-Lite, `projects/mae_lite/mae_lite_distill_exp.py`.
"""

import torch
import torch.nn.functional as F

from .precision import in_full_precision

__all__ = ['attention_distillation_loss']


@in_full_precision
def attention_distillation_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, head_map: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean squared difference of attention logits, MSE(M(A_s), A_t), mean over all elements.

    A are the scaled products q k^T / sqrt(d) *before* the softmax (`relation_logits`), in the released code and in the
    paper, which calls them attention maps and applies the softmax to them in its Eq. 1. The class token is one of the
    tokens.

    No gradient goes into the teacher. Half precision is computed in float32, autocast or not.

    Args:
        student_logits: A_s, (B, Hs, N, N).
        teacher_logits: A_t, (B, Ht, N, N).
        head_map: M, (Ht, Hs, 1, 1), the weight of a 1x1 convolution over the heads; None for none.

    Returns:
        Scalar.

    Raises:
        ValueError: If the shapes do not match.
    """
    if head_map is not None:
        if head_map.shape[1:] != (student_logits.shape[1], 1, 1):
            raise ValueError(
                f'The head map {tuple(head_map.shape)} must be (Ht, Hs, 1, 1) with the Hs of the student, '
                f'{tuple(student_logits.shape)}.'
            )
        student_logits = F.conv2d(student_logits, head_map.to(student_logits.dtype))
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f'Attention of student {tuple(student_logits.shape)} and teacher {tuple(teacher_logits.shape)} do not '
            'match: (B, H, N, N) of the same images and visible patches, heads mapped by head_map.'
        )
    return F.mse_loss(student_logits, teacher_logits)
