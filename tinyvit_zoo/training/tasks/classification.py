"""Labelled images and a classifier: timm's task, on batches that Mixup and CutMix have mixed where a recipe says so."""

import torch
from timm.data import Mixup
from timm.task import ClassificationTask
from torch import nn

from ..ingredients import create_mixup
from ..recipes import Recipe

__all__ = ['MixedClassification', 'classification_task']


def classification_task(model: nn.Module, recipe: Recipe, num_classes: int) -> ClassificationTask:
    """The task of a recipe: cross entropy with its label smoothing, its Mixup and its CutMix."""
    mixup = create_mixup(recipe, num_classes)
    if mixup is None:
        return ClassificationTask(model, criterion_kwargs=dict(smoothing=recipe.label_smoothing), verbose=False)
    return MixedClassification(model, mixup)


class MixedClassification(ClassificationTask):
    """Classification of mixed images by soft targets; mixing draws from NumPy's global generator."""

    def __init__(self, model: nn.Module, mixup: Mixup) -> None:
        super().__init__(model, criterion_kwargs=dict(soft_targets=True), verbose=False)
        self.mixup = mixup

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Loss and output for images (B, C, H, W) with B even, and labels (B,)."""
        return super().forward(*self.mixup(input, target))
