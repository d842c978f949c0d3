"""Segment Anything with a TinyViT encoder as a model of transformers.

Prompt encoder and mask decoder are transformers' own (Apache-2.0), after
https://github.com/facebookresearch/segment-anything (Apache-2.0).
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from ...checkpoints import SAM_POSITIONS, CheckpointError
from ...common.errors import ModelError
from ...common.extras import needs_extra
from ...common.text import first_few
from ...dense.sam import LEAST, SAM_WINDOWS, SamImageEncoder, sam_encoder
from .config import ARCHITECTURES, SIDE, TinyVitSamConfig, check_config, check_side, sam_config

with needs_extra('transformers'):
    from transformers import AutoConfig, AutoModel, AutoModelForMaskGeneration, SamModel
    from transformers.models.sam.modeling_sam import (
        SamMaskDecoder,
        SamPositionalEmbedding,
        SamPreTrainedModel,
        SamPromptEncoder,
        SamVisionEncoderOutput,
    )

__all__ = ['TinyVitSamModel', 'new_sam', 'stored_weights']


class TinyVitSamVisionEncoder(nn.Module):
    """`SamImageEncoder` behind the interface of transformers' `SamVisionEncoder`, with the same names of tensors."""

    def __init__(self, config: TinyVitSamConfig) -> None:
        super().__init__()
        vision = config.vision_config
        made = sam_encoder(
            vision.architecture, vision.image_size, window_sizes=vision.window_size, out_chans=vision.output_channels
        )
        self.trunk, self.neck = made.trunk, made.neck
        self.config = config

    def get_input_embeddings(self) -> nn.Module:
        return self.trunk.patch_embed

    @property
    def gradient_checkpointing(self) -> bool:
        """What `gradient_checkpointing_enable` of transformers looks for, and sets."""
        return self.trunk.stages[0].grad_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        self.trunk.set_grad_checkpointing(enable)

    def encoder(self) -> SamImageEncoder:
        """The plain encoder, which shares its weights with this one: from images to one tensor."""
        return SamImageEncoder(self.trunk, neck=self.neck).train(self.training)

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> SamVisionEncoderOutput:
        """Images (B, 3, S, S) -> embeddings (B, 256, S / 16, S / 16) as `last_hidden_state`; there are no attentions.

        Images are cast to the dtype of the weights, as processors return float32.

        Raises:
            ValueError: If the images have not the size of the configuration.
        """
        side, (H, W) = self.config.vision_config.image_size, pixel_values.shape[-2:]
        if self.config.rectangular:
            if max(H, W) > side:
                raise ValueError(f'Images of {H}x{W} are larger than {side} pixels: let the processor resize them.')
            pixel_values = F.pad(pixel_values, (0, max(0, LEAST - W), 0, max(0, LEAST - H)))
        elif (H, W) != (side, side):
            raise ValueError(
                f'Images must have {side}x{side} pixels, as the processor makes them, got {H}x{W}; rectangular=True '
                'takes them without padding.'
            )
        pixel_values = pixel_values.to(next(self.neck.parameters()).dtype)
        return SamVisionEncoderOutput(last_hidden_state=self.neck(self.trunk.forward_features(pixel_values)))


class TinyVitSamMaskDecoder(SamMaskDecoder):
    """SAM's mask decoder; positions and dense prompts are cropped to the embeddings of a rectangle."""

    def forward(
        self,
        image_embeddings: torch.Tensor,
        image_positional_embeddings: torch.Tensor,
        sparse_prompt_embeddings: torch.Tensor,
        dense_prompt_embeddings: torch.Tensor,
        multimask_output: bool,
        attention_similarity: torch.Tensor | None = None,
        target_embedding: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `SamMaskDecoder`: embeddings (B, 256, h, w) -> masks (B, prompts, n, 4h, 4w) and their IoU."""
        h, w = image_embeddings.shape[-2:]
        return super().forward(
            image_embeddings,
            image_positional_embeddings[..., :h, :w],
            sparse_prompt_embeddings,
            dense_prompt_embeddings[..., :h, :w],
            multimask_output,
            attention_similarity,
            target_embedding,
        )


class TinyVitSamModel(SamModel):
    """Segment Anything with a TinyViT encoder: transformers' `SamModel` but for the encoder, and used like it."""

    config: TinyVitSamConfig
    vision_encoder: Any  # a `TinyVitSamVisionEncoder`, where `SamModel` has its own

    def __init__(self, config: TinyVitSamConfig) -> None:
        """
        Args:
            config: Its `vision_config` names the TinyViT.

        Raises:
            ModelError: If the configuration does not fit together.
        """
        SamPreTrainedModel.__init__(self, config)  # that of SamModel would make SAM's own encoder
        check_config(config)
        self.shared_image_embedding = SamPositionalEmbedding(config.vision_config)
        self.vision_encoder = TinyVitSamVisionEncoder(config)
        self.prompt_encoder = SamPromptEncoder(config)
        config.mask_decoder_config._attn_implementation = config._attn_implementation
        self.mask_decoder = TinyVitSamMaskDecoder(config.mask_decoder_config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if hasattr(module, 'init_non_persistent_buffers'):
            cast(Any, module).init_non_persistent_buffers()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, but a tensor that is missing, unexpected or of another shape is an error, not a warning.

        Raises:
            CheckpointError: On such a tensor.
        """
        wants_info = kwargs.pop('output_loading_info', False)
        parent: Any = super()
        model, info = parent.from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        _refuse_differences(info, str(pretrained_model_name_or_path))
        _settle(model)
        return (model, info) if wants_info else model


AutoConfig.register(TinyVitSamConfig.model_type, TinyVitSamConfig, exist_ok=True)
AutoModel.register(TinyVitSamConfig, TinyVitSamModel, exist_ok=True)
AutoModelForMaskGeneration.register(TinyVitSamConfig, TinyVitSamModel, exist_ok=True)


def _refuse_differences(info: Mapping[str, Any], origin: str) -> None:
    parts = [
        f'{len(info[kind])} {words} ({first_few(sorted(map(str, info[kind])))})'
        for kind, words in (('missing_keys', 'missing'), ('unexpected_keys', 'unknown'), ('mismatched_keys', 'wrong'))
        if info.get(kind)
    ]
    if parts:
        raise CheckpointError(f'{origin} is not a whole {TinyVitSamModel.__name__}: tensors {", ".join(parts)}.')


def _settle(model: nn.Module) -> None:
    """Make a loaded model the same, to the last bit, as the one that was saved.

    Its index buffers, made on the meta device, hold whatever was in memory. Its weights may be views of the file, at
    addresses that no allocation has, and matrix products then take other kernels.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if not tensor.is_meta:
            tensor.data = tensor.data.clone()
    for module in model.modules():
        if hasattr(module, 'init_non_persistent_buffers'):
            cast(Any, module).init_non_persistent_buffers()


def new_sam(
    architecture: str = ARCHITECTURES[320],
    img_size: int = SIDE,
    encoder: SamImageEncoder | None = None,
    rectangular: bool = False,
    window_sizes: tuple[int, ...] = SAM_WINDOWS,
) -> TinyVitSamModel:
    """A model with random weights, but for an encoder that is given; in evaluation mode.

    Args:
        architecture: Of the trunk: a TinyViT of this package.
        img_size: Longest side of the images in pixels, a multiple of 16.
        encoder: Whose weights the new model's encoder gets, such as one that a release started (`sam_encoder`).
        rectangular: See `TinyVitSamConfig`.
        window_sizes: Of each stage.

    Raises:
        ModelError: If there is no such TinyViT, or the size does not fit.
    """
    check_side(img_size)
    started = sam_encoder(architecture, img_size, window_sizes=window_sizes) if encoder is None else encoder
    config = sam_config(architecture, started.trunk.num_features, img_size, rectangular, window_sizes)
    model = TinyVitSamModel(config).eval()
    try:
        model.vision_encoder.load_state_dict(started.state_dict())  # transformers has drawn them its own way
    except RuntimeError as e:
        raise ModelError(f'The encoder given is not that of a {architecture} with these windows: name its own.') from e
    return model


def stored_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict, with the matrix of positions once."""
    return {k: v for k, v in model.state_dict().items() if k != SAM_POSITIONS[1]}
