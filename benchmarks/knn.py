"""kNN compared with the plain one-hot vote: process CPU time, peak memory, predictions.

The baseline is the vote as DINOv2's protocol describes it: for each batch of queries, a row of all classes for each
neighbor. Times are taken in one process, one thread, in turn; memory in a process for each, ru_maxrss after the
run minus before it.

    python benchmarks/knn.py [--queries 2048] [--rounds 3]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from few_shot import FACTS_RATE, head_rate
from timing import print_machine, write_figures

from tinyvit_zoo.common.paired_timing import measure, ratio
from tinyvit_zoo.downstream import knn

BANK, WIDTH, CLASSES = 50_000, 576, 1000
FACTS = 4.7  # CPU seconds of the reference for 2048 queries, where a linear head did FACTS_RATE GFLOP/s
TARGET, MEMORY_TARGET = 2.8, 6.0


def plain_vote(bank, bank_labels, queries, ks=knn.KS, batch=256, T=0.07):
    """Predictions (Q,) by k."""
    bank = F.normalize(bank, dim=1)
    answers = {k: [] for k in ks}
    for q in F.normalize(queries, dim=1).split(batch):
        similarity, at = (q @ bank.T).topk(max(ks), dim=1)
        weight = (similarity / T).softmax(dim=1)
        votes = F.one_hot(bank_labels[at], CLASSES) * weight[:, :, None]
        for k in ks:
            answers[k].append(votes[:, :k].sum(dim=1).argmax(dim=1))
    return {k: torch.cat(a) for k, a in answers.items()}


def make(queries: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features and labels of a bank and of queries, around a center of each class."""
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, WIDTH, generator=g)
    labels = torch.randint(CLASSES, (BANK + queries,), generator=g)
    features = torch.empty(BANK + queries, WIDTH)
    for block, own in zip(features.split(1000), labels.split(1000), strict=True):  # leaves no peak of memory behind
        block.normal_(generator=g).mul_(3).add_(centres[own])
    return features[:BANK], labels[:BANK], features[BANK:], labels[BANK:]


def call(variant: str, data: tuple[torch.Tensor, ...]) -> dict[int, torch.Tensor]:
    bank, bank_labels, queries, labels = data
    if variant == 'plain':
        with torch.inference_mode():
            return plain_vote(bank, bank_labels, queries)
    result = knn.run(bank, bank_labels.numpy(), queries, labels.numpy())
    return {k: torch.from_numpy(p) for k, p in result.predictions.items()}


def memory_added(variant: str, data: tuple[torch.Tensor, ...]) -> float:
    """MiB that a variant adds to the peak of this process."""

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    few = tuple(x[:n] for x, n in zip(data, (300, 300, 4, 4), strict=True))
    call(variant, few)  # without what the libraries load once
    before = peak()
    call(variant, data)
    return peak() - before


def memory_of(variant: str, queries: int) -> float:
    """MiB that a variant adds, in a process of its own."""
    command = [sys.executable, __file__, '--memory-of', variant, '--queries', str(queries)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--queries', type=int, default=2048)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--json', type=Path, help='keep the figures in this file')
    parser.add_argument('--memory-of', choices=('plain', 'ours'), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory_of:
        print(memory_added(args.memory_of, make(args.queries)))
        return
    # First of all: a process starts with the peak of the one that starts it.
    memory = {variant: memory_of(variant, args.queries) for variant in ('plain', 'ours')}
    data = make(args.queries)
    where, rates = print_machine(args.rounds)
    answers = {variant: call(variant, data) for variant in ('plain', 'ours')}
    seconds = measure({variant: partial(call, variant, data) for variant in answers}, args.rounds)
    different = {k: int((answers['plain'][k] != answers['ours'][k]).sum()) for k in knn.KS}
    accuracy = {k: 100 * (answers['ours'][k] == data[3]).float().mean().item() for k in knn.KS}
    print(f'bank {BANK} x {WIDTH}, {CLASSES} classes, {args.queries} queries; load {os.getloadavg()[0]:.1f}')
    print('accuracy by k: ' + ', '.join(f'{k}: {a:.1f} %' for k, a in accuracy.items()))
    print(f'different predictions by k: {different}')
    speedup = ratio(seconds['plain'], seconds['ours'])
    plain, ours = (min(seconds[v]) for v in ('plain', 'ours'))
    expected = FACTS * args.queries / 2048 * FACTS_RATE / head_rate()
    print(
        f'plain {plain:.2f} s; it took {FACTS} s where a linear head did {FACTS_RATE} GFLOP/s, which is '
        f'{expected:.2f} s at the rate here: {plain / expected:.2f}x that'
    )
    print(f'ours  {ours:.2f} s: {speedup:.2f}x   target {TARGET} {"met" if speedup >= TARGET else "MISSED"}')
    less = memory['plain'] / memory['ours']
    print(f'peak memory: plain +{memory["plain"]:.0f} MiB, ours +{memory["ours"]:.0f} MiB: {less:.1f}x less   '
          f'target {MEMORY_TARGET} {"met" if less >= MEMORY_TARGET else "MISSED"}')  # fmt: skip
    write_figures(
        args.json, where=where, rates=rates, seconds=seconds, ratio=speedup, memory_mib=memory, different=different
    )


if __name__ == '__main__':
    main()
