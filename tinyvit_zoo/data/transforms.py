"""Transforms of images for a backbone: the model's own evaluation, augmented views, and CD-FSL's squash."""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models._input import get_model_input_config
from torch import nn

from ..common.errors import EvaluationError
from ..common.text import count_of

__all__ = ['augmentation', 'cdfsl_transform', 'data_config', 'eval_transform', 'own_dtype']

Transform = Callable[[Image.Image], torch.Tensor]


def data_config(model: nn.Module) -> dict[str, Any]:
    """timm's data config of a model, with the input size the model was built for rather than its release's.

    Raises:
        EvaluationError: If the model does not take RGB images.
    """
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = 3 if first is None else first.in_channels
    if channels != 3 and channels < 12:  # some stems fold squares of pixels into channels, at least 3 * 2 * 2
        raise EvaluationError(
            f'{type(model).__name__} takes images with {count_of(channels, "channel")}, and all data sets here '
            'are RGB: build it '
            'with in_chans=3, for which timm converts the weights of the first layer.'
        )
    size = get_model_input_config(model).get('input_size')
    return resolve_data_config(dict(input_size=size) if size else {}, model=model)


def own_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of the model's weights, and of the images it takes."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def eval_transform(model: nn.Module) -> Transform:
    """The model's own: resize, center crop, normalize."""
    return create_transform(**data_config(model), is_training=False)


def augmentation(model: nn.Module, scale: tuple[float, float] = (0.08, 1.0)) -> Transform:
    """Random resized crop and horizontal flip as in linear evaluation (MoCo v3, main_lincls.py), at the model's size.

    Args:
        model: Any timm model.
        scale: Area of the crop as a share of the image.
    """
    settings: dict[str, Any] = dict(data_config(model), scale=scale, color_jitter=None, hflip=0.5)
    return create_transform(**settings, is_training=True)


def cdfsl_transform(model: nn.Module) -> Transform:
    """The CD-FSL benchmark's transform (datasets/*_few_shot.py, without augmentation), bilinear.

    It squashes the whole image to int(1.15 * size) pixels per side (257 for 224), crops the center, and normalizes.
    """
    from torchvision import transforms

    config = data_config(model)
    height, width = config['input_size'][-2:]
    return transforms.Compose(
        [
            transforms.Resize((int(height * 1.15), int(width * 1.15)), transforms.InterpolationMode.BILINEAR),
            transforms.CenterCrop((height, width)),
            transforms.ToTensor(),
            transforms.Normalize(config['mean'], config['std']),
        ]
    )
