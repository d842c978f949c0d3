"""The recipe for learning a teacher's features from images without labels."""

from .record import Recipe

__all__ = ['FEATURES', 'RECIPES', 'SAM_FEATURES']

FEATURES = Recipe(
    name='features',
    source='AdamW, weight decay and clipping as in the recipe of TinyViT from scratch; all else was chosen here',
    notes='The batch shrinks to 8 where an epoch would have fewer than 8 updates, at the same learning rate. Views are '
    'crops of at least a quarter of the area and flips, without color changes: the teacher sees the same ones.',
    epochs=100,
    warmup_epochs=5,
    batch_size=128,
    least_updates=8,
    lr=1e-3,
    min_lr=1e-5,
    warmup_lr=1e-6,
    lr_batch=128,
    scale_all=False,
    cosine_after_warmup=True,
    weight_decay=0.05,
    clip_grad=5.0,
    drop_path={'': 0.0},
    label_smoothing=0.0,
    mixup=0.0,
    cutmix=0.0,
    auto_augment=None,
    random_erase=0.0,
    crop_area=(0.25, 1.0),
)

SAM_FEATURES = FEATURES.changed(
    name='sam_features',
    notes='As that of features, but images are whole, resized and padded as SAM does it; nothing else is drawn.',
    batch_size=8,
    lr_batch=8,
    crop_area=(1.0, 1.0),
    flip=0.0,
)

RECIPES = (FEATURES, SAM_FEATURES)
