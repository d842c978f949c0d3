"""A contraction that is killed at random points, and one that is not: the ranking of every candidate must be the same.

A TinyViT of four blocks is contracted in two steps on 120 of scikit-learn's handwritten zeros, ones and twos. The
throughput is not measured but made up from the parameters: a measured one differs from run to run, killed or not, and
is kept from the moment that it is on the disk.

    python benchmarks/contraction.py                # 20 kills
    python benchmarks/contraction.py --kills 5
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

import tinyvit_zoo  # noqa: F401  registers the models
from tinyvit_zoo.data import load_dataset
from tinyvit_zoo.training.contraction import Contraction, contract
from tinyvit_zoo.training.contraction_factors import Candidate, count_parameters
from tinyvit_zoo.training.recipes.contraction import CONTRACTION
from tinyvit_zoo.training.short_training import ShortTraining

START: dict[str, Any] = dict(
    embed_dims=(32, 48, 64, 64), num_heads=(2, 3, 4, 4), depths=(1, 1, 1, 1), mlp_ratio=1.0, mbconv_expand_ratio=1.0,
    num_classes=10, img_size=32,
)  # fmt: skip
RECIPE = CONTRACTION.changed(epochs=2, batch_size=16, lr=4e-3)
IMAGES, CLASSES = 120, 3
LONGEST = 0.6  # of the time of a whole search, so that most are killed again after they have been resumed


def made_up_throughput(training: ShortTraining, candidate: Candidate) -> float:
    """Of the parameters alone."""
    return training.count(training.start) / candidate.parameters


def search(folder: Path, steps: int = 2) -> Contraction:
    """The small search, to 70 % of the start model's parameters."""
    ShortTraining.throughput = made_up_throughput  # type: ignore[method-assign]

    def make(**arguments: Any) -> nn.Module:
        return timm.create_model('tinyvit_5m_224', **{**START, **arguments})

    digits = load_dataset('digits', 'train')
    dataset = digits.subset(np.flatnonzero(digits.labels < CLASSES)[:IMAGES])
    own = count_parameters(make(device='meta'))
    return contract(
        make, 'a small TinyViT', dataset, RECIPE, folder, parameters=7 * own // 10, steps=steps,
        device=torch.device('cpu'),
    )  # fmt: skip


def ranking(result: Contraction) -> list[list[Any]]:
    """Of every step, with what it depends on: the answers to every held-out image."""
    return [
        [step.number, ranked.outcome.candidate.name, np.asarray(ranked.outcome.right).tolist(), *ranked.interval]
        for step in result.steps
        for ranked in step.ranking
    ]


def started(folder: Path, out: Path, steps: int = 2) -> subprocess.Popen:
    """The small search in a process of its own, which writes its ranking to `out`."""
    command = [sys.executable, __file__, '--search', str(folder), '--out', str(out), '--steps', str(steps)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, 'OMP_NUM_THREADS': '1'})


def begun(process: subprocess.Popen, out: Path) -> float:
    """The time when a process has imported everything and its search begins."""
    mark = out.with_suffix('.begun')
    while not mark.exists() and process.poll() is None:
        time.sleep(0.01)
    mark.unlink(missing_ok=True)
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--search', type=Path, help=argparse.SUPPRESS)
    parser.add_argument('--steps', type=int, default=2, help=argparse.SUPPRESS)
    parser.add_argument('--out', type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.search:
        options.out.with_suffix('.begun').touch()
        options.out.write_text(json.dumps(ranking(search(options.search, options.steps))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = started(folder / 'whole', folder / 'whole.json')
        begin = begun(process, folder / 'whole.json')
        if process.wait():
            raise SystemExit('The search failed.')
        took, draw, kills = time.perf_counter() - begin, random.Random(0), 0
        round_number = 0
        while kills < options.kills:  # a search that ends before it is killed is followed by a fresh one
            round_number += 1
            place, out = folder / f'killed-{round_number}', folder / f'killed-{round_number}.json'
            while not out.exists():
                process = started(place, out)
                if kills < options.kills:
                    begun(process, out)
                    try:
                        process.wait(draw.uniform(0, LONGEST * took))
                    except subprocess.TimeoutExpired:
                        process.kill()
                        kills += 1
                if process.wait() > 0:
                    raise SystemExit('The search failed.')
            same = out.read_text() == (folder / 'whole.json').read_text()
            print(f'Search {round_number}: {kills} kills so far; its ranking is {"the same" if same else "ANOTHER"}.')
            if not same:
                raise SystemExit(1)


if __name__ == '__main__':
    main()
