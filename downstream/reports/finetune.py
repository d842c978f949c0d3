"""The files of a fine-tuning: results, curves, confusion matrix, and a folder that `timm.create_model` takes."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.per_class import per_class_words
from tinyvit_zoo.common.text import count_of
from tinyvit_zoo.data.class_map import readable
from tinyvit_zoo.data.image_dataset import ImageDataset
from tinyvit_zoo.hub import save_folder

from ..finetune import Finetuned, Measured
from ..results import eval_results_entry, record, write
from ..statistics import accuracies, confusion_matrix, wilson
from . import plots
from .imagenet import preprocessing_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['print_finetuned', 'summary', 'write_finetuned']


def summary(result: Finetuned) -> dict[str, Any]:
    """The numbers of a training run; accuracies in %."""
    best = result.history[result.best_epoch - 1]
    numbers: dict[str, Any] = dict(
        epochs=len(result.history),
        best_epoch=result.best_epoch,
        tied_epochs=result.tied_epochs,
        epoch_chosen_by=result.chosen_by,
        training_images=result.training_images,
        validation_images=result.validation_images,
        validation_accuracy=best.validation_accuracy,
        validation_mean_per_class=best.validation_mean_per_class,
    )
    if result.validation is not None:
        numbers |= dict(validation_classes_at_zero=result.validation.classes_at_zero)
    if result.test is not None:
        numbers |= dict(test_images=len(result.test.predictions), **_measured(result.test))
    if result.test_own is not None:
        numbers |= dict(own_preprocessing=_measured(result.test_own))
    return numbers


def _measured(test: Measured) -> dict[str, Any]:
    return dict(
        test_accuracy=test.accuracy,
        test_ci95=wilson(test.accuracy, len(test.predictions)),
        test_mean_per_class=test.mean_per_class,
        test_classes_at_zero=test.classes_at_zero,
        test_preprocessing=test.preprocessing,
    )


def print_finetuned(numbers: Mapping[str, Any], say: Callable[[str], None] = print) -> None:
    """Which epoch results and why, and its accuracy on the test images, also as the model's own configuration has it.

    Args:
        numbers: See `summary`.
        say: Prints a line.
    """
    words = f'Epoch {numbers["best_epoch"]} of {numbers["epochs"]}'
    if not numbers['validation_images']:
        words += ', the last one, as no images choose it'
    else:
        per_class = numbers['validation_mean_per_class']
        zero = numbers.get('validation_classes_at_zero', ())
        mean = '' if per_class is None else f', {per_class_words(per_class, zero)}'
        chosen = count_of(numbers['validation_images'], 'image')
        words += f', chosen with {chosen} ({numbers["validation_accuracy"]:.2f} %{mean})'
    if numbers['tied_epochs'] > 1:
        words += f', the first of {numbers["tied_epochs"]} that are equally good on them'
    if 'test_accuracy' not in numbers:
        say(words)
        return
    low, high = numbers['test_ci95']
    say(
        f'{words}: test accuracy {numbers["test_accuracy"]:.2f} % (95 % interval {low:.2f} to {high:.2f}, '
        f'{count_of(numbers["test_images"], "image")}), {_classes_words(numbers)}'
    )
    own = numbers.get('own_preprocessing')
    if own:
        say(
            f'That is as the recipe evaluates ({preprocessing_words(numbers["test_preprocessing"])}). As the model is '
            f'configured ({preprocessing_words(own["test_preprocessing"])}): {own["test_accuracy"]:.2f} %, '
            f'{_classes_words(own)}'
        )


def _classes_words(numbers: Mapping[str, Any]) -> str:
    return per_class_words(numbers['test_mean_per_class'], numbers['test_classes_at_zero'])


def write_finetuned(
    output: Path,
    result: Finetuned,
    model: nn.Module,
    train: ImageDataset,
    test: ImageDataset | None,
    *,
    name: str,
    weights: str,
    seed: int,
    start: Mapping[str, Any] | None = None,
    teacher: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Write results.json, history.csv, per_class.csv, the figures, an entry for the card, and the model with its labels
    in `model/`.

    Args:
        output: Folder.
        result: Of the training run.
        model: The trained one.
        train: The images it was trained on, the held-out part included.
        test: The images that `result.test` was measured on.
        name: The model's name as the user gave it.
        weights: Where they came from before the training.
        seed: Of the training run.
        start: What it started from, for results.json.
        teacher: What taught it and how, for results.json; None for none.
        say: Prints a line.

    Raises:
        EvaluationError: If the folder cannot be written to, or the model cannot be saved.
        OSError: If `model/` cannot be written to or holds other files. Everything else is written before it.
    """
    recipe = result.recipe
    title = f'{name} ({weights}) on {train.name}, recipe {recipe.name}'
    history = [dict(epoch=i, **asdict(epoch)) for i, epoch in enumerate(result.history, 1)]
    datasets = dict(train=train) if test is None else dict(train=train, test=test)
    head = record('finetune', model=model, dataset=datasets, seed=seed, name=name, weights=weights)
    run = dict(recipe=recipe, precision=result.precision, processes=result.processes, start=start)
    run |= {} if teacher is None else dict(teacher=teacher)
    results = {**head, **run, **summary(result)}
    entries = {test.name: _entry(results, test)} if test is not None and test.complete else {}
    figures = _figures(result, train, test, title)
    tables: dict[str, Sequence[dict[str, Any]]] = dict(history=history)
    if result.test is not None and test is not None:
        tables['per_class'] = _classes(result.test, test)
    write(output, results, tables=tables, figures=figures, eval_results=entries, say=say)
    tag = 'ft_' + re.sub(r'\W+', '_', Path(train.name).name).strip('_').lower()
    try:
        save_folder(model, output / 'model', label_names=train.classes, tag=tag, data_config=recipe.evaluation)
    except ValueError as e:  # a model that its configuration cannot rebuild
        raise EvaluationError(f'The results are written, the model is not; its weights are in best.pt. {e}') from e
    folder = f'local-dir:{output / "model"}'
    say(f'The model: timm.create_model({folder!r}, pretrained=True)')


def _classes(measured: Measured, test: ImageDataset) -> list[dict[str, Any]]:
    counts = confusion_matrix(test.labels, measured.predictions, len(test.classes))
    rows = zip(readable(test.classes), counts.sum(axis=1).tolist(), accuracies(counts).tolist(), strict=True)
    return [dict(label=i, name=name, images=images, accuracy=top1) for i, (name, images, top1) in enumerate(rows)]


def _figures(result: Finetuned, train: ImageDataset, test: ImageDataset | None, title: str) -> dict[str, 'Figure']:
    """Curves of loss and held-out accuracy, and the confusion matrix of the test images, as far as there are any."""
    losses = {'training': [epoch.loss for epoch in result.history]}
    figures = {}
    if result.validation_images:
        losses['held out'] = [cast(float, epoch.validation_loss) for epoch in result.history]
        accuracy = {'held out': [cast(float, epoch.validation_accuracy) for epoch in result.history]}
        per_class = [epoch.validation_mean_per_class for epoch in result.history]
        if None not in per_class:  # some are of an earlier version
            accuracy['held out, mean per class'] = cast(list[float], per_class)
        figures['accuracy'] = plots.learning_curves(accuracy, title=title)
    figures['loss'] = plots.learning_curves(losses, title=title, y_label='loss')
    if result.test is not None and test is not None:
        counts = confusion_matrix(test.labels, result.test.predictions, len(train.classes))
        figures['confusion'] = plots.confusion(counts, train.classes, title=title)
        figures['per_class'] = plots.per_class_bars(accuracies(counts), readable(train.classes), title=title)
    return figures


def _entry(results: dict[str, Any], test: ImageDataset) -> str | None:
    recipe, weights = results['recipe'].name, Path(results['weights']).name
    evaluation = preprocessing_words(results['test_preprocessing'])
    note = f'top-1 accuracy, %; {evaluation}; trained by the recipe {recipe}, from weights: {weights}'
    return eval_results_entry(test.name, results['test_accuracy'], notes=note)
