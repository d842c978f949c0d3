"""The figure of a training's gradient norms: by layer, and over the updates."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.files import new_file
from tinyvit_zoo.common.text import count_of

from ..analysis.gradients import GRADIENTS, Norms, read_norms
from ..results import save_figure
from .plots import DPI

__all__ = ['gradient_figure', 'write_gradients']

FIGURE = 'gradients.png'
MOST_POINTS = 400  # of a curve: more would be a band of ink
MOST_NAMES = 24


def write_gradients(folder: Path, title: str, say: Callable[[str], None] = print) -> None:
    """Draw `gradients.png` from the `gradients.csv` of a run in the same folder.

    Args:
        folder: Of the run.
        title: Of the figure.
        say: Prints a line.

    Raises:
        EvaluationError: If the table is missing or damaged, or the figure cannot be written.
    """
    norms = read_norms(folder)
    figure = gradient_figure(norms, title)
    try:
        with new_file(folder / FIGURE) as new:
            save_figure(figure, new)
    except OSError as e:
        raise EvaluationError(f'{folder / FIGURE} cannot be written ({e.strerror or e}): make room.') from e
    means = norms.values.mean(axis=0)
    most, least = int(means.argmax()), int(means.argmin())
    say(
        f'Gradient norms of {count_of(len(norms.layers), "layer")} at {count_of(len(norms.updates), "update")}: the '
        f'largest mean is {means[most]:.3g} ({norms.layers[most]}), the smallest {means[least]:.3g} '
        f'({norms.layers[least]}).'
    )
    say(f'Written to {folder}: {GRADIENTS}, {FIGURE}')


def gradient_figure(norms: Norms, title: str) -> Figure:
    """Left the mean of each layer with the range of 80 % of the updates, right each layer over the updates."""
    figure = Figure(figsize=(10, 4), dpi=DPI, facecolor='white', layout='constrained')
    by_layer, over_time = figure.subplots(1, 2)
    figure.suptitle(title, fontsize=11, wrap=True)
    places = np.arange(1, len(norms.layers) + 1)
    low, high = np.nanpercentile(norms.values, [10, 90], axis=0)
    by_layer.fill_between(places, low, high, alpha=0.2, linewidth=0, label='80 % of the updates')
    by_layer.plot(places, norms.values.mean(axis=0), marker='.', label='mean')
    if len(places) <= MOST_NAMES:
        by_layer.set_xticks(places, norms.layers, rotation=90, fontsize=7)
    by_layer.set(xlabel='logical layer', ylabel='norm of the gradient', yscale='log')
    by_layer.legend(frameon=False, fontsize=8)
    step = -(-len(norms.updates) // MOST_POINTS)
    colors = colormaps['viridis'](np.linspace(0, 0.9, len(places)))
    for i, name in enumerate(norms.layers):
        shown = name if i in (0, len(places) - 1) else None
        over_time.plot(norms.updates[::step], norms.values[::step, i], color=colors[i], linewidth=0.8, label=shown)
    over_time.set(xlabel='update', yscale='log')
    over_time.legend(frameon=False, fontsize=8)
    for axis in (by_layer, over_time):
        axis.spines[['top', 'right']].set_visible(False)
        axis.grid(alpha=0.25)
    return figure
