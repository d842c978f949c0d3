"""Pre-training of plain ViTs: TinyMIM, MAE, D-MAE and MoCo v3, each from a form, images and a recipe.

    plan = mae(mae_lite_tiny(), dataset, PRETRAINING['mae_small'], workers=2)
    result = plan.train('run')   # or plan.estimate()

A plan is what the loop needs. Parameters that no loss reaches are frozen while it trains, so that several processes
need not search for them; saved files keep them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.vision_transformer import VisionTransformer
from timm.task import TrainingTask
from torch import nn
from torch.utils.data import Dataset, Sampler

from ..common.errors import EvaluationError
from ..common.hashes import state_hash
from ..common.processes import Processes
from ..data.image_dataset import ImageDataset
from ..data.replay import ModelInput, ViewSpec
from ..data.subsets import subset_identity
from ..pretrain import DMae, MaskedAutoencoder, MocoV3, TinyMim
from .accelerator import find_precision
from .estimate import Estimate, estimate
from .loop import RunSettings
from .pretraining_views import ContrastViews, JitteredViews, MaskedViews, MomentSampler
from .recipes import Recipe
from .recipes.mae_lite import CONTRAST_JITTER, MASK_RATIO, START_MOMENTUM
from .recipes.tinymim import COLOR_JITTER
from .soft_label_views import ViewSampler
from .tasks.mae_lite import DMaeTask, MaeTask, MocoV3Task
from .tasks.tinymim import TinyMimTask
from .train_task import Trained, train_task

__all__ = ['Pretraining', 'autocast_of', 'd_mae', 'input_of', 'mae', 'mocov3', 'tinymim']


@dataclass(frozen=True)
class Pretraining:
    """A pre-training before it begins.

    Attributes:
        form: What is pre-trained, teacher and all; in place.
        task: Of the loop.
        views: Items in the order of the task's arguments.
        sampler: Indices of the views.
        recipe: Numbers.
        identity: What must be the same for a run to be resumed.
        run: How it is run.
        unreached: Parameters that no loss reaches.
    """

    form: nn.Module
    task: TrainingTask
    views: Dataset
    sampler: Sampler
    recipe: Recipe
    identity: Mapping[str, str]
    run: RunSettings
    unreached: tuple[nn.Parameter, ...] = ()

    def train(self, output: str | Path) -> Trained:
        """Train it, or resume an earlier run into the same folder; the form ends with the weights that result.

        Raises:
            EvaluationError: For a reason of `TrainingLoop` or of its `run`.
        """
        with _frozen(self.unreached):
            return train_task(self.task, self.views, self.sampler, self.recipe, output, self.identity, **self.run)

    def estimate(self) -> Estimate:
        """What a training will take, from two steps of it, which change the form.

        Raises:
            EvaluationError: For a reason of `TrainingLoop`.
        """
        with _frozen(self.unreached):
            return estimate(self.task, self.views, self.sampler, self.recipe, **self.run)


def tinymim(form: TinyMim, dataset: ImageDataset, recipe: Recipe, **run: Unpack[RunSettings]) -> Pretraining:
    """TinyMIM: one crop and flip for student and teacher, jittered colors for the student.

    Args:
        form: Student and teacher with the objective.
        dataset: Its labels are not used.
        recipe: Such as `PRETRAINING['tinymim']`; the student has its drop path already.
        **run: See `TrainingLoop`; `seed` is also that of views and masks.

    Raises:
        EvaluationError: If there are fewer images than a batch has.
    """
    recipe = recipe.fitted(len(dataset))
    student, teacher = form.student.encoder.vit, form.teacher.encoder.vit
    seed, patches = run.get('seed', 0), student.patch_embed.num_patches
    spec = _crops(recipe, input_of(student), color_jitter=COLOR_JITTER)
    noise = patches if form.mask_ratio else 0
    views = JitteredViews(dataset, spec, seed, input_of(student), input_of(teacher), noise)
    objective = dict(
        target=form.target, relations=form.relations, softmax=form.softmax, mask_ratio=form.mask_ratio,
        reconstruct=form.student.reconstruct, block=form.teacher.encoder.block, heads=form.teacher.encoder.heads,
    )  # fmt: skip
    identity = _identity('tinymim', dataset, spec, **objective, teacher=state_hash(form.teacher))
    parameters = dict(form.student.named_parameters())
    unreached = tuple(parameters[name] for name in form.student.unreached_parameters())
    if form.teacher.encoder.drop_path:
        form.teacher.train()
    task = TinyMimTask(form, autocast_of(run))
    sampler = ViewSampler(len(dataset), recipe.batch_size, seed, range(recipe.epochs))
    return Pretraining(form, task, views, sampler, recipe, identity, run, unreached)


def mae(
    form: MaskedAutoencoder,
    dataset: ImageDataset,
    recipe: Recipe,
    *,
    mask_ratio: float = MASK_RATIO,
    **run: Unpack[RunSettings],
) -> Pretraining:
    """MAE: crops and flips, and a mask of each that is a function of seed, epoch and position.

    Args:
        form: Encoder and decoder.
        dataset: Its labels are not used.
        recipe: Such as `PRETRAINING['mae']`.
        mask_ratio: Fraction of the patches that is hidden.
        **run: See `TrainingLoop`; `seed` is also that of views and masks.

    Raises:
        EvaluationError: If there are fewer images than a batch has, or the mask leaves no patch visible or hidden.
    """
    return _masked('mae', form, form, MaeTask(form, mask_ratio), dataset, recipe, mask_ratio, {}, run)


def d_mae(
    form: DMae,
    dataset: ImageDataset,
    recipe: Recipe,
    *,
    mask_ratio: float = MASK_RATIO,
    **run: Unpack[RunSettings],
) -> Pretraining:
    """D-MAE: as `mae`, with a teacher that sees the student's visible patches.

    Args:
        form: Student, teacher and adapters. The teacher gets the student's images, normalized for the student.
        dataset: Its labels are not used.
        recipe: Such as `PRETRAINING['d_mae']`.
        mask_ratio: Fraction of the patches that is hidden.
        **run: See `TrainingLoop`; `seed` is also that of views and masks.

    Raises:
        EvaluationError: As `mae`.
    """
    if input_of(form.tch_model)[1:] != input_of(form.model)[1:]:
        raise EvaluationError(
            "The teacher takes images with another mean and standard deviation than ImageNet's, which the student has: "
            'choose an MAE encoder.'
        )
    objective = dict(
        attention_blocks=form.attention_blocks, hidden_layers=form.hidden_layers,
        attention_weight=form.attention_weight, hidden_weight=form.hidden_weight, teacher=state_hash(form.tch_model),
    )  # fmt: skip
    return _masked('d_mae', form, form.model, DMaeTask(form, mask_ratio), dataset, recipe, mask_ratio, objective, run)


def mocov3(form: MocoV3, dataset: ImageDataset, recipe: Recipe, **run: Unpack[RunSettings]) -> Pretraining:
    """MoCo v3: two views of each image; the momentum rises to 1 over the training.

    Several processes share the statistics of BatchNorm, which torch does on CUDA only. Where gradients of several
    forward passes are added up, the other images of one pass are its negatives, not all of the batch.

    Args:
        form: Both encoders, projectors and predictor. On several processes its BatchNorm is replaced, in place.
        dataset: Its labels are not used.
        recipe: Such as `PRETRAINING['mocov3']`.
        **run: See `TrainingLoop`; `seed` is also that of the views.

    Raises:
        EvaluationError: If there are fewer images than a batch has, or on several processes without CUDA.
    """
    recipe = recipe.fitted(len(dataset))
    device, processes = run.get('device'), Processes().number
    if processes > 1:
        on_cuda = torch.cuda.is_available() if device is None else device.type == 'cuda'
        if not on_cuda:
            raise EvaluationError(
                f'MoCo v3 shares the statistics of BatchNorm between processes, which torch does on CUDA only: train '
                f'in one process instead of {processes}.'
            )
        nn.SyncBatchNorm.convert_sync_batchnorm(form)
    seed = run.get('seed', 0)
    spec = _crops(recipe, input_of(form.base_encoder), color_jitter=CONTRAST_JITTER, interpolation='bilinear')
    sampler = MomentSampler(len(dataset), recipe.batch_size, seed, recipe.epochs)
    updates = recipe.epochs * (len(sampler) // recipe.batch_size)
    return Pretraining(
        form, MocoV3Task(form, updates, START_MOMENTUM),
        ContrastViews(dataset, spec, seed, input_of(form.base_encoder)), sampler, recipe,
        _identity('mocov3', dataset, spec, temperature=form.temperature), run,
    )  # fmt: skip


def _masked(
    name: str,
    form: nn.Module,
    student: MaskedAutoencoder,
    task: TrainingTask,
    dataset: ImageDataset,
    recipe: Recipe,
    mask_ratio: float,
    objective: Mapping[str, Any],
    run: RunSettings,
) -> Pretraining:
    recipe = recipe.fitted(len(dataset))
    patches, seed = student.patch_embed.num_patches, run.get('seed', 0)
    if not 0 < int(patches * (1 - mask_ratio)) < patches:
        raise EvaluationError(
            f'Of {patches} patches, a mask ratio of {mask_ratio:g} leaves none visible or none hidden: choose another '
            '--mask-ratio, or a smaller --patch-size.'
        )
    if any(recipe.drop_path.values()):
        raise EvaluationError('The encoder of a masked autoencoder has no drop path: leave --drop-path out.')
    spec = _crops(recipe, input_of(student))
    identity = _identity(name, dataset, spec, **objective, mask_ratio=mask_ratio, pixels=student.norm_pix_loss)
    views = MaskedViews(dataset, spec, seed, input_of(student), patches)
    sampler = ViewSampler(len(dataset), recipe.batch_size, seed, range(recipe.epochs))
    return Pretraining(form, task, views, sampler, recipe, identity, run)


def input_of(vit: VisionTransformer) -> ModelInput:
    """How a plain ViT takes images: at the size that it was built for; with ImageNet's mean and standard deviation
    where it is not of timm's making.
    """
    cfg: Any = getattr(vit, 'pretrained_cfg', None) or {}
    size = vit.patch_embed.img_size
    assert size is not None
    mean, std = cfg.get('mean', IMAGENET_DEFAULT_MEAN), cfg.get('std', IMAGENET_DEFAULT_STD)
    return ModelInput((size[0], size[1]), tuple(mean), tuple(std))


def _crops(recipe: Recipe, model: ModelInput, **settings: Any) -> ViewSpec:
    return ViewSpec(size=model.size, scale=recipe.crop_area, hflip=recipe.flip, **settings)


def _identity(name: str, dataset: ImageDataset, spec: ViewSpec, **settings: Any) -> dict[str, str]:
    own = {key.replace('_', ' '): value if isinstance(value, str) else repr(value) for key, value in settings.items()}
    return dict(own, method=name, data=dataset.fingerprint(), views=spec.hash, **subset_identity(dataset))


def autocast_of(run: RunSettings) -> Callable[[], AbstractContextManager]:
    """What makes the context of the student's forward pass, for its teacher."""
    precision, kind = find_precision(run.get('precision'), run.get('device'))
    if precision == 'no':
        return nullcontext
    return partial(torch.autocast, kind, torch.bfloat16 if precision == 'bf16' else torch.float16)


@contextmanager
def _frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
