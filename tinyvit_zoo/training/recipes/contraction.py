"""The recipe of the short trainings that a contraction ranks its candidates by."""

from .record import Recipe
from .small import SMALL

__all__ = ['CONTRACTION']

CONTRACTION: Recipe = SMALL.changed(
    name='contraction',
    source="That of `small`; no paper's: the TinyViT paper does not say how its candidates were trained",
    notes='All layers learn at one rate and there is neither drop path nor RandAugment: candidates start from random '
    'weights and see few images. 20 % of train ranks the candidates, 1 % from 100,000 images on, which is what the '
    'paper holds out of ImageNet.',
    epochs=5,
    warmup_epochs=0.5,
    lr=1e-3,
    layer_decay=None,
    drop_path={'': 0.0},
    auto_augment=None,
    held_out=0.2,
)
