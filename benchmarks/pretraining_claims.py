"""What `pretraining_chain.py` compares, what the papers say of it, and how its results look beside that."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.figure import Figure
from seeds import interval, sign_of

from tinyvit_zoo.common.files import new_file

SCRATCH, MAE, D_MAE, TINYMIM, CHAIN = 'scratch', 'MAE', 'D-MAE', 'TinyMIM', 'TinyMIM, chain'
BIG, MIDDLE = 'big, MAE', 'middle, TinyMIM'  # the teachers
LARGE, CONTRACTED, NARROWED = 'TinyViT', 'TinyViT, contracted', 'TinyViT, narrowed'
DEEPER, NARROWER = 'candidate N3+2', 'candidate D'
PARTS = {  # what is measured for each
    'mae': (SCRATCH, MAE),
    'teachers': (SCRATCH, MAE, D_MAE, TINYMIM, BIG),
    'chain': (SCRATCH, MAE, TINYMIM, CHAIN),
    'contraction': (LARGE, CONTRACTED, NARROWED, DEEPER, NARROWER),
}
ARMS = (SCRATCH, MAE, D_MAE, TINYMIM, CHAIN, BIG, LARGE, CONTRACTED, NARROWED, DEEPER, NARROWER)


@dataclass(frozen=True)
class Claim:
    """What a paper has above what, on ImageNet-1k and by how much; the points are None where it gives no numbers."""

    part: str
    better: str
    worse: str
    points: float | None
    source: str


CLAIMS = (
    Claim('mae', MAE, SCRATCH, 2.2, 'MAE-Lite, Table 1: MAE-Tiny 78.0, DeiT-Tiny 75.8'),
    Claim('mae', SCRATCH, MAE, 0.6, 'TinyMIM, Table 2: ViT-T 72.2 from scratch, 71.6 after MAE'),
    Claim('teachers', D_MAE, MAE, 0.4, 'MAE-Lite, Table 5: D-MAE-Tiny 78.4, MAE-Tiny 78.0'),
    Claim('teachers', D_MAE, SCRATCH, 2.6, 'MAE-Lite, Tables 5 and 1: D-MAE-Tiny 78.4, DeiT-Tiny 75.8'),
    Claim('teachers', TINYMIM, MAE, 2.8, 'TinyMIM, Tables 11 and 2: ViT-T under MAE-ViT-B 74.4, after MAE 71.6'),
    Claim('teachers', TINYMIM, SCRATCH, 2.2, 'TinyMIM, Tables 11 and 2: ViT-T under MAE-ViT-B 74.4, scratch 72.2'),
    Claim('chain', CHAIN, TINYMIM, 0.6, 'TinyMIM, Table 11: ViT-T under TinyMIM-ViT-S 75.0, under MAE-ViT-B 74.4'),
    Claim('chain', CHAIN, MAE, 3.4, 'TinyMIM, Tables 11 and 2: ViT-T under TinyMIM-ViT-S 75.0, after MAE 71.6'),
    Claim('chain', CHAIN, SCRATCH, 2.8, 'TinyMIM, Tables 11 and 2: ViT-T under TinyMIM-ViT-S 75.0, scratch 72.2'),
    Claim('contraction', CONTRACTED, NARROWED, None, 'TinyViT, Sec. 3.2, as read here: a search is worth it'),
    Claim('contraction', DEEPER, NARROWER, None, 'TinyViT, supplement A: narrower models were given a deeper stage 3'),
)


def summarise(results: dict[str, dict[int, dict]], parts: Sequence[str]) -> dict:
    """Means and paired differences with their intervals, and whether what the papers found is found here.

    Args:
        results: Accuracies and more by data set, seed and arm.
        parts: Of `PARTS`, which were measured.

    Returns:
        By data set 'rows' by arm, with the fewest and the most 'parameters' of any seed, and 'claims', each with the
        paper's difference, ours, its interval and a 'verdict'.
    """
    summary = {}
    for data, seeds in results.items():
        wanted = next(iter(seeds.values()))
        values = {arm: [arms[arm]['accuracy'] for arms in seeds.values()] for arm in wanted}
        claims = []
        for claim in CLAIMS:
            if claim.part in parts:
                pairs = zip(values[claim.better], values[claim.worse], strict=True)
                difference = interval([better - worse for better, worse in pairs])
                claims.append(dict(asdict(claim), **difference, verdict=verdict(**difference)))
        rows: dict[str, dict] = {arm: interval(column) for arm, column in values.items()}
        for arm, row in rows.items():
            sizes = [arms[arm]['parameters'] for arms in seeds.values()]
            row['parameters'] = [min(sizes), max(sizes)]
        summary[data] = dict(rows=rows, claims=claims)
    return summary


def verdict(mean: float, half_width: float) -> str:
    """Of a difference that a paper has above 0."""
    return {0: 'undecided', 1: 'holds', -1: 'REVERSED'}[sign_of(mean, half_width)]


def table(summary: dict, results: dict[str, dict[int, dict]]) -> str:
    """All of it as text."""
    lines = []
    for data, found in summary.items():
        lines.append(f'{data}: accuracy in per cent, mean and 95 % interval over {len(results[data])} seeds')
        for arm, row in found['rows'].items():
            sizes = ' to '.join(f'{size:,}' for size in sorted(set(row['parameters'])))
            lines.append(f'  {arm:22s}{row["mean"]:8.2f} ± {row["half_width"]:5.2f}   {sizes} parameters')
        lines.append("  The paper's order beside ours: paired differences (each interval 95 % by itself)")
        for claim in found['claims']:
            what = f'{claim["better"]} > {claim["worse"]}'
            points = '' if claim['points'] is None else f'{claim["points"]:+.1f}'
            ours = f'{claim["mean"]:+7.2f} ± {claim["half_width"]:5.2f}'
            lines.append(f'    {what:42s}{points:>6s}{ours}   {claim["verdict"]:11s}({claim["source"]})')
    return '\n'.join(lines)


def write_csv(results: dict[str, dict[int, dict]], path: Path) -> None:
    """A line for every accuracy."""
    with new_file(path) as new, new.open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['data', 'seed', 'arm', 'accuracy', 'parameters'])
        for data, seeds in results.items():
            for seed, arms in seeds.items():
                for arm, found in arms.items():
                    writer.writerow([data, seed, arm, f'{found["accuracy"]:.4f}', found['parameters']])


def plot(summary: dict, results: dict[str, dict[int, dict]], path: Path) -> None:
    """Every seed as a dot, with mean and interval."""
    figure = Figure(figsize=(5.5 * len(summary) + 1, 4.2), dpi=110, facecolor='white', layout='constrained')
    for axis, (data, found) in zip(figure.subplots(1, len(summary), squeeze=False)[0], summary.items(), strict=True):
        for place, (arm, row) in enumerate(found['rows'].items()):
            values = [arms[arm]['accuracy'] for arms in results[data].values()]
            axis.plot(values, [place + 0.18] * len(values), '.', color='#59636e', alpha=0.6)
            axis.errorbar(row['mean'], place, xerr=row['half_width'], fmt='o', color='#0969da', capsize=4)
        axis.set_yticks(range(len(found['rows'])), list(found['rows']))
        axis.invert_yaxis()
        title = f'{data}: mean and 95 % interval of {len(results[data])} seeds (dots)'
        axis.set(title=title, xlabel='accuracy, per cent')
        axis.spines[['top', 'right']].set_visible(False)
        axis.grid(axis='x', alpha=0.25)
    with new_file(path) as new:
        figure.savefig(new, format='png')
