"""The losses of an epoch, update by update: what its record is the mean of, and what a state within it holds."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ['EpochLosses']


class EpochLosses:
    """Losses by name, the mean over the images of each update; they are the same on all processes.

    Args:
        accelerator: Its number of accumulated steps make an update.
        settled: Of the updates that are done, float64 (updates,) for each name.
    """

    def __init__(self, accelerator: 'Accelerator', settled: Mapping[str, torch.Tensor] | None = None) -> None:
        self.accelerator = accelerator
        self.settled = dict(settled or {})
        self._steps: list[dict[str, torch.Tensor]] = []

    def add(self, outputs: Mapping[str, torch.Tensor]) -> None:
        """Keep what of a step's outputs has no dimensions, where it is: nothing waits for the device."""
        self._steps.append({name: value.detach() for name, value in outputs.items() if value.ndim == 0})

    def settle(self) -> None:
        """Bring the steps so far, which make whole updates, together from all processes and to the CPU."""
        if not self._steps:
            return
        names = list(self._steps[0])
        own = torch.stack([torch.stack([step[name] for step in self._steps]) for name in names])
        own = own.double().unflatten(1, (-1, self.accelerator.gradient_accumulation_steps)).mean(dim=2)
        all_of_them = self.accelerator.gather(own[None]).mean(dim=0).cpu()  # (names, updates)
        for name, values in zip(names, all_of_them, strict=True):
            self.settled[name] = torch.cat([self.settled.get(name, values[:0]), values])
        self._steps.clear()

    @property
    def updates(self) -> int:
        """How many updates are settled."""
        return len(self.settled.get('loss', ()))

    def means(self, last: int | None = None) -> dict[str, float | None]:
        """Mean of each loss over the settled updates, or over the last ones only."""
        return {name: values[-last if last else 0 :].mean().item() for name, values in self.settled.items()}

    def first_without_number(self) -> int | None:
        """The first settled update, from 1, whose loss is not a number; None if all are."""
        bad = ~self.settled['loss'].isfinite()
        return int(bad.nonzero()[0]) + 1 if bad.any() else None
