"""Training recipes, one file a paper: every number, and where it was published; and one for small data sets.

In those of the papers, from the same files: AdamW with betas (0.9, 0.999) and epsilon 1e-8, no weight decay on biases,
norms and what the model's `no_weight_decay` names; crops and flips as timm's defaults, bicubic; erased pixels become
noise; one of Mixup and CutMix for every batch, either as likely where both are on; no color jitter, which timm leaves
out wherever RandAugment is on; all of train, none of it held out, and the last epoch as the result. Learning rates are
set before each update from the number of updates done, as timm does; the code of TinyViT and Mini-Swin is one update
later, that of Mini-DeiT one epoch.
"""

import difflib
from collections.abc import Mapping

from ...common.errors import EvaluationError
from . import mae_lite, minivit, small, tinymim, tinyvit
from .record import STARTS, Rates, Recipe

__all__ = [
    'DEFAULT',
    'DISTILLATION',
    'PRETRAINING',
    'RECIPES',
    'STARTS',
    'WEIGHT_DISTILLATION',
    'Rates',
    'Recipe',
    'find_recipe',
]

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for paper in (small, tinyvit, minivit, tinymim, mae_lite) for recipe in paper.RECIPES
}
DISTILLATION: dict[str, Recipe] = {recipe.name: recipe for recipe in tinyvit.DISTILLATION}
"""Recipes that learn from soft labels."""
PRETRAINING: dict[str, Recipe] = {recipe.name: recipe for paper in (tinymim, mae_lite) for recipe in paper.PRETRAINING}
"""Recipes of encoders, by the name of the command; with `_small` behind it for small data sets."""
WEIGHT_DISTILLATION: dict[str, Recipe] = {recipe.name: recipe for recipe in minivit.WEIGHT_DISTILLATION}
"""Recipes of a student whose layers share their weights, and a teacher."""
DEFAULT = small.SMALL.name


def find_recipe(name: str, among: Mapping[str, Recipe] = RECIPES) -> Recipe:
    """The recipe of that name.

    Raises:
        EvaluationError: If there is none.
    """
    if name not in among:
        close = difflib.get_close_matches(name, among, n=1)
        hint = f'Did you mean {close[0]}? ' if close else ''
        raise EvaluationError(f"There is no recipe '{name}'. {hint}Take one of: {', '.join(among)}.")
    return among[name]
