"""Recipes of MAE-Lite: pre-training by MAE, D-MAE and MoCo v3, ImageNet-1k, and smaller data sets."""

import dataclasses

from .small import of_few_images
from .tinymim import TINYMIM, TINYMIM_PRETRAINING

__all__ = [
    'BLUR',
    'CONTRAST_JITTER',
    'D_MAE',
    'GRAYSCALE',
    'JITTERED',
    'MAE',
    'MASK_RATIO',
    'MOCOV3',
    'PRETRAINING',
    'RECIPES',
    'SOLARIZED',
    'START_MOMENTUM',
]

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
    notes='For MAE-Small (SMALL.md) and MoCo-v3 (MOCOV3.md) the layer decay is 0.75. DeiT-Tiny (impr.) was trained by '
    'it from random weights; whether with the layer decay of the file is not published.',
    starts=('encoder', 'random'),
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
    starts=('encoder',),
    epochs=1000,
)
MAE_LITE_100 = dataclasses.replace(
    MAE_LITE_IMPROVED,
    name='mae_lite_100',
    source='MAE-Lite paper, sections 4 and 5 ("we only fine-tune these models on IN1K for 100 epochs"; Fig. 2 and 7); '
    f'{MAE_LITE}/finetuning_exp.py',
    notes='The command is not published; everything but the epochs is the improved recipe. In an issue (6) the authors '
    'give 76.2 % for MAE-Tiny. Fig. 2 keeps the first blocks of an encoder (--keep-blocks); Fig. 4 does so on small '
    'data sets, for which mae_lite_transfer is the recipe.',
    epochs=100,
)
MAE_LITE_TRANSFER = dataclasses.replace(
    MAE_LITE_DEFAULT,
    name='mae_lite_transfer',
    source=f'{MAE_LITE}/finetuning_transfer_exp.py, TRANSFER.md (512 images)',
    notes='Epochs, warm-up, learning rate and layer decay of each data set but CIFAR-100 are not published; these are '
    "the file's defaults.",
    starts=('encoder', 'in1k'),
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

MAE = dataclasses.replace(
    TINYMIM_PRETRAINING,
    name='mae',
    source='wangsr126/MAE-Lite f3090d4, projects/mae_lite/mae_lite_exp.py and README.md (400 epochs, batch 4096)',
    notes='',
    epochs=400,
    warmup_epochs=40,
    drop_path={'': 0.0},
    crop_area=(0.08, 1.0),
)
MASK_RATIO = 0.75  # the same source
D_MAE = dataclasses.replace(
    MAE,
    name='d_mae',
    source='wangsr126/MAE-Lite f3090d4, projects/mae_lite/mae_lite_distill_exp.py (400 epochs, batch 4096)',
    notes='Published with MAE-Base after 1600 epochs as the teacher.',
)
MOCOV3 = dataclasses.replace(
    MAE,
    name='mocov3',
    source='wangsr126/MAE-Lite f3090d4, projects/mocov3/mocov3_exp.py and MOCOV3.md (400 epochs, batch 1024)',
    notes='Weight decay spares nothing, as released.',
    batch_size=1024,
    warmup_lr=1e-6,
    weight_decay=0.1,
    decay_all=True,
    betas=None,
)
# Views of MoCo v3, the same source: first and second where they differ.
CONTRAST_JITTER = (0.4, 0.4, 0.2, 0.1)
JITTERED, GRAYSCALE = 0.8, 0.2  # probabilities
BLUR, SOLARIZED = (1.0, 0.1), (0.0, 0.2)
START_MOMENTUM = 0.99

PRETRAINING = (MAE, D_MAE, MOCOV3, *map(of_few_images, (MAE, D_MAE, MOCOV3)))
RECIPES = (
    MAE_LITE_DEFAULT,
    MAE_LITE_IMPROVED,
    MAE_LITE_100,
    MAE_LITE_1000,
    MAE_LITE_TRANSFER,
    MAE_LITE_CIFAR100,
)
