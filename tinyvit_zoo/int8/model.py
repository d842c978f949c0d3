"""A classifier as an int8 ONNX file."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from timm.data import create_transform
from torch import nn

from ..common.errors import EvaluationError, ModelError
from ..common.paths import user_path
from ..common.preprocessing import model_data_config
from ..common.text import count_of, first_few
from ..data.class_map import ClassMap, map_classes
from ..export import check_output, export_model
from .check import Check
from .images import CheckImages, calibration_images, check_images
from .quantize import Quantized, check_onnxruntime, open_run, quantize_file

__all__ = ['quantize_model']

_log = logging.getLogger(__name__)


def quantize_model(
    model: nn.Module,
    output: str | Path,
    calibrate: str,
    check: str | None = None,
    *,
    images: int = 128,
    keep: Sequence[str] = (),
    min_agreement: float | None = None,
    reduce_range: bool = False,
    dynamic_batch: bool = False,
    dynamic_size: bool = False,
    seed: int = 0,
) -> Quantized:
    """Export a classifier, folded and verified as by `export_model`, and quantize the file.

    Args:
        model: A timm model with a classifier for RGB images; it is not changed.
        output: '*.onnx', written whole or not at all.
        calibrate: Folder of images, or name of a data set, that activations are measured on.
        check: Folder or data set to compare int8 with float32 on; None for images of `calibrate` that calibration
            leaves, a quarter at least. Images that calibration saw are left out.
        images: To calibrate on, at most; 16 at least.
        keep: As in `quantize_file`.
        min_agreement: As in `quantize_file`.
        reduce_range: As in `quantize_file`.
        dynamic_batch: As in `export_model`.
        dynamic_size: As in `export_model`; calibrated and checked at the model's own size.
        seed: Of the draw of images.

    Raises:
        ModelError: If the model has no classifier, does not take RGB, or cannot be exported, or as `quantize_file`.
        EvaluationError: If there are too few images, or as `quantize_file`.
        OSError: If the file cannot be written.
    """
    output = user_path(output)
    check_output(output, 'onnx')
    check_onnxruntime()
    if not getattr(model, 'num_classes', 0):
        raise ModelError('int8 is checked by the classes that a model predicts, and this one has no classifier.')
    config = model_data_config(model)
    if config['input_size'][0] != 3:
        raise ModelError(
            f'This model takes {count_of(config["input_size"][0], "channel")}, but images are read as RGB.'
        )
    transform = create_transform(**config, is_training=False)
    calibration = calibration_images(calibrate, images, transform, held_out=check is None, seed=seed)
    others = check_images(check, calibration, transform)
    with tempfile.TemporaryDirectory(prefix='int8.') as folder:
        source = Path(folder) / 'float32.onnx'
        export_model(model, source, dynamic_batch=dynamic_batch, dynamic_size=dynamic_size)
        comparer = Check(others, open_run(source), labels=others.dataset.labels, class_map=_classes(model, others))
        return quantize_file(
            source,
            output,
            calibration.inputs,
            comparer,
            keep=keep,
            min_agreement=min_agreement,
            reduce_range=reduce_range,
        )


def _classes(model: nn.Module, images: CheckImages) -> ClassMap | None:
    """Outputs of the classes of the images; None if there are no two, or nothing says which output stands for which."""
    classes = images.dataset.classes
    if len(classes) < 2:
        return None
    try:
        return map_classes(model, classes)
    except EvaluationError:
        _log.warning(
            '%s: no accuracy, as nothing says which outputs of the model stand for its %d classes (%s).',
            images.dataset.name, len(classes), first_few(classes),
        )  # fmt: skip
        return None
