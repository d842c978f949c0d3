"""Ratios of training time: updates with a live teacher over those from stored soft labels, the paper's beside ours.

An update is the forward and backward pass of the student, clipping and the optimizer, with a live teacher also the
teacher's forward pass, on random images and with random weights. Reading images and stored labels, which other
processes do, is left out. As in `ratios`, none of these is a measured number of a table.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from tinyvit_zoo.bench import Row, Settings, bench_calls
from tinyvit_zoo.build import build_model
from tinyvit_zoo.checkpoints.head_22k import CLASSES_22K
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.soft_labels.teacher import Teacher, rounded
from tinyvit_zoo.training.estimate import take_update
from tinyvit_zoo.training.ingredients import set_training
from tinyvit_zoo.training.loop import TrainingLoop
from tinyvit_zoo.training.recipes import DISTILLATION, find_recipe
from tinyvit_zoo.training.tasks.tinyvit import LiveDistillation, SparseDistillation

from .entries import ENTRIES, numbers_of, paper_of, subject_of
from .numbers import Number
from .ratios import Ratio, Ratios, machine_of, side_of
from .record import Entry

__all__ = ['COST', 'has_public_teacher', 'measure_training_costs']

COST = 'training_cost'
HOURS, TIMES = 'gpu_hours', 'time_ratio_x'
HARDWARE = 'V100'  # as the note of every number of hours says
RECIPE = 'tinyvit_22k_distill'
K = 100  # classes kept of each view, as in the paper's section 5.1
SETTINGS = Settings(rounds=3, train=True)
BATCH = 4


def has_public_teacher(entry: Entry) -> bool:
    """Whether a table has the time of a training with a teacher that can be built here."""
    return any(number.metric == HOURS and _teacher_of(number) and _model_of(number) for number in numbers_of(entry))


def measure_training_costs(
    numbers: Sequence[Number],
    models: Mapping[str, str] | None = None,
    *,
    classes: int = CLASSES_22K,
    batch: int = BATCH,
    settings: Settings = SETTINGS,
) -> Ratios:
    """Measure updates with the teachers of a table and without one in turn, in one process.

    Args:
        numbers: Of one table; others than costs of a training are left out.
        models: As timm names them, by row: the student in the row without a teacher, in others the teacher. Those of
            the paper if None.
        classes: Of student and teachers.
        batch: Images of an update.
        settings: Threads and rounds, see `bench`.

    Raises:
        EvaluationError: If no row has the hours of a training with a teacher that can be built.
        ModelError: If a model cannot be built.
    """
    costs = [number for number in numbers if number.task == COST and number.value]
    hours = [number for number in costs if number.metric == HOURS and _teacher_of(number)]
    known = {number.row: _model_of(number) for number in hours} if models is None else models
    teachers = {number.row: known[number.row] for number in hours if known.get(number.row)}
    if not teachers:
        raise EvaluationError(
            'Ratios of training time need the hours of a training with a public teacher, such as BEiT-L in '
            'tinyvit/table3; Florence is not public.'
        )
    table = numbers_of(ENTRIES[hours[0].entry])
    first = next(number for number in table if number.metric == HOURS and not _teacher_of(number))
    student = _model_of(first) if models is None else models[first.row]
    makers = _makers(first.row, student, teachers, classes, batch)
    rows = {row.model: row for row in bench_calls(makers, batch, settings)}
    names = {first.row: student, **teachers}
    return Ratios(
        tuple(_ratio(number, first, names.get(number.row, ''), rows.get(number.row)) for number in costs),
        first,
        HARDWARE,
        dict(asdict(settings), batch=batch, classes=classes, recipe=RECIPE),
        machine_of(rows[first.row]),
        COST,
    )


def _teacher_of(number: Number) -> str:
    """'BEiT-L' of 'TinyViT-21M (IN-21k distill, teacher BEiT-L)'; empty without a teacher."""
    found = re.search(r'teacher (.+)\)$', number.model)
    return found[1] if found else ''


def _model_of(number: Number) -> str:
    """The teacher of a row, or the student of one without a teacher, as timm builds it; empty if it is not public."""
    teacher = _teacher_of(number)
    subject = paper_of(number).subjects.get(f'{teacher} (teacher, IN-21k)') if teacher else subject_of(number)
    return '' if subject is None else subject.name.partition('.')[0]


# --- updates

Update = Callable[[], object]


def _makers(
    first: str, student: str, teachers: Mapping[str, str], classes: int, batch: int
) -> dict[str, Callable[[], Update]]:
    """By row: makes its update. All of them are of one student, which the row `first` trains without a teacher."""
    recipe = find_recipe(RECIPE, DISTILLATION).changed(batch_size=batch)
    torch.manual_seed(0)
    task = SparseDistillation(build_model(student, num_classes=classes, drop_path_rate=recipe.drop_path_of(student)))
    loop = TrainingLoop(task, recipe, Path(), precision='no', device=torch.device('cpu'))
    set_training(loop.wrapped, recipe.freeze_batch_norm)
    k = min(K, classes)
    makers: dict[str, Callable[[], Update]] = {first: partial(_stored, loop, student, classes, k)}
    return makers | {row: partial(_live, loop, student, teacher, classes, k) for row, teacher in teachers.items()}


def _stored(loop: TrainingLoop, student: str, classes: int, k: int) -> Update:
    """An update from stored soft labels."""
    image, label = _images(loop, student), _labels(loop)
    probabilities, ids = torch.randn(len(label), classes).softmax(dim=1).topk(k)
    return partial(take_update, loop, (image, label, ids.int(), rounded(probabilities)))


def _live(loop: TrainingLoop, student: str, name: str, classes: int, k: int) -> Update:
    """An update with a teacher that sees the same views."""
    teacher = Teacher.of_timm(build_model(name, num_classes=classes), name)
    task = LiveDistillation(loop.module, teacher, k)
    return partial(take_update, loop, (_images(loop, student), _labels(loop), _images(loop, name)), task)


def _images(loop: TrainingLoop, model: str) -> torch.Tensor:
    return torch.randn(loop.recipe.batch_size, 3, side_of(model), side_of(model))


def _labels(loop: TrainingLoop) -> torch.Tensor:
    return torch.zeros(loop.recipe.batch_size, dtype=torch.int64)  # without weight in the loss


# --- ratios


def _ratio(number: Number, first: Number, model: str, row: Row | None) -> Ratio:
    if number.metric not in (HOURS, TIMES):
        return Ratio(number, None, remark=_why_not(number))
    published = float(number.value) / (float(first.value) if number.metric == HOURS else 1)
    if row is None:
        return Ratio(number, published, remark=f'{_teacher_of(number)} is not public')
    if row.ratio is None or row.ratio_low is None or row.ratio_high is None:
        return Ratio(number, published, model=model, remark='out of memory')
    return Ratio(
        number, published, 1 / row.ratio, 1 / row.ratio_high, 1 / row.ratio_low, model, side_of(model),
        row.images_per_second,
    )  # fmt: skip


def _why_not(number: Number) -> str:
    """Why a cost that is no time has no ratio."""
    if not float(number.value):
        return 'there is no teacher'
    return 'the paper does not say for how many images; on a CPU nothing counts the peak of memory'
