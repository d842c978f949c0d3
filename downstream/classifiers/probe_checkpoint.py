"""Checkpoints from which a killed linear probe is resumed."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.hashes import json_hash
from tinyvit_zoo.common.processes import Processes
from tinyvit_zoo.common.text import reason
from tinyvit_zoo.common.torch_file import save_torch

from .linear_heads import LinearHeads

__all__ = ['Checkpoint']


class Checkpoint:
    """Heads, momentum and scores after an epoch, in a file that is written whole or not at all.

    Order, crops and initial weights follow from the seed and the epoch, so no state of a generator is saved.

    Args:
        path: Of the file.
        run: Everything that the results depend on, as JSON values. A file of another run is refused.
    """

    def __init__(self, path: str | Path, run: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.key = json_hash(run)
        self.processes = Processes()

    def load(self, heads: LinearHeads) -> list[torch.Tensor]:
        """Restore the heads from the file.

        Returns:
            Accuracy and loss (2, H) after every epoch so far; an empty list if there is no file.

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
        """The content, and what is wrong with it: an error must reach every process."""
        if not self.path.exists():
            return None, None
        try:
            state = torch.load(self.path, map_location='cpu', weights_only=True)
            key, _, _ = state['key'], state['heads'], state['history']
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, TypeError, ValueError):
            return None, f'{self.path} is not a checkpoint of a linear probe: remove it to start from the beginning.'
        if key != self.key:
            return None, (
                f'{self.path} is the checkpoint of a run with another model, data or settings: remove it, or give '
                'another folder.'
            )
        return state, None

    def save(self, heads: LinearHeads, history: list[torch.Tensor]) -> None:
        """Replace the file; the first process does.

        Raises:
            EvaluationError: If it cannot be written; the one before is kept.
        """
        if self.processes.rank == 0:
            state = dict(key=self.key, heads=heads.state_dict(), history=torch.stack(history))
            try:
                save_torch(state, self.path)
            except OSError as e:
                raise EvaluationError(
                    f'{self.path} cannot be written ({reason(e)}): make room and give the same command '
                    'again, which resumes after the last epoch that is on the disk.'
                ) from e
