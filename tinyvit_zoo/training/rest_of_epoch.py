"""Where a resumed run takes up an epoch: the images that it has seen are never read again."""

import itertools
from collections.abc import Iterator
from typing import Any, cast

from torch.utils.data import DataLoader, Sampler

__all__ = ['RestOfEpoch', 'rest_of_epoch_in']


class RestOfEpoch(Sampler):
    """The indices of a sampler from `first` on, in the next epoch only: those before it are never read."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler, self.first = sampler, 0

    def set_epoch(self, epoch: int) -> None:
        """Hand the number of the epoch on."""
        cast(Any, self.sampler).set_epoch(epoch)

    def __len__(self) -> int:
        return len(cast(Any, self.sampler))

    def __iter__(self) -> Iterator[Any]:
        first, self.first = self.first, 0
        return itertools.islice(iter(self.sampler), first, None)


def rest_of_epoch_in(loader: DataLoader) -> RestOfEpoch:
    """The sampler of a loader that accelerate has prepared, for one process or for many."""
    batches: Any = loader.batch_sampler
    return getattr(batches, 'batch_sampler', batches).sampler
