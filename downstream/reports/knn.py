"""Text, tables and figures of nearest neighbors."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
    """Accuracy and its 95 % interval in % for each k."""
    rows = []
    for k, accuracy in result.accuracy.items():
        low, high = wilson(accuracy, len(queries))
        rows.append(dict(k=k, accuracy=accuracy, low=low, high=high))
    return rows


def print_knn(
    result: KNNResult, queries: ImageDataset, head: Mapping[str, Any], say: Callable[[str], None] = print
) -> None:
    """Accuracy and its interval for each k.

    Args:
        result: See `knn.run`.
        queries: The images that were classified.
        head: Arguments of `results.record`, among them name, weights, temperature and as dataset a mapping.
        say: Prints a line.
    """
    say(f'{_title(queries, head)}, {len(queries)} queries of {queries.split}')
    for row in _rows(result, queries):
        say(f'  k = {row["k"]:3d}: {row["accuracy"]:.2f} % (95 % interval {row["low"]:.2f} to {row["high"]:.2f})')


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
            accuracy=rows,
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
