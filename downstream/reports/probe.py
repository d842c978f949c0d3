"""Summary, tables and figures of a linear, ridge or logistic probe."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from safetensors.torch import save

from tinyvit_zoo.common.files import write_whole
from tinyvit_zoo.common.per_class import at_zero, per_class_words
from tinyvit_zoo.common.plain import plain
from tinyvit_zoo.common.text import count_of
from tinyvit_zoo.data.class_map import readable
from tinyvit_zoo.data.image_dataset import ImageDataset

from ..classifiers.logistic import LogisticResult
from ..classifiers.ridge import RidgeResult
from ..linear_probe import ProbeResult
from ..probe import Parts, Result
from ..results import eval_results_entry, is_for_card, record, write
from ..statistics import accuracies, confusion_matrix, wilson
from . import plots

__all__ = ['HEAD', 'print_probe', 'summary', 'write_probe']

HEAD = 'head.safetensors'

TITLES = dict(
    live='linear probe (MoCo v3)',
    cached='linear probe on cached features',
    ridge='ridge probe',
    logistic='logistic probe',
)
"""By mode."""


def summary(result: Result, test: ImageDataset) -> dict[str, Any]:
    """The numbers of a probe for results.json; accuracies in %."""
    numbers: dict[str, Any] = dict(
        test_images=len(test),
        test_accuracy=result.test,
        test_ci95=wilson(result.test, len(test)),
        test_mean_per_class=result.mean_per_class,
        classes_at_zero=at_zero(test.labels, result.predictions, readable(test.classes)),
        choice=result.choice,
    )
    if isinstance(result, ProbeResult):
        head = result.heads[result.chosen]
        return numbers | dict(
            chosen=head.setting,
            held_out_last=head.last,
            held_out_best=head.best,
            best_epoch=head.best_epoch,
            heads=len(result.heads),
            diverged=sum(head.diverged for head in result.heads),
            batch_size=result.batch_size,
            backbone_images=result.passes,
        )
    if isinstance(result, RidgeResult):
        chosen = dict(penalty=result.penalties[result.chosen])
    else:
        chosen = dict(C=result.cs[result.chosen])
        numbers |= dict(converged=result.fit.converged, iterations=result.fit.iterations)
    return numbers | dict(chosen=chosen, held_out_accuracy=result.held_out[result.chosen], fits=len(result.held_out))


def _title(parts: Parts, head: Mapping[str, Any]) -> str:
    return f'{head["name"]} ({head["weights"]}) on {parts.test.name}: {TITLES[head["mode"]]}'


def print_probe(result: Result, parts: Parts, head: Mapping[str, Any], say: Callable[[str], None] = print) -> None:
    """The chosen classifier and its accuracy.

    Args:
        result: See `probe.run`.
        parts: The images.
        head: Arguments of `results.record` but for the data set, among them name, weights, mode and layers.
        say: Prints a line.
    """
    say(_title(parts, head))
    say(_in_words(summary(result, parts.test), len(parts.held_out)))


def _in_words(numbers: Mapping[str, Any], held_out: int) -> str:
    """The summary in a few lines; `held_out` is the number of images that chose."""
    chosen = numbers['chosen']
    low, high = numbers['test_ci95']
    test = (
        f'test accuracy {numbers["test_accuracy"]:.2f} % (95 % interval {low:.2f} to {high:.2f}, '
        f'{count_of(numbers["test_images"], "image")}), '
        + per_class_words(numbers['test_mean_per_class'], numbers['classes_at_zero'])
    )
    remark = numbers['choice'].words()
    remark = f'\nChoice: {remark}.' if remark else ''
    if not numbers.get('converged', True):
        remark += '\nThe last fit did not converge.'
    if isinstance(chosen, dict):
        name, value = next(iter(chosen.items()))
        return (
            f'{name} {value:.3g} of {numbers["fits"]}, chosen with {count_of(held_out, "held-out image")} '
            f'({numbers["held_out_accuracy"]:.2f} %), then fitted on all: {test}{remark}'
        )
    diverged = f' ({numbers["diverged"]} diverged)' if numbers['diverged'] else ''
    return (
        f'Of {count_of(numbers["heads"], "head")}{diverged}: learning rate {chosen.lr:g}, weight decay '
        f'{chosen.weight_decay:g}, {chosen.layer}, chosen with {count_of(held_out, "held-out image")}: '
        f'{numbers["held_out_last"]:.2f} % after the last epoch, {numbers["held_out_best"]:.2f} % after epoch '
        f'{numbers["best_epoch"]}. Last epoch: {test}{remark}'
    )


def write_probe(
    output: str | Path,
    result: Result,
    parts: Parts,
    head: Mapping[str, Any],
    say: Callable[[str], None] = print,
) -> Path:
    """Write results.json, the grid and the classes as tables and figures, the chosen head as head.safetensors, and an
    entry for the card of released weights.

    Args:
        output: Folder.
        result: See `probe.run`.
        parts: The images.
        head: See `print_probe`.
        say: Prints a line.

    Returns:
        Path of results.json.

    Raises:
        EvaluationError: If the folder cannot be written to.
    """
    test, title = parts.test, _title(parts, head)
    confusion = confusion_matrix(test.labels, result.predictions, len(test.classes))
    images, accuracy = confusion.sum(axis=1), accuracies(confusion)
    classes = [
        dict(label=i, name=name, images=int(images[i]), accuracy=float(accuracy[i]))
        for i, name in enumerate(test.classes)
    ]
    figures = dict(
        **_grid_figures(result, title),
        per_class=plots.per_class_bars(accuracy, test.classes, title=title),
        confusion=plots.confusion(confusion, test.classes, title=title),
    )
    entry = None
    if is_for_card(head['weights'], parts.train, test):
        note = f'{TITLES[head["mode"]]}, {",".join(head["layers"])}'
        entry = eval_results_entry(test.name, result.test, notes=note)
    settings = record('linear-probe', dataset=parts._asdict(), **head)
    _write_head(Path(output) / HEAD, result)
    return write(
        output,
        {**settings, **plain(summary(result, test))},
        tables=dict(grid=_grid_rows(result), per_class=classes),
        figures=figures,
        eval_results={test.name: entry},
        say=say,
    )


def _write_head(path: Path, result: Result) -> None:
    """Weight (K, D) and bias (K,) of the chosen head."""
    fit = result.fit if isinstance(result, LogisticResult) else result
    tensors = {name: torch.from_numpy(np.ascontiguousarray(getattr(fit, name))) for name in ('weight', 'bias')}
    write_whole(path, save(tensors))


def _grid_rows(result: Result) -> Sequence[dict[str, Any]]:
    if isinstance(result, ProbeResult):
        return [
            dict(
                layer=head.setting.layer, lr=head.setting.lr, weight_decay=head.setting.weight_decay, last=head.last,
                best=head.best, best_epoch=head.best_epoch, loss=head.loss, diverged=head.diverged,
                chosen=i == result.chosen,
            )
            for i, head in enumerate(result.heads)
        ]  # fmt: skip
    name, values = ('penalty', result.penalties) if isinstance(result, RidgeResult) else ('C', result.cs)
    rows = [
        {name: float(value), 'held_out': float(held), 'chosen': i == result.chosen}
        for i, (value, held) in enumerate(zip(values, result.held_out, strict=True))
    ]
    if isinstance(result, LogisticResult):
        for row, iterations, converged in zip(rows, result.iterations, result.converged, strict=True):
            row.update(iterations=iterations, converged=converged)
    return rows


def _grid_figures(result: Result, title: str) -> dict[str, Figure]:
    """Held-out accuracy by learning rate and weight decay for each layer, and by epoch; or by penalty."""
    if not isinstance(result, ProbeResult):
        label = 'index in the grid of ' + ('penalties' if isinstance(result, RidgeResult) else 'C')
        curve = {'held out': [float(value) for value in result.held_out]}
        return dict(grid=plots.learning_curves(curve, title=title, x_label=label))
    figures, chosen = {}, result.heads[result.chosen].setting
    for layer in dict.fromkeys(head.setting.layer for head in result.heads):
        heads = [head for head in result.heads if head.setting.layer == layer]
        rows = list(dict.fromkeys(head.setting.weight_decay for head in heads))
        columns = list(dict.fromkeys(head.setting.lr for head in heads))
        figures['lr_wd_' + layer.replace(':', '_')] = plots.heat_map(
            np.reshape([head.last for head in heads], (len(rows), len(columns))),
            [f'{value:g}' for value in rows],
            [f'{value:g}' for value in columns],
            title=f'{title}: {layer}',
            row_label='weight decay',
            column_label='learning rate for a batch of 256',
            unit='held-out accuracy, %',
            chosen=(rows.index(chosen.weight_decay), columns.index(chosen.lr)) if chosen.layer == layer else None,
        )
    curve = {'chosen head, held out': result.history[:, result.chosen].tolist()}
    return {**figures, 'epochs': plots.learning_curves(curve, title=title)}
