"""Kills a training at random moments, resumes it, and compares it with one that was left alone.

    python benchmarks/kill_training.py -o OUT --points 20 -- finetune test_vit --random -d digits --epochs 3

Everything after `--` is a command of `tinyvit-zoo` that trains, without `--output`. It runs to its end in OUT/whole.
Then it runs in OUT/killed with a state after each update, is killed with SIGKILL as many times as asked for, each at a
random moment after its first update, and resumed; its last start is left alone. The log (the losses of all updates that
were looked at, and of all epochs) and the weights that result must be equal to the bit.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

LONGEST = 3.0  # seconds that a start trains before it is killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('-o', '--output', type=Path, required=True)
    parser.add_argument('--points', type=int, default=20)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('command', nargs=argparse.REMAINDER)
    options = parser.parse_args()
    words = [word for word in options.command if word != '--']
    whole, killed = options.output / 'whole', options.output / 'killed'
    subprocess.run(_command(words, whole), check=True, stdout=subprocess.DEVNULL)
    rng, kills, within = random.Random(options.seed), 0, 0
    while kills < options.points:
        found = _kill_once(_command(words, killed), killed, rng)
        if found is None:
            raise SystemExit(f'The training ended after {kills} kills: give it more epochs or images.')
        kills, within = kills + 1, within + found
    subprocess.run(_command(words, killed), check=True, stdout=subprocess.DEVNULL)
    equal = _log(whole) == _log(killed) and _same_weights(whole, killed)
    print(
        f'Killed {kills} times, {within} of them within an epoch: losses and weights {"equal" if equal else "DIFFER"}.'
    )
    raise SystemExit(0 if equal else 1)


def _command(words: list[str], output: Path) -> list[str]:
    return [sys.executable, '-m', 'tinyvit_zoo.cli', *words, '--save-minutes', '0', '-o', str(output)]


def _kill_once(command: list[str], folder: Path, rng: random.Random) -> bool | None:
    """Start, wait for an update and a random while longer, kill. Whether it was within an epoch; None if it ended."""
    state = folder / 'state.pt'
    before = state.stat().st_mtime_ns if state.exists() else 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and (not state.exists() or state.stat().st_mtime_ns == before):
        time.sleep(0.01)
    time.sleep(rng.uniform(0, LONGEST))
    ended = process.poll() is not None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return None if ended else torch.load(state, weights_only=True)['losses'] is not None


def _log(folder: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (folder / 'log.jsonl').read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != 'images_per_second'} for line in lines]


def _same_weights(*folders: Path) -> bool:
    one, two = (torch.load(folder / 'best.pt', weights_only=True) for folder in folders)
    return one.keys() == two.keys() and all(torch.equal(value, two[key]) for key, value in one.items())


if __name__ == '__main__':
    main()
