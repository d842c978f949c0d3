"""What a vision model says of an image as a whole and of its parts, read from any timm or transformers model.

Shape legend: `B` images, `N` tokens, `C` channels, `h w` grid of the dense features.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from ..common.errors import EvaluationError
from ..common.text import reason

__all__ = ['FeatureReader', 'Features', 'call_arguments', 'timm_reader', 'transformers_reader', 'vision_part']


OTHER_TOKENS = ('num_detection_tokens', 'num_queries', 'num_output_groups')
"""In configurations: YOLOS has tokens of detections after its patches, DETR one an object, GroupViT one a group."""


class Features(NamedTuple):
    """Features of a batch of images; None where they were not asked for."""

    pooled: torch.Tensor | None
    """(B, C), of whole images."""
    dense: torch.Tensor | None
    """(B, C', h, w), of their parts; C' may differ from C."""


FeatureReader = Callable[[nn.Module, torch.Tensor], Features]
"""The features of a model for images (B, 3, H, W) of the size that the reader was made for."""


def timm_reader(
    model: nn.Module, name: str, size: tuple[int, int], *, pooled: bool = True, dense: bool = True
) -> FeatureReader:
    """A reader for one timm model. Nothing that is not asked for is computed.

    Pooled features are the input of the classifier; of a head with hidden layers before it (MobileNetV3, VGG, ...) the
    mean of the dense ones. Those are what `forward_features` gives, after the last norm where the model has one there,
    without class, distillation and register tokens.

    Args:
        model: Run once, on a blank image.
        name: Of the model, for messages.
        size: (H, W) of the images.
        pooled: Whether to read pooled features.
        dense: Whether to read dense ones.

    Raises:
        EvaluationError: If it lacks what is asked for.
    """
    if not (hasattr(model, 'forward_features') and hasattr(model, 'forward_head')):
        raise EvaluationError(
            f'{name} lacks features: {type(model).__name__} has no forward_features and forward_head, as models of '
            'timm have.'
        )
    from_map = getattr(model, 'head_hidden_size', None) not in (None, getattr(model, 'num_features', None))
    needs_map = dense or from_map
    backbone: Any = model
    with _blank_image(model, name, size) as blank:
        last = backbone.forward_features(blank)
        as_map = _map_layout(model, name, blank, last) if needs_map else None

    def read(model: Any, images: torch.Tensor) -> Features:
        last = model.forward_features(images)
        image = as_map(last) if as_map else None
        if not pooled:
            return Features(None, image)
        if from_map:
            assert image is not None
            return Features(image.mean(dim=(2, 3)), image if dense else None)
        return Features(model.forward_head(last, pre_logits=True).flatten(1), image)

    return _checked(read, model, name, size, pooled, dense)


def _map_layout(model: Any, name: str, blank: torch.Tensor, last: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function from what `forward_features` gives to (B, C, h, w)."""
    if isinstance(last, torch.Tensor) and last.ndim == 4:
        if getattr(model, 'output_fmt', 'NCHW') == 'NHWC':
            return lambda x: x.permute(0, 3, 1, 2)
        return lambda x: x
    if not isinstance(last, torch.Tensor) or last.ndim != 3:
        raise EvaluationError(f'{name} lacks dense features: its forward_features gives no map and no tokens.')
    grid = None
    if hasattr(model, 'forward_intermediates'):
        grid = tuple(model.forward_intermediates(blank, indices=1, intermediates_only=True)[-1].shape[-2:])
    return _tokens_as_map(name, last.shape[1], grid or _square(last.shape[1], *blank.shape[-2:]))


def _tokens_as_map(name: str, tokens: int, grid: tuple[int, ...] | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function from (B, N, C) to (B, C, h, w); tokens that are too many stand first and are left out."""
    if grid is None or math.prod(grid) > tokens:
        raise EvaluationError(f'{name} lacks dense features: its {tokens} tokens make no grid over the image.')
    prefix = tokens - math.prod(grid)
    return lambda x: x[:, prefix:].transpose(1, 2).unflatten(2, grid)


def _square(tokens: int, height: int, width: int) -> tuple[int, int] | None:
    """The grid of so many tokens with the sides' ratio of the image, if there is one."""
    h = round(math.sqrt(tokens * height / width))
    return (h, tokens // h) if h and h * round(h * width / height) == tokens else None


def vision_part(model: Any) -> nn.Module:
    """The part of a transformers model that takes images alone: of CLIP, SigLIP or SAM its vision tower, of a
    classifier its backbone.
    """
    for part in ('vision_model', 'vision_encoder'):
        if isinstance(getattr(model, part, None), nn.Module):
            return getattr(model, part)
    base = getattr(model, 'base_model', model)
    # DINOv3's model calls its encoder `model`, which is the name of a base.
    return base if 'pixel_values' in inspect.signature(base.forward).parameters else model


def transformers_reader(model: nn.Module, name: str, size: tuple[int, int]) -> FeatureReader:
    """A reader for one vision model of transformers, by the weights that it comes with.

    Dense features are its `last_hidden_state` without class and register tokens. Pooled ones are its `pooler_output`;
    the class token where that is none, or a dense layer with tanh, which most pages have no weights of (ViT, DeiT); the
    mean of the dense ones where there is no class token either (SAM).

    MAE, which leaves out patches at random, sees all of them from now on.

    Args:
        model: See `vision_part`. Run once, on a blank image.
        name: Of the model, for messages.
        size: (H, W) of the images.

    Raises:
        EvaluationError: If it lacks such features, or takes no images of that size.
    """
    config: Any = model.config
    other = next((key for key in OTHER_TOKENS if getattr(config, key, None)), None)
    if other is not None:
        raise EvaluationError(
            f'{name} has tokens that do not lie over the image ({other}) and would be taken for patches: choose a '
            'model that classifies or embeds.'
        )
    if _masks(model):
        config.mask_ratio = 0.0
    forward: Any = _forward(model)
    with _blank_image(model, name, size) as blank:
        output = forward(model, blank)
    last, pooler = getattr(output, 'last_hidden_state', None), getattr(output, 'pooler_output', None)
    if not isinstance(last, torch.Tensor) or last.ndim not in (3, 4):
        raise EvaluationError(f'{name} lacks dense features: {type(model).__name__} gives no last_hidden_state.')
    if last.ndim == 4:
        as_map, prefix = (lambda x: x), 0
    else:
        grid = _patch_grid(model, last.shape[1], size)
        as_map = _tokens_as_map(name, last.shape[1], grid)
        assert grid is not None
        prefix = last.shape[1] - math.prod(grid)
    from_pooler = pooler is not None and not hasattr(getattr(model, 'pooler', None), 'activation')

    def read(model: nn.Module, images: torch.Tensor) -> Features:
        output = forward(model, images)
        image = as_map(output.last_hidden_state)
        if from_pooler:
            return Features(output.pooler_output.flatten(1), image)
        return Features(output.last_hidden_state[:, 0] if prefix else image.mean(dim=(2, 3)), image)

    return _checked(read, model, name, size, True, True)


def _forward(model: nn.Module) -> Callable[[nn.Module, torch.Tensor], Any]:
    """How a transformers model is called; positions are resized where it can do that."""
    resizes = 'interpolate_pos_encoding' in inspect.signature(model.forward).parameters
    return lambda model, images: model(pixel_values=images, return_dict=True, **call_arguments(model, images, resizes))


def call_arguments(model: Any, images: torch.Tensor, resizes: bool) -> dict[str, Any]:
    """Arguments of a transformers model's call besides the images.

    Args:
        model: Of which `transformers_reader` has made a reader.
        images: (B, 3, H, W).
        resizes: Whether it is to resize its positions.
    """
    arguments: dict[str, Any] = dict(interpolate_pos_encoding=True) if resizes else {}
    if _masks(model):  # by the order of the noise: all patches, where they lie
        patches = math.prod(side // model.config.patch_size for side in images.shape[-2:])
        arguments['noise'] = torch.arange(patches, device=images.device).expand(len(images), -1)
    return arguments


def _masks(model: Any) -> bool:
    """Whether a transformers model leaves out most patches at random, as MAE does in its own pre-training."""
    return 'noise' in inspect.signature(model.forward).parameters and hasattr(model.config, 'mask_ratio')


def _patch_grid(model: Any, tokens: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """Patches of the image where there are so many tokens at least, with few others; else a grid of all tokens."""
    patch = getattr(model.config, 'patch_size', None)
    if isinstance(patch, int):
        grid = size[0] // patch, size[1] // patch
        if 0 < math.prod(grid) <= tokens:
            return grid
    return _square(tokens, *size)


@contextmanager
def _blank_image(model: nn.Module, name: str, size: tuple[int, int]) -> Iterator[torch.Tensor]:
    """A block with a blank image for a model, which is in evaluation mode; its errors become one sentence."""
    training, parameter = model.training, next(model.parameters())
    model.eval()
    try:
        with torch.no_grad():
            yield torch.zeros(1, 3, *size, device=parameter.device, dtype=parameter.dtype)
    except EvaluationError:
        raise
    except Exception as e:  # models of others fail in any way
        raise EvaluationError(
            f'{name} gives no features of images of {size[0]}x{size[1]} ({reason(e)}): choose another size, or another '
            'model.'
        ) from e
    finally:
        model.train(training)


def _checked(
    read: FeatureReader, model: nn.Module, name: str, size: tuple[int, int], pooled: bool, dense: bool
) -> FeatureReader:
    """The reader, if its features are of the shapes that they should be."""
    with _blank_image(model, name, size) as blank:
        found = read(model, blank)
    for wanted, what, value, ndim in ((pooled, 'pooled', found.pooled, 2), (dense, 'dense', found.dense, 4)):
        if wanted and (value is None or value.ndim != ndim or not value.numel()):
            shape = 'none' if value is None else tuple(value.shape)
            raise EvaluationError(f'{name} lacks {what} features: what {type(model).__name__} gives is {shape}.')
    return read
