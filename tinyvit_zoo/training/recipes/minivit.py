"""Recipes of MiniViT: weight distillation at 224 pixels, then 384 pixels, and Mini-DeiT on smaller data sets."""

import dataclasses

from .record import Recipe

__all__ = ['RECIPES', 'WEIGHT_DISTILLATION']

OF_DEIT = 'microsoft/Cream 4a13c40, MiniViT/Mini-DeiT'
EVAL_MODE = (
    'The released code fine-tunes in eval mode: no drop path. It also keeps a moving average of the weights '
    '(0.99996) but evaluates the weights: it is left out here. The three copies of an image go to three GPUs there, '
    'and stand one after the other in the batch here.'
)
MINI_DEIT_384 = Recipe(
    name='mini_deit_384',
    source=f'{OF_DEIT}/README.md (8 x 32) and defaults of main.py',
    notes=f'{EVAL_MODE} The lowest learning rate is not scaled with the batch and is above the highest one.',
    starts=('in1k',),
    starts_at=224,
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
    crop_pct=0.875,
    crop_mode='center',
    interpolation='bicubic',
)
MINIVIT_TRANSFER = dataclasses.replace(
    MINI_DEIT_384,
    name='minivit_transfer',
    source='MiniViT paper, section 4.4 (Table 5): CIFAR-10, CIFAR-100 and Pets; microsoft/Cream issue 83 for CIFAR',
    notes=f"Schedule but for its length, and augmentation but for erasing, were not published: {OF_DEIT}/main.py's "
    f'defaults. {EVAL_MODE} The paper transfers Mini-DeiT-B at 384 pixels only.',
    starts_at=384,
    epochs=1000,
    lr=1e-2,
    min_lr=1e-5,
    optimizer='sgd',
    weight_decay=1e-4,
    random_erase=0.0,
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
    starts=('in1k',),
    starts_at=224,
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
    crop_pct=0.875,
    crop_mode='center',
    interpolation='bicubic',
)

MINI_SWIN = Recipe(
    name='mini_swin',
    source='microsoft/Cream 4a13c40, MiniViT/Mini-Swin/README.md (8 x 128), config.py, optimizer.py and configs/'
    'swin_{tiny,small,base}_patch4_window7_224_minivit_*.yaml; MiniViT paper, section 4.1',
    notes='Losses: predictions + relations of queries, keys and values + 0.1 x relations of hidden states, none for '
    'the labels (--alpha 0.0, --hidden_weight 0.1). The paper names the teacher, the code takes any Swin-B or Swin-L. '
    'The drop path of Swins that were multiplexed here is that of the same size.',
    starts=('random',),
    teacher='swin_base_patch4_window7_224.ms_in22k_ft_in1k',
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
    drop_path={
        'mini_swin_tiny': 0.0, 'mini_swin_small': 0.1, 'mini_swin_base': 0.2, 'swin_tiny': 0.0, 'swin_small': 0.1,
        'swin_base': 0.2, '': 0.0,
    },
    crop_pct=0.875,
    crop_mode='center',
    interpolation='bicubic',
)  # fmt: skip
MINI_DEIT = Recipe(
    name='mini_deit',
    source=f'{OF_DEIT}/README.md (8 x 128) and defaults of main.py',
    notes='Losses: predictions, divided by the number of classes, too, none for the labels (--distillation-alpha 1.0). '
    "The code takes whatever weights timm has for regnety_160; deit_in1k are DeiT's. timm's 10 epochs of cooldown are "
    'in its schedule but never trained. It keeps a moving average of the weights (0.99996) but evaluates the weights: '
    'it is left out here. The three copies of an image go to three GPUs there, and stand one after the other in the '
    'batch here.',
    starts=('random',),
    teacher='regnety_160.deit_in1k',
    epochs=300,
    warmup_epochs=5,
    batch_size=1024,
    lr=5e-4,
    min_lr=1e-5,
    warmup_lr=1e-6,
    lr_batch=512,
    scale_all=False,
    cosine_after_warmup=False,
    per_epoch=True,
    weight_decay=0.05,
    drop_path={'mini_deit_base': 0.1, 'deit_base': 0.1, '': 0.0},
    repeats=3,
    crop_pct=0.875,
    crop_mode='center',
    interpolation='bicubic',
)

WEIGHT_DISTILLATION = (MINI_SWIN, MINI_DEIT)
RECIPES = (MINI_DEIT_384, MINI_SWIN_384, MINIVIT_TRANSFER, MINIVIT_FLOWERS, MINIVIT_CARS)
