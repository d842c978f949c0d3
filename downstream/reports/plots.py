"""Figures of the evaluators: functions of plain numbers that return a matplotlib Figure, saved by `results.write`.

They do not use pyplot, which keeps every figure in memory and looks for a display.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from tinyvit_zoo.common.errors import EvaluationError

__all__ = [
    'accuracy_over_parameters',
    'accuracy_over_shots',
    'confusion',
    'differences',
    'heat_map',
    'learning_curves',
    'per_class_bars',
    'tsne',
    'units_apart',
]

COLORS = ('#0969da', '#bc4c00', '#1a7f37', '#8250df', '#bf3989', '#57606a')
MARKERS = 'osD^vX'
QUIET = '#59636e'
DPI = 120
MOST_BARS = 40
MOST_CELLS = 16  # classes up to which a confusion matrix shows its numbers
MOST_TICKS = 40
MOST_POINTS = 2000
MOST_COLORS = 40
OUTLINE = (withStroke(linewidth=2.5, foreground='white'),)


def accuracy_over_shots(
    series: Mapping[str, Mapping[int, tuple[float, float]]], *, title: str, chance: float | None = None
) -> Figure:
    """Accuracy over the number of shots, with confidence intervals.

    Args:
        series: By name of the model: shots -> (mean, half-width of the 95 % interval), both in %.
        title: Of the figure.
        chance: Accuracy of guessing in %, drawn as a dashed line.
    """
    figure, axis = _one_axis((6.4, 4.2), title)
    shots = sorted({k for values in series.values() for k in values})
    for i, (name, values) in enumerate(series.items()):
        at = sorted(values)
        # Shifted, as intervals of several models at the same number of shots would overlap.
        x = np.array([shots.index(k) for k in at]) + 0.06 * (i - (len(series) - 1) / 2)
        mean, ci = np.array([values[k] for k in at]).T
        axis.errorbar(
            x, mean, yerr=ci, color=COLORS[i % len(COLORS)], marker=MARKERS[i % len(MARKERS)], markersize=5, capsize=4,
            label=name,
        )  # fmt: skip
        for x_, m, c in zip(x, mean, ci, strict=True):
            axis.annotate(
                f'{m:.1f} ± {c:.1f}', (x_, m + c), xytext=(0, 4), textcoords='offset points', ha='center', fontsize=8,
                color=COLORS[i % len(COLORS)], path_effects=OUTLINE,
            )  # fmt: skip
    if chance is not None:
        axis.axhline(chance, color=QUIET, linestyle='--', linewidth=1, label=f'chance, {chance:.3g} %')
    axis.set_xticks(range(len(shots)), [str(k) for k in shots])
    axis.set(xlabel='images per class to learn from', ylabel='accuracy, % (95 % interval)')
    axis.margins(x=0.15, y=0.15)
    figure.legend(frameon=False, fontsize=9, loc='outside lower center')
    return figure


def accuracy_over_parameters(
    points: Mapping[str, Sequence[tuple[float, float, str]]], *, title: str, y_label: str = 'accuracy, %'
) -> Figure:
    """Accuracy of models over their parameters, a color for each group; the first of a group is filled and named, and
    a line leads from it to that of the next group.

    Args:
        points: By name of the group: (millions of parameters, accuracy, name of the model).
        title: Of the figure.
        y_label: Meaning of the accuracies.
    """
    figure, axis = _one_axis((6.4, 4.2), title)
    firsts = [group[0] for group in points.values()]
    axis.plot([x for x, _, _ in firsts], [y for _, y, _ in firsts], color=QUIET, linewidth=1, zorder=1)
    for i, (name, group) in enumerate(points.items()):
        color, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
        x, y = [point[0] for point in group], [point[1] for point in group]
        axis.scatter(x[1:], y[1:], s=28, facecolors='white', edgecolors=color, marker=marker)
        axis.scatter(x[:1], y[:1], s=52, color=color, marker=marker, label=name, zorder=2)
        axis.annotate(
            group[0][2], (x[0], y[0]), xytext=(6, 6), textcoords='offset points', fontsize=8, color=color,
            path_effects=OUTLINE,
        )  # fmt: skip
    axis.set(xlabel='parameters, millions', ylabel=y_label)
    axis.margins(0.1)
    axis.legend(frameon=False, fontsize=9)
    return figure


def differences(
    names: Sequence[str], values: Sequence[float], low: Sequence[float], high: Sequence[float], *, title: str
) -> Figure:
    """Differences with their 95 % intervals, one row each.

    Args:
        names: Of the rows.
        values: In percentage points.
        low: Lower ends of the intervals.
        high: Upper ends.
        title: Of the figure.
    """
    figure, axis = _one_axis((6.4, 1.4 + 0.4 * len(names)), title)
    places = np.arange(len(names))
    # The interval of a proportion is not centered on it and, at the extremes, may not contain it.
    axis.hlines(places, np.asarray(low, dtype=float), np.asarray(high, dtype=float), color=COLORS[0], linewidth=2)
    axis.plot(values, places, 'o', color=COLORS[0])
    for y, value in zip(places, values, strict=True):
        axis.annotate(f'{value:+.1f}', (value, y), xytext=(0, 6), textcoords='offset points', ha='center', fontsize=8)
    axis.axvline(0, color=QUIET, linewidth=1)
    axis.set_yticks(places, names, fontsize=8.5)
    axis.set(xlabel='percentage points (95 % interval)', ylim=(len(names) - 0.5, -0.7))
    axis.grid(False, axis='y')
    return figure


def units_apart(names: Sequence[str], values: Sequence[float], *, title: str) -> Figure:
    """Differences from printed numbers in units of their last digit, one row each, over the band of rounding.

    Args:
        names: Of the rows.
        values: Differences; those within half a unit round alike.
        title: Of the figure.
    """
    figure, axis = _one_axis((8.0, 1.4 + 0.22 * len(names)), title)
    places = np.arange(len(names))
    axis.axvspan(-0.5, 0.5, color=QUIET, alpha=0.15, linewidth=0)
    inside = np.abs(np.asarray(values)) <= 0.5
    axis.scatter(np.asarray(values)[inside], places[inside], s=20, color=COLORS[2], marker='o')
    axis.scatter(np.asarray(values)[~inside], places[~inside], s=24, color=COLORS[1], marker='D')
    axis.axvline(0, color=QUIET, linewidth=1)
    axis.set_yticks(places, names, fontsize=7)
    axis.set(xlabel='units of the last printed digit (gray: rounds alike)', ylim=(len(names) - 0.5, -0.7))
    axis.grid(False, axis='y')
    return figure


def heat_map(
    values: np.ndarray,
    rows: Sequence[object],
    columns: Sequence[object],
    *,
    title: str,
    row_label: str = '',
    column_label: str = '',
    unit: str = 'accuracy, %',
    chosen: tuple[int, int] | None = None,
) -> Figure:
    """A table of numbers in color, such as accuracy by learning rate and weight decay.

    Args:
        values: (R, C) numbers; NaN cells stay white.
        rows: Their R names.
        columns: Their C names.
        title: Of the figure.
        row_label: Meaning of the rows.
        column_label: Meaning of the columns.
        unit: Meaning and unit of the numbers.
        chosen: Row and column of the cell to frame.
    """
    values = np.asarray(values, dtype=float)
    R, C = values.shape
    figure, axis = _one_axis((max(4.5, 1.9 + 0.62 * C), max(2.6, 1.4 + 0.38 * R)), title)
    image = axis.imshow(values, cmap='viridis', aspect='auto')
    _write_cells(axis, values, image)
    axis.set_xticks(range(C), [_short(c) for c in columns], rotation=0 if C <= 8 else 45, fontsize=8)
    axis.set_yticks(range(R), [_short(r) for r in rows], fontsize=8)
    axis.set(xlabel=column_label, ylabel=row_label)
    axis.grid(False)
    if chosen is not None:
        axis.add_patch(
            Rectangle((chosen[1] - 0.5, chosen[0] - 0.5), 1, 1, fill=False, edgecolor='#d1242f', linewidth=2.5)
        )
    figure.colorbar(image, ax=axis, label=unit)
    return figure


def per_class_bars(accuracy: np.ndarray, classes: Sequence[str], *, title: str, label: str = 'accuracy, %') -> Figure:
    """Accuracy of each class, the worst first; for many classes the worst and best 20, and a curve of all.

    Args:
        accuracy: (K,) in %; NaN for a class without images, which is left out.
        classes: K names.
        title: Of the figure.
        label: What stands for the accuracy.
    """
    accuracy = np.asarray(accuracy, dtype=float)
    order = np.argsort(accuracy, kind='stable')
    order = order[np.isfinite(accuracy[order])]
    mean = f'mean {accuracy[order].mean():.1f} %' if len(order) else 'no images'
    if len(order) <= MOST_BARS:
        figure, axis = _one_axis((6.4, max(2.4, 1.1 + 0.22 * len(order))), f'{title} ({mean})')
        _bars(axis, accuracy, classes, order, label)
        return figure
    figure = Figure(figsize=(11, 6), dpi=DPI, facecolor='white', layout='constrained')
    figure.suptitle(f'{title} ({mean})', fontsize=11)
    bars, curve = figure.subplots(1, 2, width_ratios=(3, 2))
    half = MOST_BARS // 2
    _bars(bars, accuracy, classes, np.concatenate([order[:half], order[-half:]]), label)
    bars.axhline(half - 0.5, color='black', linewidth=1)
    bars.set_title(f'the worst {half} and the best {half} of {len(order)} classes', fontsize=9)
    curve.plot(np.arange(1, len(order) + 1), accuracy[order], color=COLORS[0])
    curve.set(xlabel='class, by accuracy', ylabel=label, ylim=(-2, 102))
    _quiet(curve)
    return figure


def _bars(axis: Axes, accuracy: np.ndarray, classes: Sequence[str], order: np.ndarray, label: str) -> None:
    places = np.arange(len(order))
    axis.barh(places, accuracy[order], color=COLORS[0], height=0.72)
    for y, value in enumerate(accuracy[order].tolist()):
        axis.text(value + 1, y, f'{value:.0f}', va='center', fontsize=7, color=QUIET)
    axis.set_yticks(places, [_short(classes[i]) for i in order], fontsize=7.5)
    axis.set(xlabel=label, xlim=(0, 108), ylim=(len(order) - 0.5, -0.5))
    _quiet(axis)
    axis.grid(False, axis='y')


def confusion(counts: np.ndarray, classes: Sequence[str], *, title: str) -> Figure:
    """Confusion matrix, true class by row and prediction by column, in % of the row.

    Args:
        counts: (K, K) numbers of images.
        classes: K names. Beyond 40 the axes are numbered, and the most frequent mistakes are listed.
        title: Of the figure.
    """
    counts = np.asarray(counts, dtype=float)
    K = len(counts)
    total = counts.sum(axis=1, keepdims=True)
    share = 100 * np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    side = min(9.0, max(4.0, 2.4 + (0.42 if K <= MOST_CELLS else 0.18) * K))
    if K <= MOST_TICKS:
        figure, axis = _one_axis((side + 1, side), title)
    else:
        figure = Figure(figsize=(13, 6.4), dpi=DPI, facecolor='white', layout='compressed')
        figure.suptitle(title, fontsize=11)
        axis, mistakes = figure.subplots(1, 2, width_ratios=(3, 2))
        _mistakes(mistakes, counts, classes)
    # Mistakes are rare: on a linear scale all would be white.
    image = axis.imshow(np.sqrt(share), cmap='Blues', vmin=0, vmax=10, interpolation='nearest')
    if K <= MOST_CELLS:
        _write_cells(axis, share, image, scale=np.sqrt)
    if K <= MOST_TICKS:
        names = [_short(c) for c in classes]
        axis.set_xticks(range(K), names, rotation=90 if max(map(len, names)) > 3 else 0, fontsize=7.5)
        axis.set_yticks(range(K), names, fontsize=7.5)
    axis.set(xlabel='prediction', ylabel='true class')
    axis.grid(False)
    bar = figure.colorbar(image, ax=axis, label='% of the true class', shrink=0.8)
    bar.set_ticks(np.sqrt([0, 1, 5, 20, 50, 100]).tolist(), labels=['0', '1', '5', '20', '50', '100'])
    return figure


def _mistakes(axis: Axes, counts: np.ndarray, classes: Sequence[str]) -> None:
    """Bars of the most frequent pairs of true class and prediction."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    most = np.argsort(-wrong, axis=None, kind='stable')[:25]
    most = most[wrong.flat[most] > 0]
    rows, columns = np.unravel_index(most, wrong.shape)
    axis.barh(range(len(most)), wrong.flat[most], color=COLORS[1], height=0.72)
    names = [f'{_short(classes[r], 24)} → {_short(classes[c], 24)}' for r, c in zip(rows, columns, strict=True)]
    axis.set_yticks(range(len(most)), names, fontsize=7)
    axis.set(xlabel='images', ylim=(max(len(most), 1) - 0.5, -0.5))
    axis.set_title('most frequent mistakes (true → predicted)', fontsize=9)
    _whole_numbers(axis)
    _quiet(axis)
    axis.grid(False, axis='y')


def tsne(features: np.ndarray, labels: np.ndarray, classes: Sequence[str], *, title: str, seed: int = 0) -> Figure:
    """t-SNE of features in two dimensions (van der Maaten & Hinton 2008, scikit-learn), with the name of each class.

    Args:
        features: (N, D). At most 2000 random rows are drawn, from the 40 most frequent classes.
        labels: (N,) integers.
        classes: Their names.
        title: Of the figure.
        seed: Of the random rows and the embedding.

    Raises:
        EvaluationError: If there are fewer than 4 rows.
    """
    from sklearn.manifold import TSNE

    features, labels = np.asarray(features, dtype=np.float32), np.asarray(labels)
    if len(features) < 4:
        raise EvaluationError(f't-SNE needs at least 4 images, there are {len(features)}.')
    counts = np.bincount(labels, minlength=len(classes))
    frequent = np.sort(np.argsort(-counts, kind='stable')[:MOST_COLORS])
    at = np.flatnonzero(np.isin(labels, frequent))
    if len(at) > MOST_POINTS:
        at = np.sort(np.random.default_rng(seed).choice(at, MOST_POINTS, replace=False))
    perplexity = min(30.0, (len(at) - 1) / 3)
    points = TSNE(perplexity=perplexity, init='pca', random_state=seed).fit_transform(features[at])
    some = f', {len(at)} of {len(labels)} images' if len(at) < len(labels) else ''
    figure, axis = _one_axis((7, 6.4), title + some)
    shown = [k for k in frequent.tolist() if (labels[at] == k).any()]
    for i, k in enumerate(shown):
        own = points[labels[at] == k]
        color = colormaps['hsv'](i / len(shown)) if len(shown) > 10 else colormaps['tab10'](i)
        axis.scatter(own[:, 0], own[:, 1], s=9, color=color, alpha=0.75, linewidths=0)
        x, y = np.median(own, axis=0)
        axis.text(
            x, y, _short(classes[k], 18), fontsize=10 if len(shown) <= 12 else 6.5, ha='center', va='bottom',
            path_effects=OUTLINE, weight='bold', color=[0.7 * part for part in color[:3]],  # the color of its dots
        )  # fmt: skip
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    return figure


def learning_curves(
    series: Mapping[str, Sequence[float]], *, title: str, y_label: str = 'accuracy, %', x_label: str = 'epoch'
) -> Figure:
    """Curves over the epochs, counted from 1; the legend shows the last value of each.

    Args:
        series: Curves by name.
        title: Of the figure.
        y_label: Meaning of the values.
        x_label: Meaning of their index.
    """
    figure, axis = _one_axis((6.4, 3.8), title)
    for i, (name, values) in enumerate(series.items()):
        last = f': {values[-1]:.4g}' if len(values) else ''
        axis.plot(range(1, len(values) + 1), values, color=COLORS[i % len(COLORS)], marker='.', label=f'{name}{last}')
    axis.set(xlabel=x_label, ylabel=y_label)
    _whole_numbers(axis)
    axis.legend(frameon=False, fontsize=9)
    return figure


def _one_axis(size: tuple[float, float], title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, dpi=DPI, facecolor='white', layout='constrained')
    axis = figure.subplots()
    figure.suptitle(title, fontsize=11, wrap=True)
    _quiet(axis)
    return figure, axis


def _whole_numbers(axis: Axes) -> None:
    """Ticks of the x axis at whole numbers, otherwise where matplotlib puts them."""
    axis.xaxis.set_major_locator(MaxNLocator('auto', steps=[1, 2, 2.5, 5, 10], integer=True))


def _quiet(axis: Axes) -> None:
    axis.spines[['top', 'right']].set_visible(False)
    axis.grid(alpha=0.25)
    axis.set_axisbelow(True)


def _write_cells(axis: Axes, values: np.ndarray, image: AxesImage, scale: Callable = np.asarray) -> None:
    """Write the numbers into the cells, black or white by background; columns decide the number of digits."""
    R, C = values.shape
    digits = 1 if C <= 16 and np.nanmax(np.abs(values), initial=0) < 1000 else 0
    for r in range(R):
        for c in range(C):
            if np.isfinite(values[r, c]) and (values[r, c] != 0 or R != C):
                red, green, blue, _ = image.cmap(image.norm(scale(values[r, c])))
                dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
                axis.text(
                    c, r, f'{values[r, c]:.{digits}f}', ha='center', va='center', fontsize=7.5 if C <= 12 else 6.5,
                    color='white' if dark else 'black',
                )  # fmt: skip


def _short(name: object, length: int = 28) -> str:
    """A number with few digits, or the first of several names, truncated if it is long."""
    if isinstance(name, float | np.floating):
        return f'{name:.3g}'
    text = str(name).split(',')[0]
    return text if len(text) <= length else f'{text[: length - 1]}…'
