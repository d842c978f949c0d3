"""The views of a training on a teacher's features: one crop and flip, as student and teacher take it."""

from collections.abc import Sequence

import torch
from torch.utils.data import Dataset

from ..data.image_dataset import ImageDataset
from ..data.replay import ModelInput, Place, ReplayedPairs, ReplayedViews, ViewSpec

__all__ = ['FeatureViews']


class FeatureViews(Dataset):
    """Views by `Place`, without labels: (image of the student, image of the teacher), each float32 (3, H, W).

    Where both take images alike there is only the student's, which the teacher takes too. Each image is decoded once.

    Args:
        dataset: N images.
        spec: Settings of the views.
        seed: Of the run.
        student: How it takes images.
        teacher: How it takes them.
    """

    def __init__(
        self, dataset: ImageDataset, spec: ViewSpec, seed: int, student: ModelInput, teacher: ModelInput
    ) -> None:
        self.alike = _values(student) == _values(teacher)
        self.views: ReplayedViews | ReplayedPairs
        if self.alike:
            self.views = ReplayedViews(dataset, spec, seed, size=student.size, mean=student.mean, std=student.std)
        else:
            self.views = ReplayedPairs(dataset, spec, seed, student, teacher)

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, place: Place) -> tuple[torch.Tensor, ...]:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[Place]) -> list[tuple[torch.Tensor, ...]]:
        """The views of a batch. Raises: EvaluationError: If an image cannot be read."""
        return [tuple(view[: 1 if self.alike else 2]) for view in self.views.__getitems__(places)]


def _values(model: ModelInput) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, model))
