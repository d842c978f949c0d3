"""What the training of an image encoder for Segment Anything leaves."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinyvit_zoo.training.run_state import BEST
from tinyvit_zoo.training.sam import SamDistilled

from .training import write_losses

__all__ = ['MODEL', 'write_sam_distilled']

MODEL = 'model'


def write_sam_distilled(
    output: Path,
    result: SamDistilled,
    whole: Any = None,
    *,
    name: str,
    weights: str,
    seed: int,
    say: Callable[[str], None] = print,
) -> None:
    """Write results.json, history.csv, loss.png, and the whole model, if there is one, as the folder `model`.

    Args:
        output: Folder of the training.
        result: Of the training.
        whole: A `TinyVitSamModel` of that encoder's form, whose encoder gets the trained weights; None for the encoder
            alone, which is in `best.pt`.
        name: Architecture of the encoder.
        weights: Where they came from before the training.
        seed: Of the training.
        say: Prints a line.

    Raises:
        EvaluationError: If the folder cannot be written to.
        OSError: If the model cannot be saved.
    """
    teacher = result.teacher
    write_losses(
        output, 'sam_distill', result, result.student, result.dataset, name=name, weights=weights, seed=seed,
        title=f'{name} on the maps of {teacher["name"]}', details=dict(teacher=teacher), say=say,
    )  # fmt: skip
    height, width = teacher['img_size']
    say(f'Taught by {teacher["name"]} ({height}x{width}), by its maps of {teacher["channels"]} channels.')
    if whole is None:
        say(f"The encoder: tinyvit_zoo.dense.sam.sam_encoder('{name}', weights={str(output / BEST)!r})")
        return
    from tinyvit_zoo.hub.sam import save_sam

    whole.vision_encoder.load_state_dict(result.student.state_dict())
    folder = save_sam(whole, output / MODEL)
    say(f'The model, with prompt encoder and mask decoder of the teacher: {folder}')
    say(f'Try it: tinyvit-zoo sam segment IMAGE --weights {shlex.quote(str(folder))} --point X,Y -o mask.png')
