"""Text, tables and figures of what models compute, layer by layer: CKA, attention, frequencies."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tinyvit_zoo.common.text import count_of

from ..analysis.analysed_model import AnalysedModel
from ..analysis.attention import AttentionResult
from ..analysis.cka import CKAResult
from ..analysis.fourier import FourierResult
from ..results import record, write
from .plots import COLORS, DPI, QUIET

__all__ = [
    'print_attention', 'print_cka', 'print_fourier', 'write_attention', 'write_cka', 'write_fourier',
]  # fmt: skip

MOST_CELLS = 16  # layers up to which a map shows its numbers


# --- CKA


def print_cka(
    result: CKAResult,
    a: AnalysedModel,
    b: AnalysedModel | None,
    head: Mapping[str, Any],
    say: Callable[[str], None] = print,
) -> None:
    """The most similar layer of the second model for each of the first.

    Args:
        result: See `cka.compare`.
        a: The first model.
        b: The second; None if layers of the first were compared with each other, then others than the layer itself.
        head: Arguments of `results.record`, among them dataset and weights.
        say: Prints a line.
    """
    say(f'A: {a.name} ({head["weights"]})')
    if b is not None:
        say(f'B: {b.name} ({head["weights_b"]})')
    left = f'; {count_of(result.left_out, "image")} after the last full batch left out' if result.left_out else ''
    say(f'{head["dataset"].name}: CKA of {count_of(result.batches, "batch")} of {result.batch_size} images{left}')
    value = result.value.copy()
    if b is None:
        np.fill_diagonal(value, np.nan)
    for i, name in enumerate(result.rows):
        if np.isfinite(value[i]).any():
            j = int(np.nanargmax(value[i]))
            interval = f' ({result.low[i, j]:.3f} to {result.high[i, j]:.3f})' if result.batches > 1 else ''
            say(f'  {name}: most similar to {result.columns[j]}, {value[i, j]:.3f}{interval}')
    if result.batches == 1:
        say('Intervals need a second batch: take more images.')
    for name in result.undefined:
        say(f'No CKA of {name.removeprefix("/")}: its HSIC with itself is not positive, so take more images.')


def write_cka(
    output: str | Path,
    result: CKAResult,
    a: AnalysedModel,
    b: AnalysedModel | None,
    head: Mapping[str, Any],
    say: Callable[[str], None] = print,
) -> Path:
    """Write results.json, cka.csv with a row for each pair of layers, and the map cka.png.

    Args:
        output: Folder.
        result: See `cka.compare`.
        a: The first model.
        b: The second, or None.
        head: See `print_cka`.
        say: Prints a line.

    Returns:
        Path of results.json.

    Raises:
        EvaluationError: If the folder cannot be written to.
    """
    other = {} if b is None else dict(b=record('', model=b.model, dataset=None, seed=None, name=b.name)['model'])
    rows = [
        dict(
            a=row, b=column, cka=_number(result.value[i, j]), low=_number(result.low[i, j]),
            high=_number(result.high[i, j]),
        )
        for i, row in enumerate(result.rows)
        for j, column in enumerate(result.columns)
    ]  # fmt: skip
    results = _record('cka', a, head, result, **other)
    return write(output, results, tables=dict(cka=rows), figures=dict(cka=_cka_map(result, a, b, head)), say=say)


def _cka_map(result: CKAResult, a: AnalysedModel, b: AnalysedModel | None, head: Mapping[str, Any]) -> Figure:
    """The map of MAE-Lite's Fig. 1: the first layers at the bottom left."""
    R, C = result.value.shape
    figure, axis = _figure((max(4.8, 3.2 + 0.36 * C), max(4.0, 1.9 + 0.36 * R)), f'CKA on {head["dataset"].name}')
    colors = colormaps['magma'].with_extremes(bad='white')
    image = axis.imshow(result.value, cmap=colors, vmin=0, vmax=1, origin='lower', interpolation='nearest')
    if max(R, C) <= MOST_CELLS:
        for (i, j), value in np.ndenumerate(result.value):
            if np.isfinite(value):
                color = 'white' if value < 0.6 else 'black'
                axis.text(j, i, f'{value:.2f}', ha='center', va='center', fontsize=6.5, color=color)
    axis.set_xticks(range(C), result.columns, rotation=90, fontsize=6.5)
    axis.set_yticks(range(R), result.rows, fontsize=6.5)
    axis.set(xlabel=(b or a).name, ylabel=a.name)
    axis.grid(False)
    figure.colorbar(image, ax=axis, label='CKA', extend='both')
    return figure


# --- attention


def print_attention(
    result: AttentionResult, model: AnalysedModel, head: Mapping[str, Any], say: Callable[[str], None] = print
) -> None:
    """The mean of the heads of each layer, and their range.

    Args:
        result: See `attention.measure`.
        model: What was measured.
        head: Arguments of `results.record`, among them dataset and weights.
        say: Prints a line.
    """
    say(_title(model, head, 'attention', result.images))
    for x in result.layers:
        relative = x.relative_entropy
        grid, step = 'x'.join(map(str, x.grid)), ' by '.join(f'{s:g}' for s in dict.fromkeys(x.pixel_step))
        say(
            f'  {x.layer}: {x.distance.mean():.1f} pixels (heads {x.distance.min():.1f} to {x.distance.max():.1f}, '
            f'uniform {x.uniform_distance:.1f}), entropy {x.entropy.mean():.2f}, {relative.mean():.2f} of log N '
            f'({relative.min():.2f} to {relative.max():.2f}); {grid} tokens of {step} pixels'
        )
    if result.left_out:
        say(f'A single query attends in {", ".join(result.left_out)}, which has no distance.')


def write_attention(
    output: str | Path,
    result: AttentionResult,
    model: AnalysedModel,
    head: Mapping[str, Any],
    say: Callable[[str], None] = print,
) -> Path:
    """Write results.json, attention.csv with a row for each head, and attention.png.

    Args:
        output: Folder.
        result: See `attention.measure`.
        model: What was measured.
        head: See `print_attention`.
        say: Prints a line.

    Returns:
        Path of results.json.

    Raises:
        EvaluationError: If the folder cannot be written to.
    """
    rows = [
        dict(
            layer=x.layer, head=h, distance=float(x.distance[h]), entropy=float(x.entropy[h]),
            relative_entropy=_number(x.relative_entropy[h]), uniform_distance=x.uniform_distance, height=x.grid[0],
            width=x.grid[1], pixel_step=x.pixel_step[0], queries=x.queries,
        )
        for x in result.layers
        for h in range(len(x.distance))
    ]  # fmt: skip
    figure, axes = _figures((max(6.4, 2 + 0.3 * len(result.layers)), 7.2), _title(model, head, 'attention'), 2)
    names = [x.layer for x in result.layers]
    _dots(axes[0], [x.distance for x in result.layers], names, 'distance, pixels')
    axes[0].plot([x.uniform_distance for x in result.layers], color=QUIET, linestyle='--', linewidth=1, label='uniform')
    axes[0].legend(frameon=False, fontsize=9)
    _dots(axes[1], [x.relative_entropy for x in result.layers], names, 'entropy over log N')
    axes[1].set_ylim(-0.03, 1.06)
    return write(
        output, _record('attention', model, head, result), tables=dict(attention=rows),
        figures=dict(attention=figure), say=say,
    )  # fmt: skip


def _dots(axis: Axes, values: Sequence[np.ndarray], names: Sequence[str], label: str) -> None:
    """A dot for each head of each layer, and the line of the means."""
    for i, heads in enumerate(values):
        axis.scatter([i] * len(heads), heads, s=16, color=COLORS[0], alpha=0.65, linewidths=0)
    axis.plot([heads.mean() for heads in values], color=COLORS[1], linewidth=1.2, label='mean of the heads')
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=6.5)
    axis.set(ylabel=label)


# --- frequencies


def print_fourier(
    result: FourierResult, model: AnalysedModel, head: Mapping[str, Any], say: Callable[[str], None] = print
) -> None:
    """Δ log amplitude of each layer.

    Args:
        result: See `fourier.measure`.
        model: What was measured.
        head: Arguments of `results.record`, among them dataset and weights.
        say: Prints a line.
    """
    say(_title(model, head, 'Δ log amplitude', result.images))
    for x in result.layers:
        say(f'  {x.layer}: {x.delta:+.3f} ({"x".join(map(str, x.grid))})')
    if result.left_out:
        say(f'Too small for frequencies: {", ".join(result.left_out)}.')


def write_fourier(
    output: str | Path,
    result: FourierResult,
    model: AnalysedModel,
    head: Mapping[str, Any],
    say: Callable[[str], None] = print,
) -> Path:
    """Write results.json, fourier.csv with a row for each frequency of each layer, and fourier.png.

    Args:
        output: Folder.
        result: See `fourier.measure`.
        model: What was measured.
        head: See `print_fourier`.
        say: Prints a line.

    Returns:
        Path of results.json.

    Raises:
        EvaluationError: If the folder cannot be written to.
    """
    rows = [
        dict(layer=x.layer, height=x.grid[0], width=x.grid[1], frequency=float(f), delta_log_amplitude=float(y))
        for x in result.layers
        for f, y in zip(x.frequency, x.curve, strict=True)
    ]
    figure, axes = _figures((9.6, 4.2), _title(model, head, 'frequencies'), 2, across=True)
    for i, x in enumerate(result.layers):
        axes[0].plot(x.frequency, x.curve, color=colormaps['viridis'](i / max(1, len(result.layers) - 1)), linewidth=1)
    axes[0].set(xlabel='frequency (1: the highest)', ylabel='Δ log amplitude')
    axes[0].set_title('first layer dark, last layer light', fontsize=9)
    axes[1].plot([x.delta for x in result.layers], color=COLORS[0], marker='o', markersize=4)
    axes[1].set_xticks(range(len(result.layers)), [x.layer for x in result.layers], rotation=90, fontsize=6.5)
    axes[1].set(ylabel='that of the highest frequency')
    results = _record('fourier', model, head, result, delta_log_amplitude={x.layer: x.delta for x in result.layers})
    return write(output, results, tables=dict(fourier=rows), figures=dict(fourier=figure), say=say)


# --- shared


def _title(model: AnalysedModel, head: Mapping[str, Any], what: str, images: int | None = None) -> str:
    of = '' if images is None else f', {count_of(images, "image")}'
    return f'{model.name} ({head["weights"]}) on {head["dataset"].name}: {what}{of}'


def _record(what: str, model: AnalysedModel, head: Mapping[str, Any], result: Any, **more: Any) -> dict[str, Any]:
    settings = {key: value for key, value in head.items() if key not in ('dataset', 'seed')}
    return record(
        f'analyze {what}', model=model.model, dataset=head['dataset'], seed=head['seed'], name=model.name, **settings,
        size=model.size, result=result, **more,
    )  # fmt: skip


def _number(x: Any) -> float | str:
    """For a table: nothing where there is no number."""
    return float(x) if np.isfinite(x) else ''


def _figure(size: tuple[float, float], title: str) -> tuple[Figure, Axes]:
    figure, axes = _figures(size, title, 1)
    return figure, axes[0]


def _figures(size: tuple[float, float], title: str, number: int, across: bool = False) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=size, dpi=DPI, facecolor='white', layout='constrained')
    figure.suptitle(title, fontsize=11, wrap=True)
    axes = list(figure.subplots(*((1, number) if across else (number, 1)), squeeze=False).flat)
    for axis in axes:
        axis.spines[['top', 'right']].set_visible(False)
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
    return figure, axes
