"""The end of the demo: its model teaches a student about fifty times smaller through soft labels that are stored once.

The student sees 200 of the images that the teacher saw. Whether soft labels gain anything over the true ones is
measured with a second student: the same initial weights, views and order of images, the true labels alone.
"""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from matplotlib.figure import Figure
from torch import nn

from tinyvit_zoo.common.counter_rng import child_key, permutations
from tinyvit_zoo.data.image_dataset import Arrays, ImageDataset
from tinyvit_zoo.data.replay import ReplayedViews, ViewSpec
from tinyvit_zoo.soft_labels import Store, Teacher, check_data, check_records, check_teacher, check_views, save
from tinyvit_zoo.soft_labels.store import STORE
from tinyvit_zoo.training.distillation import distil_from_store
from tinyvit_zoo.training.recipes import DISTILLATION

from ..compare import Row, difference_of_right
from ..results import plain
from .digits import CLASSES, SIZE, DemoImages

__all__ = ['Taught', 'teach_student']

IMAGES = 200  # of 400 the true labels alone teach it as well
EPOCHS = 20
BATCH = 40
LEARNING_RATE = 4e-3
K = 5
SMALLEST_CROP = 0.6  # share of an image; digits have an upright side, so there are no flips
SMALL = dict(embed_dims=(16, 32, 32, 64), num_heads=(1, 1, 2, 2), depths=(1, 1, 2, 1))
SHOWN = 6  # views in the figure


@dataclass(frozen=True)
class Taught:
    """What the student gained.

    Attributes:
        row: Right answers with soft labels and with labels on the held-out images, paired.
        teacher: Accuracy in % of the teacher on them.
        parameters: Of the student.
        record: All of it as plain values.
        figure: Views with their soft labels, and the three accuracies.
    """

    row: Row
    teacher: float
    parameters: int
    record: dict[str, Any]
    figure: Figure

    @property
    def words(self) -> str:
        """What was gained, in a sentence."""
        row = self.row
        if row.low > 0:
            gain = f'Soft labels gained {row.difference:.1f} points'
        elif row.high < 0:
            gain = f'Soft labels lost {-row.difference:.1f} points'
        else:
            gain = f'Soft labels gained nothing that could be told from chance, {row.difference:+.1f} points'
        return (
            f'{gain} ({row.low:+.1f} to {row.high:+.1f}) on {row.n} held-out images: {row.a:.1f} % with them, '
            f'{row.b:.1f} % with the true labels, {self.teacher:.1f} % of the teacher.'
        )


def teach_student(
    model: nn.Module,
    training: DemoImages,
    held_out: DemoImages,
    store: Path,
    predict: Callable[[nn.Module, DemoImages], torch.Tensor],
    seed: int = 0,
    epochs: int = EPOCHS,
    say: Callable[[str], None] = print,
) -> Taught:
    """Store the model's soft labels, check them, and train a student from them and one from labels.

    Args:
        model: The teacher.
        training: What it was trained on.
        held_out: To measure on.
        store: Folder for the soft labels; those of an earlier demo are replaced.
        predict: Probabilities (N, K) of a model for images.
        seed: Of the student's images, initial weights, views and order.
        epochs: That are stored, and that the students train.
        say: Prints a line.

    Raises:
        EvaluationError: If the store is damaged or not of this teacher.
    """
    if (store / STORE).exists():  # of an earlier demo, whose model may have been another one
        shutil.rmtree(store)
    images = _dataset(training)
    images = images.subset(permutations(child_key(seed), len(images))[:IMAGES])
    teacher = Teacher.of_timm(model, "the demo's model")
    spec = ViewSpec((SIZE, SIZE), scale=(SMALLEST_CROP, 1.0), hflip=0.0)
    stored = save(teacher, images, spec, store, range(epochs), seed=seed, k=K, progress=False)
    say(_checked(stored, images, teacher))
    students = [_student(stored, images, epochs, seed, hard_weight) for hard_weight in (0.0, 1.0)]
    targets = held_out.targets.numpy()
    right = [predict(net, held_out).argmax(dim=1).numpy() == targets for net in (*students, model)]
    row = difference_of_right('soft labels and labels', *right[:2])
    teacher_accuracy = 100 * float(right[2].mean())
    parameters = sum(p.numel() for p in students[0].parameters())
    record = dict(
        plain(row), teacher=teacher_accuracy, parameters=parameters, images=len(images), epochs=epochs, k=stored.info.k,
        bytes_a_record=stored.info.record.size,
    )  # fmt: skip
    accuracies = {'teacher': teacher_accuracy, 'soft labels': row.a, 'true labels': row.b}
    return Taught(row, teacher_accuracy, parameters, record, _figure(stored, images, accuracies))


def _dataset(images: DemoImages) -> ImageDataset:
    pixels = np.stack([np.asarray(image.convert('RGB')) for image in images.images])
    return ImageDataset('demo', 'train', CLASSES, images.targets.numpy(), Arrays(pixels, 'demo'))


def _checked(store: Store, images: ImageDataset, teacher: Teacher) -> str:
    """What `tinyvit-zoo distill check` finds, in a sentence."""
    numbers = store.epochs()
    check_data(store, images)
    records, views = check_records(store, numbers), check_views(store, images, numbers)
    agreement = check_teacher(store, images, teacher, numbers, share=0.01)
    return (
        f'Soft labels of {records:,} views stored in {records * store.info.record.size:,} bytes and checked: every '
        f'record, {views} views made again, and {agreement.views} asked of the teacher again (difference of a '
        f'probability at most {agreement.largest:.1g}).'
    )


def _student(store: Store, images: ImageDataset, epochs: int, seed: int, hard_weight: float) -> nn.Module:
    """A small TinyViT, trained from the soft labels (0) or the true ones (1)."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = SMALL
    student = timm.create_model('tinyvit_5m_224', img_size=SIZE, num_classes=len(CLASSES), **sizes)
    batch = min(BATCH, len(images))
    recipe = DISTILLATION['tinyvit_22k_distill'].changed(
        epochs=epochs, batch_size=batch, lr=LEARNING_RATE, lr_batch=batch
    )
    with tempfile.TemporaryDirectory() as folder:
        distil_from_store(
            student, images, store, recipe, folder, hard_weight=hard_weight, seed=seed, device=torch.device('cpu'),
            say=lambda text: None,
        )  # fmt: skip
    return student


def _figure(store: Store, images: ImageDataset, accuracies: dict[str, float]) -> Figure:
    """The first views of the last epoch with their most probable classes, above the accuracies."""
    epoch = store.epoch(store.epochs()[-1])
    shown = range(min(SHOWN, len(images)))
    labels = epoch.read(shown)
    views = ReplayedViews(images, ViewSpec.from_settings(store.info.views), store.info.seed, epoch.number)
    figure = Figure(figsize=(9, 4.2), dpi=110, facecolor='white', layout='constrained')
    parts: Any = figure.subfigures(2, 1, height_ratios=(1.35, 1))
    top, bottom = parts
    top.suptitle('Views of the last epoch with what is stored of them', fontsize=11, fontweight='bold')
    for i, axis in zip(shown, np.atleast_1d(top.subplots(1, len(shown))), strict=True):
        axis.imshow(views.view(i)[1])
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        best = zip(labels.ids[i].tolist()[:3], labels.probabilities[i].tolist()[:3], strict=True)
        axis.set_xlabel('\n'.join(f'{CLASSES[label]}  {p:.1%}' for label, p in best), fontsize=8.5)
    axis = bottom.subplots()
    bars = axis.barh(list(accuracies), list(accuracies.values()), color=['#59636e', '#0969da', '#bc4c00'])
    axis.bar_label(bars, fmt='%.1f', padding=3, fontsize=8.5)
    axis.invert_yaxis()
    axis.set(xlabel='held-out accuracy, %', xlim=(0, 108))
    axis.spines[['top', 'right']].set_visible(False)
    return figure
