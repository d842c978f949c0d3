"""Configuration of a Segment Anything model with a TinyViT encoder, as transformers keeps it in config.json."""

from typing import Any, ClassVar

from ...common.errors import ModelError
from ...common.extras import needs_extra
from ...dense.sam import LEAST, SAM_WINDOWS

with needs_extra('transformers'):
    from transformers import PreTrainedConfig, SamConfig
    from transformers.models.sam.configuration_sam import SamMaskDecoderConfig, SamPromptEncoderConfig

__all__ = [
    'ARCHITECTURES',
    'SIDE',
    'STRIDE',
    'TinyVitSamConfig',
    'TinyVitSamMaskDecoderConfig',
    'TinyVitSamVisionConfig',
    'check_config',
    'check_side',
    'sam_config',
]

STRIDE = 16
SIDE = 1024
ARCHITECTURES = {320: 'tinyvit_5m_224', 448: 'tinyvit_11m_224', 576: 'tinyvit_21m_224'}
"""Architecture of the trunk by the width of its last stage."""


class TinyVitSamVisionConfig(PreTrainedConfig):
    """The image encoder: a TinyViT and SAM's neck.

    Attributes:
        architecture: Name of the TinyViT.
        window_size: Windows of each stage.
        hidden_size: Width of the last stage.
        image_size: Longest side of the images in pixels.
    """

    model_type = 'tinyvit_sam_vision_model'
    base_config_key = 'vision_config'

    architecture: str = ARCHITECTURES[320]
    window_size: list[int] | tuple[int, ...] = SAM_WINDOWS
    hidden_size: int = 320
    output_channels: int = 256
    num_channels: int = 3
    image_size: int = SIDE
    patch_size: int = STRIDE
    num_pos_feats: int = 128
    initializer_range: float = 0.02
    scale: float = 1.0  # of the random positions of a new model, as in the code of SAM


class TinyVitSamMaskDecoderConfig(SamMaskDecoderConfig):
    """SAM's mask decoder with the epsilon of its code, 1e-5: transformers' 1e-6 moves logits of masks by 2e-4."""

    layer_norm_eps: float = 1e-5


class TinyVitSamConfig(SamConfig):
    """A Segment Anything model with a TinyViT encoder.

    Attributes:
        rectangular: Images come without padding of the shorter side, and the map of positions is cropped to theirs. The
            released weights were trained with padding: masks differ a little.
    """

    model_type = 'tinyvit_sam'
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        'prompt_encoder_config': SamPromptEncoderConfig,
        'mask_decoder_config': TinyVitSamMaskDecoderConfig,
        'vision_config': TinyVitSamVisionConfig,
    }

    vision_config: Any = None
    prompt_encoder_config: Any = None
    mask_decoder_config: Any = None
    rectangular: bool = False


def sam_config(
    architecture: str, width: int, img_size: int, rectangular: bool, window_sizes: tuple[int, ...]
) -> TinyVitSamConfig:
    """The configuration of a new model.

    Args:
        architecture: Of the trunk.
        width: Of its last stage.
        img_size: Longest side of the images in pixels.
        rectangular: See `TinyVitSamConfig`.
        window_sizes: Of each stage.
    """
    return TinyVitSamConfig(
        vision_config=dict(
            architecture=architecture, window_size=list(window_sizes), hidden_size=width, image_size=img_size
        ),
        prompt_encoder_config=dict(image_size=img_size),
        rectangular=rectangular,
    )


def check_config(config: TinyVitSamConfig) -> None:
    """Raises: ModelError: If the parts do not fit together."""
    vision, prompt = config.vision_config, config.prompt_encoder_config
    if not isinstance(vision, TinyVitSamVisionConfig):
        raise ModelError(f"The vision_config is a {type(vision).__name__}: a TinyVitSamModel needs TinyViT's own.")
    if (vision.image_size, vision.patch_size) != (prompt.image_size, prompt.patch_size):
        raise ModelError(
            f'vision_config is for images of {vision.image_size} pixels and prompt_encoder_config for '
            f'{prompt.image_size}: give both the same image_size and patch_size.'
        )
    check_side(vision.image_size)
    if vision.patch_size != STRIDE:
        raise ModelError(f'The encoder has a stride of {STRIDE}, not {vision.patch_size}: leave patch_size out.')


def check_side(img_size: int) -> None:
    """Raises: ModelError: If images cannot have this side."""
    if not LEAST <= img_size or img_size % STRIDE:
        raise ModelError(f'img_size must be a multiple of {STRIDE} from {LEAST} on, got {img_size}.')
