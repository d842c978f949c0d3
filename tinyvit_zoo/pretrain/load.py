"""Weights of a released (or own) pre-training file into a pre-training form, every tensor accounted for."""

from collections.abc import Mapping
from pathlib import Path

import torch

from ..checkpoints import (
    PLAIN_VIT_KEYS,
    CheckpointError,
    check_keys,
    find_heads,
    heads_of,
    read_checkpoint,
    read_with_clues,
)
from .d_mae import DMae
from .mae import MaskedAutoencoder
from .moco import MocoV3
from .tinymim import RelationEncoder

__all__ = ['load_pretraining']

PretrainingForm = RelationEncoder | MaskedAutoencoder | DMae | MocoV3


def load_pretraining(model: PretrainingForm, checkpoint: str | Path | Mapping[str, torch.Tensor]) -> None:
    """Load a checkpoint into a pre-training form, in place.

    What the form has must be in the checkpoint, in its shape, and the other way round. Left out on purpose is only
    what stands beside the model in a file: a decoder or projector where a `RelationEncoder` wants the encoder (Meta's
    `mae_visualize_vit_*`), teacher and adapters of a D-MAE file where a `MaskedAutoencoder` wants the student. `DMae`
    and `MocoV3` want the whole.

    Positions are not resized: build the form at the image size of the file, load, then use `set_input_size`.

    Args:
        model: The form; in its released sizes the file gives the loss that it gave its authors.
        checkpoint: File or folder, see `read_checkpoint`; or a state dict under the form's own names.

    Raises:
        WeightsNotFoundError: If there is no such file.
        CheckpointError: If it is none, does not fit, or is known to be of a model with other heads.
    """
    if isinstance(model, DMae | MocoV3):
        _fill(model, checkpoint if isinstance(checkpoint, Mapping) else read_checkpoint(checkpoint, whole=True))
        return
    encoder = model.vit if isinstance(model, RelationEncoder) else model
    state_dict = checkpoint
    if not isinstance(checkpoint, Mapping):
        state_dict, clues = read_with_clues(checkpoint)
        evidence = find_heads(clues, state_dict)
        # The last block may differ: it has the heads of the teacher it learnt from, or of the student it teaches.
        if evidence and evidence.heads[:-1] != heads_of(encoder)[:-1]:
            raise CheckpointError(
                f'{checkpoint} is of a model with {evidence.heads[0]} heads ({evidence.because}), this one has '
                f'{heads_of(encoder)[0]}: it would load without an error and compute other numbers.'
            )
    if isinstance(model, RelationEncoder):
        state_dict, _ = PLAIN_VIT_KEYS.to_ours(state_dict)
    _fill(encoder, state_dict)


def _fill(model: torch.nn.Module, state_dict: Mapping[str, torch.Tensor]) -> None:
    check_keys(state_dict, model.state_dict(), PLAIN_VIT_KEYS, 'ours', source_chans=0)  # no channels are adapted here
    model.load_state_dict(state_dict)
