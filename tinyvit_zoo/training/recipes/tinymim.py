"""The fine-tuning recipe of TinyMIM."""

from .record import Recipe

__all__ = ['RECIPES', 'TINYMIM']

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

RECIPES = (TINYMIM,)
