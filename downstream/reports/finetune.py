"""The files of a fine-tuning: results, curves, confusion matrix, and a folder that `timm.create_model` takes."""

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data.image_dataset import ImageDataset
from tinyvit_zoo.hub import save_folder

from ..finetune import Finetuned
from ..results import eval_results_entry, record, write
from ..statistics import confusion_matrix, wilson
from . import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['summary', 'write_finetuned']


def summary(result: Finetuned) -> dict[str, Any]:
    """The numbers of a training run; accuracies in %."""
    best = result.history[result.best_epoch - 1]
    numbers: dict[str, Any] = dict(
        epochs=len(result.history),
        best_epoch=result.best_epoch,
        validation_images=result.validation_images,
        validation_accuracy=best.validation_accuracy,
    )
    if result.test is not None:
        accuracy, images = result.test.accuracy, len(result.test.predictions)
        numbers |= dict(test_images=images, test_accuracy=accuracy, test_ci95=wilson(accuracy, images))
    return numbers


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
    say: Callable[[str], None] = print,
) -> None:
    """Write results.json, history.csv, the figures, an entry for the card, and the model with its labels in `model/`.

    Args:
        output: Folder.
        result: Of the training run.
        model: The trained one.
        train: The images it was trained on, the held-out part included.
        test: The images that `result.test` was measured on.
        name: The model's name as the user gave it.
        weights: Where they came from before the training.
        seed: Of the training run.
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
    run = dict(recipe=recipe, precision=result.precision, processes=result.processes)
    results = {**head, **run, **summary(result)}
    entries = {test.name: _entry(results, test)} if test is not None and test.complete else {}
    figures = _figures(result, train, test, title)
    write(output, results, tables=dict(history=history), figures=figures, eval_results=entries, say=say)
    crop = {} if recipe.crop_pct is None else dict(crop_pct=recipe.crop_pct)
    tag = 'ft_' + re.sub(r'\W+', '_', Path(train.name).name).strip('_').lower()
    try:
        save_folder(model, output / 'model', label_names=train.classes, tag=tag, data_config=crop)
    except ValueError as e:  # a model that its configuration cannot rebuild
        raise EvaluationError(f'The results are written, the model is not; its weights are in best.pt. {e}') from e
    say(f"The model: timm.create_model('local-dir:{output / 'model'}', pretrained=True)")


def _figures(result: Finetuned, train: ImageDataset, test: ImageDataset | None, title: str) -> dict[str, 'Figure']:
    """Curves of loss and held-out accuracy, and the confusion matrix of the test images, as far as there are any."""
    losses = {'training': [epoch.loss for epoch in result.history]}
    figures = {}
    if result.validation_images:
        losses['held out'] = [cast(float, epoch.validation_loss) for epoch in result.history]
        accuracy = {'held out': [cast(float, epoch.validation_accuracy) for epoch in result.history]}
        figures['accuracy'] = plots.learning_curves(accuracy, title=title)
    figures['loss'] = plots.learning_curves(losses, title=title, y_label='loss')
    if result.test is not None and test is not None:
        counts = confusion_matrix(test.labels, result.test.predictions, len(train.classes))
        figures['confusion'] = plots.confusion(counts, train.classes, title=title)
    return figures


def _entry(results: dict[str, Any], test: ImageDataset) -> str | None:
    recipe, weights = results['recipe'].name, Path(results['weights']).name
    note = f'top-1 accuracy, %; trained by the recipe {recipe}, from weights: {weights}'
    return eval_results_entry(test.name, results['test_accuracy'], notes=note)
