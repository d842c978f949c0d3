"""Views for pre-training: functions of (seed, epoch, position), whatever the workers, processes and resumed runs.

Shape legend: `H, W` image, `N` patches.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch.utils.data import Dataset

from ..common.counter_rng import child_key, permutations, uniform
from ..data.image_dataset import ImageDataset
from ..data.replay import ModelInput, Place, ReplayedViews, View, ViewSpec, draw_views, make_image, to_tensor
from ..data.view_params import Stage
from .recipes.mae_lite import BLUR, GRAYSCALE, JITTERED, SOLARIZED
from .soft_label_views import ViewSampler

__all__ = [
    'ContrastView',
    'ContrastViews',
    'JitteredView',
    'JitteredViews',
    'MaskedView',
    'MaskedViews',
    'Moment',
    'MomentSampler',
    'mask_noise',
]


def mask_noise(seed: int, place: Place, patches: int) -> torch.Tensor:
    """What decides which patches are hidden: their ranks in random order, float32 (N,); no two are equal."""
    key = child_key(seed, place.epoch, place.position, Stage.MASK)
    return torch.from_numpy(permutations(key, patches)).float()


class _Views(ReplayedViews):
    """Views of whole batches, each image decoded once."""

    def __getitems__(self, indices: Sequence[Any]) -> list[Any]:
        """The views of a batch. Raises: EvaluationError: If an image cannot be read."""
        return [self._made(*decoded) for decoded in self._decoded(indices)]

    def _made(self, place: Place, view: View, image: Image.Image) -> Any:
        raise NotImplementedError


class JitteredView(NamedTuple):
    """An item of `JitteredViews`, in the order in which the task takes it.

    Attributes:
        student: float32 (3, H, W), with jittered colors.
        teacher: float32 (3, H', W'), the same crop and flip.
        noise: (N,), see `mask_noise`; (0,) where nothing is masked.
    """

    student: torch.Tensor
    teacher: torch.Tensor
    noise: torch.Tensor


class JitteredViews(_Views):
    """One crop and flip for student and teacher, jittered colors for the student alone, as in TinyMIM.

    Args:
        dataset: Its labels are not used.
        spec: Settings, with the student's color jitter.
        seed: Of the run.
        student: How it takes images.
        teacher: How it takes them.
        patches: N of the noise for a mask; 0 for none.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        spec: ViewSpec,
        seed: int,
        student: ModelInput,
        teacher: ModelInput,
        patches: int = 0,
    ) -> None:
        super().__init__(dataset, spec, seed, size=student.size, mean=student.mean, std=student.std)
        self.teacher, self.patches = teacher, patches

    def _made(self, place: Place, view: View, image: Image.Image) -> JitteredView:
        plain = dataclasses.replace(view, jitter=())
        return JitteredView(
            to_tensor(make_image(image, view, self.spec, self.size), view, self.spec, self.mean, self.std),
            to_tensor(
                make_image(image, plain, self.spec, self.teacher.size), plain, self.spec, self.teacher.mean,
                self.teacher.std,
            ),
            mask_noise(self.seed, place, self.patches) if self.patches else torch.empty(0),
        )  # fmt: skip


class MaskedView(NamedTuple):
    """An item of `MaskedViews`, in the order in which the task takes it.

    Attributes:
        image: float32 (3, H, W).
        noise: (N,), see `mask_noise`.
    """

    image: torch.Tensor
    noise: torch.Tensor


class MaskedViews(_Views):
    """Crops and flips with the noise of their mask, as in MAE and D-MAE.

    Args:
        dataset: Its labels are not used.
        spec: Settings; half of the views take the second interpolation instead of its own.
        seed: Of the run.
        model: How it takes images.
        patches: N.
        interpolation: The second one.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        spec: ViewSpec,
        seed: int,
        model: ModelInput,
        patches: int,
        interpolation: str = 'bilinear',
    ) -> None:
        super().__init__(dataset, spec, seed, size=model.size, mean=model.mean, std=model.std)
        self.patches = patches
        self.specs = (spec, dataclasses.replace(spec, interpolation=interpolation))

    def _made(self, place: Place, view: View, image: Image.Image) -> MaskedView:
        key = child_key(self.seed, place.epoch, place.position, Stage.MASK, 0)
        spec = self.specs[int(uniform(key, 1)[0] < 0.5)]
        pixels = to_tensor(make_image(image, view, spec, self.size), view, spec, self.mean, self.std)
        return MaskedView(pixels, mask_noise(self.seed, place, self.patches))


class Moment(NamedTuple):
    """Where a view stands in a run, and the number of the update that it is for, from 0."""

    epoch: int
    position: int
    update: int


class MomentSampler(ViewSampler):
    """A `ViewSampler` that tells the number of the update, too."""

    def __init__(self, images: int, batch_size: int, seed: int, epochs: int) -> None:
        super().__init__(images, batch_size, seed, range(epochs))
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[Any]:
        before = self.epoch * (self.length // self.batch_size)
        for i, place in enumerate(super().__iter__()):
            yield Moment(*place, before + i // self.batch_size)


class ContrastView(NamedTuple):
    """An item of `ContrastViews`, in the order in which the task takes it.

    Attributes:
        first: float32 (3, H, W).
        second: float32 (3, H, W), another view of the same image.
        update: int, the number of the update, from 0.
    """

    first: torch.Tensor
    second: torch.Tensor
    update: Any


class ContrastViews(Dataset):
    """Two views of each image as in MoCo v3, by `Moment`; each has keys of its own.

    In this order: crop, flip, jittered colors (of most), gray (of some), blur, solarized (of some of the second view).

    Args:
        dataset: Its labels are not used.
        spec: Settings of crop, flip and jitter.
        seed: Of the run.
        model: How it takes images.
    """

    def __init__(self, dataset: ImageDataset, spec: ViewSpec, seed: int, model: ModelInput) -> None:
        self.dataset = dataset
        self.views = tuple(
            _ContrastView(dataset, spec, int(child_key(seed, Stage.CONTRAST, number)), model, number)
            for number in range(2)
        )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, moment: Moment) -> ContrastView:
        return self.__getitems__([moment])[0]

    def __getitems__(self, moments: Sequence[Moment]) -> list[ContrastView]:
        """The views of a batch. Raises: EvaluationError: If an image cannot be read."""
        drawn = [views.parameters(moments) for views in self.views]
        found = []
        for i, moment in enumerate(moments):
            place, image = Place(moment.epoch, moment.position), self.dataset.image(moment.position)
            first, second = (self.views[k].made(place, drawn[k][i], image) for k in range(2))
            found.append(ContrastView(first, second, moment.update))
        return found


class _ContrastView(ReplayedViews):
    """The first or the second view."""

    def __init__(self, dataset: ImageDataset, spec: ViewSpec, seed: int, model: ModelInput, number: int) -> None:
        super().__init__(dataset, spec, seed, size=model.size, mean=model.mean, std=model.std)
        self.blurred, self.solarized = BLUR[number], SOLARIZED[number]

    def parameters(self, moments: Sequence[Moment]) -> Any:
        epochs, positions = (np.array([moment[k] for moment in moments], dtype=np.int64) for k in range(2))
        sizes = [self.dataset.image_size(moment.position) for moment in moments]
        return draw_views(self.spec, self.seed, epochs, positions, sizes)

    def made(self, place: Place, view: View, image: Image.Image) -> torch.Tensor:
        if view.image_size != (image.height, image.width):  # a format whose header does not tell the size
            view = self._drawn(place, image)
        key = child_key(self.seed, place.epoch, place.position, Stage.CONTRAST)
        jitter, gray, blur, sigma, solarize = uniform(key, 5).tolist()
        if jitter >= JITTERED:
            view = dataclasses.replace(view, jitter=())
        result = make_image(image, view, self.spec, self.size)
        if gray < GRAYSCALE:
            result = result.convert('L').convert('RGB')
        if blur < self.blurred:
            result = result.filter(ImageFilter.GaussianBlur(0.1 + sigma * 1.9))
        if solarize < self.solarized:
            result = ImageOps.solarize(result)
        return to_tensor(result, view, self.spec, self.mean, self.std)
