"""A model of timm or transformers with the images that it takes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from torch import nn

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data.transforms import data_config, eval_transform
from tinyvit_zoo.training.feature_readers import call_arguments
from tinyvit_zoo.training.feature_teacher import FeatureTeacher

__all__ = ['AnalysedModel', 'check_not_compiled', 'check_same_size']


@dataclass(frozen=True)
class AnalysedModel:
    """A model in evaluation mode; an analysis changes nothing about it.

    Attributes:
        model: Called with images (B, 3, H, W).
        name: For people.
        size: (H, W) of its images.
        transform: PIL image -> tensor (3, H, W).
        arguments: Images to what its call takes beside them.
    """

    model: nn.Module
    name: str
    size: tuple[int, int]
    transform: Callable[[Image.Image], torch.Tensor]
    arguments: Callable[[torch.Tensor], dict[str, Any]] = lambda images: {}

    @classmethod
    def of_timm(cls, model: nn.Module, name: str) -> 'AnalysedModel':
        """A model of timm, which says itself how it takes images.

        Args:
            model: Any.
            name: For people.

        Raises:
            EvaluationError: If it does not take RGB images, or is compiled.
        """
        check_not_compiled(model, name)
        height, width = data_config(model)['input_size'][-2:]
        return cls(model.eval(), name, (height, width), eval_transform(model))

    @classmethod
    def of_transformers(cls, teacher: FeatureTeacher) -> 'AnalysedModel':
        """A vision model of transformers: its shorter side resized to the size that it takes, then a center crop.

        Args:
            teacher: As `load_feature_teacher` gives it.
        """
        check_not_compiled(teacher.model, teacher.name)
        size, mean, std = teacher.input
        transform: Any = create_transform(
            (3, *size), mean=tuple(mean), std=tuple(std), interpolation='bicubic', crop_pct=1.0
        )
        arguments = partial(call_arguments, teacher.model, resizes=_own_size(teacher.model) != size)
        return cls(teacher.model, teacher.name, size, transform, arguments)

    def __call__(self, images: torch.Tensor) -> Any:
        return self.model(images, **self.arguments(images))


def _own_size(model: Any) -> tuple[int, int] | None:
    """(H, W) that the configuration of a transformers model names."""
    size = getattr(getattr(model, 'config', None), 'image_size', None)
    if isinstance(size, int):
        return size, size
    return (int(size[0]), int(size[1])) if isinstance(size, list | tuple) else None


def check_not_compiled(model: nn.Module, name: str) -> None:
    """Refuse a model whose layers cannot be watched.

    Raises:
        EvaluationError: If it, or a part of it, is compiled or a script.
    """
    for module in model.modules():
        wrapped = '_orig_mod' in module._modules  # as `torch.compile` leaves it
        if wrapped or module._compiled_call_impl is not None or isinstance(module, torch.jit.ScriptModule):
            raise EvaluationError(f'{name} is compiled, and runs without hooks: analyse the model as it was created.')


def check_same_size(a: AnalysedModel, b: AnalysedModel) -> None:
    """Refuse two models that do not see the same part of an image.

    Raises:
        EvaluationError: If their images differ in size.
    """
    if a.size != b.size:
        own, other = ('x'.join(map(str, model.size)) for model in (a, b))
        raise EvaluationError(
            f'{a.name} takes images of {own} pixels and {b.name} of {other}: give both one size (--img-size).'
        )
