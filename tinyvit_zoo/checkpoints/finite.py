"""NaN and infinity in weights: a model with them computes nothing, and no error says so."""

import logging
import math
from collections.abc import Mapping

import torch

from ..common.errors import CheckpointError
from ..common.text import first_few

__all__ = ['check_finite', 'nonfinite', 'warn_nonfinite']

_logger = logging.getLogger(__name__)


def nonfinite(state_dict: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity."""
    return [k for k, v in state_dict.items() if v.is_floating_point() and v.numel() and not _is_finite(v)]


def _is_finite(tensor: torch.Tensor) -> bool:
    if tensor.is_meta:
        return True
    if tensor.element_size() == 1:  # float8 has no minimum
        tensor = tensor.float()
    return all(math.isfinite(end.item()) for end in torch.aminmax(tensor.detach()))  # one pass, which keeps a NaN


def warn_nonfinite(state_dict: Mapping[str, torch.Tensor], origin: str) -> None:
    """One warning if a tensor holds NaN or infinity."""
    names = nonfinite(state_dict)
    if names:
        _logger.warning('%s: %s, so the model cannot compute with them.', origin, _found(names))


def check_finite(state_dict: Mapping[str, torch.Tensor], origin: str, allow_nonfinite: bool = False) -> None:
    """Compare all weights with what a model can compute with.

    Args:
        state_dict: Weights.
        origin: Their file or model, for the message.
        allow_nonfinite: Do nothing.

    Raises:
        CheckpointError: If a tensor holds NaN or infinity.
    """
    names = [] if allow_nonfinite else nonfinite(state_dict)
    if names:
        raise CheckpointError(
            f'{origin}: {_found(names)}, so the training has failed or the file is damaged; --allow-nonfinite '
            '(allow_nonfinite=True) takes them as they are.'
        )


def _found(names: list[str]) -> str:
    tensors = '1 tensor holds' if len(names) == 1 else f'{len(names)} tensors hold'
    return f'{tensors} NaN or infinity ({first_few(names)})'
