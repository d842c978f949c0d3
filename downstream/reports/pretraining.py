"""What a pre-training leaves: results, loss curves, the encoder as a folder, the whole form, and what to do next."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.files import new_file
from tinyvit_zoo.data.image_dataset import ImageDataset
from tinyvit_zoo.hub.folder import save_folder, write_safetensors
from tinyvit_zoo.training.pretraining_forms import Encoder
from tinyvit_zoo.training.train_task import Trained

from .training import write_training

__all__ = ['FINETUNE', 'FORM', 'finetune_words', 'write_pretrained']

FORM = 'form.safetensors'
FINETUNE = 'finetune'
TAG = 'pretrained'


def write_pretrained(
    output: Path,
    kind: str,
    result: Trained,
    form: nn.Module,
    encoder: Encoder,
    dataset: ImageDataset,
    *,
    data: Sequence[str],
    seed: int,
    details: Mapping[str, Any],
    say: Callable[[str], None] = print,
) -> None:
    """Write results.json, history.csv, loss.png, the encoder as `model`, the whole form, and print how to go on.

    Args:
        output: Folder of the training.
        kind: 'tinymim', 'mae', 'd_mae' or 'mocov3'.
        result: Of the training.
        form: All that was trained, adapters and decoder, and the teacher of D-MAE as in its released files.
        encoder: See `pretraining_forms.encoder_of`.
        dataset: What it was trained on.
        data: Its name on the command line, and options that say where it is.
        seed: Of the training.
        details: What else goes into `results.json`.
        say: Prints a line.

    Raises:
        EvaluationError: If the folder cannot be written to.
    """
    heads, then = encoder.heads
    write_training(
        output, kind, result, encoder.model, dataset, name=encoder.name, weights=f'random (seed {seed})', seed=seed,
        title=f'{kind}: {encoder.name}', details=dict(heads=heads, heads_in_finetuning=then, **details), say=say,
    )  # fmt: skip
    state_dict = {key: tensor.detach().cpu().contiguous() for key, tensor in form.state_dict().items()}
    try:
        with new_file(output / FORM) as new:
            write_safetensors(state_dict, new)
        if encoder.ready is not None:
            save_folder(encoder.ready, output / FINETUNE, tag=f'{kind}_{TAG}')
    except OSError as e:
        raise EvaluationError(f'{e} The same command again writes the rest.') from e
    if heads != then:
        say(
            f'Pre-trained with {heads} heads, fine-tuned with {then} as the released code does: the same weights '
            f'compute something else. --keep-heads keeps {heads}.'
        )
    say(f'Next: {finetune_words(output, encoder, data)}')


def finetune_words(output: Path, encoder: Encoder, data: Sequence[str]) -> str:
    """The command that fine-tunes the encoder, as a shell takes it."""
    height, width = encoder.model.patch_embed.img_size  # type: ignore[union-attr, misc]  # of a plain ViT
    model = [encoder.finetuned, '--weights', str(output / 'model')]
    if encoder.ready is not None:
        model = [str(output / FINETUNE)]
    elif (height, width) != (224, 224):
        model += ['--img-size', str(height) if height == width else f'{height}x{width}']
    return shlex.join(['tinyvit-zoo', 'finetune', *model, '--as-init', '-d', *data, '-o', f'{output}-finetuned'])
