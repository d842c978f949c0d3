"""Measures this processor, keeps its rows in `benchmarks/results/`, and writes the tables of README and docs/speed.md.

    python benchmarks/record.py                  # about 5 minutes on a core that nothing else uses
    python benchmarks/record.py --zoo            # what the zoo browser shows beside those: about 3 minutes
    python benchmarks/record.py --emulate-avx2   # the same processor with AVX-512 switched off: a file of its own
    python benchmarks/record.py --csv FILE       # rows and targets alone; no page is written (`make bench`)

One thread, process CPU time, the variants in turn. Rows take the place of those of earlier commits one run after the
other; a stopped record is taken up by the same command at the same commit. A GPU: `benchmarks/gpu.py`.

`--zoo` measures every architecture of the zoo that the tables leave out, as created and in deploy form, and timm's
models of the zoo browser as created: one image at the model's own size. The rows stand in the same file; the tables
do not change, and `tinyvit-zoo browser build` shows them.
"""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import tables
import torch

from tinyvit_zoo.bench import Row, Settings, bench_variants, read_rows, write_rows
from tinyvit_zoo.browser.zoo import is_own_size
from tinyvit_zoo.common.paired_timing import cpu_name
from tinyvit_zoo.releases import all_releases
from tinyvit_zoo.releases.rivals import RIVALS

__all__ = ['Run', 'against_targets', 'file_name', 'main', 'measure', 'merged', 'runs', 'zoo_runs']

EMULATED = dict(ATEN_CPU_CAPABILITY='avx2', ONEDNN_MAX_CPU_ISA='AVX2', MKL_ENABLE_INSTRUCTIONS='AVX2')
"""What torch, oneDNN and MKL read when they are loaded."""
ROUNDS = {8: 7, 4: 5, 1: 25}
"""By batch: small ones are short, and noisy."""
ZOO_ROUNDS = 7
"""Of one image: the largest of the zoo take seconds."""

TARGETS = {
    'AVX2': {('created', 8): 1.55, ('deploy', 8): 1.60, ('deploy', 1): 1.10},
    'AVX512': {('created', 8): 1.55, ('deploy', 8): 2.43, ('deploy', 1): 1.93},
}
"""By instruction set: what TinyViT-21M in a form with a batch is to be over timm's, set beforehand."""
NEVER_LOSES = 0.98
"""What every deploy form is to be over the model as created."""

Run = tuple[list[tuple[str, str]], int, Settings]
"""Pairs of model and form, the batch, how."""


def runs(comparisons: Iterable[tables.Comparison] = tables.COMPARISONS) -> list[Run]:
    """One run for each batch and model that others are compared with."""
    grouped: dict[tuple[str, str, bool, int], list[tuple[str, str]]] = {}
    for line in comparisons:
        for batch in line.cpu:
            first = line.first, line.first_form
            pairs = grouped.setdefault((*first, line.train, batch), [first])
            pairs.append((line.model, line.form))
    return [
        (pairs, batch, Settings(train=train, rounds=ROUNDS[batch])) for (_, _, train, batch), pairs in grouped.items()
    ]


def zoo_runs() -> list[Run]:
    """One run for each architecture that the zoo browser shows at its own size and `runs` does not measure."""
    measured = {pair for pairs, batch, settings in runs() if batch == 1 and not settings.train for pair in pairs}
    wanted = {release.architecture: ('created', 'deploy') for release in all_releases()}
    wanted |= {rival.architecture: ('created',) for rival in RIVALS if is_own_size(rival)}
    left = ([(model, form) for form in forms if (model, form) not in measured] for model, forms in wanted.items())
    return [(pairs, 1, Settings(rounds=ZOO_ROUNDS)) for pairs in left if pairs]


def measure(all_runs: Iterable[Run], file: Path) -> list[Row]:
    """Rows of all runs; those of this commit that are in the file already are not measured again.

    After each run the file holds its rows in place of those of earlier commits.
    """
    rows = []
    for pairs, batch, settings in all_runs:
        done = bench_variants(pairs, [batch], settings, file)
        write_rows(file, merged(read_rows(file), done))
        for row in done[1:]:
            figure = f'{row.ratio:.2f} ({row.ratio_low:.2f} to {row.ratio_high:.2f})' if row.ratio else row.state
            print(f'{row.model} {row.form}, B={row.batch}, {row.mode}: {figure} of {row.first}', flush=True)
        rows += done
    return rows


def against_targets(rows: Iterable[Row]) -> list[str]:
    """A line for each target: met or missed."""
    ratios = {
        (row.model, row.form, row.batch): (row.ratio, row.isa) for row in rows if row.ratio and row.mode == 'inference'
    }
    lines = []
    for (model, form, batch), (ratio, isa) in ratios.items():
        wanted = TARGETS.get(isa, {}).get((form, batch)) if model == tables.T21[0] else None
        if wanted:
            lines.append(_target(f'{model} {form}, B={batch}, over timm', ratio, wanted))
        if form == 'deploy':
            created = ratios[model, 'created', batch][0]
            lines.append(_target(f'{model} {form}, B={batch}, over as created', ratio / created, NEVER_LOSES))
    return lines


def _target(what: str, ratio: float, wanted: float) -> str:
    return f'{what}: {ratio:.2f}, target {wanted:.2f} {"met" if ratio >= wanted else "missed"}'


def file_name(emulated: bool) -> str:
    """By processor and instruction set."""
    words = f'{cpu_name()} {torch.backends.cpu.get_cpu_capability()}'.lower()
    return re.sub(r'[^a-z0-9]+', '_', words).strip('_') + ('_emulated' if emulated else '') + '.csv'


def merged(old: Iterable[Row], new: Iterable[Row]) -> list[Row]:
    """The new rows, and old ones of which there is no new one."""
    new = list(new)

    def what(row: Row) -> tuple[object, ...]:
        return row.model, row.form, row.first, row.batch, row.mode, row.device, row.dtype, row.amp, row.threads

    known = {what(row) for row in new}
    return [row for row in old if what(row) not in known] + new


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--emulate-avx2', action='store_true', help='with AVX-512 switched off')
    parser.add_argument('--zoo', action='store_true', help='the other models of the zoo browser, one image each')
    parser.add_argument('--csv', type=Path, metavar='FILE', help='keep the rows there, and leave the pages as they are')
    args = parser.parse_args()
    if args.emulate_avx2 and any(os.environ.get(name) != value for name, value in EMULATED.items()):
        # The libraries read these when they are loaded, which has happened here.
        done = subprocess.run([sys.executable, *sys.argv], env={**os.environ, **EMULATED}, check=False)
        raise SystemExit(done.returncode)
    file = args.csv or tables.RESULTS / file_name(args.emulate_avx2)
    rows = measure(zoo_runs() if args.zoo else runs(), file)
    if args.csv is None:
        for path, text in tables.pages().items():
            tables.write_whole(path, text.encode())
    print('\n'.join(against_targets(rows)))
    print(f'Written to {file}' + (', README.md and docs/speed.md.' if args.csv is None else '.'))


if __name__ == '__main__':
    main()
