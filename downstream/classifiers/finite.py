"""The check of features that evaluators share."""

import torch

from tinyvit_zoo.common.errors import EvaluationError

__all__ = ['check_finite']

ROWS_AT_ONCE = 4096


def check_finite(features: torch.Tensor, what: str) -> None:
    """Look for NaN and infinity in features (N, D), without a copy of them, and for rows too long to be computed with.

    Raises:
        EvaluationError: With the first row that holds any.
    """
    # A sum of squares is not finite if a number in it is not. Those of float16 are soon beyond float16.
    wide = torch.float64 if features.dtype == torch.float64 else torch.float32
    squares = [block.to(wide).square().sum(dim=1) for block in features.split(ROWS_AT_ONCE)]
    bad = (~torch.cat(squares).isfinite()).nonzero()[:, 0]
    if len(bad):
        raise EvaluationError(
            f'Row {int(bad[0])} of the {what} holds NaN, infinity or numbers whose squares are ({len(bad)} of '
            f'{len(features)} rows do): look at that image, or compute the features in float32.'
        )
