"""Losses and metrics over the iterations of a run: points, their file, and their figures."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tinyvit_zoo.common.files import write_whole

from ..reports.plots import COLORS, DPI
from ..results import save_figure

__all__ = ['Point', 'draw_curves', 'read_points', 'write_curves']

Point = tuple[int, str, float]
"""Iteration from 1, name such as 'train/loss' or 'val/coco/bbox_mAP', value."""

COLUMNS = 'iteration', 'name', 'value'
MOST_CURVES = 24
STYLES = ('-', '--', '-.', ':')


def read_points(path: Path, until: int) -> list[Point]:
    """Points of `curves.csv` up to an iteration; none if there is no such file or `until` is 0."""
    if not until or not path.is_file():
        return []
    with path.open(newline='') as file:
        points = [(int(row['iteration']), row['name'], float(row['value'])) for row in csv.DictReader(file)]
    return [point for point in points if point[0] <= until]


def write_curves(folder: Path, points: Sequence[Point], title: str) -> None:
    """Write curves.csv, losses.png and, where there are metrics, metrics.png, each whole or not at all.

    Raises:
        EvaluationError: If the folder cannot be written to.
    """
    text = io.StringIO()
    csv.writer(text).writerows([COLUMNS, *points])
    write_whole(folder / 'curves.csv', text.getvalue().encode())
    for name, figure in draw_curves(points, title).items():
        image = io.BytesIO()
        save_figure(figure, image)
        write_whole(folder / f'{name}.png', image.getvalue())


def draw_curves(points: Sequence[Point], title: str) -> dict[str, Figure]:
    """Figures of a run: 'losses', and 'metrics' if there are any.

    Metrics below 0 (mmdet's value for 'no such object') are left out.
    """
    groups: dict[str, dict[str, list[tuple[int, float]]]] = {'losses': {}, 'metrics': {}}
    for iteration, name, value in points:
        kind, _, short = name.partition('/')
        if kind == 'train' and 'loss' in short:
            groups['losses'].setdefault(short, []).append((iteration, value))
        elif kind == 'val' and value >= 0:
            groups['metrics'].setdefault(short, []).append((iteration, value))
    return {name: _curves(series, title, name) for name, series in groups.items() if series}


def _curves(series: Mapping[str, Sequence[tuple[int, float]]], title: str, y_label: str) -> Figure:
    """One figure; the legend has the last value of each curve, and the sum of the losses is black."""
    figure = Figure(figsize=(8, 4.2), dpi=DPI, facecolor='white', layout='constrained')
    axis = figure.subplots()
    figure.suptitle(title, fontsize=11, wrap=True)
    for i, (name, at) in enumerate(list(series.items())[:MOST_CURVES]):
        x, y = zip(*at, strict=True)
        total = name == 'loss'
        axis.plot(
            x, y, STYLES[i // len(COLORS) % len(STYLES)], color='black' if total else COLORS[i % len(COLORS)],
            linewidth=2 if total else 1.2, marker='.' if len(at) < 20 else None, label=f'{name}: {y[-1]:.4g}',
        )  # fmt: skip
    axis.set(xlabel='iteration', ylabel=y_label)
    axis.set_ylim(bottom=0)
    locator = axis.xaxis.get_major_locator()
    assert isinstance(locator, MaxNLocator)
    locator.set_params(integer=True)
    axis.spines[['top', 'right']].set_visible(False)
    axis.grid(alpha=0.25)
    figure.legend(frameon=False, fontsize=8, loc='outside right upper')
    return figure
