"""Where a linear probe that was killed goes on."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.files import new_file
from tinyvit_zoo.common.processes import Processes

from ..features.cache import key_of
from .linear_heads import LinearHeads

__all__ = ['Checkpoint']


class Checkpoint:
    """Heads, momenta and scores after an epoch, in a file that appears whole or not at all.

    Order, crops and start weights follow from the seed and the epoch, so there is no state of a generator to keep.

    Args:
        path: The file.
        run: All that the numbers depend on, as plain values. A file of another run is refused.
    """

    def __init__(self, path: str | Path, run: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.key = key_of(dict(run))
        self.processes = Processes()

    def load(self, heads: LinearHeads) -> list[torch.Tensor]:
        """Put the heads where the file left them.

        Returns:
            Accuracy and loss (2, H) after every epoch so far; nothing if there is no file.

        Raises:
            EvaluationError: If the file is of another run, or damaged.
        """
        state, problem = self.processes.from_first(self._read)
        if problem:
            raise EvaluationError(problem)
        if state is None:
            return []
        heads.load_state_dict(state['heads'])
        return list(state['history'])

    def _read(self) -> tuple[dict[str, Any] | None, str | None]:
        """Contents and what is wrong with them: every process must come to hear of it."""
        if not self.path.exists():
            return None, None
        try:
            state = torch.load(self.path, map_location='cpu', weights_only=True)
            key, _, _ = state['key'], state['heads'], state['history']
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, TypeError, ValueError):
            return None, f'{self.path} is no checkpoint of a linear probe: remove it to start from the beginning.'
        if key != self.key:
            return None, (
                f'{self.path} is the checkpoint of a run with another model, data or settings: remove it, or give '
                'another folder.'
            )
        return state, None

    def save(self, heads: LinearHeads, history: list[torch.Tensor]) -> None:
        """Replace the file; the first process does."""
        if self.processes.rank == 0:
            with new_file(self.path) as new:
                torch.save(dict(key=self.key, heads=heads.state_dict(), history=torch.stack(history)), new)
