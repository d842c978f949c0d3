"""Recipes of MAE-Lite: on ImageNet-1k and on smaller data sets."""

import dataclasses

from .tinymim import TINYMIM

__all__ = ['RECIPES']

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

RECIPES = (MAE_LITE_DEFAULT, MAE_LITE_IMPROVED, MAE_LITE_1000, MAE_LITE_TRANSFER, MAE_LITE_CIFAR100)
