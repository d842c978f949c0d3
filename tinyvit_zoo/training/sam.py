"""Training a small image encoder for Segment Anything on the maps of a large one, from images without labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn
from torch.utils.data import Dataset

from ..common.errors import EvaluationError
from ..common.hashes import json_hash
from ..data.image_dataset import ImageDataset
from ..data.replay import Place
from ..data.sam_images import MEAN, STD, pixels_of
from ..data.subsets import subset_identity
from ..data.unlabelled import load_unlabelled
from .feature_teacher import FeatureTeacher
from .features import autocast_dtype
from .loop import RunSettings
from .pretraining import Pretraining
from .recipes import Recipe
from .recipes.features import SAM_FEATURES
from .sam_embeddings import StoredEmbeddings
from .soft_label_views import ViewSampler
from .tasks.sam import SamDistillation
from .train_task import Trained

__all__ = ['SamDistilled', 'SamPlan', 'SamViews', 'distil_sam', 'plan_sam']


@dataclass(frozen=True)
class SamDistilled(Trained):
    """A finished training; the one loss is 'loss'.

    Attributes:
        student: The encoder, in eval mode.
        dataset: The images.
        teacher: What it was taught by, as plain values: name, sha256 of its weights, size of its images, its channels
            and its grid.
    """

    student: nn.Module
    dataset: ImageDataset
    teacher: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SamPlan(Pretraining):
    """A training before it begins. Attributes: see `SamDistilled`."""

    dataset: ImageDataset
    teacher: dict[str, Any]

    def distil(self, output: str | Path) -> SamDistilled:
        """Train it, or resume an earlier run into the same folder.

        Raises:
            EvaluationError: For a reason of `TrainingLoop` or of its `run`.
        """
        trained = self.train(output)
        return SamDistilled(**vars(trained), student=self.form.eval(), dataset=self.dataset, teacher=self.teacher)


class SamViews(Dataset):
    """Whole images by `Place`, resized and padded as SAM does it: (image of the student,) and what the teacher needs.

    That is its stored map, or the same image at its own size where this is another one.

    Args:
        dataset: N images.
        size: (H, W) of the student's images.
        teacher: Stored maps, or (H, W) of the teacher's images.
    """

    def __init__(
        self, dataset: ImageDataset, size: tuple[int, int], teacher: StoredEmbeddings | tuple[int, int]
    ) -> None:
        self.dataset, self.size, self.teacher = dataset, size, teacher

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: Place) -> tuple[torch.Tensor, ...]:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[Place]) -> list[tuple[torch.Tensor, ...]]:
        """The views of a batch. Raises: EvaluationError: If an image or a map cannot be read."""
        return [self._item(place.position) for place in places]

    def _item(self, position: int) -> tuple[torch.Tensor, ...]:
        image = self.dataset.image(position)
        ours = pixels_of(image, self.size)[0]
        if isinstance(self.teacher, StoredEmbeddings):
            return ours, self.teacher[position]
        return (ours,) if self.teacher == self.size else (ours, pixels_of(image, self.teacher)[0])


def distil_sam(
    student: nn.Module,
    teacher: FeatureTeacher | StoredEmbeddings,
    data: ImageDataset | str | Path,
    output: str | Path,
    *,
    recipe: Recipe = SAM_FEATURES,
    img_size: tuple[int, int] | None = None,
    **run: Unpack[RunSettings],
) -> SamDistilled:
    """Train an encoder on the maps that a teacher has of the same images, or resume a run into the same folder.

    The loss is the mean squared error of whole maps, as in MobileSAM. Student and teacher see whole images, resized and
    padded, each at its own size; the student's map is resized to the teacher's grid. There are no crops and flips, so
    that maps can be stored. A run that is killed resumes with the same losses to the bit, as in `TrainingLoop`.

    Args:
        student: Such as `dense.sam.sam_encoder('tinyvit_5m_224', img_size=512)`, trained in place and left in eval
            mode. A resumed run must begin with the same weights: where they are random, such as those of a new neck,
            call `torch.manual_seed` before they are drawn.
        teacher: Of `load_feature_teacher(FOLDER)` or `FeatureTeacher.of_transformers(SamVisionModel, ...)`, frozen
            here, one copy for each process; or maps on disk, see `save_embeddings`.
        data: Images; or a folder of images or a name as in `load_unlabelled`. Labels are not used.
        output: Folder for `state.pt`, all that a resumed run needs, and `best.pt`, the weights that result.
        recipe: Of it, whatever makes views is not used. Its batch shrinks for few images, see `Recipe.fitted`.
        img_size: (H, W) of the student's images; None for its `img_size`.
        **run: See `TrainingLoop`.

    Raises:
        EvaluationError: If student, teacher, data and recipe do not fit, or for a reason of `TrainingLoop.run`.
    """
    dataset = data if isinstance(data, ImageDataset) else load_unlabelled(str(data), seed=run.get('seed', 0))
    return plan_sam(student, teacher, dataset, recipe, img_size=img_size, **run).distil(output)


def plan_sam(
    student: nn.Module,
    teacher: FeatureTeacher | StoredEmbeddings,
    dataset: ImageDataset,
    recipe: Recipe = SAM_FEATURES,
    *,
    img_size: tuple[int, int] | None = None,
    **run: Unpack[RunSettings],
) -> SamPlan:
    """What `distil_sam` trains, to be trained or estimated. Arguments and errors are its own."""
    size = img_size or _own_size(student)
    recipe = recipe.fitted(len(dataset))
    stored = isinstance(teacher, StoredEmbeddings)
    if isinstance(teacher, StoredEmbeddings):
        if teacher.facts.data != dataset.fingerprint():
            raise EvaluationError(f'The embeddings in {teacher.folder} are of other images than {dataset.name}.')
        facts, theirs = teacher.described, teacher.facts.img_size
    else:
        facts, theirs = _facts_of(teacher), teacher.input.size
    _check(student, size, facts, theirs)
    sampler = ViewSampler(len(dataset), recipe.batch_size, run.get('seed', 0), range(recipe.epochs))
    views = SamViews(dataset, size, teacher if isinstance(teacher, StoredEmbeddings) else theirs)
    task = SamDistillation(student, None if stored else teacher, autocast_dtype(run))  # type: ignore[arg-type]
    identity = {
        'method': 'sam_features', 'teacher': json_hash(facts | dict(name='')), 'size': repr(size),
        'data': dataset.fingerprint(), **subset_identity(dataset),
    }  # fmt: skip
    return SamPlan(
        student, task, views, sampler, recipe, identity, run, _unreached(student, size), dataset=dataset,
        teacher=facts,
    )  # fmt: skip


def _own_size(student: nn.Module) -> tuple[int, int]:
    size = getattr(student, 'img_size', None)
    if size is None:
        raise EvaluationError(f'{type(student).__name__} does not say the size of its images: give it (img_size).')
    return size[0], size[1]


def _facts_of(teacher: FeatureTeacher) -> dict[str, Any]:
    if (tuple(teacher.input.mean), tuple(teacher.input.std)) != (MEAN, STD):
        raise EvaluationError(f'{teacher.name} takes images with another mean and standard deviation than SAM.')
    device = next(teacher.model.parameters()).device
    dense = teacher.features(torch.zeros(1, 3, *teacher.input.size, device=device)).dense
    assert dense is not None
    return dict(
        name=teacher.name, sha256=teacher.sha256, img_size=list(teacher.input.size), channels=dense.shape[1],
        grid=list(dense.shape[-2:]),
    )  # fmt: skip


def _check(student: nn.Module, size: tuple[int, int], facts: dict[str, Any], theirs: tuple[int, int]) -> None:
    """See that something is trained, and that the maps are of the same image, and of as many channels."""
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise EvaluationError('All parameters of the student are frozen: let some be trained (requires_grad_).')
    if size[0] * theirs[1] != size[1] * theirs[0]:
        raise EvaluationError(
            f"The student's images of {size[0]}x{size[1]} are padded differently from the teacher's of "
            f'{theirs[0]}x{theirs[1]}: give them the same ratio of height and width.'
        )
    parameter = next(student.parameters())
    training = student.training
    with torch.no_grad():
        own = student.eval()(torch.zeros(1, 3, *size, device=parameter.device, dtype=parameter.dtype))
    student.train(training)
    if not isinstance(own, torch.Tensor) or own.ndim != 4 or own.shape[1] != facts['channels']:
        raise EvaluationError(
            f"The student must give a map of the teacher's {facts['channels']} channels, not "
            f'{tuple(getattr(own, "shape", ()))}: take a sam_encoder with out_chans={facts["channels"]}.'
        )


def _unreached(student: nn.Module, size: tuple[int, int]) -> tuple[nn.Parameter, ...]:
    """Parameters that the map does not depend on: an optimizer would shrink them."""
    training = student.training
    student.eval()  # statistics of norms stay as they are
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    image = torch.zeros(1, 3, *size, device=trained[0].device, dtype=trained[0].dtype)
    gradients = torch.autograd.grad(student(image).sum(), trained, allow_unused=True)
    # To train() and back: see `features._unreached`.
    student.train().train(training)
    return tuple(parameter for parameter, gradient in zip(trained, gradients, strict=True) if gradient is None)
