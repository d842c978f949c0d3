"""Shared by benchmarks that train: a file for each seed, so that a run resumes after a kill; intervals over
seeds; the command line."""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from tqdm import tqdm

import tinyvit_zoo
from tinyvit_zoo.common.files import new_file
from tinyvit_zoo.common.paired_timing import timed
from tinyvit_zoo.downstream.statistics import half_width

__all__ = ['interval', 'results_of', 'seed_file', 'seeds_parser', 'sign_of', 'versions', 'write_json']


def results_of(
    seeds: int,
    settings: Any,
    output: Path,
    run_seed: Callable[[int, Any, Callable[[], object]], dict],
    say: Callable[[str], None] = print,
) -> dict[int, dict]:
    """Results by seed: read where they are kept already, else made, one file a seed.

    Args:
        seeds: Their number; they are counted from 0.
        settings: A dataclass of everything that a seed's result depends on, with `steps`, those of one seed.
        output: Folder.
        run_seed: Makes the result of a seed, with 'accuracy' by name; calls its last argument after every step.
        say: Prints a line.

    Raises:
        SystemExit: If the folder holds results of other settings.
    """
    results: dict[int, dict] = {}
    for seed in range(seeds):
        path = seed_file(output, seed)
        if path.exists():
            kept = json.loads(path.read_text())
            if kept['settings'] != asdict(settings):
                raise SystemExit(f'{path} was made with other settings: choose another --output, or delete it.')
            results[seed] = kept
    if results:
        say(f'Found {len(results)} of {seeds} seeds in {output}.')
    missing = [seed for seed in range(seeds) if seed not in results]
    with tqdm(total=len(missing) * settings.steps, unit='step', disable=None) as bar:
        for seed in missing:
            seconds, result = timed(partial(run_seed, seed, settings, bar.update))
            results[seed] = dict(settings=asdict(settings), seed=seed, cpu_seconds=round(seconds, 1), **result)
            write_json(seed_file(output, seed), results[seed])
            accuracies = ', '.join(f'{name} {value:.2f}' for name, value in result['accuracy'].items())
            say(f'seed {seed} ({len(results)} of {seeds}, {seconds:.0f} s of CPU): {accuracies}')
    return dict(sorted(results.items()))


def seeds_parser(doc: str | None, name: str, seeds: int = 3) -> argparse.ArgumentParser:
    """Command line of a benchmark: `--seeds`, by default as many as given, and `--output`, in `demo_output/NAME`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=_several, default=seeds, help=f'at least 2 (default {seeds})')
    parser.add_argument('--output', type=Path, default=Path('demo_output', name))
    return parser


def _several(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f'an interval needs at least 2 seeds, not {text}')
    return int(text)


def versions() -> dict[str, str]:
    """Of what computed a result."""
    return dict(torch=torch.__version__, timm=timm.__version__, tinyvit_zoo=tinyvit_zoo.__version__)


def seed_file(output: Path, seed: int) -> Path:
    return output / 'seeds' / f'{seed}.json'


def write_json(path: Path, value: dict) -> None:
    with new_file(path) as new:
        new.write_text(json.dumps(value, indent=2) + '\n')


def interval(values: list[float]) -> dict[str, float]:
    """Mean of at least two values, and half the width of its 95 % interval (Student's t)."""
    spread = statistics.stdev(values) / len(values) ** 0.5
    return dict(mean=statistics.mean(values), half_width=float(half_width(spread, len(values))))


def sign_of(mean: float, half_width: float) -> int:
    """1 or -1 for a difference whose interval is above or below 0, 0 where the interval holds 0."""
    if abs(mean) <= half_width:
        return 0
    return 1 if mean > 0 else -1
