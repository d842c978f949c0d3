"""Accuracy of a classifier on ImageNet-1k, ReaL, V2, A, R, or any data set for whose classes it has outputs.

Shape legend: `N` images, `B` batch, `K` classes of the data set.
"""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from timm.data import create_transform
from torch import nn
from tqdm import tqdm

from tinyvit_zoo.common.determinism import exact_cudnn, in_order
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.per_class import at_zero, mean_per_class
from tinyvit_zoo.common.processes import Processes
from tinyvit_zoo.data.class_map import ClassMap, map_classes, readable
from tinyvit_zoo.data.image_dataset import ImageDataset
from tinyvit_zoo.data.transforms import data_config, own_dtype
from tinyvit_zoo.releases import find_release

from .features.batches import ImageBatches
from .features.extraction import untouched
from .features.shards import cut
from .statistics import accuracies, confusion_matrix, wilson

__all__ = ['PROTOCOLS', 'Scores', 'evaluate', 'preprocessing', 'protocol_overrides']

BATCH_SIZE = 64

NO_CLASS = 'an image with several right labels is of no one class'
PROTOCOLS = ('paper', 'timm')
"""Whose evaluation preprocessing of a release: that which the authors published, or timm's."""
UNCROPPED = dict(crop_pct=1.0)
"""For ImageNet-C, whose images are stored as crops of 224 pixels: cropping again would lose their borders."""


@dataclass(frozen=True)
class Scores:
    """A classifier's predictions for every image, and the resulting accuracies in %.

    Attributes:
        labels: (N,) int64.
        predictions: (N,) int64, the best class of the data set.
        ranks: (N,) int64, the number of classes ranked above the true one; 0 is right.
        real_ranks: (N,) int64, the number of classes ranked above the best of all labels that count as right (Beyer et
            al. 2020, 'Are we done with ImageNet?'), -1 for an image without such a label, which is not counted; None
            if the data set has one label per image.
        classes: K names.
        compared: The outputs that compete, in words.
        preprocessing: Arguments of `timm.data.create_transform`.
    """

    labels: np.ndarray
    predictions: np.ndarray
    ranks: np.ndarray
    real_ranks: np.ndarray | None
    classes: tuple[str, ...]
    compared: str
    preprocessing: dict[str, Any]

    @property
    def right(self) -> np.ndarray:
        """(N,) bool, to be paired with those of another model on the same images."""
        return self.ranks == 0

    @property
    def top1(self) -> float:
        return 100 * float(self.right.mean())

    @property
    def top5(self) -> float | None:
        """None for five classes or fewer."""
        return 100 * float((self.ranks < 5).mean()) if len(self.classes) > 5 else None

    def real(self, k: int) -> float | None:
        """Accuracy in % over the images with labels of ReaL, any of them among the best `k`; None without ReaL."""
        if self.real_ranks is None:
            return None
        counted = self.real_ranks[self.real_ranks >= 0]
        return 100 * float((counted < k).mean())

    @property
    def ci95(self) -> tuple[float, float]:
        """95 % interval of the top-1 accuracy, in %."""
        return wilson(self.top1, len(self.labels))

    @cached_property
    def confusion(self) -> np.ndarray:
        """(K, K) int64 counts, true class by row, prediction by column."""
        return confusion_matrix(self.labels, self.predictions, len(self.classes))

    @property
    def per_class(self) -> np.ndarray:
        """(K,) accuracy of each class; NaN for a class without images."""
        return accuracies(self.confusion)

    @property
    def mean_per_class(self) -> float:
        """In %, every class that occurs counting the same. By the data set's one label of each image: with several
        right labels, as ReaL has, an image is of no one class.
        """
        return mean_per_class(self.labels, self.predictions)

    @property
    def classes_at_zero(self) -> list[str]:
        """Readable names of the classes that occur and of which nothing is right."""
        return at_zero(self.labels, self.predictions, readable(self.classes))

    def summary(self) -> dict[str, Any]:
        """The numbers, for results.json."""
        numbers = dict(images=len(self.labels), top1=self.top1, top1_ci95=self.ci95, top5=self.top5)
        if self.real_ranks is not None:
            counted = int((self.real_ranks >= 0).sum())
            numbers |= dict(real_images=counted, real_top1=self.real(1), real_top5=self.real(5))
            numbers |= dict(real_mean_per_class=None, real_mean_per_class_why=NO_CLASS)
        return dict(
            **numbers,
            mean_per_class=self.mean_per_class,
            classes_at_zero=self.classes_at_zero,
            compared=self.compared,
            preprocessing=self.preprocessing,
        )


def preprocessing(model: nn.Module, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The model's own preprocessing for evaluation, as arguments of `timm.data.create_transform`.

    Args:
        model: A timm model.
        overrides: For example crop_pct=0.95 or input_size=(3, 256, 256).
    """
    return {**data_config(model), **(overrides or {})}


def protocol_overrides(name: str, protocol: str) -> dict[str, Any]:
    """The preprocessing on record for a release, as overrides of `preprocessing`: crop and interpolation.

    The size of the image is that of the model, which released weights fix. So a model that was trained from a release,
    or is of its architecture, has its protocol at its own size.

    Args:
        name: 'architecture.tag', or 'architecture' for its default tag.
        protocol: One of `PROTOCOLS`.

    Raises:
        EvaluationError: If it is not a release of this package, or has no such protocol.
    """
    release = find_release(name)
    if release is None:
        raise EvaluationError(
            f'{name} is not a release of this package, so no evaluation protocol is on record: leave --protocol out '
            "for the model's own preprocessing, or set --crop-pct."
        )
    found = release.find_protocol(protocol)
    if found is None:
        known = ', '.join(p.name for p in release.protocols)
        raise EvaluationError(f"{release.name} has no protocol '{protocol}' on record: take --protocol {known}.")
    return found.preprocessing


def evaluate(
    model: nn.Module,
    dataset: ImageDataset,
    *,
    overrides: Mapping[str, Any] | None = None,
    batch_size: int = BATCH_SIZE,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    workers: int = 0,
    progress: bool = True,
) -> Scores:
    """Classify every image once.

    Outputs of classes that the data set lacks do not compete (see `class_map`): for A and R the 200 of their masks
    compete. Several processes (`torchrun`) share the batches, which follow the position in the data set, and give the
    same results as one.

    Args:
        model: Any timm model with a classifier, (B, C, H, W) -> (B, M). It is moved to `device` and otherwise left
            unchanged, which its hash proves.
        dataset: Images without transform.
        overrides: See `preprocessing`. Images of ImageNet-C are not cropped unless this asks for it.
        batch_size: Images of a forward pass.
        dtype: float32, or bfloat16 (autocast).
        device: The model's by default.
        workers: Processes that read images.
        progress: Show a bar.

    Raises:
        EvaluationError: If the classifier does not fit the classes, there is no image, an image cannot be read, or an
            output is NaN.
    """
    if not len(dataset):
        raise EvaluationError(f'{dataset.name} ({dataset.split}) has no images to evaluate on.')
    columns = map_classes(model, dataset.classes)
    stored_as_crops = dataset.name.startswith('imagenet-c/')
    config = preprocessing(model, {**(UNCROPPED if stored_as_crops else {}), **(overrides or {})})
    processes = Processes()
    device = processes.own_device(device, model)
    shards = cut(len(dataset), batch_size)
    own = shards[processes.rank :: processes.number]
    batches = ImageBatches(dataset, create_transform(**config, is_training=False), None, batch_size, workers)
    results = {}
    quiet = None if progress and processes.rank == 0 else True
    with (
        untouched(model.to(device)),
        exact_cudnn(),
        tqdm(total=len(own), desc=dataset.name, unit='batch', disable=quiet) as bar,
        closing(in_order(_forward(model, columns, dtype, device), batches.load(own), device)) as outputs,
    ):
        for shard, scores in zip(own, outputs, strict=True):
            positions = range(shard.start, shard.stop)
            if scores.isnan().any():
                bad = dataset.describe(positions[int(scores.isnan().any(dim=1).nonzero()[0])])
                raise EvaluationError(f'The model returns NaN for {bad}: use float32, and check its weights.')
            results[shard] = _ranks(scores, dataset, positions)
            bar.update()
    everywhere = processes.gather(results)
    predictions, ranks, real_ranks = torch.cat([everywhere[shard] for shard in shards], dim=1).numpy()
    return Scores(
        labels=dataset.labels,
        predictions=predictions,
        ranks=ranks,
        real_ranks=None if dataset.label_sets is None else real_ranks,
        classes=dataset.classes,
        compared=columns.how,
        preprocessing=config,
    )


def _forward(
    model: nn.Module, columns: ClassMap, dtype: torch.dtype, device: torch.device
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Images (B, C, H, W) -> scores (B, K) float32."""
    own = own_dtype(model)

    @torch.inference_mode()
    def forward(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            return columns(model(images.to(device, own)).float())

    return forward


def _ranks(scores: torch.Tensor, dataset: ImageDataset, positions: range) -> torch.Tensor:
    """Prediction, rank of the label, and best rank of all labels of an image: (3, B) int64.

    Among equal scores the class that comes first ranks higher.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    ranks = order.argsort(dim=1)  # of every class
    labels = torch.from_numpy(dataset.labels[positions.start : positions.stop])
    own = ranks.gather(1, labels[:, None])[:, 0]
    real = torch.zeros_like(own)
    if dataset.label_sets is not None:
        for i, position in enumerate(positions):
            right = list(dataset.label_sets[position])
            real[i] = ranks[i, right].min() if right else -1
    return torch.stack([order[:, 0], own, real])
