"""Processes that share work: those started by `torchrun` or `accelerate launch`, or this one alone."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

__all__ = ['LONGEST_WAIT', 'Processes', 'on_its_own']

T = TypeVar('T')

SHARED = ('RANK', 'LOCAL_RANK', 'GROUP_RANK', 'ROLE_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE', 'ROLE_WORLD_SIZE')
"""What a launcher tells its processes of each other."""

LONGEST_WAIT = timedelta(days=1)
"""How long one process waits for another that is alive. torch's half hour is less than a list of 14 million images, or
the last share of a slow processor, may take."""


@contextmanager
def on_its_own() -> Iterator[None]:
    """A block in which a process that a launcher has started does not know of the others, and trains by itself."""
    told = {key: os.environ.pop(key) for key in SHARED if key in os.environ}
    try:
        yield
    finally:
        os.environ.update(told)


class Processes:
    """The group of processes; joins it if a launcher started this process and nothing has joined it yet.

    Attributes:
        rank: Index of this process.
        number: Number of processes.
    """

    def __init__(self) -> None:
        if int(os.environ.get('WORLD_SIZE', 1)) > 1 and 'RANK' in os.environ and not dist.is_initialized():
            dist.init_process_group('gloo', timeout=LONGEST_WAIT)
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.number = dist.get_world_size() if dist.is_initialized() else 1

    def own_device(self, device: torch.device | str | None, model: nn.Module) -> torch.device:
        """The given device, or the model's for None. Plain 'cuda' is a different GPU for each process of a machine, as
        long as there are enough.
        """
        if device is None:
            return next((p.device for p in model.parameters()), torch.device('cpu'))
        device = torch.device(device)
        if device.type == 'cuda' and device.index is None:
            return torch.device('cuda', int(os.environ.get('LOCAL_RANK', 0)) % max(1, torch.cuda.device_count()))
        return device

    def from_first(self, make: Callable[[], T]) -> T:
        """The value that `make` returns on the first process, on every process; likewise an error that it raises."""
        if self.number == 1:
            return make()
        values: list[Any] = [None, None]
        if self.rank == 0:
            try:
                values[0] = make()
            except Exception as e:  # without it the others would wait, and then complain of a closed connection
                values[1] = e
        dist.broadcast_object_list(values)
        if values[1] is not None:
            raise values[1]
        return values[0]

    def gather(self, values: dict[Any, T]) -> dict[Any, T]:
        """The dictionaries of all processes merged into one, on every process."""
        if self.number == 1:
            return values
        everyone: list[dict[Any, T]] = [{}] * self.number
        dist.all_gather_object(everyone, values)
        return {key: value for part in everyone for key, value in part.items()}

    def wait(self) -> None:
        """Wait until every process has arrived here."""
        if self.number > 1:
            dist.barrier()
