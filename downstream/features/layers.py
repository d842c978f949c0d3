"""Which numbers of a timm backbone are its features: one vector (D,) an image."""

import inspect
import re
from collections.abc import Callable

import torch
from torch import nn

from tinyvit_zoo.common.errors import EvaluationError

__all__ = ['feature_function']


def feature_function(model: nn.Module, layers: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """What turns images into features, with one pass through the backbone.

    Args:
        model: Any timm model.
        layers: One of

            - 'pooled': what the classifier gets. Where the head has hidden layers of its own before the classifier
              (MobileNetV3, VGG, ...), the mean over all positions of the last feature map instead.
            - 'pre_logits': what the classifier gets, behind such hidden layers: `forward_head(pre_logits=True)`.
            - 'last:N': of each of the last N blocks of a plain ViT, normed by the last norm, the class token (where it
              has one) and then the mean of the patch tokens; of each of the last N stages of a model with stages, the
              mean over all positions, without a norm. Concatenated from the earliest to the last. (DINO, section 4.1,
              concatenates blocks so; its linear evaluation takes class tokens of N = 4 for ViT-S.)

    Returns:
        A function of images (B, C, H, W) to features (B, D), float of the dtype that the model computes in.

    Raises:
        EvaluationError: If there are no such layers, or the model does not give them.
    """
    for method in ('forward_features', 'forward_head'):
        if not hasattr(model, method):
            raise EvaluationError(f'{type(model).__name__} has no {method}, so it is no timm backbone.')
    if layers == 'pre_logits' or (layers == 'pooled' and not has_hidden_head(model)):
        return lambda images: _flat(model.forward_head(model.forward_features(images), pre_logits=True), model)
    if layers == 'pooled':
        return lambda images: mean_over_positions(model.forward_features(images), model)
    match = re.fullmatch(r'last:([1-9]\d*)', layers)
    if not match:
        raise EvaluationError(f"There are no features called '{layers}': take pooled, pre_logits or last:N.")
    return _last(model, int(match[1]))


def has_hidden_head(model: nn.Module) -> bool:
    """Whether the classifier gets other channels than those of the last feature map."""
    return getattr(model, 'head_hidden_size', None) not in (None, getattr(model, 'num_features', None))


def mean_over_positions(x: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """(B, C, H, W), (B, H, W, C) where the model's `output_fmt` says so, or (B, N, C) -> (B, C). Prefix tokens are no
    positions.
    """
    if isinstance(x, torch.Tensor):
        if x.ndim == 4:
            return x.mean(dim=(1, 2) if getattr(model, 'output_fmt', 'NCHW') == 'NHWC' else (2, 3))
        if x.ndim == 3:
            return x[:, getattr(model, 'num_prefix_tokens', 0) :].mean(dim=1)
    return _flat(x, model)


def _flat(x: torch.Tensor, model: nn.Module) -> torch.Tensor:
    if not isinstance(x, torch.Tensor) or x.ndim < 2:
        raise EvaluationError(f"{type(model).__name__} gives no single vector an image; try layers='last:1'.")
    return x.flatten(1)


def _last(model: nn.Module, number: int) -> Callable[[torch.Tensor], torch.Tensor]:
    if not hasattr(model, 'forward_intermediates'):
        raise EvaluationError(f'{type(model).__name__} does not give its blocks: take pooled or pre_logits.')
    depth = len(getattr(model, 'feature_info', ()))
    if number > depth:
        raise EvaluationError(f'{type(model).__name__} has {depth} blocks or stages to take features of, not {number}.')
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
