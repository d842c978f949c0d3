"""Files of MobileSAM, and of those that follow it, to models of transformers and back."""

from collections.abc import Mapping
from math import isqrt

import torch

from ...checkpoints import (
    SAM_KEYS,
    SAM_POSITIONS,
    CheckpointError,
    check_keys,
    is_whole_sam,
    refuse_other_sam,
    sam_encoder_part,
)
from ...dense.sam import SAM_WINDOWS, encoder_weights
from .config import ARCHITECTURES, check_side, sam_config
from .model import TinyVitSamModel, stored_weights

__all__ = ['official_sam_state_dict', 'sam_from_state_dict']


def sam_from_state_dict(state_dict: Mapping[str, torch.Tensor], img_size: int, rectangular: bool) -> TinyVitSamModel:
    """The model of a whole checkpoint, in evaluation mode; architecture and windows are those of its tensors.

    Args:
        state_dict: Unwrapped, with the names of MobileSAM or ours.
        img_size: Longest side of the images in pixels, a multiple of 16.
        rectangular: See `TinyVitSamConfig`.

    Raises:
        CheckpointError: If it is another model, or a tensor is missing, unknown or of a wrong shape.
        ModelError: If the size does not fit.
    """
    encoder = sam_encoder_part(state_dict)
    refuse_other_sam(encoder)
    if not is_whole_sam(state_dict):
        raise CheckpointError(
            'It has no prompt encoder and no mask decoder, so it is not a whole SAM such as mobile_sam.pt; sam_encoder '
            'takes an image encoder alone.'
        )
    check_side(img_size)
    width = _width(encoder)
    config = sam_config(ARCHITECTURES[width], width, img_size, rectangular, _windows(encoder))
    model = TinyVitSamModel(config).eval()
    model.load_state_dict(_model_weights(state_dict, model), strict=False)
    model.tie_weights()
    return model


def _width(encoder: Mapping[str, torch.Tensor]) -> int:
    """Width of the trunk's last stage, by the neck after it: one of `ARCHITECTURES`."""
    neck = encoder.get('neck.0.weight')
    width = neck.shape[1] if neck is not None and neck.ndim > 1 else None
    if width not in ARCHITECTURES:
        found = 'no neck' if width is None else f'a neck for {width} channels'
        raise CheckpointError(f'The encoder has {found}, and that of a TinyViT has 320, 448 or 576.')
    return width


def _windows(encoder: Mapping[str, torch.Tensor]) -> tuple[int, ...]:
    """Windows of each stage, by the tables of its first block; as released where those say nothing."""
    windows = list(SAM_WINDOWS)
    for stage in range(1, len(windows)):
        for prefix in (f'layers.{stage}', f'trunk.stages.{stage}'):
            table = encoder.get(f'{prefix}.blocks.0.attn.attention_biases')
            side = isqrt(table.shape[-1]) if table is not None and table.ndim == 2 else 0
            if table is not None and side and side**2 == table.shape[-1]:
                windows[stage] = side
    return tuple(windows)


def _model_weights(state_dict: Mapping[str, torch.Tensor], model: TinyVitSamModel) -> dict[str, torch.Tensor]:
    """The weights of a whole model under our names, all accounted for.

    Raises:
        CheckpointError: On a tensor that is missing, unknown or of a wrong shape.
    """
    encoder = encoder_weights(state_dict, model.vision_encoder.encoder())
    rest = {k: v for k, v in state_dict.items() if not k.startswith(('image_encoder.', 'vision_encoder.'))}
    ours, layout = SAM_KEYS.to_ours(rest) if rest else ({}, 'official')
    twin = ours.pop(SAM_POSITIONS[1], None)
    first = ours.get(SAM_POSITIONS[0])
    if twin is not None and (first is None or not torch.equal(first, twin)):
        raise CheckpointError(f'{" and ".join(SAM_POSITIONS)} are not the same matrix, as they must be.')
    weights = {**{f'vision_encoder.{k}': v for k, v in encoder.items()}, **ours}
    check_keys(weights, stored_weights(model), SAM_KEYS, layout)
    return weights


def official_sam_state_dict(model: TinyVitSamModel) -> dict[str, torch.Tensor]:
    """The weights under the names of MobileSAM's file; without the classifier that its encoder has and does not use."""
    return SAM_KEYS.to_official(stored_weights(model))
