"""TinyViT's pretraining distillation: cross-entropy against a teacher's K largest probabilities.

Paper: TinyViT: Fast Pretraining Distillation for Small Vision Transformers, https://arxiv.org/abs/2207.10666, Eq. 1 and
2. Released code: https://github.com/microsoft/Cream/tree/main/TinyViT. What the K probabilities leave of 1 is spread
evenly over the other classes. There is no temperature and no term with hard labels.

Shape legend: `B` images, `C` classes, `K` of them with a stored probability.
"""

import torch

from .precision import in_full_precision

__all__ = ['dense_log_probabilities', 'sparse_cross_entropy']


def sparse_cross_entropy(
    logits: torch.Tensor, ids: torch.Tensor, probabilities: torch.Tensor, clamp: bool = False
) -> torch.Tensor:
    """Cross-entropy of softmax(logits) against K probabilities an image and an even rest, mean over images.

    The (B, C) target is never made: a softmax against it is a few sums over the logits. Half precision is computed in
    float32, autocast or not; float64 stays float64. No gradient goes to the probabilities.

    Args:
        logits: (B, C) of the student.
        ids: Integers (B, K), classes, no two of an image equal.
        probabilities: (B, K), of these classes. Their sum may be above 1 by rounding, as it is in some records of the
            released code.
        clamp: Take a rest below 0 as 0. The released code does not: it then gives the other classes a small negative
            share.

    Returns:
        Scalar.

    Raises:
        ValueError: If the shapes do not belong together, or `ids` are not integers.
    """
    if logits.dim() != 2 or ids.dim() != 2 or ids.shape != probabilities.shape or len(ids) != len(logits):
        raise ValueError(
            f'Logits {tuple(logits.shape)}, ids {tuple(ids.shape)} and probabilities {tuple(probabilities.shape)} do '
            'not belong together: (B, C), (B, K) and (B, K) are needed.'
        )
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f'The ids are classes, so they must be integers, not {ids.dtype}.')
    if not 0 < ids.shape[1] <= logits.shape[1] or not len(ids):
        raise ValueError(f'{ids.shape[1]} probabilities for {len(logits)} images of {logits.shape[1]} classes.')
    return _loss(logits, probabilities, ids.long(), clamp)


@in_full_precision
def _loss(logits: torch.Tensor, probabilities: torch.Tensor, ids: torch.Tensor, clamp: bool) -> torch.Tensor:
    C, K = logits.shape[1], ids.shape[1]
    rest = 1 - probabilities.sum(dim=1)
    if clamp:
        rest = rest.clamp(min=0)
    share = rest / (C - K) if C > K else torch.zeros_like(rest)
    log_sum = logits.logsumexp(dim=1)
    of_ids = ((probabilities - share[:, None]) * (logits.gather(1, ids) - log_sum[:, None])).sum(dim=1)
    of_all = share * (logits.sum(dim=1) - C * log_sum)
    return -(of_ids + of_all).mean()


def dense_log_probabilities(ids: torch.Tensor, probabilities: torch.Tensor, classes: int) -> torch.Tensor:
    """Logarithms of all C probabilities, which are logits of the teacher up to a constant: for losses that need those.

    A probability of 0 is taken as the smallest number above it, so that no logarithm is infinite.

    Args:
        ids: Integers (B, K), classes, no two of an image equal.
        probabilities: (B, K), of these classes; where they sum to more than 1, the rest is 0.
        classes: C.

    Returns:
        (B, C), float32, or float64 where the probabilities are.
    """
    kept = probabilities if probabilities.dtype == torch.float64 else probabilities.float()
    rest = (1 - kept.sum(dim=1, keepdim=True)).clamp(min=0) / max(classes - ids.shape[1], 1)
    dense = rest.expand(-1, classes).scatter(1, ids.long(), kept)
    return dense.clamp(min=torch.finfo(dense.dtype).tiny).log()
