"""What a training from soft labels leaves: results, the curve of its losses, and the model as a folder for timm."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from tinyvit_zoo.data.image_dataset import ImageDataset
from tinyvit_zoo.training.distillation import Distilled

from .training import write_training

__all__ = ['write_distilled']


def write_distilled(
    output: Path,
    result: Distilled,
    model: nn.Module,
    dataset: ImageDataset,
    *,
    name: str,
    weights: str,
    seed: int,
    layer_reserve: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Write results.json, history.csv, loss.png and the folder `model`.

    Args:
        output: Folder of the training.
        result: Of the training; says who taught.
        model: The student, trained.
        dataset: What it was trained on.
        name: Of the student.
        weights: Where they came from before the training.
        seed: Of the training.
        layer_reserve: Which blocks of those weights stayed, for results.json; None for all.
        say: Prints a line.

    Raises:
        EvaluationError: If the folder cannot be written to, or the model cannot be saved.
    """
    info, live = result.labels, result.store is None
    labels = dict(
        store=result.store, identity=info.identity, teacher=info.teacher, teacher_sha256=info.teacher_sha256,
        teacher_precision=info.precision, form=info.form, k=info.k, epochs=list(result.stored_epochs),
    )  # fmt: skip
    source = f'the live teacher {info.teacher}' if live else f'the soft labels of {info.teacher}'
    write_training(
        output, 'distill', result, model, dataset, name=name, weights=weights, seed=seed,
        title=f'{name} from {source}', label_names=dataset.classes,
        details=dict(soft_labels=labels), layer_reserve=layer_reserve, say=say,
    )  # fmt: skip
    say(f'Taught by {info.teacher} ({info.precision}), {"live" if live else f"from {result.store}"}; K = {info.k}.')
