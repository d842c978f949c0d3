"""Segment Anything with a TinyViT encoder as a model of transformers: its classes, folders, and files of MobileSAM.

Importing this file registers `TinyVitSamConfig` with `AutoConfig`, and `TinyVitSamModel` with `AutoModel` and
`AutoModelForMaskGeneration`. Prompt encoder and mask decoder are transformers' own (Apache-2.0), after
https://github.com/facebookresearch/segment-anything (Apache-2.0).

Plain `SamModel.from_pretrained` cannot read such a folder: in transformers 5.24 it stops at the list of windows, where
SAM's own encoder has one number.
"""

from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import nn

from ..checkpoints import (
    SAM_KEYS,
    SAM_POSITIONS,
    CheckpointError,
    WeightsNotFoundError,
    check_finite,
    check_keys,
    is_whole_sam,
    read_checkpoint,
    refuse_other_sam,
    sam_encoder_part,
    unwrap,
    warn_nonfinite,
)
from ..common.errors import ModelError
from ..common.extras import needs_extra
from ..common.folders import check_replaceable, swap_in
from ..common.paths import read_json, user_path
from ..common.text import first_few, reason
from ..dense.sam import LEAST, SAM_WINDOWS, SamImageEncoder, encoder_weights, sam_encoder
from .folder import write_safetensors
from .sam_card import render_sam_card

with needs_extra('transformers'):
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForMaskGeneration,
        PreTrainedConfig,
        SamConfig,
        SamImageProcessor,
        SamModel,
        SamProcessor,
    )
    from transformers.models.sam.configuration_sam import SamMaskDecoderConfig, SamPromptEncoderConfig
    from transformers.models.sam.modeling_sam import (
        SamMaskDecoder,
        SamPositionalEmbedding,
        SamPreTrainedModel,
        SamPromptEncoder,
        SamVisionEncoderOutput,
    )

__all__ = [
    'TinyVitSamConfig',
    'TinyVitSamModel',
    'check_sam_folder',
    'convert_sam',
    'load_sam',
    'new_sam',
    'official_sam_state_dict',
    'sam_masks',
    'sam_processor',
    'save_sam',
]

STRIDE = 16
SIDE = 1024
ARCHITECTURES = {320: 'tinyvit_5m_224', 448: 'tinyvit_11m_224', 576: 'tinyvit_21m_224'}
"""Architecture of the trunk by the width of its last stage."""

CONFIG, WEIGHTS, PROCESSOR, CARD = 'config.json', 'model.safetensors', 'processor_config.json', 'README.md'
FILES = (CONFIG, WEIGHTS, PROCESSOR, CARD)


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
        _check_config(config)
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


def _check_config(config: TinyVitSamConfig) -> None:
    vision, prompt = config.vision_config, config.prompt_encoder_config
    if not isinstance(vision, TinyVitSamVisionConfig):
        raise ModelError(f"The vision_config is a {type(vision).__name__}: a TinyVitSamModel needs TinyViT's own.")
    if (vision.image_size, vision.patch_size) != (prompt.image_size, prompt.patch_size):
        raise ModelError(
            f'vision_config is for images of {vision.image_size} pixels and prompt_encoder_config for '
            f'{prompt.image_size}: give both the same image_size and patch_size.'
        )
    _check_side(vision.image_size)
    if vision.patch_size != STRIDE:
        raise ModelError(f'The encoder has a stride of {STRIDE}, not {vision.patch_size}: leave patch_size out.')


def _check_side(img_size: int) -> None:
    if not LEAST <= img_size or img_size % STRIDE:
        raise ModelError(f'img_size must be a multiple of {STRIDE} from {LEAST} on, got {img_size}.')


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
    _check_side(img_size)
    started = sam_encoder(architecture, img_size, window_sizes=window_sizes) if encoder is None else encoder
    config = _config(architecture, started.trunk.num_features, img_size, rectangular, window_sizes)
    model = TinyVitSamModel(config).eval()
    try:
        model.vision_encoder.load_state_dict(started.state_dict())  # transformers has drawn them its own way
    except RuntimeError as e:
        raise ModelError(f'The encoder given is not that of a {architecture} with these windows: name its own.') from e
    return model


def _config(
    architecture: str, width: int, img_size: int, rectangular: bool, window_sizes: tuple[int, ...]
) -> TinyVitSamConfig:
    return TinyVitSamConfig(
        vision_config=dict(
            architecture=architecture, window_size=list(window_sizes), hidden_size=width, image_size=img_size
        ),
        prompt_encoder_config=dict(image_size=img_size),
        rectangular=rectangular,
    )


def load_sam(
    source: str | Path | Mapping, img_size: int | None = None, rectangular: bool | None = None, part: str | None = None
) -> TinyVitSamModel:
    """A whole SAM with a TinyViT encoder, in evaluation mode.

    Args:
        source: A folder that `save_sam` or `save_pretrained` wrote; or a file, or a loaded checkpoint, with the names
            of MobileSAM or ours.
        img_size: Longest side of the images in pixels, a multiple of 16. Default: that of the folder, 1024 for a file.
        rectangular: See `TinyVitSamConfig`. Default: as the folder has it, False for a file.
        part: Which of several models in a file, see `checkpoints.read_checkpoint`.

    Raises:
        CheckpointError: If it cannot be found or read, is another model, or a tensor is missing, unknown or of a wrong
            shape.
        ModelError: If the size or the configuration does not fit.
    """
    if not isinstance(source, Mapping) and user_path(source, WeightsNotFoundError).is_dir():
        return _load_folder(user_path(source), img_size, rectangular)
    origin = 'the state dict given' if isinstance(source, Mapping) else str(source)
    if isinstance(source, Mapping):
        state_dict = unwrap(source, origin, whole=True, part=part)
    else:
        state_dict = read_checkpoint(source, whole=True, part=part)
    warn_nonfinite(state_dict, origin)
    try:
        return _from_state_dict(state_dict, img_size or SIDE, bool(rectangular))
    except CheckpointError as e:
        raise CheckpointError(f'{origin}: {e}') from e


def _load_folder(folder: Path, img_size: int | None, rectangular: bool | None) -> TinyVitSamModel:
    if not (folder / CONFIG).is_file():
        raise WeightsNotFoundError(
            f'{folder} holds no {CONFIG}: name a folder of `tinyvit-zoo sam convert`, or a file.'
        )
    try:
        kind = read_json(folder / CONFIG).get('model_type')
    except (ValueError, AttributeError) as e:
        raise CheckpointError(f'{folder / CONFIG} is not a configuration of a model ({reason(e)}).') from e
    if kind != TinyVitSamConfig.model_type:
        raise CheckpointError(
            f'{folder} is a model of type {kind}, not {TinyVitSamConfig.model_type}: the SAM of a ViT is loaded with '
            'SamModel of transformers.'
        )
    try:
        config = TinyVitSamConfig.from_pretrained(folder, local_files_only=True)
        if img_size is not None:
            config.vision_config.image_size = config.prompt_encoder_config.image_size = img_size
            config.prompt_encoder_config.image_embedding_size = img_size // STRIDE
        if rectangular is not None:
            config.rectangular = rectangular
        return TinyVitSamModel.from_pretrained(folder, config=config, local_files_only=True).eval()
    except (CheckpointError, ModelError):
        raise
    except Exception as e:  # damaged files of any kind, in transformers
        raise CheckpointError(f'{folder} cannot be loaded ({reason(e)}).') from e


def _from_state_dict(state_dict: Mapping[str, torch.Tensor], img_size: int, rectangular: bool) -> TinyVitSamModel:
    encoder = sam_encoder_part(state_dict)
    refuse_other_sam(encoder)
    if not is_whole_sam(state_dict):
        raise CheckpointError(
            'It has no prompt encoder and no mask decoder, so it is not a whole SAM such as mobile_sam.pt; sam_encoder '
            'takes an image encoder alone.'
        )
    _check_side(img_size)
    width = _width(encoder)
    config = _config(ARCHITECTURES[width], width, img_size, rectangular, _windows(encoder))
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
    check_keys(weights, _stored(model), SAM_KEYS, layout)
    return weights


def official_sam_state_dict(model: TinyVitSamModel) -> dict[str, torch.Tensor]:
    """The weights under the names of MobileSAM's file; without the classifier that its encoder has and does not use."""
    return SAM_KEYS.to_official(_stored(model))


def sam_processor(config: TinyVitSamConfig) -> SamProcessor:
    """The processor of a model: resizes to its image size, normalizes, then pads unless the model is `rectangular`."""
    side = config.vision_config.image_size
    square = {'height': side, 'width': side}
    return SamProcessor(
        SamImageProcessor(
            size={'longest_edge': side},
            pad_size=square,
            do_pad=not config.rectangular,
            mask_size={'longest_edge': side // 4},
            mask_pad_size={key: value // 4 for key, value in square.items()},
        )
    )


def sam_masks(
    pred_masks: torch.Tensor, original_sizes: Any, reshaped_input_sizes: Any, binarize: bool = True
) -> list[torch.Tensor]:
    """Masks at the size of their images; as `SamProcessor.post_process_masks`, also for a `rectangular` model.

    Args:
        pred_masks: Logits (B, prompts, n, h, w), at a quarter of the images' resolution.
        original_sizes: (H, W) of each image, from the processor.
        reshaped_input_sizes: (H, W) that the processor resized each to.
        binarize: Whether the result is bool, True inside; else logits.

    Returns:
        (prompts, n, H, W) of each image.
    """
    inside = [4 * side for side in pred_masks.shape[-2:]]
    masks = []
    for logits, original, resized in zip(pred_masks, original_sizes, reshaped_input_sizes, strict=True):
        whole = F.interpolate(logits, inside, mode='bilinear', align_corners=False)
        cropped = whole[..., : int(resized[0]), : int(resized[1])]
        mask = F.interpolate(cropped, [int(side) for side in original], mode='bilinear', align_corners=False)
        masks.append(mask > 0 if binarize else mask)
    return masks


def save_sam(model: TinyVitSamModel, folder: str | Path, source: str | None = None) -> Path:
    """Write config.json, model.safetensors, the processor and a card. The folder appears whole or not at all.

    Args:
        model: Not folded.
        folder: Destination. An existing folder is replaced after everything was written, and only if it holds nothing
            but the files of an earlier call.
        source: What the weights were converted from, for the card; None for weights of your own.

    Returns:
        The folder.

    Raises:
        CheckpointError: If what was written is not the model, such as after folding.
        FileExistsError: If the folder holds other files.
        OSError: If it cannot be written.
    """
    folder = user_path(folder).resolve()
    with swap_in(folder, replaces=FILES) as new:
        config = type(model.config).from_dict(model.config.to_dict())
        config.architectures = [type(model).__name__]
        config.dtype = model.dtype
        config.save_pretrained(new)
        sam_processor(config).save_pretrained(new)
        tensors = {k: v.detach().cpu().contiguous() for k, v in _stored(model).items()}
        write_safetensors(tensors, new / WEIGHTS)
        (new / CARD).write_text(render_sam_card(model.config, sum(p.numel() for p in model.parameters()), source))
        with torch.device('meta'):
            check_keys(tensors, _stored(TinyVitSamModel(config)), SAM_KEYS, 'ours')
    return folder


def check_sam_folder(folder: str | Path) -> None:
    """See that `save_sam` can write a folder: before a training, not after it.

    Raises:
        FileExistsError: If the folder holds other files.
        OSError: If it cannot be written.
    """
    check_replaceable(user_path(folder).resolve(), FILES)


def _stored(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict, with the matrix of positions once."""
    return {k: v for k, v in model.state_dict().items() if k != SAM_POSITIONS[1]}


def convert_sam(
    source: str | Path,
    folder: str | Path,
    img_size: int | None = None,
    part: str | None = None,
    allow_nonfinite: bool = False,
) -> tuple[TinyVitSamModel, Path]:
    """Write a file of MobileSAM, or of another SAM with a TinyViT, as a folder of transformers.

    Args:
        source: File, or folder whose weights are to get another size.
        folder: See `save_sam`.
        img_size: See `load_sam`.
        part: See `load_sam`.
        allow_nonfinite: Also convert weights that hold NaN or infinity.

    Returns:
        The model, and the folder.

    Raises:
        CheckpointError: See `load_sam`; or if the weights hold NaN or infinity.
        ModelError: If the size does not fit.
        FileExistsError: If the folder holds other files.
        OSError: If it cannot be written.
    """
    check_sam_folder(folder)
    model = load_sam(source, img_size, part=part)
    check_finite(model.state_dict(), str(source), allow_nonfinite)
    return model, save_sam(model, folder, user_path(source).resolve().name)
