"""Stored soft labels and the views that belong to them, compared with the obvious way to do the same.

One process, one thread, process CPU time, in turn.

    python benchmarks/soft_labels.py [--rounds 9]
"""

import argparse
import os
import random
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from timing import print_machine, write_figures

from tinyvit_zoo.common.paired_timing import measure, ratio
from tinyvit_zoo.data.replay import ViewSpec, draw_views

BATCH, BATCHES = 256, 16
VIEWS_TARGET = 100


def seed_for_each_view(seeds: list[int]) -> None:
    """What an augmentation that draws from the global generators needs for every view, without its draws."""
    for seed in seeds:
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def view_parameters() -> dict[str, Callable[[], object]]:
    """Parameters of `BATCH * BATCHES` views of images of 375x500 pixels, and seeding for `BATCH`."""
    spec = ViewSpec.from_timm(224, auto_augment='rand-m9-mstd0.5-inc1', re_prob=0.25, re_mode='pixel')
    sizes = np.full((BATCH, 2), (375, 500))
    positions = np.random.default_rng(0).permutation(1_281_167)[: BATCH * BATCHES].reshape(BATCHES, BATCH)
    return dict(
        seeding=lambda: seed_for_each_view(positions[0].tolist()),
        parameters=lambda: [draw_views(spec, 0, 3, batch, sizes) for batch in positions],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--json', type=Path, help='keep the figures in this file')
    args = parser.parse_args()
    torch.set_num_threads(1)
    where, rates = print_machine(args.rounds)
    seconds = measure(view_parameters(), args.rounds)
    each = dict(
        seeding=[s / BATCH for s in seconds['seeding']],
        parameters=[s / (BATCH * BATCHES) for s in seconds['parameters']],
    )
    speedup = ratio(each['seeding'], each['parameters'])
    print(
        f'\nparameters of a whole view, batch {BATCH}; load {os.getloadavg()[0]:.1f}\n'
        + '\n'.join(f'  {name:12s}{statistics.median(s) * 1e6:8.2f} us a view' for name, s in each.items())
        + f'\n  {speedup:.0f}x   target {VIEWS_TARGET} {"met" if speedup >= VIEWS_TARGET else "MISSED"}'
    )
    write_figures(args.json, where=where, rates=rates, seconds=each, ratios=dict(views=speedup))


if __name__ == '__main__':
    main()
