"""What a training that measures only its losses leaves: results, the curve of each loss, and the model as a folder."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import nn

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data.image_dataset import ImageDataset
from tinyvit_zoo.downstream.results import record, write
from tinyvit_zoo.hub.folder import save_folder
from tinyvit_zoo.training.train_task import Trained

from . import plots

__all__ = ['write_losses', 'write_training']


def write_training(
    output: Path,
    kind: str,
    result: Trained,
    model: nn.Module,
    dataset: ImageDataset,
    *,
    name: str,
    weights: str,
    seed: int,
    title: str,
    label_names: Sequence[str] | None = None,
    details: Mapping[str, Any] | None = None,
    layer_reserve: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Write results.json, history.csv, loss.png and the folder `model`.

    Args:
        output: Folder of the training.
        kind: What `results.json` calls it, such as 'distill'.
        result: Of the training; every number of its records but 'lr' is a curve.
        model: The model that results.
        dataset: What it was trained on.
        name: Of the model.
        weights: Where they came from before the training.
        seed: Of the training.
        title: Of the figure.
        label_names: Of the classes of the model; None for an encoder.
        details: What else goes into `results.json`.
        layer_reserve: Which blocks of those weights stayed, for `results.json`; None for all.
        say: Prints a line.

    Raises:
        EvaluationError: If the folder cannot be written to, or the model cannot be saved.
    """
    reserved: dict[str, Any] = {} if layer_reserve is None else dict(layer_reserve=layer_reserve)
    write_losses(
        output, kind, result, model, dataset, name=name, weights=weights, seed=seed, title=title,
        details={**(details or {}), **reserved}, say=say,
    )  # fmt: skip
    tag = f'{kind}_' + re.sub(r'\W+', '_', Path(dataset.name).name).strip('_').lower()
    try:
        save_folder(model, output / 'model', label_names=label_names, tag=tag)
    except ValueError as e:  # a model that its configuration cannot rebuild
        raise EvaluationError(f'The results are written, the model is not; its weights are in best.pt. {e}') from e
    folder = f'local-dir:{output / "model"}'
    say(f'The model: timm.create_model({folder!r}, pretrained=True)')


def write_losses(
    output: Path,
    kind: str,
    result: Trained,
    model: nn.Module,
    dataset: ImageDataset,
    *,
    name: str,
    weights: str,
    seed: int,
    title: str,
    details: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Write results.json, history.csv and loss.png. Arguments: see `write_training`.

    Raises:
        EvaluationError: If the folder cannot be written to.
    """
    head = record(kind, model=model, dataset=dict(train=dataset), seed=seed, name=name, weights=weights)
    run: dict[str, Any] = dict(
        recipe=result.recipe, precision=result.precision, processes=result.processes, **(details or {}),
        loss=result.history[-1]['loss'],
    )  # fmt: skip
    history = [dict(epoch=i, **epoch) for i, epoch in enumerate(result.history, 1)]
    curves = {
        loss: [cast(float, epoch[loss]) for epoch in result.history] for loss in result.history[0] if loss != 'lr'
    }
    figures = dict(loss=plots.learning_curves(curves, title=title, y_label='loss'))
    write(output, {**head, **run}, tables=dict(history=history), figures=figures, eval_results={}, say=say)
