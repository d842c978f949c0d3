"""Saving soft labels and training from them, killed at random moments: what follows must be as if nothing had happened.

Processes are forked from one that has imported everything, with what `torchrun` would tell each of them, so that a
kill hits the work and not the imports.
"""

import multiprocessing
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch

from tinyvit_zoo.common.counter_rng import child_key, uniform
from tinyvit_zoo.data import load_dataset
from tinyvit_zoo.data.replay import ViewSpec
from tinyvit_zoo.soft_labels import Store, Teacher, save
from tinyvit_zoo.training.distillation import distil_from_store
from tinyvit_zoo.training.recipes import DISTILLATION

__all__ = ['Group', 'files_of', 'kill_a_save', 'kill_a_training']

IMAGES, EPOCHS, SHARD, BATCH = 600, 4, 50, 25
SPEC = ViewSpec.from_timm((32, 32), auto_augment='rand-m9-mstd0.5-inc1', re_prob=0.25)
RECIPE = DISTILLATION['tinyvit_22k_distill'].changed(epochs=8, batch_size=50, lr=5e-4, lr_batch=50)


class Group:
    """Processes that call a function together, each as a process of `torchrun`.

    Args:
        number: Of processes.
        target: What each of them calls.
        *args: For it.
    """

    def __init__(self, number: int, target: Callable[..., Any], *args: Any) -> None:
        context = multiprocessing.get_context('fork')
        port = str(_free_port())
        self.processes = [
            context.Process(target=_call, args=(rank, number, port, target, args)) for rank in range(number)
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


def _call(rank: int, number: int, port: str, target: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    if number > 1:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(number), MASTER_ADDR='127.0.0.1', MASTER_PORT=port
        )
    target(*args)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def files_of(folder: Path) -> dict[str, bytes]:
    """Content of every file below a folder, those whose names begin with a dot included."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def kill_a_save(points: int, processes: int = 2, seed: int = 0) -> list[str]:
    """Kill a save by several processes at so many random moments, resume it, and compare every byte.

    Returns:
        What each kill left behind, in words.

    Raises:
        SystemExit: If a resumed store has other bytes than one that was never killed.
    """
    with tempfile.TemporaryDirectory() as folder:

        def compare(whole: Path, resumed: Path) -> bool:
            return files_of(whole) == files_of(resumed)

        def left(killed: Path) -> str:
            parts = len(list(killed.rglob('.*.part*')))
            return f'{len(list(killed.rglob("0*.safetensors")))} of {EPOCHS * IMAGES // SHARD} shards, {parts} cut'

        return _kill(points, processes, seed, Path(folder), _save, compare, left)


def kill_a_training(points: int, seed: int = 1) -> list[str]:
    """Kill a training from a store at so many random moments, resume it, and compare losses and weights to the bit.

    Returns:
        What each kill left behind, in words.

    Raises:
        SystemExit: If a resumed training has other losses or weights than one that was never killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        _save(Path(folder) / 'labels')

        def compare(whole: Path, resumed: Path) -> bool:
            one, two = (torch.load(run / 'result.pt', weights_only=True) for run in (whole, resumed))
            same = all(torch.equal(value, two['weights'][key]) for key, value in one['weights'].items())
            return same and one['history'] == two['history']

        def left(killed: Path) -> str:
            state = killed / 'state.pt'
            done = len(torch.load(state, weights_only=True)['history']) if state.exists() else 0
            return f'{done} of {RECIPE.epochs} epochs'

        return _kill(points, 1, seed, Path(folder), _train, compare, left)


def _kill(
    points: int,
    processes: int,
    seed: int,
    folder: Path,
    work: Callable[[Path], object],
    compare: Callable[[Path, Path], bool],
    left: Callable[[Path], str],
) -> list[str]:
    start = time.perf_counter()
    Group(processes, work, folder / 'whole').finish()
    seconds, found = time.perf_counter() - start, []
    for point, share in enumerate(uniform(child_key(seed), points).tolist()):
        killed = folder / f'killed-{point}'
        group = Group(processes, work, killed)
        time.sleep(share * seconds)
        group.kill()
        found.append(left(killed))
        Group(processes, work, killed).finish()
        if not compare(folder / 'whole', killed):
            raise SystemExit(f'Killed after {share * seconds:.2f} s ({found[-1]}), it ended otherwise.')
    return found


def _save(folder: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model('test_vit', num_classes=10, img_size=32)
    data = load_dataset('digits', 'train').subset(range(IMAGES))
    save(
        Teacher.of_timm(model, 'a small ViT'), data, SPEC, folder, range(EPOCHS), k=5, batch_size=BATCH,
        shard_size=SHARD, progress=False,
    )  # fmt: skip


def _train(folder: Path) -> None:
    torch.manual_seed(1)
    student = timm.create_model('test_vit', num_classes=10, img_size=32)
    data = load_dataset('digits', 'train').subset(range(IMAGES))
    run = distil_from_store(
        student, data, Store.open(folder.parent / 'labels'), RECIPE, folder, reuse=True, device=torch.device('cpu'),
        say=lambda text: None,
    )  # fmt: skip
    torch.save(dict(history=list(run.history), weights=student.state_dict()), folder / 'result.pt')
