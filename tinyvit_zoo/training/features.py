"""Training a student on the features of any teacher, from images without labels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn

from ..build import build_model
from ..common.errors import EvaluationError
from ..common.hashes import json_hash
from ..data.image_dataset import ImageDataset
from ..data.replay import ModelInput, ViewSpec
from ..data.subsets import subset_identity
from ..data.transforms import data_config
from ..data.unlabelled import load_unlabelled
from ..distill.feature_targets import FEATURE_LOSSES, FeatureLossName
from .accelerator import find_precision
from .feature_readers import timm_reader
from .feature_teacher import FeatureTeacher, load_feature_teacher
from .feature_views import FeatureViews
from .loop import RunSettings
from .pretraining import Pretraining
from .recipes import Recipe
from .recipes.features import FEATURES
from .soft_label_views import ViewSampler
from .tasks.features import FeatureDistillation, MappedStudent
from .train_task import Trained

__all__ = ['FeatureDistilled', 'FeaturePlan', 'autocast_dtype', 'distil_features', 'plan_features']


@dataclass(frozen=True)
class FeatureDistilled(Trained):
    """A finished training on features; the losses are 'loss', and 'pooled' and 'dense' where they have a share in it.

    Attributes:
        student: The encoder, in eval mode; the linear maps are gone.
        dataset: The images.
        teacher: What it was taught by, as plain values: name, sha256 of its weights, size of its images, its channels
            ('pooled' and 'dense') and its grid.
        loss: How features were compared.
        dense_weight: Share of the dense features in the loss.
    """

    student: nn.Module
    dataset: ImageDataset
    teacher: dict[str, Any]
    loss: str
    dense_weight: float


@dataclass(frozen=True, kw_only=True)
class FeaturePlan(Pretraining):
    """A training on features before it begins.

    Attributes:
        student: See `FeatureDistilled`, also for the rest.
        dataset: The images.
        teacher: What it is taught by.
        loss: How features are compared.
        dense_weight: Share of the dense features in the loss.
    """

    student: nn.Module
    dataset: ImageDataset
    teacher: dict[str, Any]
    loss: str
    dense_weight: float

    def distil(self, output: str | Path) -> FeatureDistilled:
        """Train it, or resume an earlier run into the same folder.

        Raises:
            EvaluationError: For a reason of `TrainingLoop` or of its `run`.
        """
        own = {name: getattr(self, name) for name in ('student', 'dataset', 'teacher', 'loss', 'dense_weight')}
        return FeatureDistilled(**vars(self.train(output)), **own)


def distil_features(
    student: nn.Module | str,
    teacher: FeatureTeacher | nn.Module | str,
    data: ImageDataset | str | Path,
    output: str | Path,
    *,
    recipe: Recipe = FEATURES,
    loss: FeatureLossName = 'smooth_l1',
    dense_weight: float = 0.5,
    img_size: tuple[int, int] | None = None,
    teacher_img_size: tuple[int, int] | None = None,
    **run: Unpack[RunSettings],
) -> FeatureDistilled:
    """Train a student on the features that a teacher has of the same views, or resume a run into the same folder.

    Both see one crop and flip of an image, a function of seed, epoch and position, each at its own size. The student's
    pooled and dense features go through a linear map each to the teacher's width, its grid is resized to the teacher's.
    The maps are trained with it and thrown away. A run that is killed resumes with the same losses to the bit, as in
    `TrainingLoop`.

    Args:
        student: Any timm model, trained in place and left in eval mode; or a name, for random weights without
            classifier, drawn with the seed.
        teacher: Any model of timm, frozen here; a `FeatureTeacher`, for one of transformers; or a name as in
            `load_feature_teacher`. One copy for each process, on its device.
        data: Images; or a folder of images or a name as in `load_unlabelled`. Labels are not used.
        output: Folder for `state.pt`, all that a resumed run needs, and `best.pt`, the weights that result.
        recipe: Its crops, flips and RandAugment make the views. Its batch shrinks for few images, see `Recipe.fitted`.
        loss: 'smooth_l1' on whitened targets, or 'cosine'; see `distill.feature_targets.feature_loss`.
        dense_weight: Share of the dense features in the loss, from 0 to 1; the rest is that of the pooled ones.
        img_size: (H, W) of the student's images, where it is a name.
        teacher_img_size: (H, W) of the teacher's images, where it is not a `FeatureTeacher`; None for its own.
        **run: See `TrainingLoop`; `seed` is also that of the views, the maps, and a student by name.

    Raises:
        EvaluationError: If student, teacher, data and recipe do not fit, or for a reason of `TrainingLoop.run`.
        ModelError: If a name is unknown.
        CheckpointError: If weights cannot be found, read or matched.
    """
    seed = run.get('seed', 0)
    _check(loss, dense_weight)
    dataset = data if isinstance(data, ImageDataset) else load_unlabelled(str(data), seed=seed)
    taught_by = _teacher(teacher, teacher_img_size)
    net = student if isinstance(student, nn.Module) else _random_student(student, img_size, seed)
    return plan_features(net, taught_by, dataset, recipe, loss=loss, dense_weight=dense_weight, **run).distil(output)


def plan_features(
    student: nn.Module,
    teacher: FeatureTeacher,
    dataset: ImageDataset,
    recipe: Recipe = FEATURES,
    *,
    loss: FeatureLossName = 'smooth_l1',
    dense_weight: float = 0.5,
    **run: Unpack[RunSettings],
) -> FeaturePlan:
    """What `distil_features` trains, to be trained or estimated. Arguments and errors are its own."""
    _check(loss, dense_weight)
    if student is teacher.model:
        raise EvaluationError('Student and teacher are the same model: make the student a model of its own.')
    seed, recipe = run.get('seed', 0), recipe.fitted(len(dataset))
    config = data_config(student)
    takes = ModelInput(tuple(config['input_size'][-2:]), config['mean'], config['std'])
    spec = _view_spec(recipe, teacher.input)
    sampler = ViewSampler(len(dataset), recipe.batch_size, seed, range(recipe.epochs))
    module, facts = _mapped(student, teacher, takes.size, dense_weight, seed)
    task = FeatureDistillation(module, teacher, loss, dense_weight, autocast_dtype(run))
    identity = {
        'method': 'features', 'teacher': json_hash(facts | dict(name='')), 'views': spec.hash,
        'data': dataset.fingerprint(), 'loss': loss, 'dense weight': repr(dense_weight), **subset_identity(dataset),
    }  # fmt: skip
    return FeaturePlan(
        module, task, FeatureViews(dataset, spec, seed, takes, teacher.input), sampler, recipe, identity, run,
        _unreached(task, takes, teacher.input), student=student, dataset=dataset, teacher=facts, loss=loss,
        dense_weight=dense_weight,
    )  # fmt: skip


def _check(loss: str, dense_weight: float) -> None:
    if loss not in FEATURE_LOSSES:
        raise EvaluationError(f"There is no feature loss '{loss}': take {' or '.join(FEATURE_LOSSES)}.")
    if not 0 <= dense_weight <= 1:
        raise EvaluationError(f'The share of dense features must be from 0 to 1, not {dense_weight:g}.')


def _teacher(teacher: FeatureTeacher | nn.Module | str, size: tuple[int, int] | None) -> FeatureTeacher:
    if isinstance(teacher, FeatureTeacher):
        return teacher
    if isinstance(teacher, str):
        return load_feature_teacher(teacher, img_size=size)
    return FeatureTeacher.of_timm(teacher, type(teacher).__name__, size)


def _random_student(name: str, img_size: tuple[int, int] | None, seed: int) -> nn.Module:
    size: dict[str, Any] = {} if img_size is None else dict(img_size=img_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(name, num_classes=0, **size)


def _view_spec(recipe: Recipe, teacher: ModelInput) -> ViewSpec:
    """Views at the teacher's size; the student takes the same ones at its own."""
    return ViewSpec.from_timm(
        teacher.size, scale=recipe.crop_area, hflip=recipe.flip, color_jitter=None, auto_augment=recipe.auto_augment,
        re_prob=recipe.random_erase, re_mode='pixel',
    )  # fmt: skip


def _mapped(
    student: nn.Module, teacher: FeatureTeacher, size: tuple[int, int], dense_weight: float, seed: int
) -> tuple[MappedStudent, dict[str, Any]]:
    """The student with its maps, which are drawn with the seed, and the facts of its teacher."""
    name = type(student).__name__
    read = timm_reader(student, name, size, pooled=dense_weight < 1, dense=dense_weight > 0)
    training = student.training
    with torch.no_grad():
        found = read(student.eval(), _blank(student, size))
        targets = teacher.features(_blank(teacher.model, teacher.input.size))
    student.train(training)
    assert targets.pooled is not None
    assert targets.dense is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = MappedStudent(student, read, found, targets)
    channels = dict(pooled=targets.pooled.shape[1], dense=targets.dense.shape[1])
    facts = dict(
        name=teacher.name, sha256=teacher.sha256, img_size=list(teacher.input.size), mean=list(teacher.input.mean),
        std=list(teacher.input.std), channels=channels, grid=list(targets.dense.shape[-2:]),
    )  # fmt: skip
    return module, facts


def _blank(model: nn.Module, size: tuple[int, int]) -> torch.Tensor:
    parameter = next(model.parameters())
    return torch.zeros(1, 3, *size, device=parameter.device, dtype=parameter.dtype)


def _unreached(task: FeatureDistillation, student: ModelInput, teacher: ModelInput) -> tuple[nn.Parameter, ...]:
    """Parameters that the loss does not reach, such as a classifier's.

    DistributedDataParallel would wait for their gradients, and an optimizer would shrink them.
    """
    module = task.trainable_module
    assert isinstance(module, MappedStudent)
    training = module.training
    module.eval()  # statistics of norms stay as they are
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    images = _blank(module, student.size), _blank(task.teacher.model, teacher.size)
    gradients = torch.autograd.grad(task(*images)['loss'], trained, allow_unused=True)
    # To train() and back: timm's TinyViT keeps what it made of its biases in evaluation mode, gradient and all.
    module.train().train(training)
    return tuple(parameter for parameter, gradient in zip(trained, gradients, strict=True) if gradient is None)


def autocast_dtype(run: RunSettings) -> torch.dtype | None:
    """What the teacher computes in: the precision of the run."""
    precision, _ = find_precision(run.get('precision'), run.get('device'))
    return {'bf16': torch.bfloat16, 'fp16': torch.float16}.get(precision)
