"""Views of images together with what a teacher said of them, or as it sees them: for a training from soft labels."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from ..common.counter_rng import child_key, permutations
from ..common.errors import EvaluationError
from ..common.text import count_of
from ..data.image_dataset import ImageDataset
from ..data.replay import ModelInput, Place, ReplayedPairs, ViewSpec
from ..soft_labels.check import same_view
from ..soft_labels.store import LastEpoch, Store
from ..soft_labels.stored_views import records_of, stored_views

__all__ = ['LiveView', 'LiveViews', 'SoftLabelView', 'SoftLabelViews', 'ViewSampler']

ORDER = 1  # of the counters of a run: the order of images has its own


class SoftLabelView(NamedTuple):
    """An item of `SoftLabelViews`, in the order in which the task takes it.

    Attributes:
        image: float32 (3, H, W).
        label: The true class.
        ids: (K,), the bits of the stored unsigned numbers as int16 or int32.
        probabilities: (K,), float16 or float32.
    """

    image: torch.Tensor
    label: int
    ids: np.ndarray
    probabilities: np.ndarray


class SoftLabelViews(Dataset):
    """The views of a store made again, by `Place`, each with its soft labels.

    A view that carries a checksum is compared with the image that the teacher saw.

    Args:
        dataset: The one that the store was saved from.
        store: Its epochs are opened when they are first met, in each worker.
        student: How it takes images.

    Raises:
        EvaluationError: If the views of the store cannot be made here.
    """

    def __init__(self, dataset: ImageDataset, store: Store, student: ModelInput) -> None:
        self.dataset = dataset
        self.views = stored_views(store, dataset, student)
        self._epoch = LastEpoch(store)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: Place) -> SoftLabelView:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[Place]) -> list[SoftLabelView]:
        """The views of a batch, all of one epoch.

        Raises:
            EvaluationError: If an image or a record cannot be read, or a view is not the one that the teacher saw.
        """
        epoch = self._epoch(places[0].epoch)
        labels = epoch.read(records_of(self.views, [place.position for place in places]))
        ids = labels.ids.view(np.int16 if labels.ids.itemsize == 2 else np.int32)
        found = []
        for view, *of_view in zip(self.views.__getitems__(places), ids, labels.probabilities, strict=True):
            if view.crc32 >= 0:
                same_view(epoch, self.dataset, view.position, view.crc32)
            found.append(SoftLabelView(view.image, view.label, *of_view))
        return found


class LiveView(NamedTuple):
    """An item of `LiveViews`, in the order in which the task takes it.

    Attributes:
        image: float32 (3, H, W), of the student.
        label: The true class.
        teacher_image: float32 (3, H', W'), the same view as the teacher takes it.
    """

    image: torch.Tensor
    label: int
    teacher_image: torch.Tensor


class LiveViews(Dataset):
    """The views that `soft_labels.save` would store labels of, by `Place`, as student and teacher take them.

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
        self.views = ReplayedPairs(dataset, spec, seed, student, teacher)

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, place: Place) -> LiveView:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[Place]) -> list[LiveView]:
        """The views of a batch. Raises: EvaluationError: If an image cannot be read."""
        return [LiveView(pair.first, pair.label, pair.second) for pair in self.views.__getitems__(places)]


class ViewSampler(Sampler[Place]):
    """The images of an epoch of training in random order, each as its view of one epoch.

    Args:
        images: How many there are.
        batch_size: Images in an update; the rest of an epoch that makes no whole batch is left out.
        seed: Of the order, with the number of the epoch.
        stored: Numbers of the epochs of views, taken in turn.
        positions: int64 (images,), of the images among those of the views; None for 0 to `images` - 1.

    Raises:
        EvaluationError: If there are fewer images than a batch has.
    """

    def __init__(
        self, images: int, batch_size: int, seed: int, stored: Sequence[int], positions: np.ndarray | None = None
    ) -> None:
        if images < batch_size:
            raise EvaluationError(
                f'{count_of(images, "image")} cannot fill a batch of {batch_size}: choose a smaller --batch-size.'
            )
        self.images, self.seed, self.stored, self.epoch = images, seed, stored, 0
        self.positions = positions
        self.length = images // batch_size * batch_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Place]:
        order = permutations(child_key(self.seed, ORDER, self.epoch), self.images)[: self.length]
        order = order if self.positions is None else self.positions[order]
        stored = self.stored[self.epoch % len(self.stored)]
        return (Place(stored, position) for position in order.tolist())
