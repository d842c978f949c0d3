"""Names of Segment Anything with a TinyViT encoder (MobileSAM): the whole model, and its image encoder alone.

Released code: https://github.com/ChaoningZhang/MobileSAM (Apache-2.0). Prompt encoder and mask decoder are those of
https://github.com/facebookresearch/segment-anything (Apache-2.0); ours have the names of transformers' `SamModel`.

Neither map is in `KEY_MAPS`: a SAM is neither a classifier nor a release of the zoo.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from ..common.errors import CheckpointError
from ..common.text import first_few
from .keymap import TINYVIT_KEYS, KeyMap

__all__ = [
    'SAM_ENCODER_KEYS',
    'SAM_KEYS',
    'SAM_POSITIONS',
    'SAM_TRUNK',
    'is_whole_sam',
    'refuse_other_sam',
    'sam_encoder_part',
    'without_classifier',
]

SAM_TRUNK = 'trunk.'
"""Prefix of TinyViT in our encoder."""

OFFICIAL_ENCODER, OUR_ENCODER = 'image_encoder.', 'vision_encoder.'

SAM_POSITIONS = ('shared_image_embedding.positional_embedding', 'prompt_encoder.shared_embedding.positional_embedding')
"""Our two names of the one random matrix that positions are coded with; a saved folder holds the first."""

# The official code classifies with neither of them: its encoder ends before.
CLASSIFIER = ('norm_head.', 'head.')

SAM_ENCODER_KEYS = replace(
    TINYVIT_KEYS,
    family='SAM encoder (TinyViT)',
    prefixes=(
        *(
            (official, SAM_TRUNK + ours)
            for official, ours in TINYVIT_KEYS.prefixes
            if not official.startswith(CLASSIFIER)
        ),
        ('neck.', 'neck.'),
    ),
    head=f'{SAM_TRUNK}head.fc',
    tail=(),
    first_conv=SAM_TRUNK + TINYVIT_KEYS.first_conv,
    signature=(TINYVIT_KEYS.signature[0], SAM_TRUNK + TINYVIT_KEYS.signature[1]),
)
"""The image encoder alone, as `dense.sam.SamImageEncoder` has it."""

_MLP = (('layers.0.', 'proj_in.'), ('layers.1.', 'layers.0.'), ('layers.2.', 'proj_out.'))
_MLPS = ('mask_decoder.iou_prediction_head.', *(f'mask_decoder.output_hypernetworks_mlps.{i}.' for i in range(4)))

SAM_KEYS = KeyMap(
    family='SAM (TinyViT)',
    prefixes=(
        *((OFFICIAL_ENCODER + official, OUR_ENCODER + ours) for official, ours in SAM_ENCODER_KEYS.prefixes),
        ('prompt_encoder.pe_layer.positional_encoding_gaussian_matrix', SAM_POSITIONS[0]),
        ('prompt_encoder.point_embeddings.', 'prompt_encoder.point_embed.'),
        *(
            (f'prompt_encoder.mask_downscaling.{i}.', f'prompt_encoder.mask_embed.{layer}.')
            for i, layer in ((0, 'conv1'), (1, 'layer_norm1'), (3, 'conv2'), (4, 'layer_norm2'), (6, 'conv3'))
        ),
        *(
            (f'mask_decoder.output_upscaling.{i}.', f'mask_decoder.{layer}.')
            for i, layer in ((0, 'upscale_conv1'), (1, 'upscale_layer_norm'), (3, 'upscale_conv2'))
        ),
        *((mlp + official, mlp + ours) for mlp in _MLPS for official, ours in _MLP),
        *((part, part) for part in ('prompt_encoder.', 'mask_decoder.')),
    ),
    leaves=(
        ('.c.', '.conv.'),
        *((f'.norm{i}.', f'.layer_norm{i}.') for i in range(1, 5)),
        ('.norm_final_attn.', '.layer_norm_final_attn.'),
    ),
    ignored=TINYVIT_KEYS.ignored,
    head=f'{OUR_ENCODER}{SAM_TRUNK}head.fc',
    tail=(),
    first_conv=OUR_ENCODER + SAM_ENCODER_KEYS.first_conv,
    signature=(
        OFFICIAL_ENCODER + SAM_ENCODER_KEYS.signature[0],
        OUR_ENCODER + SAM_ENCODER_KEYS.signature[1],
    ),
)
"""The whole model, as `hub.sam.TinyVitSamModel` has it, with the first of `SAM_POSITIONS` alone."""

# A block of the ViT that SAM was released with, after the prefix of the encoder: official, and of transformers.
VIT_BLOCKS = ('blocks.0.attn.qkv.weight', 'layers.0.attn.qkv.weight')
VIT_WIDTHS = {768: 'ViT-B', 1024: 'ViT-L', 1280: 'ViT-H'}


def is_whole_sam(state_dict: Mapping[str, torch.Tensor]) -> bool:
    """Whether a state dict has the prefixes of a whole SAM, official or ours."""
    return any(k.startswith((OFFICIAL_ENCODER, OUR_ENCODER)) for k in state_dict)


def sam_encoder_part(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The image encoder of a whole SAM, without the prefix of its names; everything if it is none."""
    for prefix in (OFFICIAL_ENCODER, OUR_ENCODER):
        part = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        if part:
            return part
    return dict(state_dict)


def refuse_other_sam(encoder: Mapping[str, torch.Tensor]) -> None:
    """Raise for SAM's encoders that are not TinyViT.

    Args:
        encoder: See `sam_encoder_part`.

    Raises:
        CheckpointError: Which names the encoder.
    """
    if TINYVIT_KEYS.layout(list(without_classifier(encoder))) != 'unknown' or _has_trunk(encoder):
        return
    block = next((encoder[name] for name in VIT_BLOCKS if name in encoder), None)
    if block is not None:
        width = block.shape[-1] if block.ndim else 0
        raise CheckpointError(
            f'This is the SAM of a {VIT_WIDTHS.get(width, "ViT")} (width {width}), and only those with a TinyViT are '
            'taken here, such as mobile_sam.pt: load it with SamModel of transformers.'
        )
    raise CheckpointError(
        f'Not a SAM with a TinyViT encoder, such as mobile_sam.pt: the encoder begins with {first_few(encoder)}.'
    )


def _has_trunk(encoder: Mapping[str, torch.Tensor]) -> bool:
    return SAM_ENCODER_KEYS.signature[1] in encoder


def without_classifier(encoder: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the norm and the classifier of TinyViT, official or ours, that an encoder does not use."""
    return {k: v for k, v in encoder.items() if not k.startswith(CLASSIFIER)}
