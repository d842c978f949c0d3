"""The views that the labels of a store belong to, made again: those of this package, and those of the released code.

A store that was converted from the released code's files has a seed of its generator for each view, and knows its data
set by the names of the images alone. A name is a file without its ending, such as n00007846_10001; where the released
code had none, it counted the images in the order of torchvision's ImageFolder.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import Dataset

from ..common.errors import EvaluationError
from ..data.image_dataset import Files, ImageDataset, size_of
from ..data.replay import (
    UNCHECKED,
    DescribedView,
    ModelInput,
    Place,
    ReplayedView,
    ReplayedViews,
    ViewSpec,
    describe_made,
    describe_view,
    fill_color,
    make_image,
)
from .legacy import names_fingerprint
from .official_views import check_generator, draw_official_view, official_spec, official_tensor
from .store import LastEpoch, Store, StoreInfo

__all__ = [
    'ConvertedViews',
    'describe_stored',
    'is_converted',
    'records_of',
    'released_settings',
    'rows_of',
    'stored_views',
]

RELEASED = 'released code'


def released_settings() -> dict[str, Any]:
    """What a converted store says of its views: the settings of the published pretraining."""
    return {RELEASED: official_spec().settings()}


def is_converted(info: StoreInfo) -> bool:
    """Whether a store was converted from the released code's files."""
    return not info.teacher_sha256


def stored_views(store: Store, dataset: ImageDataset, model: ModelInput) -> 'ReplayedViews | ConvertedViews':
    """The views of a store by `Place`, as a model takes them.

    Raises:
        EvaluationError: If their settings or versions of libraries do not allow it.
    """
    if is_converted(store.info):
        return ConvertedViews(store, dataset, model)
    spec = ViewSpec.from_settings(store.info.views)
    return ReplayedViews(dataset, spec, store.info.seed, size=model.size, mean=model.mean, std=model.std)


def records_of(views: 'ReplayedViews | ConvertedViews', positions: Sequence[int] | np.ndarray) -> np.ndarray:
    """Positions in the store of the records of images at these positions of the data set; int64 (n,)."""
    places = np.asarray(positions, np.int64)
    return views.rows[places] if isinstance(views, ConvertedViews) else places


class ConvertedViews(Dataset):
    """The views of converted dumps, by `Place`: each drawn again from its own seed, as the released code drew it.

    Images are taken as they are stored, whatever their EXIF orientation says: the released code does not turn them.

    Args:
        store: Its epochs are opened when they are first met, in each worker.
        dataset: The images that the released code saw.
        model: How the model takes images. The fill color of turned images follows its mean, as in the released code.

    Attributes:
        rows: int64 (N,), of each image its position in the store.

    Raises:
        EvaluationError: If the data set has other images, the store does not say how views were made, or this NumPy
            draws other numbers.
    """

    def __init__(self, store: Store, dataset: ImageDataset, model: ModelInput) -> None:
        check_generator()
        self.rows = rows_of(store, dataset)
        self.dataset, self.model = _as_stored(dataset), model
        self.spec = _spec(store, model)
        self._epoch = LastEpoch(store)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: Place) -> ReplayedView:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[Place]) -> list[ReplayedView]:
        """The views of a batch, all of one epoch. Raises: EvaluationError: If an image or a file cannot be read."""
        seeds = self._epoch(places[0].epoch).seeds(self.rows[[place.position for place in places]])
        return [self._item(*place, seed) for place, seed in zip(places, seeds.tolist(), strict=True)]

    def _item(self, epoch: int, position: int, seed: int) -> ReplayedView:
        image = self.dataset.image(position)
        official = draw_official_view(seed, size_of(image), self.spec)
        tensor = official_tensor(image, official, self.spec, self.model.mean, self.model.std)
        return ReplayedView(tensor, int(self.dataset.labels[position]), epoch, position, UNCHECKED)

    def describe(self, epoch: int, position: int) -> DescribedView:
        """One view in words, numbers and as an image. Raises: EvaluationError: See `__getitems__`."""
        (seed,) = self._epoch(epoch).seeds(self.rows[[position]]).tolist()
        image = self.dataset.image(position)
        view = draw_official_view(seed, size_of(image), self.spec).view
        pixels, made = self[Place(epoch, position)].image, make_image(image, view, self.spec)
        return describe_made(
            self.dataset.describe(position), view, self.spec, made, pixels, self.model.mean, self.model.std
        )


def describe_stored(store: Store, dataset: ImageDataset, epoch: int, position: int) -> DescribedView:
    """One view of a store in words, numbers and as an image; that of converted dumps as an ImageNet model takes it.

    Raises:
        IndexError: If the position is not in the data set.
        EvaluationError: If the image or the store cannot be read, or its views cannot be made.
    """
    if not is_converted(store.info):
        return describe_view(dataset, ViewSpec.from_settings(store.info.views), store.info.seed, epoch, position)
    model = ModelInput(official_spec().size, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    return ConvertedViews(store, dataset, model).describe(epoch, position)


def rows_of(store: Store, dataset: ImageDataset) -> np.ndarray:
    """Where the record of each image lies in a converted store: int64 (N,).

    Raises:
        EvaluationError: If the data set has other images or another number of classes than the released code saw.
    """
    store.info.check(store.place, images=len(dataset), classes=len(dataset.classes))
    if store.info.fingerprint == names_fingerprint(np.arange(len(dataset)).astype(np.bytes_)):
        order = _folder_order(dataset)
    else:
        names = np.array([os.path.splitext(os.path.basename(name))[0] for name in _names(dataset)], dtype=np.bytes_)
        order = names.argsort(kind='stable')
        if names_fingerprint(names[order]) != store.info.fingerprint:
            raise EvaluationError(
                f'{store.place} was converted from labels of other images than those of {dataset.name} (such as '
                f'{os.fsdecode(names[order[0]])}): give the data that the released code saw.'
            )
    rows = np.empty(len(dataset), np.int64)
    rows[order] = np.arange(len(dataset))
    return rows


def _names(dataset: ImageDataset) -> list[bytes]:
    """Paths of images; names such as 'digits[17]' where they are not files."""
    if isinstance(dataset.source, Files):
        return dataset.source.names[dataset.positions].tolist()
    return [os.fsencode(dataset.describe(i)) for i in range(len(dataset))]


def _folder_order(dataset: ImageDataset) -> np.ndarray:
    """Positions in the order of torchvision's ImageFolder: class by class, folder by folder, by name."""
    if not isinstance(dataset.source, Files):
        return np.arange(len(dataset))
    keys = [
        (os.fsencode(dataset.classes[label]), *os.path.split(name))
        for label, name in zip(dataset.labels.tolist(), _names(dataset), strict=True)
    ]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)


def _as_stored(dataset: ImageDataset) -> ImageDataset:
    """The data set without turning images as their EXIF orientation says."""
    source = dataset.source
    if not isinstance(source, Files) or not source.upright:
        return dataset
    files = Files(source.names[dataset.positions], source.root, source.prepare)
    return ImageDataset(dataset.name, dataset.split, dataset.classes, dataset.labels, files)


def _spec(store: Store, model: ModelInput) -> ViewSpec:
    settings = store.info.views.get(RELEASED)
    if not isinstance(settings, Mapping):
        raise EvaluationError(
            f'{store.place} does not say how the released code made its views: convert its files again.'
        )
    spec = replace(ViewSpec.from_settings(settings), size=model.size, fill=fill_color(model.mean))
    if spec.color_jitter is not None:
        raise EvaluationError(f'{store.place} has views with color jitter, which no seed of the released code replays.')
    return spec
