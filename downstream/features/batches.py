"""Batches of images by position, the same for any number of reading processes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.seeding import Seeds, generator_states, same_states, seeded
from tinyvit_zoo.data.image_dataset import ImageDataset

from .shards import Shard

__all__ = ['ImageBatches', 'check_finite', 'draws', 'load']


def draws(transform: Callable, image: Image.Image) -> bool:
    """Whether a transform draws random numbers for this image."""
    with seeded(Seeds.hashed('draws')):
        before = generator_states()
        transform(image)
        return not same_states(before, generator_states())


class ImageBatches:
    """Batches of a data set in order of position.

    Args:
        dataset: N images.
        transform: PIL image -> tensor.
        seed: Of the transform, or None if it draws nothing.
        batch_size: Images of a batch; the last of a shard may have fewer.
        workers: Processes that read; 0 to read in this one.
    """

    def __init__(
        self, dataset: ImageDataset, transform: Callable, seed: int | None, batch_size: int, workers: int
    ) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed
        self.batch_size, self.workers = batch_size, workers

    def load(self, shards: list[Shard]) -> Iterator[torch.Tensor]:
        """Images (B, C, H, W) of each batch of each shard.

        Raises:
            EvaluationError: If an image cannot be read or transformed.
        """
        order = [[(shard.view, i) for i in batch] for shard in shards for batch in shard.batches(self.batch_size)]
        return load(self.dataset, self.transform, self.seed, order, self.workers)


def load(
    dataset: ImageDataset,
    transform: Callable,
    seed: int | None,
    order: Sequence[Sequence[tuple[int, int]]],
    workers: int,
) -> Iterator[torch.Tensor]:
    """Images (B, C, H, W) of each batch.

    Args:
        dataset: N images.
        transform: PIL image -> tensor.
        seed: Random numbers of the transform depend on (seed, position, view) alone; None if it draws none.
        order: Batches of (view, position).
        workers: Processes that read; 0 to read in this one.

    Raises:
        EvaluationError: If an image cannot be read or transformed.
    """
    batches: Any = order  # torch's type asks for lists
    loader = DataLoader(
        _Items(dataset, transform, seed),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_stack,
        generator=torch.Generator().manual_seed(0),  # leaves the global generator alone
    )
    for batch in loader:
        if isinstance(batch, EvaluationError):
            raise batch
        yield batch


class _Items(Dataset):
    def __init__(self, dataset: ImageDataset, transform: Callable, seed: int | None) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __getitem__(self, item: tuple[int, int]) -> torch.Tensor | EvaluationError:
        view, position = item
        try:
            image = self.dataset.image(position)
            if self.seed is None:
                return self.transform(image)
            with seeded(Seeds.hashed(self.seed, position, view)):
                return self.transform(image)
        except EvaluationError as e:
            return e  # raised here, DataLoader would put its traceback into the message


def _stack(items: list[torch.Tensor | EvaluationError]) -> torch.Tensor | EvaluationError:
    errors = [item for item in items if isinstance(item, EvaluationError)]
    if errors:
        return errors[0]
    images = [item for item in items if isinstance(item, torch.Tensor)]
    if len(images) < len(items) or len({image.shape for image in images}) > 1:
        return EvaluationError('The transform must return a tensor of the same shape for every image.')
    return torch.stack(images)


def check_finite(values: torch.Tensor, dataset: ImageDataset, positions: Sequence[int]) -> None:
    """Refuse features (B, D) of the images at `positions` that are not finite.

    Raises:
        EvaluationError: With the first such image.
    """
    finite = values.isfinite().all(dim=1)
    if not finite.all():
        position = positions[int((~finite).nonzero()[0, 0])]
        raise EvaluationError(
            f'The features of {dataset.describe(position)} are not finite: check the weights of the model, or use '
            'float32.'
        )
