"""From a name and keyword arguments to a timm model: weights resolved first, real sizes recorded."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from timm.layers import to_2tuple
from timm.models import build_model_with_cfg, resolve_pretrained_cfg
from timm.models._input import update_model_input_size
from torch import nn

from ..checkpoints import (
    CLASSES_22K,
    CheckpointError,
    KeyMap,
    Weights,
    backbone_part,
    counted_by_part,
    find_weights,
)

__all__ = ['create_zoo_model', 'record_input_size']

_logger = logging.getLogger(__name__)

NO_CLASSIFIER = -1


def create_zoo_model(
    model_cls: type[nn.Module],
    variant: str,
    pretrained: bool,
    key_map: KeyMap,
    filter_fn: Callable[..., dict[str, torch.Tensor]],
    final_grid: Callable[[tuple[int, int]], tuple[int, int]],
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | None = None,
    as_init: bool = False,
    filter_args_of: Callable[[Weights, bool], dict[str, Any]] = lambda weights, as_init: {},
    **kwargs,
) -> nn.Module:
    """timm's `build_model_with_cfg`, with the weights found by `checkpoints.find_weights`.

    timm would read files itself, before any filter, and stop checking keys as soon as `num_classes` or
    `features_only` differ. Here timm is handed a state dict, `filter_fn` accounts for every key, and the question of
    the classifier is settled openly:

    * the checkpoint has as many classes as the model: its classifier is loaded;
    * `num_classes` was given and differs: fresh classifier, one log line;
    * `num_classes` was not given and the file does not fit the tag: error.

    Args:
        model_cls: Model class; takes `img_size`.
        variant: Architecture name.
        pretrained: Load weights.
        key_map: The family's names, of the classifier among others.
        filter_fn: The family's `checkpoint_filter_fn`, with `source_img_size` and `fresh_head`.
        final_grid: Image size (H, W) -> size of the last feature map.
        pretrained_cfg: As in `timm.create_model`.
        pretrained_cfg_overlay: As in `timm.create_model`.
        cache_dir: As in `timm.create_model`.
        as_init: The weights start a training: the classifier is a fresh one, whatever the checkpoint has.
        filter_args_of: Further arguments of `filter_fn`, from the weights that were found and from `as_init`.
        **kwargs: As in `timm.create_model`.

    Raises:
        CheckpointError: If the weights cannot be found, read or matched.
    """
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg, pretrained_cfg_overlay)
    source_img_size = tuple(cfg.input_size[-2:])
    img_size = source_img_size if kwargs.get('img_size') is None else tuple(to_2tuple(kwargs['img_size']))
    if len(img_size) != 2:
        raise ValueError(f'img_size must be an int or (H, W), got {kwargs["img_size"]!r}.')
    kwargs['img_size'] = img_size
    overlay = dict(pretrained_cfg_overlay or {})
    if img_size != source_img_size:
        overlay |= dict(input_size=(cfg.input_size[0], *img_size), pool_size=final_grid(img_size), test_input_size=None)

    # timm writes every argument into a folder that it saves. What was trained from a start is no start any more.
    as_init = as_init and 'as_init' not in (kwargs.get('pretrained_model_args') or {})
    overlay['state_dict'] = None  # weights never become part of a model's configuration
    origin = ''
    if pretrained:
        weights = _backbone_alone(find_weights(cfg, cache_dir))
        origin = weights.origin
        with _named(origin):
            key_map.to_ours(weights.state_dict)  # another family's file is told before its classes are counted
            have = key_map.head_classes(weights.state_dict)
        fresh_head = as_init or _settle_head(weights, have, cfg, kwargs)
        if fresh_head:
            kwargs.setdefault('num_classes', cfg.num_classes)
        # `source` would send timm to the Hub or folder again. timm lets a classifier be absent only where its number
        # of classes differs from the model's.
        classes = NO_CLASSIFIER if fresh_head else have or 0
        overlay |= dict(state_dict=weights.state_dict, source=None, num_classes=classes)
        filter_args = dict(source_img_size=source_img_size, fresh_head=fresh_head, **filter_args_of(weights, as_init))
        filter_fn = partial(filter_fn, **filter_args)

    with _named(origin):
        model = build_model_with_cfg(
            model_cls,
            variant,
            pretrained,
            pretrained_cfg=pretrained_cfg,
            pretrained_cfg_overlay=overlay,
            pretrained_filter_fn=filter_fn,
            **kwargs,
        )
    if pretrained:
        # A features_only wrapper has a configuration of its own, and FeatureGetterNet a whole model inside.
        for module in model.modules():
            if 'state_dict' in (getattr(module, 'pretrained_cfg', None) or {}):
                cleaned = {k: v for k, v in module.pretrained_cfg.items() if k != 'state_dict'}
                cleaned['num_classes'] = have or cfg.num_classes
                if cfg.source:
                    cleaned['source'] = cfg.source
                module.pretrained_cfg = module.default_cfg = cleaned
            if isinstance(module, nn.BatchNorm2d):
                # transformers 5.23 resets the statistics of a backbone that it was given with weights, unless told
                # that they are no start values. (TinyViT's are the only batch norms here; timm's models lose theirs.)
                module._is_hf_initialized = True
    return model


@contextmanager
def _named(origin: str) -> Iterator[None]:
    """Let messages about a checkpoint say which one."""
    try:
        yield
    except CheckpointError as e:
        raise CheckpointError(f'{origin}: {e}') from e


def _backbone_alone(weights: Weights) -> Weights:
    """Of the checkpoint of a detector its backbone."""
    part, beside = backbone_part(weights.state_dict)
    if beside:
        _logger.info('%s: using the backbone, without %s.', weights.origin, counted_by_part(beside))
    return replace(weights, state_dict=part)


def _settle_head(weights: Weights, have: int | None, cfg: Any, kwargs: dict[str, Any]) -> bool:
    """Whether the model keeps its own classifier."""
    if kwargs.get('features_only'):
        return True
    want = kwargs.get('num_classes', cfg.num_classes)
    if (have or 0) == want:
        return False
    if 'num_classes' not in kwargs:
        hint = ''
        if have is None:
            hint = ', or as_init=True to start a training from it'
        elif have == CLASSES_22K:
            hint = ', or convert the 22k head with `tinyvit-zoo convert --head in1k`'
        raise CheckpointError(
            f'{weights.origin} has {have or "no"} classes, {cfg.architecture}.{cfg.tag} has {want or "none"}. Pass '
            f'num_classes={have or 0} to keep the checkpoint as it is, another num_classes for a fresh classifier'
            f'{hint}. Is it the file of another model?'
        )
    if want != 0:
        _logger.warning(
            '%s has %s classes, the model %d: fresh classifier, everything else loaded.',
            weights.origin,
            have or 'no',
            want,
        )
    return True


def record_input_size(
    model: nn.Module, img_size: tuple[int, int], final_grid: tuple[int, int], **model_args: Any
) -> None:
    """Let timm know a new size: data config, export and reload follow it.

    Args:
        model: The resized model.
        img_size: New (H, W).
        final_grid: Size of its last feature map.
        **model_args: Constructor arguments that go with the size; None means: as by default.
    """
    update_model_input_size(model, img_size, **model_args)
    model._model_args = {k: v for k, v in model._model_args.items() if model_args.get(k, k) is not None}
    cfg = getattr(model, 'pretrained_cfg', None)
    if cfg:
        resized = dict(cfg, input_size=(cfg['input_size'][0], *img_size), pool_size=final_grid)
        resized.pop('test_input_size', None)
        model.pretrained_cfg = model.default_cfg = resized
