"""Times of variants measured in turn in one process, and the ratios between them."""

import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

__all__ = ['cpu_name', 'cuda_ms', 'measure', 'median_interval', 'ratio', 'same', 'timed']

T = TypeVar('T')


def measure(
    variants: Mapping[str, Callable[[], Any]], rounds: int, reference: torch.Tensor | None = None
) -> dict[str, list[float]]:
    """CPU seconds of each variant in each round; the order is reversed every other round.

    Each variant runs once beforehand as a warm-up. With a `reference`, that output must agree with it.
    """
    for name, call in variants.items():
        out = call()
        if reference is not None:
            same(out, reference, 5e-2 if 'bf16' in name else 1e-4)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for i in range(rounds):
        for name in list(variants)[:: 1 if i % 2 == 0 else -1]:
            seconds[name].append(timed(variants[name])[0])
    return seconds


def timed(call: Callable[[], T]) -> tuple[float, T]:
    """CPU seconds of this process during a call, and the result of the call."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def ratio(theirs: list[float], ours: list[float]) -> float:
    """Median over the rounds of their time divided by ours: above 1, ours is faster."""
    return statistics.median(t / o for t, o in zip(theirs, ours, strict=True))


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """An interval that holds the median whatever the distribution: two of the values in order.

    Of fewer values than such an interval needs (6 for 95 %), the lowest and the highest.
    """
    ordered, number = sorted(values), len(values)
    left_out, tail = 0, 1.0  # values at each end, and ways to have at most so many of all on one side of the median
    while 2 * (tail + math.comb(number, left_out + 1)) <= (1 - level) * 2**number:
        left_out += 1
        tail += math.comb(number, left_out)
    return ordered[left_out], ordered[number - 1 - left_out]


def same(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    """Exit with a message if the relative error of two outputs is not below the tolerance."""
    error = ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()
    if not error < tolerance:
        raise SystemExit(f'The two models disagree: relative error {error:.2e}, allowed {tolerance:.0e}.')


def cpu_name() -> str:
    """The processor's model name, or its architecture where the system does not give one."""
    info = Path('/proc/cpuinfo')
    names = (
        [line.split(':')[1].strip() for line in info.read_text().splitlines() if line.startswith('model name')]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def cuda_ms(call: Callable[[], object], rounds: int, calls: int = 10) -> float:
    """Median over the rounds of the milliseconds that one of `calls` calls takes on the GPU."""
    for _ in range(5):
        call()
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / calls)
    return statistics.median(times)
