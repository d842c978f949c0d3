"""TinyMIM's recipes of pre-training and fine-tuning, and that of TinyMIM*-T, which has a teacher."""

import dataclasses

from .record import Recipe
from .small import of_few_images

__all__ = ['COLOR_JITTER', 'PRETRAINING', 'RECIPES', 'TINYMIM', 'TINYMIM_PRETRAINING']

TINYMIM = Recipe(
    name='tinymim',
    source='OliverRensu/TinyMIM d084705, README.md (ViT-B, 8 x 128), defaults of main_finetune.py and util/lr_sched.py',
    notes='Published for ViT-B only; tiny and small take the same numbers here.',
    starts=('encoder',),
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
    crop_pct=0.875,
    crop_mode='center',
    interpolation='bicubic',
)
TINYMIM_STAR = dataclasses.replace(
    TINYMIM,
    name='tinymim_star',
    source='TinyMIM paper, Table 3 (1000 epochs, DeiT-style distillation); all else from the recipe tinymim',
    notes="Neither the teacher, the form and weight of its part in the loss nor any other number was published: DeiT's "
    'teacher and what it does for students with a distillation token (--distillation hard --distillation-alpha 0.5) '
    'stand in for the former, the numbers of ViT-B for the rest.',
    teacher="a ConvNet, as DeiT's regnety_160.deit_in1k",
    epochs=1000,
)

TINYMIM_PRETRAINING = dataclasses.replace(
    TINYMIM,
    name='tinymim',
    source='OliverRensu/TinyMIM d084705, README.md (ViT-B, 32 x 128), defaults of main_pretrain.py and '
    'models_tinymim.py',
    notes='Published for ViT-B only; tiny and small take the same numbers here. Drop path is the same in all blocks '
    'but the last, which has none.',
    starts=('random',),
    epochs=300,
    warmup_epochs=15,
    batch_size=4096,
    lr=1.5e-4,
    min_lr=0.0,
    betas=(0.9, 0.95),
    layer_decay=None,
    drop_path={'': 0.1},
    head_std=None,
    label_smoothing=0.0,
    mixup=0.0,
    cutmix=0.0,
    auto_augment=None,
    random_erase=0.0,
    crop_area=(0.2, 1.0),
)
COLOR_JITTER = (0.4, 0.4, 0.4)  # brightness, contrast, saturation of the student's images; the same source

PRETRAINING = (TINYMIM_PRETRAINING, of_few_images(TINYMIM_PRETRAINING))
RECIPES = (TINYMIM, TINYMIM_STAR)
