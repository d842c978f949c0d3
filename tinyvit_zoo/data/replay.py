"""Views made again: a data set as a run saw it, from nothing but the settings, the seed, epoch and position.

A `ReplayedViews` gives them to a DataLoader. The sizes of a whole batch of images come from their headers and the
parameters of its views are drawn at once; then the images are decoded and transformed one after the other, so that a
worker holds one of them.
"""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import Dataset

from .image_dataset import ImageDataset, size_of
from .rand_augment import RandAugment
from .view_apply import image_crc32, make_image, on_grid, to_tensor
from .view_params import View, ViewParameters, draw_views, is_checked
from .view_spec import Erasing, ViewSpec, fill_color

__all__ = [
    'UNCHECKED',
    'DescribedView',
    'Erasing',
    'ModelInput',
    'Place',
    'RandAugment',
    'ReplayedPair',
    'ReplayedPairs',
    'ReplayedView',
    'ReplayedViews',
    'View',
    'ViewParameters',
    'ViewSpec',
    'describe_made',
    'describe_view',
    'draw_views',
    'fill_color',
    'image_crc32',
    'is_checked',
    'make_image',
    'to_tensor',
]

UNCHECKED = -1
"""In place of the CRC32 of a view that carries none."""


class Place(NamedTuple):
    """Where a view stands in a run."""

    epoch: int
    position: int


class ModelInput(NamedTuple):
    """How a model takes images: (height, width), and mean and standard deviation of each channel."""

    size: tuple[int, int]
    mean: Sequence[float]
    std: Sequence[float]


class ReplayedView(NamedTuple):
    """An item of `ReplayedViews`. torch collates B of them to one whose fields are tensors, the numbers (B,) int64.

    Attributes:
        image: float32 (3, H, W), normalized and erased.
        label: int, of the image.
        epoch: int from 0.
        position: int, of the image in its data set.
        crc32: int, of the view at the size of its settings, before it is normalized; -1 where `is_checked` is not true.
    """

    image: torch.Tensor
    label: Any
    epoch: Any
    position: Any
    crc32: Any


class ReplayedViews(Dataset):
    """Views of a data set, by position, or by `Place` for those of any epoch.

    Args:
        dataset: Its positions are those of the views; its own transform is not used.
        spec: Settings of the views.
        seed: Of the run.
        epoch: That of a plain position. A DataLoader with persistent workers knows only the first one, so index by
            `Place` there.
        size: (height, width) of the images given, None for that of `spec`.
        mean: Of the model.
        std: Of the model.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        spec: ViewSpec,
        seed: int,
        epoch: int = 0,
        *,
        size: tuple[int, int] | None = None,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
    ) -> None:
        self.dataset, self.spec, self.seed, self.epoch = dataset, spec, seed, epoch
        self.size = spec.size if size is None else size
        self.mean, self.std = tuple(mean), tuple(std)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int | tuple[int, int]) -> ReplayedView:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int | tuple[int, int]]) -> list[ReplayedView]:
        """The views of a batch.

        Raises:
            IndexError: If a position is not in the data set.
            EvaluationError: If an image cannot be read.
        """
        if not len(indices):
            return []
        return [self._item(*decoded) for decoded in self._decoded(indices)]

    def _decoded(self, indices: Sequence[int | tuple[int, int]]) -> Iterator[tuple[Place, View, Image.Image]]:
        """The views of a batch, the image of one at a time."""
        places = [self._place(index) for index in indices]
        epochs, positions = (np.array(numbers, dtype=np.int64) for numbers in zip(*places, strict=True))
        sizes = [self.dataset.image_size(place.position) for place in places]
        parameters = draw_views(self.spec, self.seed, epochs, positions, sizes)
        for place, view in zip(places, parameters, strict=True):
            image = self.dataset.image(place.position)
            # A format whose header does not tell the size has been drawn for another one.
            yield place, (view if size_of(image) == view.image_size else self._drawn(place, image)), image

    def view(self, index: int | tuple[int, int]) -> tuple[View, Image.Image]:
        """Parameters and image of one view, at the size of its settings, neither normalized nor erased."""
        place = self._place(index)
        image = self.dataset.image(place.position)
        view = self._drawn(place, image)
        return view, make_image(image, view, self.spec)

    def _place(self, index: int | tuple[int, int]) -> Place:
        place = Place(*map(int, index)) if isinstance(index, tuple | list) else Place(self.epoch, operator.index(index))
        if not 0 <= place.position < len(self):
            raise IndexError(place.position)
        return place

    def _drawn(self, place: Place, image: Image.Image) -> View:
        return draw_views(self.spec, self.seed, place.epoch, [place.position], [size_of(image)])[0]

    def _item(self, place: Place, view: View, image: Image.Image) -> ReplayedView:
        result = make_image(image, view, self.spec, self.size)
        crc32 = UNCHECKED
        if is_checked(place.position):
            crc32 = image_crc32(result if self.size == self.spec.size else make_image(image, view, self.spec))
        label = int(self.dataset.labels[place.position])
        return ReplayedView(to_tensor(result, view, self.spec, self.mean, self.std), label, *place, crc32)


class ReplayedPair(NamedTuple):
    """An item of `ReplayedPairs`: one view as two models take it.

    Attributes:
        first: float32 (3, H, W), normalized and erased.
        second: float32 (3, H', W'), of the other model.
        label: int, of the image.
    """

    first: torch.Tensor
    second: torch.Tensor
    label: Any


class ReplayedPairs(Dataset):
    """Views of a data set for two models: each image is decoded once, and its parameters are drawn once.

    Each tensor is what `ReplayedViews` gives that model.

    Args:
        dataset: Its positions are those of the views.
        spec: Settings of the views.
        seed: Of the run.
        first: How one model takes images.
        second: How the other does.
    """

    def __init__(self, dataset: ImageDataset, spec: ViewSpec, seed: int, first: ModelInput, second: ModelInput) -> None:
        self.first, self.second = first, second
        self.views = ReplayedViews(dataset, spec, seed, size=first.size, mean=first.mean, std=first.std)

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, place: Place) -> ReplayedPair:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[Place]) -> list[ReplayedPair]:
        """The views of a batch. Raises: IndexError, EvaluationError: See `ReplayedViews`."""
        return [self._item(*decoded) for decoded in self.views._decoded(places)]

    def _item(self, place: Place, view: View, image: Image.Image) -> ReplayedPair:
        spec, (first, second) = self.views.spec, (self.first, self.second)
        one = make_image(image, view, spec, first.size)
        other = one if second.size == first.size else make_image(image, view, spec, second.size)
        return ReplayedPair(
            to_tensor(one, view, spec, first.mean, first.std),
            to_tensor(other, view, spec, second.mean, second.std),
            int(self.views.dataset.labels[place.position]),
        )


@dataclass(frozen=True)
class DescribedView:
    """A view for people.

    Attributes:
        words: What was done to the image, by operation, in the order in which it was done.
        record: The parameters, as JSON holds them.
        image: What the model sees, made visible with ImageNet's mean and standard deviation.
    """

    words: dict[str, str]
    record: dict[str, Any]
    image: Image.Image


def describe_view(dataset: ImageDataset, spec: ViewSpec, seed: int, epoch: int, position: int) -> DescribedView:
    """One view in words, numbers and as an image.

    Raises:
        IndexError: If the position is not in the data set.
        EvaluationError: If the image cannot be read.
    """
    views = ReplayedViews(dataset, spec, seed, epoch)
    view, image = views.view(position)
    pixels = to_tensor(image, view, spec, views.mean, views.std)
    return describe_made(dataset.describe(position), view, spec, image, pixels, views.mean, views.std)


def describe_made(
    name: str,
    view: View,
    spec: ViewSpec,
    image: Image.Image,
    pixels: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
) -> DescribedView:
    """A view that has been made.

    Args:
        name: Of the image in its data set.
        view: Parameters.
        spec: Settings that they were drawn with.
        image: Of `make_image`.
        pixels: float32 (3, H, W), of a model with this mean and standard deviation.
        mean: For each channel.
        std: For each channel.
    """
    center, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
    shown = (pixels * scale + center).clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    words = dict(image=name, **_words(view, spec), crc32=f'{image_crc32(image):08x}')
    return DescribedView(words, view.record(), Image.fromarray(shown))


def _words(view: View, spec: ViewSpec) -> dict[str, str]:
    height, width = view.image_size
    top, left, crop_height, crop_width = view.crop
    share = 100 * crop_height * crop_width / (height * width)
    boxes = [on_grid(box, view.grid, spec.size) for box in view.erased]
    return {
        'size': f'{height}x{width}',
        'crop': f'{crop_height}x{crop_width} at row {top}, column {left}: {share:.0f} % of the image',
        'resize': f'to {spec.size[0]}x{spec.size[1]}, {spec.interpolation}',
        'flip': 'left to right' if view.flip else 'none',
        'operations': ', '.join(name if x is None else f'{name} {x:.4g}' for name, x in view.operations) or 'none',
        'color jitter': ', '.join(f'{name} {x:.4g}' for name, x in view.jitter) or 'none',
        'erased': ', '.join(f'{h}x{w} at row {y}, column {x}' for y, x, h, w in boxes) or 'none',
    }
