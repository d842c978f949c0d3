"""What a training from soft labels leaves: results, the curve of its losses, and the model as a folder for timm."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from tinyvit_zoo.data.image_dataset import ImageDataset
from tinyvit_zoo.soft_labels import Store
from tinyvit_zoo.training.distillation import Distilled

from .training import write_training

__all__ = ['write_distilled']


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
    write_training(
        output, 'distill', result, model, dataset, name=name, weights=weights, seed=seed,
        title=f'{name} from the soft labels of {info.teacher}', label_names=dataset.classes,
        details=dict(soft_labels=labels), say=say,
    )  # fmt: skip
