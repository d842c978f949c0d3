"""The images of an analysis: drawn once, in batches of a fixed order, for one model or for two."""

from collections.abc import Iterator, Sequence

import torch
from tqdm import tqdm

from tinyvit_zoo.common.counter_rng import child_key, permutations
from tinyvit_zoo.common.hashes import described
from tinyvit_zoo.data.image_dataset import ImageDataset
from tinyvit_zoo.data.transforms import own_dtype

from ..features.batches import load
from .analysed_model import AnalysedModel

__all__ = ['batches_of', 'draw_images']


def draw_images(dataset: ImageDataset, images: int, seed: int) -> ImageDataset:
    """So many images of a data set, or all of fewer, in random order: a batch has images of all classes.

    Args:
        dataset: N images.
        images: At least 1.
        seed: Of the draw. Fewer images are the first ones of more.
    """
    order = permutations(child_key(seed, 0), len(dataset))
    return dataset.subset(order[:images])


def batches_of(
    models: Sequence[AnalysedModel],
    dataset: ImageDataset,
    batch_size: int,
    *,
    device: torch.device | str,
    workers: int = 0,
    whole: bool = False,
    progress: bool = True,
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Images (B, 3, H, W) of each batch as each model takes them, on its device and in its type.

    Args:
        models: One or more.
        dataset: N images.
        batch_size: Images of a batch.
        device: Where the models are.
        workers: Processes that read images.
        whole: Leave out a last batch of fewer images.
        progress: Whether to show a bar on a terminal.

    Raises:
        EvaluationError: If an image cannot be read.
    """
    order = [
        [(0, i) for i in range(start, min(start + batch_size, len(dataset)))]
        for start in range(0, len(dataset), batch_size)
    ]
    if whole and len(order[-1]) < batch_size:
        order.pop()
    # Models with one preprocessing share the decoded images.
    shared = len({described(model.transform) for model in models}) == 1
    readers = [load(dataset, model.transform, None, order, workers) for model in models[: 1 if shared else None]]
    for batches in tqdm(zip(*readers, strict=True), total=len(order), unit='batch', disable=None if progress else True):
        images = batches * len(models) if shared else batches
        yield tuple(x.to(device, own_dtype(m.model)) for x, m in zip(images, models, strict=True))
