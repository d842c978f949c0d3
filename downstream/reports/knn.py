"""Text, tables and figures of nearest neighbors."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tinyvit_zoo.common.per_class import at_zero, per_class_words
from tinyvit_zoo.common.text import count_of
from tinyvit_zoo.data.class_map import readable
from tinyvit_zoo.data.image_dataset import ImageDataset

from ..knn import KNNResult
from ..results import eval_results_entry, is_for_card, record, write
from ..statistics import accuracies, confusion_matrix, wilson
from . import plots

__all__ = ['print_knn', 'write_knn']


def _title(queries: ImageDataset, head: Mapping[str, Any]) -> str:
    return f'{head["name"]} ({head["weights"]}) on {queries.name}: kNN'


def _rows(result: KNNResult, queries: ImageDataset) -> list[dict[str, Any]]:
    """Accuracy, its 95 % interval, and the mean of the classes, in % for each k."""
    rows = []
    for k, accuracy in result.accuracy.items():
        low, high = wilson(accuracy, len(queries))
        zero = at_zero(queries.labels, result.predictions[k], readable(queries.classes))
        per_class = dict(mean_per_class=result.mean_per_class[k], classes_at_zero=zero)
        rows.append(dict(k=k, accuracy=accuracy, low=low, high=high, **per_class))
    return rows


def print_knn(
    result: KNNResult, queries: ImageDataset, head: Mapping[str, Any], say: Callable[[str], None] = print
) -> None:
    """Accuracy, its interval and the mean of the classes for each k.

    Args:
        result: See `knn.run`.
        queries: The images that were classified.
        head: Arguments of `results.record`, among them name, weights, temperature and as dataset a mapping.
        say: Prints a line.
    """
    say(f'{_title(queries, head)}, {count_of(len(queries), "query")} of {queries.split}')
    for row in _rows(result, queries):
        per_class = per_class_words(row['mean_per_class'], row['classes_at_zero'])
        interval = f'(95 % interval {row["low"]:.2f} to {row["high"]:.2f})'
        say(f'  k = {row["k"]:3d}: {row["accuracy"]:.2f} % {interval}, {per_class}')


def write_knn(
    output: str | Path,
    result: KNNResult,
    queries: ImageDataset,
    head: Mapping[str, Any],
    say: Callable[[str], None] = print,
) -> Path:
    """Write results.json, accuracy.csv, per_class.csv, the figures, and an entry for the card of released weights.

    Classes, figures and entry are those of the first k: to take the best one would be to choose by the answers.

    Args:
        output: Folder.
        result: See `knn.run`.
        queries: The images that were classified.
        head: See `print_knn`.
        say: Prints a line.

    Returns:
        Path of results.json.

    Raises:
        EvaluationError: If the folder cannot be written to.
    """
    k, predicted = next(iter(result.predictions.items()))
    counts = confusion_matrix(queries.labels, predicted, len(queries.classes))
    images, per_class, names = counts.sum(axis=1), accuracies(counts), readable(queries.classes)
    rows, title = _rows(result, queries), f'{_title(queries, head)}, k = {k}'
    entry = None
    if is_for_card(head['weights'], *head['dataset'].values()):
        note = f'kNN, k = {k}, temperature {head["temperature"]:g}'
        entry = eval_results_entry(queries.name, result.accuracy[k], notes=note)
    return write(
        output,
        record('knn', **head, results=rows),
        tables=dict(
            accuracy=[{**row, 'classes_at_zero': len(row['classes_at_zero'])} for row in rows],
            per_class=[
                dict(label=c, name=name, images=int(images[c]), accuracy=float(per_class[c]))
                for c, name in enumerate(names)
            ],
        ),
        figures=dict(
            per_class=plots.per_class_bars(per_class, names, title=title),
            confusion=plots.confusion(counts, names, title=title),
        ),
        eval_results={f'{queries.name}-knn': entry},
        say=say,
    )
