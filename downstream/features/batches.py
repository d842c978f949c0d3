"""Batches of images by position, the same whoever reads them."""

from collections.abc import Callable, Iterator, Sequence

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.seeding import Seeds, generator_states, same_states, seeded
from tinyvit_zoo.data.image_dataset import ImageDataset

from .cache import Shard

__all__ = ['ImageBatches', 'draws', 'load']


def draws(transform: Callable, image: Image.Image) -> bool:
    """Whether a transform takes random numbers for this image."""
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
        batch_size: Images of a batch; a shard's last may have fewer.
        workers: Processes that read; 0 for this one.
    """

    def __init__(
        self, dataset: ImageDataset, transform: Callable, seed: int | None, batch_size: int, workers: int
    ) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed
        self.batch_size, self.workers = batch_size, workers

    def of(self, shard: Shard) -> Iterator[range]:
        """Positions of each batch of a shard."""
        for start in range(shard.start, shard.stop, self.batch_size):
            yield range(start, min(start + self.batch_size, shard.stop))

    def load(self, shards: list[Shard]) -> Iterator[torch.Tensor]:
        """Images (B, C, H, W) of each batch of each shard.

        Raises:
            EvaluationError: If an image cannot be read or transformed.
        """
        order = [[(shard.view, i) for i in positions] for shard in shards for positions in self.of(shard)]
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
        seed: What the transform draws depends on (seed, position, view) alone; None if it draws nothing.
        order: Batches of (view, position).
        workers: Processes that read; 0 for this one.

    Raises:
        EvaluationError: If an image cannot be read or transformed.
    """
    loader = DataLoader(
        _Items(dataset.with_transform(None), transform, seed),
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_stack,
        generator=torch.Generator().manual_seed(0),  # the caller's draws go on undisturbed
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
            image, _ = self.dataset[position]
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
    if any(not isinstance(item, torch.Tensor) or item.shape != items[0].shape for item in items):
        return EvaluationError('The transform has to give a tensor of the same shape for every image.')
    return torch.stack(items)
