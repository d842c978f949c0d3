"""Precision of the distillation losses: at least float32, autocast or not, and no gradient into the teacher."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce, wraps
from typing import Any

import torch

__all__ = ['autocast_off', 'check_temperature', 'in_full_precision']


@contextmanager
def autocast_off(device_type: str) -> Iterator[None]:
    """A block without autocast on a device type such as 'cuda'; no effect where autocast is off already."""
    if not torch.is_autocast_enabled(device_type):
        yield
        return
    with torch.autocast(device_type, enabled=False):
        yield


def in_full_precision(loss: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Make a loss of (student, teacher, ...) tensors compute in at least float32, without gradient to the teacher."""

    @wraps(loss)
    def call(student: torch.Tensor, teacher: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        dtype = reduce(torch.promote_types, (student.dtype, teacher.dtype), torch.float32)
        with autocast_off(student.device.type):
            return loss(student.to(dtype), teacher.detach().to(dtype), *args, **kwargs)

    return call


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not above 0.

    Raises:
        ValueError: If it is not; NaN is refused as well.
    """
    if not temperature > 0:
        raise ValueError(f'The temperature must be above 0, got {temperature}.')
