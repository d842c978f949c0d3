"""The recipe for small data sets of one's own."""

from .record import Recipe

__all__ = ['RECIPES', 'SMALL']

SMALL = Recipe(
    name='small',
    source='TODO',
    notes='TODO',
    epochs=50,
    warmup_epochs=5,
    batch_size=64,
    least_updates=8,
    lr=5e-4,
    min_lr=5e-6,
    warmup_lr=5e-7,
    lr_batch=64,
    scale_all=False,
    cosine_after_warmup=True,
    weight_decay=0.05,
    layer_decay=0.8,
    clip_grad=5.0,
    drop_path={'tinyvit_21m': 0.1, '': 0.0},
    mixup=0.0,
    cutmix=0.0,
    random_erase=0.0,
    crop_area=(0.25, 1.0),
)

RECIPES = (SMALL,)
