"""The log of a training: `log.jsonl`, a line for some updates and for each epoch, and TensorBoard's if it is there."""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from ..common.errors import EvaluationError
from ..common.files import write_whole
from ..common.text import reason

__all__ = ['LOG', 'RunLog']

LOG = 'log.jsonl'
TENSORBOARD = 'tensorboard'


class RunLog:
    """Lines with the number of their update over all epochs; a resumed run continues where its state stands.

    Args:
        folder: Of the run; it is there.
        update: Updates that the state has. Lines of later ones, which the killed run still wrote, are removed.
        images: Of an update, to say how many a second.

    Raises:
        EvaluationError: If there is no room or no permission to write, here and in `write`.
    """

    def __init__(self, folder: Path, update: int, images: int) -> None:
        self.images, self.since, self.at = images, time.monotonic(), update
        path = folder / LOG
        write_whole(path, ''.join(_lines_until(path, update)).encode())
        self._file: IO[str] = path.open('a', encoding='utf-8')
        self._board = _tensorboard(folder / TENSORBOARD, update)

    def write(self, update: int, epoch: int, numbers: Mapping[str, float | None], kind: str = 'update') -> None:
        """Write one line.

        Args:
            update: How many are done, over all epochs.
            epoch: From 1.
            numbers: By name.
            kind: 'update' for the mean of some updates, 'epoch' for a whole one.
        """
        line: dict[str, Any] = dict(kind=kind, epoch=epoch, update=update, **numbers)
        if kind == 'update':
            now = time.monotonic()
            speed = (update - self.at) * self.images / max(now - self.since, 1e-9)
            self.since, self.at = now, update
            line['images_per_second'] = round(speed, 2)
        try:
            self._file.write(json.dumps(line) + '\n')
            self._file.flush()
            self._show(kind, line)
        except OSError as e:
            raise EvaluationError(
                f'{self._file.name} cannot be written ({reason(e)}): make room and give the same command again, which '
                'resumes from the last state that is on the disk.'
            ) from e

    def _show(self, kind: str, line: Mapping[str, Any]) -> None:
        """Hand the numbers of a line to TensorBoard."""
        if self._board is None:
            return
        for name, value in line.items():
            if name not in ('kind', 'update') and isinstance(value, int | float):
                self._board.add_scalar(f'{kind}/{name}', value, line['update'])

    def __enter__(self) -> 'RunLog':
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # what could not be written was said by `write`
            self._file.close()
            if self._board is not None:
                self._board.close()


def _lines_until(path: Path, update: int) -> list[str]:
    """The whole lines of a log up to an update; a run that was killed may leave part of one."""
    if not path.exists():
        return []
    kept = []
    for line in path.read_text(encoding='utf-8', errors='replace').splitlines(keepends=True):
        try:
            number = json.loads(line)['update']
        except (ValueError, KeyError, TypeError):
            continue
        if line.endswith('\n') and number <= update:
            kept.append(line)
    return kept


def _tensorboard(folder: Path, update: int) -> Any:
    """TensorBoard's writer, or None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=update + 1)
