"""The image encoder of a Segment Anything model as an int8 ONNX file, checked by the masks that its decoder finds."""

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..common.errors import ModelError
from ..common.files import new_files
from ..data.sam_images import pixels_of
from ..segment_anything import PromptedDecoder
from ..segment_anything.decoder import STRIDE
from ..segment_anything.export import check_files, export_sam
from .check import Agreement, Check
from .images import calibration_images, check_images
from .quantize import Quantized, check_onnxruntime, open_run, quantize_file

__all__ = ['mask_agreement', 'quantize_sam']

PLACES = (0.25, 0.5, 0.75)
"""Where the points lie whose masks are compared, in parts of height and width: nine prompts an image."""


def quantize_sam(
    model: Any,
    encoder: str | Path | None,
    decoder: str | Path | None,
    calibrate: str,
    check: str | None = None,
    *,
    images: int = 128,
    keep: Sequence[str] = (),
    min_agreement: float | None = None,
    reduce_range: bool = False,
    img_size: tuple[int, int] | None = None,
    dynamic_size: bool = False,
    all_masks: bool = False,
    seed: int = 0,
) -> Quantized:
    """Export a SAM as by `export_sam` and quantize the encoder; the decoder stays in float32.

    Args:
        model: As in `export_sam`.
        encoder: '*.onnx'.
        decoder: Likewise, or None to leave it out. Both files appear once both are whole.
        calibrate: As in `quantize_model`.
        check: As in `quantize_model`.
        images: To calibrate on, at most; 16 at least.
        keep: As in `quantize_file`.
        min_agreement: Mean IoU of masks to reach, as in `quantize_file`.
        reduce_range: As in `quantize_file`.
        img_size: As in `export_sam`; calibrated and checked at this size.
        dynamic_size: As in `export_sam`.
        all_masks: As in `export_sam`.
        seed: Of the draw of images.

    Raises:
        ModelError: If no encoder is asked for, or as `export_sam` and `quantize_file`.
        EvaluationError: If there are too few images, or as `quantize_file`.
        OSError: If a file cannot be written.
    """
    paths = check_files(encoder, decoder)
    if paths[0] is None:
        raise ModelError('Only the encoder becomes int8: name a file for it (--encoder).')
    check_onnxruntime()
    size = img_size or (model.config.prompt_encoder_config.image_size,) * 2
    model = copy.deepcopy(model).float().cpu()

    def transform(image: Image.Image) -> torch.Tensor:
        return pixels_of(image, size)[0]

    calibration = calibration_images(calibrate, images, transform, held_out=check is None, seed=seed)
    others = check_images(check, calibration, transform)
    wanted = [path for path in paths if path is not None]
    # The files are renamed only when both are whole.
    with tempfile.TemporaryDirectory(prefix='int8.') as folder, new_files(*wanted) as (new_encoder, *rest):
        source, new_decoder = Path(folder) / 'encoder.onnx', rest[0] if rest else None
        export_sam(model, source, new_decoder, img_size=img_size, dynamic_size=dynamic_size, all_masks=all_masks)
        done = quantize_file(
            source,
            new_encoder,
            calibration.inputs,
            Check(others, open_run(source), mask_agreement(model, size)),
            keep=keep,
            min_agreement=min_agreement,
            reduce_range=reduce_range,
        )
    return replace(done, path=paths[0])


def mask_agreement(model: Any, size: tuple[int, int]) -> Agreement:
    """Mean IoU of the masks that a model's decoder finds on two maps of an image, over a grid of nine points.

    Args:
        model: As in `export_sam`; it is put into evaluation mode.
        size: (H, W) of the images.
    """
    decoder = PromptedDecoder(model).eval()
    height, width = size
    labels, no_mask = torch.ones(1, 1), torch.zeros(1, 1, 4 * height // STRIDE, 4 * width // STRIDE)
    shape = torch.tensor([float(height), float(width)])

    @torch.no_grad()
    def masks(embeddings: np.ndarray) -> torch.Tensor:
        maps = torch.from_numpy(embeddings)
        points = [torch.tensor([[[x * width, y * height]]]) for y in PLACES for x in PLACES]
        return torch.cat([decoder(maps, point, labels, no_mask, torch.zeros(1), shape)[2] > 0 for point in points])

    def agreement(expected: np.ndarray, actual: np.ndarray) -> float:
        ours, theirs = masks(actual).flatten(1), masks(expected).flatten(1)
        both, either = (ours & theirs).sum(1), (ours | theirs).sum(1)
        return float(torch.where(either > 0, both / either.clamp(min=1), 1.0).mean())

    return agreement
