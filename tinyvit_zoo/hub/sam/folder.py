"""A Segment Anything model as a folder of transformers: loaded, saved, converted from a file of MobileSAM."""

from collections.abc import Mapping
from pathlib import Path

import torch

from ...checkpoints import (
    SAM_KEYS,
    CheckpointError,
    WeightsNotFoundError,
    check_finite,
    check_keys,
    read_checkpoint,
    unwrap,
    warn_nonfinite,
)
from ...common.errors import ModelError
from ...common.folders import check_replaceable, swap_in
from ...common.paths import read_json, user_path
from ...common.text import reason
from ..folder import write_safetensors
from .card import render_sam_card
from .checkpoint import sam_from_state_dict
from .config import SIDE, STRIDE, TinyVitSamConfig
from .model import TinyVitSamModel, stored_weights
from .processor import sam_processor

__all__ = ['FILES', 'check_sam_folder', 'convert_sam', 'load_sam', 'save_sam']

CONFIG, WEIGHTS, PROCESSOR, CARD = 'config.json', 'model.safetensors', 'processor_config.json', 'README.md'
FILES = (CONFIG, WEIGHTS, PROCESSOR, CARD)


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
        return sam_from_state_dict(state_dict, img_size or SIDE, bool(rectangular))
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
        raise CheckpointError(
            f'{folder} cannot be loaded ({reason(e)}): convert its source again, or download or copy it anew.'
        ) from e


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
        tensors = {k: v.detach().cpu().contiguous() for k, v in stored_weights(model).items()}
        write_safetensors(tensors, new / WEIGHTS)
        (new / CARD).write_text(render_sam_card(model.config, sum(p.numel() for p in model.parameters()), source))
        with torch.device('meta'):
            check_keys(tensors, stored_weights(TinyVitSamModel(config)), SAM_KEYS, 'ours')
    return folder


def check_sam_folder(folder: str | Path) -> None:
    """See that `save_sam` can write a folder: before a training, not after it.

    Raises:
        FileExistsError: If the folder holds other files.
        OSError: If it cannot be written.
    """
    check_replaceable(user_path(folder).resolve(), FILES)


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
