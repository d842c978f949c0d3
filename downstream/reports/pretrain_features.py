"""What a training on a teacher's features leaves."""

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tinyvit_zoo.training.features import FeatureDistilled

from .training import write_training

__all__ = ['write_feature_distilled']


def write_feature_distilled(
    output: Path,
    result: FeatureDistilled,
    *,
    name: str,
    weights: str,
    seed: int,
    layer_reserve: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Write results.json, history.csv, loss.png and the encoder as the folder `model`.

    Args:
        output: Folder of the training.
        result: Of the training.
        name: Of the student.
        weights: Where they came from before the training.
        seed: Of the training.
        layer_reserve: Which blocks of those weights stayed, for results.json; None for all.
        say: Prints a line.

    Raises:
        EvaluationError: If the folder cannot be written to, or the model cannot be saved.
    """
    teacher = result.teacher
    write_training(
        output, 'features', result, result.student, result.dataset, name=name, weights=weights, seed=seed,
        title=f'{name} on the features of {teacher["name"]}',
        details=dict(teacher=teacher, feature_loss=result.loss, dense_weight=result.dense_weight),
        layer_reserve=layer_reserve, say=say,
    )  # fmt: skip
    height, width = teacher['img_size']
    say(f'Taught by {teacher["name"]} ({height}x{width}), whose features it fits by {result.loss}.')
    say(f'Next: tinyvit-zoo finetune {shlex.quote(name)} --weights {shlex.quote(str(output))} -d DATA -o DIR')
