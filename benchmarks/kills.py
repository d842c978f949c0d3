"""Saving soft labels, killed at random moments: the store that follows must have the bytes of one left alone.

Processes are forked from one that has imported everything, so that a kill hits the work and not the imports.
"""

import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist

from tinyvit_zoo.common.counter_rng import child_key, uniform
from tinyvit_zoo.data import load_dataset
from tinyvit_zoo.data.replay import ViewSpec
from tinyvit_zoo.soft_labels import Teacher, save

__all__ = ['Group', 'files_of', 'kill_a_save']

IMAGES, EPOCHS, SHARD, BATCH = 1000, 8, 50, 25
PATIENCE = timedelta(minutes=2)  # for the other process, before it is an error
SPEC = ViewSpec.from_timm((32, 32), auto_augment='rand-m9-mstd0.5-inc1', re_prob=0.25)


class Group:
    """Processes that call a function together, as those of `torchrun` do; they meet in a file, as a port may be taken.

    Args:
        number: Of processes.
        target: What each of them calls.
        *args: For it.
    """

    def __init__(self, number: int, target: Callable[..., Any], *args: Any) -> None:
        context = multiprocessing.get_context('fork')
        self.folder = tempfile.TemporaryDirectory()
        meeting = f'file://{self.folder.name}/meeting'
        self.processes = [
            context.Process(target=_call, args=(rank, number, meeting, target, args)) for rank in range(number)
        ]
        for process in self.processes:
            process.start()

    def alive(self) -> bool:
        """Whether any of them still runs."""
        return any(process.is_alive() for process in self.processes)

    def kill(self) -> None:
        """End all of them by SIGKILL."""
        for process in self.processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
        for process in self.processes:
            process.join()

    def finish(self) -> None:
        """Wait for all of them. Raises: RuntimeError: If one fails."""
        for process in self.processes:
            process.join()
        if any(process.exitcode for process in self.processes):
            raise RuntimeError(f'Processes ended with {[process.exitcode for process in self.processes]}.')


def _call(rank: int, number: int, meeting: str, target: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    if number > 1:
        dist.init_process_group('gloo', meeting, PATIENCE, number, rank)
    target(*args)


def files_of(folder: Path) -> dict[str, bytes]:
    """Content of every file below a folder, those whose names begin with a dot included."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def kill_a_save(points: int, processes: int = 2, seed: int = 0) -> list[str]:
    """Kill a save at so many random moments, each time resume it, and compare every byte.

    Returns:
        What each kill left behind, in words.

    Raises:
        SystemExit: If a resumed store has other bytes than one that was never killed.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder, found = Path(temporary), []
        start = time.perf_counter()
        Group(processes, _save, folder / 'whole').finish()
        seconds = time.perf_counter() - start
        for point, share in enumerate(uniform(child_key(seed), points).tolist()):
            killed = folder / f'killed-{point}'
            group = Group(processes, _save, killed)
            time.sleep(share * seconds)
            group.kill()
            shards, cut = (len(list(killed.rglob(pattern))) for pattern in ('0*.safetensors', '.*.part*'))
            found.append(f'{shards} of {EPOCHS * IMAGES // SHARD} shards' + (f' and {cut} cut' if cut else ''))
            Group(processes, _save, killed).finish()
            if files_of(folder / 'whole') != files_of(killed):
                raise SystemExit(f'Killed after {share * seconds:.2f} s ({found[-1]}), the store has other bytes.')
        return found


def _save(folder: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model('test_vit', num_classes=10, img_size=32)
    data = load_dataset('digits', 'train').subset(range(IMAGES))
    save(
        Teacher.of_timm(model, 'a small ViT'), data, SPEC, folder, range(EPOCHS), k=5, batch_size=BATCH,
        shard_size=SHARD, progress=False,
    )  # fmt: skip
