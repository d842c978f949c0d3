"""The parts of a training run that a recipe decides: optimizer, learning rates, mixing, transforms, order of images."""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Sampler

from ..common.seeding import Seeds
from ..data.augment import create_transform
from ..data.seeded import Draw
from ..data.transforms import data_config
from .recipes import Recipe

__all__ = [
    'RepeatedAugSampler',
    'create_mixup',
    'create_optimizer',
    'create_scheduler',
    'create_transforms',
    'evaluation_config',
    'reset_head',
    'set_training',
]


def create_optimizer(model: nn.Module, recipe: Recipe, batch_size: int) -> torch.optim.Optimizer:
    """timm's optimizer; groups have 'lr_scale' where the recipe has a layer decay, for the scheduler to apply."""
    own: dict[str, Any] = {} if recipe.betas is None else dict(betas=recipe.betas)
    return create_optimizer_v2(
        model,
        opt=recipe.optimizer,
        lr=recipe.rates(batch_size).lr,
        weight_decay=recipe.weight_decay,
        momentum=recipe.momentum,
        layer_decay=recipe.layer_decay,
        filter_bias_and_bn=not recipe.decay_all,
        **own,
    )


def create_scheduler(
    optimizer: torch.optim.Optimizer, recipe: Recipe, batch_size: int, updates_per_epoch: int
) -> CosineLRScheduler:
    """timm's scheduler. Call `step_update(updates done)` after each update and `step(epochs done)` after each epoch: it
    follows the one that the recipe's schedule counts in.
    """
    rates = recipe.rates(batch_size)
    unit = 1 if recipe.per_epoch else updates_per_epoch
    warmup = round(recipe.warmup_epochs * unit)
    return CosineLRScheduler(
        optimizer,
        t_initial=recipe.epochs * unit - (warmup if recipe.cosine_after_warmup else 0),
        lr_min=rates.min_lr,
        warmup_t=warmup,
        warmup_lr_init=rates.warmup_lr,
        warmup_prefix=recipe.cosine_after_warmup,
        t_in_epochs=recipe.per_epoch,
    )


def create_mixup(recipe: Recipe, num_classes: int) -> Mixup | None:
    """timm's Mixup and CutMix, which smooth the labels too, or None if the recipe has neither."""
    if not recipe.mixup and not recipe.cutmix:
        return None
    return Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=num_classes)


def create_transforms(model: nn.Module, recipe: Recipe) -> tuple[Any, Any]:
    """Transforms for training and for evaluation, at the model's image size and with its mean and standard deviation.

    Raises:
        EvaluationError: If the model does not take RGB images.
    """
    config = data_config(model)
    common = {key: config[key] for key in ('input_size', 'mean', 'std')}
    training = create_transform(
        **common,
        is_training=True,
        scale=recipe.crop_area,
        hflip=recipe.flip,
        interpolation='bicubic',
        color_jitter=None,
        auto_augment=recipe.auto_augment,
        re_prob=recipe.random_erase,
        re_mode='pixel',
    )
    return training, create_transform(**evaluation_config(model, recipe))


def evaluation_config(model: nn.Module, recipe: Recipe | None = None) -> dict[str, Any]:
    """Arguments of `create_transform` for evaluation: the model's own, changed by what the recipe says of it.

    Raises:
        EvaluationError: If the model does not take RGB images.
    """
    return {**data_config(model), **(recipe.evaluation if recipe else {})}


def reset_head(model: nn.Module, std: float | None, seed: int) -> None:
    """Draw a linear classifier from a truncated normal distribution, its biases 0; leave it where `std` is None."""
    head = cast(Any, model).get_classifier()
    if std is not None and isinstance(head, nn.Linear):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            nn.init.trunc_normal_(head.weight, std=std)
            nn.init.zeros_(head.bias)


def set_training(model: nn.Module, freeze_batch_norm: bool) -> None:
    """Training mode; the running statistics of BatchNorm stay as they are, and are used, if it is frozen."""
    model.train()
    if freeze_batch_norm:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


class RepeatedAugSampler(Sampler[Draw]):
    """The images of an epoch in random order, each with seeds for its augmentation; each may come several times.

    Args:
        images: How many there are.
        batch_size: Images in an update; the rest of an epoch that makes no whole batch is left out.
        repeats: Times that each image is drawn, one after the other; the epoch keeps its length (Hoffer et al. 2020).
        seed: Of order and augmentation, with the number of the epoch.
    """

    def __init__(self, images: int, batch_size: int, repeats: int, seed: int) -> None:
        self.images, self.repeats, self.seed, self.epoch = images, repeats, seed, 0
        self.length = images // batch_size * batch_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Draw]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(self.images).repeat(self.repeats)[: self.length]
        seeds = rng.integers(2**32, size=self.length)
        for index, seed in zip(order.tolist(), seeds.tolist(), strict=True):
            yield Draw(index, Seeds.same(seed))
