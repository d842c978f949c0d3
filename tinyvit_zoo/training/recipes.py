"""Fine-tuning recipes of the four papers: every number, and where it was published.

In all of them, from the same files: AdamW with betas (0.9, 0.999) and epsilon 1e-8, no weight decay on biases, norms
and what the model's `no_weight_decay` names; crops and flips as timm's defaults, bicubic; erased pixels become noise;
one of Mixup and CutMix for every batch, either as likely where both are on; no colour jitter, which timm leaves out
wherever RandAugment is on. Learning rates are set before each update from the number of updates done, as timm does; the
code of TinyViT and Mini-Swin is one update later, that of Mini-DeiT one epoch.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..common.errors import EvaluationError

__all__ = ['RECIPES', 'Rates', 'Recipe', 'find_recipe']

RAND_AUGMENT = 'rand-m9-mstd0.5-inc1'


@dataclass(frozen=True)
class Rates:
    """Learning rates: highest, last, and first of the warm-up; those of the head where layers have different ones."""

    lr: float
    min_lr: float
    warmup_lr: float


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything about a training but the model and the images.

    Attributes:
        name: What the command line calls it.
        source: Where every number was published, but those that `notes` tell of.
        notes: What was not published, and what stands in for it; quirks of the released code.
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
        weight_decay: See above for what it spares.
        layer_decay: Factor from each layer's learning rate to that of the layer before it; None for one rate.
        clip_grad: Largest norm of the gradient; None for any.
        drop_path: Of the last block, by the beginning of the model's name; '' stands for any other model.
        freeze_batch_norm: Running statistics stay as they are and are used in training; scale and shift are trained.
        head_std: The head starts anew, from a truncated normal distribution of that standard deviation; None for the
            head that the model comes with.
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
        crop_pct: Part of the resized image that is evaluated; None for the model's own.
    """

    name: str
    source: str
    notes: str = ''
    epochs: int
    warmup_epochs: float
    batch_size: int
    lr: float
    min_lr: float
    warmup_lr: float
    lr_batch: int
    scale_all: bool
    cosine_after_warmup: bool
    per_epoch: bool = False
    optimizer: str = 'adamw'
    momentum: float = 0.9
    weight_decay: float
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

    def rates(self, batch_size: int | None = None) -> Rates:
        """The learning rates for a batch of that many images; None for the recipe's own batch."""
        scale = (batch_size or self.batch_size) / self.lr_batch
        rest = scale if self.scale_all else 1.0
        return Rates(self.lr * scale, self.min_lr * rest, self.warmup_lr * rest)

    def drop_path_of(self, model_name: str) -> float:
        """Drop path rate for a model: the entry with the longest beginning of its name; timm's own TinyViTs count too.

        It is an argument of the model, as in `timm.create_model(..., drop_path_rate=...)`: training cannot set it.
        """
        model_name = model_name.replace('tiny_vit', 'tinyvit')
        return self.drop_path[max((key for key in self.drop_path if model_name.startswith(key)), key=len)]

    def changed(self, **changes: Any) -> 'Recipe':
        """A copy with other values; where only `epochs` changes, the warm-up keeps its share of them.

        Raises:
            EvaluationError: If a value cannot be trained with.
        """
        if 'epochs' in changes and 'warmup_epochs' not in changes:
            changes['warmup_epochs'] = self.warmup_epochs * changes['epochs'] / self.epochs
        recipe = dataclasses.replace(self, **changes)
        if recipe.epochs < 1 or not 0 <= recipe.warmup_epochs < recipe.epochs:
            raise EvaluationError(
                f'{recipe.warmup_epochs:g} epochs of warm-up do not fit {recipe.epochs} epochs: the warm-up must end '
                'before the training does.'
            )
        return recipe


TINYVIT = 'microsoft/Cream 4a13c40, TinyViT'
TINYVIT_SCRATCH = Recipe(
    name='tinyvit_scratch',
    source=f'{TINYVIT}/config.py and configs/1k/*.yaml, docs/TRAINING.md (8 x 128); TinyViT paper, section 5.1',
    epochs=300,
    warmup_epochs=20,
    batch_size=1024,
    lr=5e-4,
    min_lr=5e-6,
    warmup_lr=5e-7,
    lr_batch=512,
    scale_all=True,
    cosine_after_warmup=False,
    weight_decay=0.05,
    clip_grad=5.0,
    drop_path={'tinyvit_5m': 0.0, 'tinyvit_11m': 0.1, 'tinyvit_21m': 0.2, '': 0.1},
)
TINYVIT_22K_TO_1K = dataclasses.replace(
    TINYVIT_SCRATCH,
    name='tinyvit_22kto1k',
    source=f'{TINYVIT}/configs/22kto1k/*.yaml and config.py, docs/TRAINING.md (8 x 128); TinyViT paper, section 5.1',
    notes='With timm of today the released code applies the layer decay twice (0.64); here it is applied once.',
    epochs=30,
    warmup_epochs=5,
    lr=2.5e-4,
    min_lr=1e-5,
    weight_decay=1e-8,
    layer_decay=0.8,
    drop_path={'tinyvit_21m': 0.1, 'tinyvit': 0.0, '': 0.1},
    freeze_batch_norm=True,
    mixup=0.0,
    cutmix=0.0,
)
TINYVIT_384 = dataclasses.replace(
    TINYVIT_22K_TO_1K,
    name='tinyvit_384',
    source=f'{TINYVIT}/configs/higher_resolution/tiny_vit_21m_224to384.yaml and config.py, docs/TRAINING.md (8 x 32, '
    'accumulated over 4 steps); TinyViT paper, section 5.1',
    notes='Published for 21M, from its 1k weights at 224, without layer decay. For 5M the author advises a drop path '
    'of 0, which is set here, and a layer decay of 0.8, which is not (wkcn/TinyViT issue 3).',
    lr=2e-5,
    min_lr=2e-7,
    warmup_lr=2e-8,
    layer_decay=None,
    img_size=384,
    crop_pct=1.0,
)
TINYVIT_512 = dataclasses.replace(
    TINYVIT_384,
    name='tinyvit_512',
    source=TINYVIT_384.source.replace('224to384', '384to512'),
    notes='Published for 21M, from its weights at 384.',
    img_size=512,
)

MINI_DEIT = 'microsoft/Cream 4a13c40, MiniViT/Mini-DeiT'
EVAL_MODE = (
    'The released code fine-tunes in eval mode: no drop path. It also keeps a moving average of the weights '
    '(0.99996) but evaluates the weights: it is left out here. The three copies of an image go to three GPUs there, '
    'and stand one after the other in the batch here.'
)
MINI_DEIT_384 = Recipe(
    name='mini_deit_384',
    source=f'{MINI_DEIT}/README.md (8 x 32) and defaults of main.py',
    notes=f'{EVAL_MODE} The lowest learning rate is not scaled with the batch and is above the highest one.',
    epochs=30,
    warmup_epochs=5,
    batch_size=256,
    lr=5e-6,
    min_lr=5e-6,
    warmup_lr=1e-6,
    lr_batch=512,
    scale_all=False,
    cosine_after_warmup=False,
    per_epoch=True,
    weight_decay=1e-8,
    drop_path={'': 0.0},
    freeze_batch_norm=True,
    repeats=3,
    img_size=384,
)
MINIVIT_TRANSFER = dataclasses.replace(
    MINI_DEIT_384,
    name='minivit_transfer',
    source='MiniViT paper, section 4.4 (Table 5): CIFAR-10, CIFAR-100 and Pets; microsoft/Cream issue 83 for CIFAR',
    notes=f"Schedule but for its length, and augmentation but for erasing, were not published: {MINI_DEIT}/main.py's "
    f'defaults. {EVAL_MODE} The paper transfers at 384 pixels.',
    epochs=1000,
    lr=1e-2,
    min_lr=1e-5,
    optimizer='sgd',
    weight_decay=1e-4,
    random_erase=0.0,
    img_size=None,
)
MINIVIT_FLOWERS = dataclasses.replace(
    MINIVIT_TRANSFER,
    name='minivit_transfer_flowers',
    source='MiniViT paper, section 4.4 (Table 5): Flowers',
    epochs=300,
)
MINIVIT_CARS = dataclasses.replace(
    MINIVIT_FLOWERS,
    name='minivit_transfer_cars',
    source='MiniViT paper, section 4.4 (Table 5): Cars',
    notes=f'{MINIVIT_TRANSFER.notes} The batch of 256 is that of the other sets; 1e-3 is taken to be meant for it.',
    optimizer='adamw',
    lr=2e-3,
    weight_decay=0.05,
    random_erase=0.25,
)
MINI_SWIN_384 = Recipe(
    name='mini_swin_384',
    source='microsoft/Cream 4a13c40, MiniViT/Mini-Swin/configs/swin_base_patch4_window7_224to384_minivit_sharenum2_'
    'adamw.yaml and config.py, README.md (8 x 16, accumulated over 2 steps)',
    epochs=30,
    warmup_epochs=5,
    batch_size=256,
    lr=2e-5,
    min_lr=5e-6,
    warmup_lr=5e-7,
    lr_batch=512,
    scale_all=True,
    cosine_after_warmup=False,
    weight_decay=1e-8,
    clip_grad=5.0,
    drop_path={'': 0.2},
    img_size=384,
)
TINYMIM = Recipe(
    name='tinymim',
    source='OliverRensu/TinyMIM d084705, README.md (ViT-B, 8 x 128), defaults of main_finetune.py and util/lr_sched.py',
    notes='Published for ViT-B only; tiny and small take the same numbers here.',
    epochs=100,
    warmup_epochs=5,
    batch_size=1024,
    lr=5e-4,
    min_lr=1e-6,
    warmup_lr=0.0,
    lr_batch=256,
    scale_all=False,
    cosine_after_warmup=True,
    weight_decay=0.05,
    layer_decay=0.65,
    drop_path={'': 0.2},
    head_std=2e-5,
)

MAE_LITE = 'wangsr126/MAE-Lite a5d1a74, projects/eval_tools'
MAE_LITE_DEFAULT = dataclasses.replace(
    TINYMIM,
    name='mae_lite_default',
    source=f'{MAE_LITE}/finetuning_mae_exp.py',
    notes='No command with this file is published: epochs are its default, the batch is that of the improved recipe.',
    lr=1e-3,
    layer_decay=0.85,
    drop_path={'': 0.1},
    head_std=None,
)
MAE_LITE_IMPROVED = dataclasses.replace(
    MAE_LITE_DEFAULT,
    name='mae_lite_improved',
    source=f'{MAE_LITE}/finetuning_exp.py, README.md (1024 images, 300 epochs)',
    notes='For MAE-Small (SMALL.md) and MoCo-v3 (MOCOV3.md) the layer decay is 0.75.',
    epochs=300,
    drop_path={'': 0.0},
    label_smoothing=0.0,
    mixup=0.2,
    cutmix=0.0,
    auto_augment='rand-m10-mstd0.5-inc1',
    random_erase=0.0,
)
MAE_LITE_1000 = dataclasses.replace(
    MAE_LITE_IMPROVED,
    name='mae_lite_1000',
    source=f'{MAE_LITE}/finetuning_rpe_exp.py, README.md (impr.+RPE, 1000 epochs); MAE-Lite paper, Table 2',
    notes='The command is not published; everything but the epochs is the improved recipe.',
    epochs=1000,
)
MAE_LITE_TRANSFER = dataclasses.replace(
    MAE_LITE_DEFAULT,
    name='mae_lite_transfer',
    source=f'{MAE_LITE}/finetuning_transfer_exp.py, TRANSFER.md (512 images)',
    notes='Epochs, warm-up, learning rate and layer decay of each data set but CIFAR-100 are not published; these are '
    "the file's defaults.",
    epochs=300,
    warmup_epochs=20,
    batch_size=512,
    lr=0.03,
    lr_batch=512,
    optimizer='sgd',
    weight_decay=0.0,
    layer_decay=0.75,
    clip_grad=1.0,
    drop_path={'': 0.0},
    label_smoothing=0.0,
    mixup=0.0,
    cutmix=0.0,
    auto_augment=None,
    random_erase=0.0,
)
MAE_LITE_CIFAR100 = dataclasses.replace(
    MAE_LITE_TRANSFER,
    name='mae_lite_cifar100',
    source=f'{MAE_LITE}/scripts/transfer.sh and finetuning_transfer_exp.py',
    notes='',
    epochs=50,
    warmup_epochs=10,
    lr=0.1,
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        TINYVIT_SCRATCH, TINYVIT_22K_TO_1K, TINYVIT_384, TINYVIT_512, MINI_DEIT_384, MINI_SWIN_384, MINIVIT_TRANSFER,
        MINIVIT_FLOWERS, MINIVIT_CARS, TINYMIM, MAE_LITE_DEFAULT, MAE_LITE_IMPROVED, MAE_LITE_1000, MAE_LITE_TRANSFER,
        MAE_LITE_CIFAR100,
    )
}  # fmt: skip


def find_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        EvaluationError: If there is none.
    """
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f'Did you mean {close[0]}? ' if close else ''
        raise EvaluationError(f"There is no recipe '{name}'. {hint}Take one of: {', '.join(RECIPES)}.")
    return RECIPES[name]
