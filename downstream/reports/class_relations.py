"""What `analyze class-relations` leaves: results, the order of the classes, pairs, the correlations, and their map."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.files import new_file
from tinyvit_zoo.common.text import count_of
from tinyvit_zoo.data.class_map import readable
from tinyvit_zoo.data.image_dataset import ImageDataset

from ..analysis.analysed_model import AnalysedModel
from ..analysis.class_relations import ClassRelations
from ..results import record, write
from .plots import DPI

__all__ = ['relation_words', 'relations_figure', 'write_relations']

MATRIX = 'correlation.npy'
PAIRS, SHOWN = 50, 3
MOST_CELLS = 1000  # of the map, a side: more classes are averaged
MOST_NAMES = 40


def relation_words(found: ClassRelations) -> Iterator[str]:
    """Lines for people."""
    numbers, names = found.summary(), readable(found.names)
    if numbers['mean'] is None:
        yield 'No two outputs vary over these images, so there are no correlations: take more images (--images).'
        return
    yield (
        f'{numbers["outputs"]:,} outputs over {found.images:,} images: mean correlation {numbers["mean"]:.3f}, '
        f'{numbers["negative_share"]:.1%} negative; {numbers["mean_of_neighbors"]:.3f} between neighbors in the order '
        f'({found.ordered_by}).'
    )
    for words, pairs in zip(('Most alike', 'Most opposed'), found.extremes(SHOWN), strict=True):
        listed = (f'{names[i]} and {names[j]} ({found.correlation[i, j]:.3f})' for i, j in pairs)
        yield f'{words}: {"; ".join(listed)}.'
    if found.constant:
        first = names[found.constant[0]]
        yield f'The same for all images: {count_of(len(found.constant), "output")}, such as that of {first}.'


def write_relations(
    output: Path,
    found: ClassRelations,
    model: AnalysedModel,
    dataset: ImageDataset,
    weights: str,
    seed: int,
    say: Callable[[str], None] = print,
) -> Path:
    """Write results.json, order.csv, pairs.csv, correlation.npy (outputs in their own order) and class_relations.png.

    Args:
        output: Folder.
        found: What was measured.
        model: The classifier.
        dataset: The images.
        weights: Where its weights come from.
        seed: Of the images.
        say: Prints a line.

    Returns:
        Path of results.json.

    Raises:
        EvaluationError: If the folder cannot be written to.
    """
    names = readable(found.names)
    order = [
        {'place': place, 'output': i, 'class': found.names[i], 'name': names[i]}
        for place, i in enumerate(found.order.tolist())
    ]
    pairs = [
        dict(a=names[i], b=names[j], correlation=float(found.correlation[i, j]))
        for some in found.extremes(PAIRS)
        for i, j in some
    ]
    results = record(
        'analyze class-relations', model=model.model, dataset=dataset, seed=seed, name=model.name, weights=weights,
        size=model.size, result=found.summary(),
    )  # fmt: skip
    try:
        output.mkdir(parents=True, exist_ok=True)
        with new_file(output / MATRIX) as new, new.open('wb') as file:
            np.save(file, found.correlation)
    except OSError as e:
        raise EvaluationError(f'{output / MATRIX} cannot be written ({e.strerror or e}): make room.') from e
    say(f'The correlations: {output / MATRIX}')
    title = f'{model.name} ({weights}) on {dataset.name}: relations of classes, {found.images:,} images'
    tables: dict[str, list[dict[str, Any]]] = dict(order=order, pairs=pairs)
    return write(output, results, tables=tables, figures=dict(class_relations=relations_figure(found, title)), say=say)


def relations_figure(found: ClassRelations, title: str) -> Figure:
    """The map of the correlations in order; related classes are blocks on the diagonal."""
    values, names = _averaged(found), readable(found.names)
    M = len(found.names)
    figure = Figure(figsize=(7.4, 6.4), dpi=DPI, facecolor='white', layout='constrained')
    axis = figure.subplots()
    figure.suptitle(title, fontsize=11, wrap=True)
    colors = colormaps['RdBu_r'].with_extremes(bad='#b0b0b0')
    image = axis.imshow(values, cmap=colors, vmin=-1, vmax=1, interpolation='nearest', extent=(0, M, M, 0))
    if M <= MOST_NAMES:
        places, shown = np.arange(M) + 0.5, [names[i] for i in found.order]
        axis.set_xticks(places, shown, rotation=90, fontsize=7)
        axis.set_yticks(places, shown, fontsize=7)
    else:
        axis.set(xlabel=f'classes, by {found.ordered_by}')
    axis.spines[:].set_visible(False)
    figure.colorbar(image, ax=axis, label='Pearson correlation')
    return figure


def _averaged(found: ClassRelations) -> np.ndarray:
    """The correlations in order, at most 1000 x 1000: means of squares, without NaN."""
    M = len(found.order)
    step = -(-M // MOST_CELLS)
    starts = np.arange(0, M, step)
    rows = []
    for start in starts:
        some = found.correlation[found.order[start : start + step]][:, found.order]
        finite = np.isfinite(some)
        total = np.add.reduceat(np.where(finite, some, 0).sum(axis=0), starts)
        count = np.add.reduceat(finite.sum(axis=0), starts)
        rows.append(np.where(count > 0, total / np.maximum(count, 1), np.nan))
    return np.stack(rows)
