"""Load a released (or own) pre-training file into a pre-training form, with every tensor accounted for."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from ..checkpoints import (
    PLAIN_VIT_KEYS,
    CheckpointError,
    Evidence,
    check_keys,
    clues_of,
    find_heads,
    heads_of,
    read_checkpoint,
    read_with_clues,
    unwrap,
    with_counters,
)
from .d_mae import DMae
from .mae import MaskedAutoencoder
from .moco import MocoV3
from .tinymim import RelationEncoder

__all__ = ['load_pretraining']

_logger = logging.getLogger(__name__)

PretrainingForm = RelationEncoder | MaskedAutoencoder | DMae | MocoV3


def load_pretraining(
    model: PretrainingForm, checkpoint: str | Path | Mapping[str, torch.Tensor], part: str | None = None
) -> None:
    """Load a checkpoint into a pre-training form, in place.

    Names and shapes in the checkpoint must be those of the form, without exception on either side. Only what a file
    holds in addition to the model is left out: a decoder or projector where a `RelationEncoder` needs the encoder
    (Meta's `mae_visualize_vit_*`), teacher and adapters of a D-MAE file where a `MaskedAutoencoder` needs the student.
    `DMae` and `MocoV3` need the whole file.

    Positions are not resized: build the form at the image size of the file, load, then use `set_input_size`.

    Args:
        model: The form. In its released sizes, a released file reproduces the loss that its authors had.
        checkpoint: File or folder, see `read_checkpoint`, or what was loaded from one; under the form's own names or,
            for a `RelationEncoder`, those of its `vit`.
        part: Which of several models in the checkpoint, see `checkpoints.read_checkpoint`.

    Raises:
        WeightsNotFoundError: If there is no such file.
        CheckpointError: If it is not a checkpoint, does not fit, or is known to be of a model with other heads. If
            nothing in the checkpoint shows the number of heads, a warning says so.
    """
    whole = isinstance(model, DMae | MocoV3)
    state_dict, evidence, origin = _read(checkpoint, whole, part)
    encoder = model.vit if isinstance(model, RelationEncoder) else model
    if isinstance(model, RelationEncoder):
        if all(key.startswith('vit.') for key in state_dict):
            state_dict = {key.removeprefix('vit.'): tensor for key, tensor in state_dict.items()}
        state_dict, _ = PLAIN_VIT_KEYS.to_ours(state_dict)
    state_dict = with_counters(state_dict, encoder.state_dict())
    check_keys(state_dict, encoder.state_dict(), PLAIN_VIT_KEYS, 'ours', source_chans=0)  # no channels are adapted here
    if not whole:
        _check_heads(heads_of(encoder), evidence, origin)
    encoder.load_state_dict(state_dict)


def _read(
    checkpoint: str | Path | Mapping[str, torch.Tensor], whole: bool, part: str | None
) -> tuple[dict[str, torch.Tensor], Evidence | None, str]:
    """State dict, the evidence of its model's heads (None for a whole training wrapper), and its name in messages."""
    if isinstance(checkpoint, Mapping):
        origin = 'the checkpoint given'
        state_dict, clues = unwrap(checkpoint, origin, whole, part), clues_of(checkpoint)
    elif whole:
        return read_checkpoint(checkpoint, whole, part), None, str(checkpoint)
    else:
        origin = str(checkpoint)
        state_dict, clues = read_with_clues(checkpoint, part)
    return state_dict, find_heads(clues, state_dict), origin


def _check_heads(heads: tuple[int, ...], evidence: Evidence | None, origin: str) -> None:
    """Compare all blocks but the last, which has the heads of its teacher, or of the student that it teaches."""
    if evidence is None:
        _logger.warning(
            'Nothing in %s shows its number of attention heads, and its shapes fit any: this form computes with %d.',
            origin,
            heads[0],
        )
    elif evidence.heads[:-1] != heads[:-1]:
        raise CheckpointError(
            f'{origin} is of a model with {evidence.heads[0]} heads ({evidence.because}), this one has {heads[0]}: it '
            'would load without an error and give wrong results.'
        )
