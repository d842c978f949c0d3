"""What a weight distillation leaves: results, the curve of each part of its loss, and the model as a folder."""

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from tinyvit_zoo.data.image_dataset import ImageDataset
from tinyvit_zoo.distill import WeightDistillation
from tinyvit_zoo.training.distillation import Distilled
from tinyvit_zoo.training.weight_distillation import WeightDistilled

from .training import write_training

__all__ = ['write_minivit']


def write_minivit(
    output: Path,
    result: WeightDistilled | Distilled,
    model: nn.Module,
    dataset: ImageDataset,
    objective: WeightDistillation,
    *,
    name: str,
    weights: str,
    teacher: str | None,
    teacher_weights: str,
    seed: int,
    layer_reserve: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Write results.json, history.csv, loss.png and the folder `model`.

    Args:
        output: Folder of the training.
        result: Of the training, with a teacher at work or from a store.
        model: The student, trained.
        dataset: What it was trained on.
        objective: Parts of the loss and their weights.
        name: Of the student.
        weights: Where they came from before the training.
        teacher: Its name; None where a store has its predictions, and its name.
        teacher_weights: Where those came from; without effect for a store.
        seed: Of the training.
        layer_reserve: Which blocks of those weights stayed, for results.json; None for all.
        say: Prints a line.

    Raises:
        EvaluationError: If the folder cannot be written to, or the model cannot be saved.
    """
    if isinstance(result, WeightDistilled):
        layers = dict(student=list(result.layers[0]), teacher=list(result.layers[1]))
        details: dict[str, Any] = dict(
            teacher=dict(name=teacher, weights=teacher_weights, sha256=result.teacher_sha256), layers=layers
        )
    else:
        info = result.labels
        teacher = info.teacher
        details = dict(
            teacher=dict(name=teacher, sha256=info.teacher_sha256),
            soft_labels=dict(store=result.store, identity=info.identity, k=info.k, epochs=list(result.stored_epochs)),
        )
    write_training(
        output, 'minivit', result, model, dataset, name=name, weights=weights, seed=seed,
        title=f'{name} taught by {teacher}', label_names=dataset.classes,
        details=dict(details, losses=objective), layer_reserve=layer_reserve, say=say,
    )  # fmt: skip
    folder = shlex.quote(str(output))
    say(f'Next: tinyvit-zoo evaluate {folder} -d DATA, tinyvit-zoo finetune {folder} -d DATA -o OUTPUT')
