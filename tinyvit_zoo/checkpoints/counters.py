"""How many batches a BatchNorm has seen: bookkeeping that some files lack, and that no output depends on."""

import logging
from collections.abc import Mapping

import torch

__all__ = ['with_counters']

_logger = logging.getLogger(__name__)

COUNTER, STATISTICS = 'num_batches_tracked', 'running_mean'


def with_counters(state_dict: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict with a counter of 0 for every norm whose statistics it has without one.

    Args:
        state_dict: Of a checkpoint, under the model's names.
        own: State dict of the model.
    """
    absent = [k for k in own if k.endswith(COUNTER) and k not in state_dict and _statistics(k) in state_dict]
    if absent:
        _logger.info('%d counters of BatchNorm (%s) are not in the checkpoint: they start at 0.', len(absent), COUNTER)
    return {**state_dict, **{k: torch.zeros((), dtype=torch.long) for k in absent}}


def _statistics(counter: str) -> str:
    return counter.removesuffix(COUNTER) + STATISTICS
