"""The features of a timm backbone: one vector (D,) per image, from the layers that are asked for."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tinyvit_zoo.common.errors import EvaluationError

__all__ = ['feature_function']


def feature_function(model: nn.Module, layers: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function from images to features, with one pass through the backbone.

    Args:
        model: Any timm model.
        layers: One of

            - 'pooled': the input of the classifier. If the head has hidden layers before the classifier (MobileNetV3,
              VGG, ...), it is the mean over all positions of the last feature map instead.
            - 'pre_logits': the input of the classifier, after such hidden layers: `forward_head(pre_logits=True)`.
            - 'last:N': for a plain ViT, the class token (if it has one) and the mean of the patch tokens of each of the
              last N blocks, normalized by the last norm; for a model with stages, the mean over all positions of each
              of the last N stages, without a norm. They are concatenated from the earliest to the last. (DINO,
              section 4.1, concatenates blocks in this way; its linear evaluation uses class tokens of N = 4 for ViT-S.)

    Returns:
        A function of images (B, C, H, W) that returns features (B, D), float in the model's dtype.

    Raises:
        EvaluationError: If the layers do not exist, or the model does not provide them.
    """
    backbone: Any = model
    for method in ('forward_features', 'forward_head'):
        if not hasattr(model, method):
            raise EvaluationError(f'{type(model).__name__} has no {method}, so it is not a timm backbone.')
    if layers == 'pre_logits' or (layers == 'pooled' and not has_hidden_head(model)):
        return lambda images: _flat(backbone.forward_head(backbone.forward_features(images), pre_logits=True), model)
    if layers == 'pooled':
        return lambda images: mean_over_positions(backbone.forward_features(images), model)
    match = re.fullmatch(r'last:([1-9]\d*)', layers)
    if not match:
        raise EvaluationError(f"There are no features named '{layers}': take pooled, pre_logits or last:N.")
    return _last(model, int(match[1]))


def has_hidden_head(model: nn.Module) -> bool:
    """Whether the head has hidden layers between the last feature map and the classifier."""
    return getattr(model, 'head_hidden_size', None) not in (None, getattr(model, 'num_features', None))


def mean_over_positions(x: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """(B, C, H, W), or (B, H, W, C) if the model's `output_fmt` says so, or (B, N, C) -> (B, C).

    Prefix tokens are left out.
    """
    if isinstance(x, torch.Tensor):
        if x.ndim == 4:
            return x.mean(dim=(1, 2) if getattr(model, 'output_fmt', 'NCHW') == 'NHWC' else (2, 3))
        if x.ndim == 3:
            return x[:, getattr(model, 'num_prefix_tokens', 0) :].mean(dim=1)
    return _flat(x, model)


def _flat(x: torch.Tensor, model: nn.Module) -> torch.Tensor:
    if not isinstance(x, torch.Tensor) or x.ndim < 2:
        raise EvaluationError(f"{type(model).__name__} gives no single vector per image; try layers='last:1'.")
    return x.flatten(1)


def _last(model: Any, number: int) -> Callable[[torch.Tensor], torch.Tensor]:
    if not hasattr(model, 'forward_intermediates'):
        raise EvaluationError(f'{type(model).__name__} does not return its blocks: take pooled or pre_logits.')
    depth = len(getattr(model, 'feature_info', ()))
    if number > depth:
        raise EvaluationError(f'{type(model).__name__} has {depth} blocks or stages, not {number}: ask for fewer.')
    tokens = 'return_prefix_tokens' in inspect.signature(model.forward_intermediates).parameters
    settings = dict(return_prefix_tokens=True, norm=True) if tokens else {}
    has_class_token = getattr(model, 'cls_token', None) is not None

    def features(images: torch.Tensor) -> torch.Tensor:
        vectors = []
        for x in model.forward_intermediates(images, indices=number, intermediates_only=True, **settings):
            patches, prefix = x if isinstance(x, tuple) else (x, None)
            if prefix is not None and has_class_token:
                vectors.append(prefix[:, 0])
            vectors.append(patches.mean(dim=(2, 3)))
        return torch.cat(vectors, dim=1)

    return features
