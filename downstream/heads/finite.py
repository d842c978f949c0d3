"""The check of features that evaluators share."""

import torch

from ..errors import EvaluationError

__all__ = ['check_finite']


def check_finite(features: torch.Tensor, what: str) -> None:
    """Look for NaN and infinity in features (N, D), without a copy of them.

    Raises:
        EvaluationError: With the first row that holds any.
    """
    bad = (~features.sum(dim=1).isfinite()).nonzero()[:, 0]  # a sum is not finite if a number in it is not
    if len(bad):
        raise EvaluationError(
            f'Row {int(bad[0])} of the {what} holds NaN or infinity ({len(bad)} of {len(features)} rows do): '
            'look at that image, or compute the features in float32.'
        )
