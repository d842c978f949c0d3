"""What a training from soft labels leaves: results, the curve of its losses, and the model as a folder for timm."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from torch import nn

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data.image_dataset import ImageDataset
from tinyvit_zoo.downstream.results import record, write
from tinyvit_zoo.hub.folder import save_folder
from tinyvit_zoo.soft_labels import Store
from tinyvit_zoo.training.distillation import Distilled

from . import plots

__all__ = ['write_distilled']

LOSSES = ('loss', 'soft', 'hard')


def write_distilled(
    output: Path,
    result: Distilled,
    model: nn.Module,
    dataset: ImageDataset,
    store: Store,
    *,
    name: str,
    weights: str,
    seed: int,
    say: Callable[[str], None] = print,
) -> None:
    """Write results.json, history.csv, loss.png and the folder `model`.

    Args:
        output: Folder of the training.
        result: Of the training.
        model: The student, trained.
        dataset: What it was trained on.
        store: Its soft labels.
        name: Of the student.
        weights: Where they came from before the training.
        seed: Of the training.
        say: Prints a line.

    Raises:
        EvaluationError: If the folder cannot be written to, or the model cannot be saved.
    """
    info = store.info
    labels = dict(
        store=str(store.place), identity=info.identity, teacher=info.teacher, teacher_sha256=info.teacher_sha256,
        form=info.form, k=info.k, epochs=list(result.stored_epochs),
    )  # fmt: skip
    head = record('distill', model=model, dataset=dict(train=dataset), seed=seed, name=name, weights=weights)
    run: dict[str, Any] = dict(
        recipe=result.recipe, precision=result.precision, processes=result.processes, soft_labels=labels,
        loss=result.history[-1]['loss'],
    )  # fmt: skip
    history = [dict(epoch=i, **epoch) for i, epoch in enumerate(result.history, 1)]
    curves = {
        kind: [cast(float, epoch[kind]) for epoch in result.history] for kind in LOSSES if kind in result.history[0]
    }
    title = f'{name} from the soft labels of {info.teacher}'
    figures = dict(loss=plots.learning_curves(curves, title=title, y_label='loss'))
    write(output, {**head, **run}, tables=dict(history=history), figures=figures, eval_results={}, say=say)
    tag = 'distill_' + re.sub(r'\W+', '_', Path(dataset.name).name).strip('_').lower()
    try:
        save_folder(model, output / 'model', label_names=dataset.classes, tag=tag)
    except ValueError as e:  # a model that its configuration cannot rebuild
        raise EvaluationError(f'The results are written, the model is not; its weights are in best.pt. {e}') from e
    say(f"The model: timm.create_model('local-dir:{output / 'model'}', pretrained=True)")
