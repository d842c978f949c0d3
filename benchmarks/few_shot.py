"""The CD-FSL benchmark's classifier for all episodes at once, compared with its plain loop.

The baseline is nn.Linear and torch's SGD, one episode after the other, on features that are already computed. It runs
a few episodes before and after ours and is extrapolated to all of them. One process, one thread, process CPU time.

    python benchmarks/few_shot.py [--rounds 3]
"""

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from timing import print_machine, write_figures
from torch import nn

from tinyvit_zoo.common.paired_timing import timed
from tinyvit_zoo.downstream import few_shot
from tinyvit_zoo.downstream.classifiers import cdfsl, cdfsl_kernel

WIDTH, CLASSES, IMAGES, EPISODES = 576, 20, 120, 600
REFERENCE_EPISODES = {5: 8, 20: 4, 50: 2}  # before ours, and as many after
FACTS = {5: 40.0, 20: 135.0, 50: 345.0}  # CPU seconds of the plain loop for 600 episodes ...
FACTS_RATE = 73  # ... on a machine that does so many GFLOP/s in the products of `head_rate`
TARGETS = {
    'PyTorch alone': {5: 200.0, 20: 100.0, 50: 55.0},
    'compiled steps': {5: 300.0, 20: 200.0, 50: 100.0},
}


def plain_loop(features: torch.Tensor, support: np.ndarray, query: np.ndarray, start: torch.Tensor, orders: np.ndarray):
    """Logits (ways * queries, ways) of one episode."""
    ways, shots = support.shape
    x, y = features[support.reshape(-1)], torch.arange(ways).repeat_interleave(shots)
    net = nn.Linear(features.shape[1], ways, dtype=features.dtype)
    net.load_state_dict(dict(weight=start[:, :-1], bias=start[:, -1]))
    sgd = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, dampening=0.9, weight_decay=0.001)
    for order in torch.from_numpy(orders):
        for batch in order.split(4):
            sgd.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            sgd.step()
    with torch.no_grad():
        return net(features[query.reshape(-1)])


def head_rate() -> float:
    """GFLOP/s of one thread in the two matrix products of a training step of nn.Linear(576, 100), 1024 rows.

    The whole step is timed, and the best of many counts, as where the times of `FACTS` come from.
    """
    x, y, net = torch.randn(1024, WIDTH), torch.randint(100, (1024,)), nn.Linear(WIDTH, 100)
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    seconds = []
    for _ in range(50):
        begin = time.process_time()
        for _ in range(5):
            sgd.zero_grad()
            F.cross_entropy(net(x), y).backward()
            sgd.step()
        seconds.append((time.process_time() - begin) / 5)
    return 2 * 2 * 1024 * WIDTH * 100 / min(seconds) / 1e9


def make_features() -> tuple[torch.Tensor, np.ndarray]:
    """(N, D) around a center of each class, and their labels."""
    g = torch.Generator().manual_seed(0)
    labels = np.arange(CLASSES).repeat(IMAGES)
    centres = torch.randn(CLASSES, WIDTH, generator=g)
    return torch.randn(len(labels), WIDTH, generator=g).add_(centres[labels], alpha=0.15), labels


def reference(features: torch.Tensor, episodes: few_shot.Episodes, which: list[int]) -> tuple[float, torch.Tensor]:
    """CPU seconds of an episode (median), and the logits (len(which), ways * queries, ways); draws are not timed."""
    ways, shots = episodes.support.shape[1:]
    start, orders = cdfsl.draw(episodes.seeds[which], ways, shots, WIDTH)
    start = torch.from_numpy(start).to(features)
    seconds, logits = [], []
    for i, e in enumerate(which):
        episode = partial(plain_loop, features, episodes.support[e], episodes.query[e], start[i], orders[i])
        spent, answer = timed(episode)
        seconds.append(spent)
        logits.append(answer)
    return statistics.median(seconds), torch.stack(logits)


def difference(features: torch.Tensor, episodes: few_shot.Episodes, which: list[int], theirs: torch.Tensor) -> float:
    """Largest difference of logits."""
    with torch.inference_mode():
        ours = cdfsl.logits(features, episodes.support[which], episodes.query[which], episodes.seeds[which])
    return (ours.flatten(1, 2) - theirs).abs().max().item()


@contextmanager
def steps_in(variant: str) -> Iterator[None]:
    """Take the compiled steps, or those of PyTorch."""
    load = cdfsl_kernel.load
    if variant == 'PyTorch alone':
        cdfsl_kernel.load = lambda: None
    try:
        yield
    finally:
        cdfsl_kernel.load = load


def measure(shots: int, rounds: int, rate: float) -> list[dict]:
    """One row for each of `TARGETS`."""
    features, labels = make_features()
    episodes = few_shot.sample_episodes(labels, shots=shots, episodes=EPISODES)
    n = REFERENCE_EPISODES[shots]
    first, last = list(range(n)), list(range(EPISODES - n, EPISODES))
    reference(features, episodes, first[:1])
    variants = [v for v in TARGETS if v == 'PyTorch alone' or cdfsl_kernel.load()]
    theirs, ours, ratios = [], {v: [] for v in variants}, {v: [] for v in variants}
    results, before = {}, reference(features, episodes, first)[0]
    for i in range(rounds):
        for variant in variants[:: 1 if i % 2 == 0 else -1]:
            with steps_in(variant):
                seconds, results[variant] = timed(lambda: few_shot.run(features, labels, episodes))
                ours[variant].append(seconds)
            after, logits = reference(features, episodes, last)
            theirs.append(EPISODES * (before + after) / 2)
            ratios[variant].append(theirs[-1] / ours[variant][-1])
            before = reference(features, episodes, first)[0]
    double, rows = features.double(), []
    _, exact = reference(double, episodes, first[:2])
    for variant, result in results.items():
        answers = torch.from_numpy(result.predictions[last]).flatten(1)
        with steps_in(variant):
            rows.append(
                dict(
                    shots=shots, variant=variant, plain_s=min(theirs),
                    expected_plain_s=FACTS[shots] * FACTS_RATE / rate, ours_s=min(ours[variant]),
                    ratio=statistics.median(ratios[variant]), target=TARGETS[variant][shots],
                    equal=(logits.argmax(dim=2) == answers).float().mean().item(), accuracy=result.mean,
                    ci95=result.ci95, difference_fp32=difference(features, episodes, last, logits),
                    difference_fp64=difference(double, episodes, first[:2], exact),
                )
            )  # fmt: skip
    report(rows)
    return rows


def report(rows: list[dict]) -> None:
    row = rows[0]
    shots, share = row['shots'], row['plain_s'] / row['expected_plain_s']
    within = 'within' if 1 / 1.3 <= share <= 1.3 else 'NOT within'
    print(
        f'\n{shots}-shot, {EPISODES} episodes, D={WIDTH}: accuracy {row["accuracy"]:.2f} ± {row["ci95"]:.2f} %; '
        f'load average {os.getloadavg()[0]:.1f}\n'
        f'  plain loop {row["plain_s"]:.1f} s, extrapolated from {REFERENCE_EPISODES[shots]} episodes before and after '
        f'each of ours\n    it took {FACTS[shots]:.0f} s where the head did {FACTS_RATE} GFLOP/s, which is '
        f'{row["expected_plain_s"]:.1f} s at the rate here: {share:.2f}x that, {within} 1.3x'
    )
    for row in rows:
        met = 'met' if row['ratio'] >= row['target'] else 'MISSED'
        print(
            f'  {row["variant"]} {row["ours_s"]:.3f} s: {row["ratio"]:.0f}x   target {row["target"]:.0f} {met}; equal '
            f'predictions {row["equal"]:.2%}, largest difference of logits {row["difference_fp32"]:.1e} in float32, '
            f'{row["difference_fp64"]:.1e} in float64'
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--shots', type=int, nargs='+', default=list(FACTS), choices=list(FACTS))
    parser.add_argument('--json', type=Path, help='keep the figures in this file')
    args = parser.parse_args()
    torch.set_num_threads(1)
    where, rates = print_machine(args.rounds)
    rates['linear head, training step'] = head_rate()
    print(f'training step of a linear head: {rates["linear head, training step"]:.0f} GFLOP/s')
    rows = [row for shots in args.shots for row in measure(shots, args.rounds, rates['linear head, training step'])]
    write_figures(args.json, where=where, rates=rates, rows=rows)


if __name__ == '__main__':
    main()
