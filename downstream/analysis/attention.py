"""Distance and entropy of each head's attention (MAE-Lite Fig. 5), from what a model itself computes.

`attention_watch` sees the maps while the model runs, `attention_maps` adds up what is measured of them.
"""

from dataclasses import dataclass

import torch

from tinyvit_zoo.common.determinism import exact_cudnn
from tinyvit_zoo.data.image_dataset import ImageDataset

from ..features.extraction import untouched
from .analysed_model import AnalysedModel
from .attention_maps import LayerAttention
from .attention_watch import AttentionWatch
from .images import batches_of

__all__ = ['BATCH_SIZE', 'AttentionResult', 'measure']

BATCH_SIZE = 32


@dataclass(frozen=True)
class AttentionResult:
    """All layers.

    Attributes:
        layers: In the order of the calls.
        images: N.
        left_out: Names of layers in which a single query attends: class attention, and windows of one cell.
    """

    layers: tuple[LayerAttention, ...]
    images: int
    left_out: tuple[str, ...] = ()


def measure(
    model: AnalysedModel,
    dataset: ImageDataset,
    pixel_step: float | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    device: torch.device | str = 'cpu',
    workers: int = 0,
    progress: bool = True,
) -> AttentionResult:
    """Distance and entropy of every head, means over the queries of all images.

    Args:
        model: What is measured; moved to `device`.
        dataset: N images, see `images.draw_images`.
        pixel_step: See `AttentionWatch`.
        batch_size: Images of a forward pass.
        device: Of the computation.
        workers: Processes that read images.
        progress: Whether to show a bar on a terminal.

    Raises:
        EvaluationError: See `AttentionWatch`, or if an image cannot be read or a layer's attention is not finite.
    """
    with (
        exact_cudnn(), torch.inference_mode(), untouched(model.model.to(device)),
        AttentionWatch(model, pixel_step) as watch,
    ):  # fmt: skip
        for (images,) in batches_of([model], dataset, batch_size, device=device, workers=workers, progress=progress):
            if not watch.checked:
                watch.check(images[:1])
            watch(images)
        return AttentionResult(watch.layers(), len(dataset), tuple(watch.left_out))
