"""From a name and keyword arguments to a timm model: weights found first, actual sizes recorded."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, TypeVar, cast

import torch
from timm.layers import to_2tuple
from timm.models import PretrainedCfg, build_model_with_cfg, resolve_pretrained_cfg
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
    warn_nonfinite,
)
from ..common.bounds import check_sizes
from ..common.preprocessing import for_channels
from ..layers import check_setting

__all__ = ['Family', 'create_zoo_model', 'record_channels', 'record_input_size']

_logger = logging.getLogger(__name__)

NO_CLASSIFIER = -1

M = TypeVar('M', bound=nn.Module)
Size = tuple[int, int]


@dataclass(frozen=True)
class Family(Generic[M]):
    """A model class and its checkpoints, as `create_zoo_model` needs them.

    Attributes:
        model_cls: Model class; takes `img_size`.
        key_map: Names of its tensors in checkpoints.
        filter_fn: Its `checkpoint_filter_fn`; takes `source_img_size` and `fresh_head`.
        final_grid: Image size (H, W) -> size of the last feature map; None where timm's cfg has no `pool_size`.
        out_indices: Features that `features_only` takes by default.
        feature_cfg: Further arguments of timm's feature wrapper.
    """

    model_cls: type[M]
    key_map: KeyMap
    filter_fn: Callable[..., dict[str, torch.Tensor]]
    final_grid: Callable[[Size], Size | None]
    out_indices: int | tuple[int, ...]
    feature_cfg: Mapping[str, Any] = field(default_factory=dict)


def create_zoo_model(
    family: Family[M],
    variant: str,
    pretrained: bool,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | None = None,
    as_init: bool = False,
    part: str | None = None,
    filter_args_of: Callable[[Weights, bool], dict[str, Any]] = lambda weights, as_init: {},
    **kwargs,
) -> M:
    """timm's `build_model_with_cfg`, with the weights found by `checkpoints.find_weights`.

    timm would read files itself, before any filter, and stop checking keys as soon as `num_classes` or
    `features_only` differ. Here timm is given a state dict, `filter_fn` accounts for every key, and the classifier
    is settled openly:

    * the checkpoint has as many classes as the model: its classifier is loaded;
    * `num_classes` was given and differs: fresh classifier, one log line;
    * `num_classes` was not given and the file does not fit the tag: error.

    Args:
        family: The model class and its checkpoints.
        variant: Architecture name.
        pretrained: Load weights.
        pretrained_cfg: As in `timm.create_model`.
        pretrained_cfg_overlay: As in `timm.create_model`.
        cache_dir: As in `timm.create_model`.
        as_init: The weights are the initial values of a training: the classifier is a fresh one, whatever the
            checkpoint has.
        part: Which of several models in a file that is given, see `checkpoints.read_checkpoint`.
        filter_args_of: Further arguments of `filter_fn`, from the weights that were found and from `as_init`.
        **kwargs: As in `timm.create_model`.

    Raises:
        CheckpointError: If the weights cannot be found, read or matched.
        ModelError: If a size is beyond that of any model, or `TINYVIT_ZOO_ROUTES` has a value that does not exist.
        ValueError: If `img_size` is neither an int nor (H, W).
    """
    check_setting()
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg, pretrained_cfg_overlay)
    check_sizes(dict(kwargs, input_size=cfg.input_size, classes=cfg.num_classes), variant)  # pages of others have any
    kwargs['img_size'], resized = _resolve_size(cfg, kwargs.get('img_size'), family.final_grid)
    # Weights never become part of a model's configuration.
    overlay = {**(pretrained_cfg_overlay or {}), **resized, 'state_dict': None}
    feature_cfg = dict(family.feature_cfg, out_indices=kwargs.pop('out_indices', family.out_indices))
    build = partial(
        build_model_with_cfg,
        family.model_cls,
        variant,
        pretrained,
        pretrained_cfg=pretrained_cfg,
        feature_cfg=feature_cfg,
    )
    if not pretrained:
        model = build(pretrained_cfg_overlay=overlay, **kwargs)
        record_channels(model, kwargs.get('in_chans', 3))
        return model

    # timm saves every argument with a model. The weights of a saved model are its own, not those it was trained from.
    of_another_call = kwargs.get('pretrained_model_args') or {}
    as_init = as_init and 'as_init' not in of_another_call
    part = None if 'part' in of_another_call else part
    weights, classes = _fetch_weights(cfg, cache_dir, family.key_map, part)
    fresh_head = as_init or _settle_head(weights, classes, cfg, kwargs)
    if fresh_head:
        kwargs.setdefault('num_classes', cfg.num_classes)
    filter_fn = partial(
        family.filter_fn,
        source_img_size=tuple(cfg.input_size[-2:]),
        fresh_head=fresh_head,
        **filter_args_of(weights, as_init),
    )
    # `source` would send timm to the Hub or folder again. timm lets a classifier be absent only where its number of
    # classes differs from the model's.
    overlay |= dict(
        state_dict=weights.state_dict, source=None, num_classes=NO_CLASSIFIER if fresh_head else classes or 0
    )
    with _named(weights.origin):
        model = build(pretrained_cfg_overlay=overlay, pretrained_filter_fn=filter_fn, **kwargs)
    _clean_cfg(model, cfg, classes)
    record_channels(model, kwargs.get('in_chans', 3))
    keep_statistics_in_transformers(model)
    return model


def _resolve_size(
    cfg: PretrainedCfg, asked: Any, final_grid: Callable[[Size], Size | None]
) -> tuple[Size, dict[str, Any]]:
    """Image size (H, W) of the model, and the cfg entries that differ where it is not the size of the cfg."""
    source_img_size = tuple(cfg.input_size[-2:])
    img_size = source_img_size if asked is None else tuple(to_2tuple(asked))
    if len(img_size) != 2:
        raise ValueError(f'img_size must be an int or (H, W), got {asked!r}.')
    grid = final_grid(img_size)
    if img_size == source_img_size:  # of another output stride, perhaps
        return img_size, {} if cfg.pool_size is None or tuple(cfg.pool_size) == grid else dict(pool_size=grid)
    return img_size, dict(input_size=(cfg.input_size[0], *img_size), pool_size=grid, test_input_size=None)


def _fetch_weights(
    cfg: PretrainedCfg, cache_dir: str | None, key_map: KeyMap, named_part: str | None
) -> tuple[Weights, int | None]:
    """The weights of a cfg, of a detector the backbone alone; and the classes of their classifier, None without one."""
    weights = find_weights(cfg, cache_dir, named_part)
    part, rest = backbone_part(weights.state_dict)
    if rest:
        _logger.info('%s: using the backbone, without %s.', weights.origin, counted_by_part(rest))
    weights = replace(weights, state_dict=part)
    warn_nonfinite(part, weights.origin)
    with _named(weights.origin):
        key_map.to_ours(weights.state_dict)  # reports a file of another family before its classes are counted
        return weights, key_map.head_classes(weights.state_dict)


@contextmanager
def _named(origin: str) -> Iterator[None]:
    """Put the origin of a checkpoint in front of messages about it."""
    try:
        yield
    except CheckpointError as e:
        raise CheckpointError(f'{origin}: {e}') from e


def _settle_head(weights: Weights, have: int | None, cfg: PretrainedCfg, kwargs: dict[str, Any]) -> bool:
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


def _clean_cfg(model: nn.Module, cfg: PretrainedCfg, classes: int | None) -> None:
    """Take the weights and what stood in for them out of the model's cfg."""
    # A features_only wrapper has a cfg of its own, and FeatureGetterNet a whole model inside.
    for module in map(_any, model.modules()):
        if 'state_dict' not in (getattr(module, 'pretrained_cfg', None) or {}):
            continue
        cleaned = {k: v for k, v in module.pretrained_cfg.items() if k != 'state_dict'}
        cleaned['num_classes'] = classes or cfg.num_classes
        if cfg.source:
            cleaned['source'] = cfg.source
        module.pretrained_cfg = module.default_cfg = cleaned


def keep_statistics_in_transformers(model: nn.Module) -> None:
    """Make transformers keep the running statistics of a model with loaded weights.

    `TimmBackbone` of transformers 5 initializes every module of the timm model that it has just built, loaded weights
    or not, and then resets the statistics of each BatchNorm2d. It skips modules that bear its mark
    `_is_hf_initialized`. (Only TinyViT has BatchNorm; timm's own models lose their statistics.)
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            _any(module)._is_hf_initialized = True


def record_channels(model: nn.Module, channels: int) -> None:
    """Record a number of image channels for timm, which keeps the three of the release: a mean and a standard deviation
    for each, see `for_channels`.
    """
    for module in map(_any, model.modules()):
        cfg = getattr(module, 'pretrained_cfg', None) or {}
        if 'input_size' in cfg and cfg['input_size'][0] != channels:
            values = {key: for_channels(cfg[key], channels) for key in ('mean', 'std') if cfg.get(key)}
            module.pretrained_cfg = module.default_cfg = dict(
                cfg, input_size=(channels, *cfg['input_size'][1:]), **values
            )


def record_input_size(model: nn.Module, img_size: Size, final_grid: Size | None, **model_args: Any) -> None:
    """Record a new size for timm: data config, export and reload follow it.

    Args:
        model: The resized model.
        img_size: New (H, W).
        final_grid: Size of its last feature map; None where timm's cfg has no `pool_size`.
        **model_args: Constructor arguments that go with the size; None stands for the default.
    """
    update_model_input_size(model, img_size, **model_args)
    timms = _any(model)
    timms._model_args = {k: v for k, v in timms._model_args.items() if model_args.get(k, k) is not None}
    cfg = getattr(model, 'pretrained_cfg', None)
    if cfg:
        resized = dict(cfg, input_size=(cfg['input_size'][0], *img_size), pool_size=final_grid)
        resized.pop('test_input_size', None)
        timms.pretrained_cfg = timms.default_cfg = resized


def _any(module: nn.Module) -> Any:
    """The module with the attributes that timm and transformers give it, which torch's declaration does not allow."""
    return cast(Any, module)
