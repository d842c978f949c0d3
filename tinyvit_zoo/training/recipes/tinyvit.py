"""Recipes of TinyViT: from scratch, from ImageNet-22k weights to 1k, at higher resolution, and from soft labels."""

import dataclasses

from .record import Recipe

__all__ = ['DISTILLATION', 'RECIPES']

TINYVIT = 'microsoft/Cream 4a13c40, TinyViT'
TINYVIT_SCRATCH = Recipe(
    name='tinyvit_scratch',
    source=f'{TINYVIT}/config.py and configs/1k/*.yaml, docs/TRAINING.md (8 x 128); TinyViT paper, section 5.1',
    starts=('random',),
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
    crop_pct=0.875,
    crop_mode='center',
    interpolation='bicubic',
)
TINYVIT_22K_TO_1K = dataclasses.replace(
    TINYVIT_SCRATCH,
    name='tinyvit_22kto1k',
    source=f'{TINYVIT}/configs/22kto1k/*.yaml and config.py, docs/TRAINING.md (8 x 128); TinyViT paper, section 5.1',
    notes='With timm of today the released code applies the layer decay twice (0.64); here it is applied once. On '
    'ImageNet-1k the classifier starts from the rows of the 22k head, as there; for other classes from fresh weights, '
    'where the released code has zeros.',
    starts=('in22k',),
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
    starts=('in1k',),
    starts_at=224,
    lr=2e-5,
    min_lr=2e-7,
    warmup_lr=2e-8,
    layer_decay=None,
    img_size=384,
    crop_pct=1.0,
    crop_mode='squash',
)
TINYVIT_512 = dataclasses.replace(
    TINYVIT_384,
    name='tinyvit_512',
    source=TINYVIT_384.source.replace('224to384', '384to512'),
    notes='Published for 21M, from its weights at 384.',
    starts_at=384,
    img_size=512,
)

TINYVIT_22K_DISTILL = dataclasses.replace(
    TINYVIT_SCRATCH,
    name='tinyvit_22k_distill',
    source=f'{TINYVIT}/configs/22k_distill/*.yaml and config.py, docs/PRETRAINING.md (32 x 128); TinyViT paper, '
    'section 5.1',
    notes='Learns from soft labels alone, without Mixup and CutMix.',
    epochs=90,
    warmup_epochs=5,
    batch_size=4096,
    lr=2.5e-4,
    weight_decay=0.01,
    drop_path={'tinyvit_21m': 0.1, '': 0.0},
    label_smoothing=0.0,
    mixup=0.0,
    cutmix=0.0,
)

DISTILLATION = (TINYVIT_22K_DISTILL,)
RECIPES = (TINYVIT_SCRATCH, TINYVIT_22K_TO_1K, TINYVIT_384, TINYVIT_512)
