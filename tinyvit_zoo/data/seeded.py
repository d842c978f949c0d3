"""Images whose augmentation depends on the draw alone, whichever worker or process transforms them."""

from typing import Any, NamedTuple

from torch.utils.data import Dataset

from ..common.seeding import Seeds, seeded

__all__ = ['Draw', 'SeededDataset']


class Draw(NamedTuple):
    """Position of an image in its data set and the seeds of its augmentation, as a sampler yields them."""

    position: int
    seeds: Seeds


class SeededDataset(Dataset):
    """A data set indexed by `Draw`: each image is read and augmented with random numbers from its own seeds.

    They depend on neither process nor worker nor other draws, and the generators are as before afterwards. All other
    attributes are those of the data set inside.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> Any:
        with seeded(draw.seeds):
            return self.dataset[draw.position]

    def __getattr__(self, name: str) -> Any:
        # 'dataset' while being unpickled; special methods, as torch's `__getitems__`, would go past the seeds.
        if name == 'dataset' or name.startswith('__'):
            raise AttributeError(name)
        return getattr(self.dataset, name)
