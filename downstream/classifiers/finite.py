"""A check of features, shared by evaluators."""

import torch

from tinyvit_zoo.common.errors import EvaluationError

__all__ = ['check_finite']

ROWS_AT_ONCE = 4096


def check_finite(features: torch.Tensor, what: str) -> None:
    """Refuse features (N, D) with NaN, infinity, or values whose squares overflow, without copying them.

    Raises:
        EvaluationError: With the first such row.
    """
    # A sum of squares is finite only if all values are. Squares of float16 soon overflow float16.
    wide = torch.float64 if features.dtype == torch.float64 else torch.float32
    squares = [block.to(wide).square().sum(dim=1) for block in features.split(ROWS_AT_ONCE)]
    bad = (~torch.cat(squares).isfinite()).nonzero()[:, 0]
    if len(bad):
        raise EvaluationError(
            f'Row {int(bad[0])} of the {what} holds NaN, infinity or values whose squares are infinite ({len(bad)} of '
            f'{len(features)} rows do): check that image, or compute the features in float32.'
        )
