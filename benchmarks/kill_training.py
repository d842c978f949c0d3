"""Kills a training at random moments, resumes it, and compares it with one that was left alone.

    python benchmarks/kill_training.py -o OUT --points 20 -- finetune test_vit --random -d digits --epochs 3
    python benchmarks/kill_training.py -o OUT -- pretrain tinymim --chain base,small,tiny --small -d digits ...

Everything after `--` is a command of `tinyvit-zoo` that trains, without `--output`. It runs to its end in OUT/whole.
Then it runs in OUT/killed with a state after each update, is killed with SIGKILL as many times as asked for, each at a
random moment after its first update, and resumed; its last start is left alone. The logs (the losses of all updates
that were looked at, and of all epochs), the weights that result and those that are written for others must be equal to
the bit, and so must the names of all files. The stages of a chain have folders of their own: all are compared.

All starts are forked from a process that has imported everything: a kill hits the work, and no time goes to imports.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import torch
from safetensors.torch import load_file

import tinyvit_zoo.cli.app
import tinyvit_zoo.training.features  # noqa: F401  here, and not again in every process
from tinyvit_zoo.cli import main as main_of_cli

Process = multiprocessing.get_context('fork').Process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('-o', '--output', type=Path, required=True)
    parser.add_argument('--points', type=int, default=20)
    parser.add_argument('--longest', type=float, default=3.0, help='seconds from an update to the kill (default 3)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('command', nargs=argparse.REMAINDER)
    options = parser.parse_args()
    words = [word for word in options.command if word != '--']
    whole, killed = options.output / 'whole', options.output / 'killed'
    _run_to_the_end(words, whole)
    rng, within = random.Random(options.seed), []
    while len(within) < options.points:
        found = _kill_once(words, killed, rng.uniform(0, options.longest))
        if found is None:
            raise SystemExit(f'The training ended after {len(within)} kills: give it more epochs or images.')
        within.append(found)
    _run_to_the_end(words, killed)
    different = _differences(whole, killed)
    print(f'Killed {len(within)} times, {sum(within)} of them within an epoch: ', end='')
    print(f'{", ".join(different)} DIFFER.' if different else 'losses, weights and names of files are equal.')
    raise SystemExit(1 if different else 0)


def _started(words: list[str], output: Path) -> Process:
    process = Process(target=_run, args=([*words, '--save-minutes', '0', '-o', str(output)],))
    process.start()
    return process


def _run(words: list[str]) -> None:
    torch.set_num_threads(1)
    sys.argv = ['tinyvit-zoo', *words]
    with Path(os.devnull).open('w') as nowhere, redirect_stdout(nowhere):
        main_of_cli()


def _run_to_the_end(words: list[str], output: Path) -> None:
    process = _started(words, output)
    process.join()
    if process.exitcode:
        raise SystemExit(f'The training in {output} ended with {process.exitcode}.')


def _kill_once(words: list[str], folder: Path, seconds: float) -> bool | None:
    """Start, wait for an update and these seconds longer, kill. Whether it was within an epoch; None if it ended."""
    before = _newest_state(folder)
    process = _started(words, folder)
    while process.is_alive() and _newest_state(folder) == before:
        time.sleep(0.01)
    time.sleep(seconds)
    process.kill()
    process.join()
    if process.exitcode != -signal.SIGKILL:
        return None
    return torch.load(_newest_state(folder)[1], weights_only=True)['losses'] is not None


def _newest_state(folder: Path) -> tuple[int, Path]:
    """When the last state in a folder was written, and its file."""
    return max(((path.stat().st_mtime_ns, path) for path in folder.rglob('state.pt')), default=(0, folder))


def _differences(one: Path, two: Path) -> list[str]:
    """Names of the files in which two runs differ, or which only one of them has."""
    names, others = _names(one), _names(two)
    different = [name for name in names & others if name.name in READERS and not _same(one / name, two / name)]
    return sorted(map(str, [*(names ^ others), *different]))


def _names(folder: Path) -> set[Path]:
    """Of all files but TensorBoard's, of which each start writes one."""
    files = (path.relative_to(folder) for path in folder.rglob('*') if path.is_file())
    return {name for name in files if 'tensorboard' not in name.parts}


def _same(one: Path, two: Path) -> bool:
    first, second = (READERS[path.name](path) for path in (one, two))
    if isinstance(first, list):
        return first == second
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


def _log(path: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != 'images_per_second'} for line in lines]


READERS = {
    'log.jsonl': _log,
    'best.pt': lambda path: torch.load(path, weights_only=True),
    'model.safetensors': load_file,
    'form.safetensors': load_file,
}


if __name__ == '__main__':
    main()
