"""A linear classifier on a frozen backbone, from images to its accuracy: one of four modes of training it.

'live' trains on new crops in every epoch, as MoCo v3 (`linear_probe.live`); 'cached' the same on features that are
computed once (`linear_probe.cached`); 'ridge' and 'logistic' fit one view of each image with many penalties.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data.image_dataset import ImageDataset
from tinyvit_zoo.data.split import check_labels, stratified_split

from . import linear_probe
from .classifiers import logistic, ridge
from .features import extract
from .features.views import probe_transforms

__all__ = ['LRS', 'MODES', 'Parts', 'Result', 'hold_out', 'run', 'smallest_crop']

MODES = ('live', 'cached', 'ridge', 'logistic')
LRS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 3.0, 10.0, 30.0)
"""Learning rates for a batch of 256 images."""

Result = linear_probe.ProbeResult | ridge.RidgeResult | logistic.LogisticResult


class Parts(NamedTuple):
    """Images to train on, to choose with and to test on."""

    train: ImageDataset
    held_out: ImageDataset
    test: ImageDataset


def hold_out(train: ImageDataset, test: ImageDataset, share: float, seed: int) -> Parts:
    """Split a share of every class off the training images.

    Raises:
        EvaluationError: If there are too few images.
    """
    check_labels(train.labels, len(train.classes))
    rest, held_out = stratified_split(train.labels, share, seed)
    return Parts(train.subset(rest), train.subset(held_out), test)


def smallest_crop(dataset: str) -> float:
    """Smallest crop of MoCo v3 as a share of the image: 0.08 on ImageNet and its relatives, 0.05 on other data."""
    return 0.08 if dataset.startswith('imagenet') else 0.05


def run(
    mode: str,
    model: nn.Module,
    parts: Parts,
    *,
    layers: Sequence[str] = ('pooled',),
    lrs: Sequence[float] = LRS,
    weight_decays: Sequence[float] = (0.0,),
    epochs: int = linear_probe.EPOCHS,
    step_batch: int = linear_probe.BATCH_SIZE,
    scale: tuple[float, float] = (0.08, 1.0),
    views: int = 1,
    dtype: torch.dtype = torch.float32,
    batch_size: int | None = None,
    workers: int = 0,
    cache: str | Path | None = None,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Result:
    """Train the classifiers of a grid, choose one on the held-out images and test it once.

    Args:
        mode: One of `MODES`.
        model: Any timm model; it is moved to `device` and otherwise left as it was.
        parts: See `hold_out`.
        layers: See `features.layers.feature_function`; 'ridge' and 'logistic' take one.
        lrs: For a batch of 256 images, in modes 'live' and 'cached', as are all up to `views`.
        weight_decays: Of weights and biases.
        epochs: Passes over the training images.
        step_batch: Images of a training step.
        scale: Area of a crop as a share of the image.
        views: In mode 'cached': views of each training image, augmented if there are several.
        dtype: float32 or bfloat16, of the backbone.
        batch_size: Images of a forward pass; None for the default of the mode.
        workers: Processes that read images.
        cache: Folder that keeps features; not in mode 'live', which sees no crop twice.
        checkpoint: File that the run is resumed from, in modes 'live' and 'cached'.
        seed: Of initial values, order and crops.
        device: Of the computation; None for the model's, and for the CPU in modes that use features.

    Raises:
        EvaluationError: On an unknown mode, settings or images that cannot be used, or if all classifiers diverge.
    """
    if mode not in MODES:
        raise EvaluationError(f"There is no mode '{mode}', choose one of: {', '.join(MODES)}.")
    if mode in ('ridge', 'logistic') and len(layers) > 1:
        raise EvaluationError(f'Mode {mode} takes one layer at a time, not {", ".join(layers)}.')
    training: dict[str, Any] = dict(
        lrs=lrs, weight_decays=weight_decays, epochs=epochs, batch_size=step_batch, checkpoint=checkpoint, seed=seed,
        device=device,
    )  # fmt: skip
    if mode == 'live':
        chunk: dict[str, Any] = {} if batch_size is None else dict(chunk=batch_size)
        return linear_probe.live(
            model,
            parts.train,
            parts.held_out,
            parts.test,
            layers=layers,
            scale=scale,
            dtype=dtype,
            workers=workers,
            **training,
            **chunk,
        )
    cropped, plain = probe_transforms(model, scale)

    def features(part: ImageDataset, layer: str, views: int = 1) -> torch.Tensor:
        return extract(
            model, part, views=views, layers=layer, dtype=dtype, batch_size=batch_size, cache=cache, device=device,
            workers=workers, transform=plain if views == 1 else cropped, seed=seed,
        ).values  # fmt: skip

    if mode == 'cached':
        return _cached(features, parts, layers, views, training)
    train, held_out, test = (features(part, layers[0]).numpy() for part in parts)
    arrays = (train, parts.train.labels, held_out, parts.held_out.labels, test, parts.test.labels)
    classes = len(parts.train.classes)
    if mode == 'ridge':
        return ridge.probe(*arrays, num_classes=classes)
    return logistic.probe(*arrays, num_classes=classes, device=device or 'cpu')


def _cached(
    features: Callable[..., torch.Tensor], parts: Parts, layers: Sequence[str], views: int, training: dict[str, Any]
) -> linear_probe.ProbeResult:
    train = {layer: features(parts.train, layer, views) for layer in layers}
    held_out, test = ({layer: features(part, layer) for layer in layers} for part in parts[1:])
    return linear_probe.cached(
        train, parts.train.labels, held_out, parts.held_out.labels, test, parts.test.labels,
        num_classes=len(parts.train.classes), **{**training, 'device': training['device'] or 'cpu'},
    )  # fmt: skip
