"""What happens to an image before a backbone sees it: the model's own evaluation, augmented views, CD-FSL's squash."""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models._input import get_model_input_config
from torch import nn

from ..common.errors import EvaluationError

__all__ = ['augmentation', 'cdfsl_transform', 'data_config', 'eval_transform', 'own_dtype']

Transform = Callable[[Image.Image], torch.Tensor]


def data_config(model: nn.Module) -> dict[str, Any]:
    """timm's data config of a model, with the input size that the model was built for rather than its release's.

    Raises:
        EvaluationError: If the model takes other images than RGB.
    """
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = 3 if first is None else first.in_channels
    if channels != 3 and channels < 12:  # some stems make channels of squares of pixels, at least 3 * 2 * 2
        raise EvaluationError(
            f'{type(model).__name__} takes images of {channels} channels, and all data sets here are RGB: build it '
            'with in_chans=3, for which timm converts the weights of its first layer.'
        )
    size = get_model_input_config(model).get('input_size')
    return resolve_data_config(dict(input_size=size) if size else {}, model=model)


def own_dtype(model: nn.Module) -> torch.dtype:
    """What the model's weights are in, and its images have to be in."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def eval_transform(model: nn.Module) -> Transform:
    """The model's own: resize, centre crop, normalise."""
    return create_transform(**data_config(model), is_training=False)


def augmentation(model: nn.Module, scale: tuple[float, float] = (0.08, 1.0)) -> Transform:
    """Random resized crop and horizontal flip, as in linear evaluation (MoCo v3, main_lincls.py), at the model's size.

    Args:
        model: Any timm model.
        scale: Area of the crop as a share of the image.
    """
    return create_transform(**data_config(model), is_training=True, scale=scale, color_jitter=None, hflip=0.5)


def cdfsl_transform(model: nn.Module) -> Transform:
    """That of the CD-FSL benchmark (datasets/*_few_shot.py, without augmentation): the whole image squashed to a
    square of int(1.15 * size) pixels a side (257 for 224), centre crop, normalise. Bilinear.
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
