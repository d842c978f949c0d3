"""The record of a recipe: every number of a training run but the model and the images."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...common.errors import EvaluationError
from ...common.text import count_of

__all__ = ['RAND_AUGMENT', 'STARTS', 'Rates', 'Recipe']

RAND_AUGMENT = 'rand-m9-mstd0.5-inc1'
SMALLEST_BATCH = 8  # BatchNorm takes its statistics over it
STARTS = {
    'random': 'random weights',
    'in22k': 'weights of ImageNet-22k',
    'in1k': 'weights of ImageNet-1k',
    'encoder': 'a pre-trained encoder',
}
"""What a training may start from, in words."""


@dataclass(frozen=True)
class Rates:
    """Learning rates: highest, last, and first of the warm-up; those of the head where layers have different ones."""

    lr: float
    min_lr: float
    warmup_lr: float


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything about a training run but the model and the images.

    Attributes:
        name: What the command line calls it.
        source: Where every number was published, except those that `notes` name.
        notes: What was not published, and what stands in for it; quirks of the released code.
        starts: Keys of `STARTS` that it was published for; none for any.
        starts_at: Side of the images in pixels that those weights are for; None for that of the model.
        teacher: What it was published with to teach, in words; None for none.
        epochs: In all, the warm-up included.
        warmup_epochs: Learning rate rises linearly from `warmup_lr`.
        batch_size: Images in an update, over all processes and accumulated steps.
        lr: Learning rate for a batch of `lr_batch`; it grows in proportion to the batch.
        min_lr: At the end of the cosine.
        warmup_lr: At the start of the warm-up.
        lr_batch: See `lr`.
        scale_all: `min_lr` and `warmup_lr` grow with the batch as well.
        cosine_after_warmup: The cosine begins when the warm-up ends; else both begin together and the cosine is met
            where the warm-up ends.
        per_epoch: The learning rate changes with the epoch, not with each update.
        optimizer: timm's name. timm's 'sgd' has Nesterov momentum.
        momentum: Of SGD.
        betas: Of AdamW; None for its default, (0.9, 0.999).
        weight_decay: See the package for what it spares.
        decay_all: Weight decay spares nothing; None for no.
        layer_decay: Factor from each layer's learning rate to that of the layer before it; None for one rate.
        clip_grad: Largest norm of the gradient; None for any.
        drop_path: Of the last block, by prefix of the model's name; '' stands for any other model.
        freeze_batch_norm: Running statistics stay as they are and are used in training; scale and shift are trained.
        head_std: The head is drawn afresh from a truncated normal distribution of that standard deviation; None
            for the head that the model comes with.
        ema_decay: The result is a moving average of the weights with that decay; None for the weights.
        label_smoothing: Share of the target spread over all classes.
        mixup: Alpha of Mixup; 0 for none.
        cutmix: Alpha of CutMix; 0 for none.
        auto_augment: timm's policy; None for none.
        random_erase: Probability.
        crop_area: Smallest and largest share of the image's area that a crop takes.
        flip: Probability.
        repeats: Times that each image is in an epoch; the epoch keeps its length and has fewer different images.
        img_size: Side in pixels; None for the model's own.
        crop_pct: Part of the resized image that is evaluated; None for the model's own, here and in the next two.
        crop_mode: timm's: 'center' crops the middle, 'squash' resizes both sides whatever their ratio.
        interpolation: Of the images that are evaluated.
        held_out: Share of the training images that chooses the epoch where no other images do; 0 to train on all of
            them and take the last epoch, as papers do.
        least_updates: The batch shrinks until an epoch has so many updates, see `fitted`; None for a fixed batch.
    """

    name: str
    source: str
    notes: str = ''
    starts: tuple[str, ...] = ()
    starts_at: int | None = None
    teacher: str | None = None
    epochs: int
    warmup_epochs: float
    batch_size: int
    lr: float
    min_lr: float
    warmup_lr: float
    lr_batch: float
    scale_all: bool
    cosine_after_warmup: bool
    per_epoch: bool = False
    optimizer: str = 'adamw'
    momentum: float = 0.9
    betas: tuple[float, float] | None = None
    weight_decay: float
    decay_all: bool | None = None
    layer_decay: float | None = None
    clip_grad: float | None = None
    drop_path: Mapping[str, float]
    freeze_batch_norm: bool = False
    head_std: float | None = None
    ema_decay: float | None = None
    label_smoothing: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    auto_augment: str | None = RAND_AUGMENT
    random_erase: float = 0.25
    crop_area: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    repeats: int = 1
    img_size: int | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None
    interpolation: str | None = None
    held_out: float = 0.0
    least_updates: int | None = None

    @property
    def evaluation(self) -> dict[str, Any]:
        """Its settings of the evaluation, as arguments of `create_transform`; what it leaves open is absent."""
        settings = dict(crop_pct=self.crop_pct, crop_mode=self.crop_mode, interpolation=self.interpolation)
        return {key: value for key, value in settings.items() if value is not None}

    def rates(self, batch_size: int | None = None) -> Rates:
        """The learning rates for a batch of that many images; None for the recipe's own batch."""
        scale = (batch_size or self.batch_size) / self.lr_batch
        rest = scale if self.scale_all else 1.0
        return Rates(self.lr * scale, self.min_lr * rest, self.warmup_lr * rest)

    def drop_path_of(self, model_name: str) -> float:
        """Drop path rate for a model: the entry whose key is the longest prefix of its name, timm's TinyViTs included.

        It is an argument of the model, as in `timm.create_model(..., drop_path_rate=...)`: training cannot set it.
        """
        model_name = model_name.replace('tiny_vit', 'tinyvit')
        return self.drop_path[max((key for key in self.drop_path if model_name.startswith(key)), key=len)]

    def fitted(self, images: int) -> 'Recipe':
        """The recipe for that many training images: those with `least_updates` take a smaller batch of few of them.

        The batch is a power of two then, of which processes and pairs make a part each, of 8 where there are as many
        images. The learning rate stays.
        """
        most = min(max(images // (self.least_updates or 1), SMALLEST_BATCH), images)
        if self.least_updates is None or self.batch_size <= most:
            return self
        batch = 1 << (most.bit_length() - 1)
        return dataclasses.replace(self, batch_size=batch, lr_batch=self.lr_batch * batch / self.batch_size)

    def changed(self, **changes: Any) -> 'Recipe':
        """A copy with other values. Where only `epochs` changes, the warm-up keeps its share of them; a batch that is
        given does not shrink any more.

        Raises:
            EvaluationError: If a value cannot be trained with.
        """
        if 'epochs' in changes and 'warmup_epochs' not in changes:
            changes['warmup_epochs'] = self.warmup_epochs * changes['epochs'] / self.epochs
        if 'batch_size' in changes and 'least_updates' not in changes:
            changes['least_updates'] = None
        recipe = dataclasses.replace(self, **changes)
        if recipe.epochs < 1 or not 0 <= recipe.warmup_epochs < recipe.epochs:
            raise EvaluationError(
                f'A warm-up of {count_of(recipe.warmup_epochs, "epoch")} does not fit '
                f'{count_of(recipe.epochs, "epoch")}: it must end before the training does.'
            )
        return recipe
