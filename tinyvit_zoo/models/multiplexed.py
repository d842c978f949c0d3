"""Weight-multiplexed models by name: rebuilds the results of `compress.multiplex` from their description.

Paper: MiniViT: Compressing Vision Transformers with Weight Multiplexing, https://arxiv.org/abs/2204.07154
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import (
    build_model_with_cfg,
    is_model,
    model_entrypoint,
    register_model,
    resolve_pretrained_cfg,
    swin_transformer,
    vision_transformer,
)
from torch import nn

from ._create import record_channels

__all__ = []

# Arguments of timm's builder that are about weights and features, not about the base model.
OF_BUILDER = ('cache_dir', 'features_only', 'feature_cls', 'out_indices', 'pretrained_model_args')


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """timm's own filter for the class: position embeddings and bias tables are resized to the model's size."""
    return _family(model).checkpoint_filter_fn(state_dict, model)


def _family(model: nn.Module) -> Any:
    return swin_transformer if isinstance(model, swin_transformer.SwinTransformer) else vision_transformer


@register_model
def multiplexed(
    pretrained: bool = False,
    base: str = 'deit_small_patch16_224',
    share_every: int | str = 2,
    transform: bool = True,
    mlp_transform: bool | None = None,
    mlp_conv_kernel: int | Sequence[int] | None = None,
    share_norms: bool = False,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    **kwargs,
) -> nn.Module:
    """A timm VisionTransformer or SwinTransformer with shared weights; see `tinyvit_zoo.compress.multiplex`.

    Args:
        pretrained: Load the weights of the folder or Hub page that names this architecture; there are no others.
        base: Architecture of timm, with or without a tag. Its weights are not loaded.
        share_every: See `multiplex`.
        transform: See `multiplex`.
        mlp_transform: See `multiplex`.
        mlp_conv_kernel: See `multiplex`.
        share_norms: See `multiplex`.
        pretrained_cfg: As in `timm.create_model`.
        pretrained_cfg_overlay: As in `timm.create_model`.
        **kwargs: As the base model takes them: `num_classes`, `img_size`, `in_chans`, `features_only`, ...

    Raises:
        ValueError: On an unknown base; see also `multiplex`.
    """
    from ..compress import describe_weights, restructure  # only for those who use it

    architecture = base.partition('.')[0]
    if not is_model(architecture):
        raise ValueError(f"base='{base}' is not a model that timm knows.")
    if isinstance(pretrained_cfg, str):
        raise ValueError(f"There are no weights called 'multiplexed.{pretrained_cfg}': name the base as base=NAME.")
    if not pretrained_cfg:  # the base's size, classes and preprocessing
        pretrained_cfg = describe_weights(resolve_pretrained_cfg(base).to_dict())
    cfg = resolve_pretrained_cfg('multiplexed', pretrained_cfg, pretrained_cfg_overlay).to_dict()
    for_builder = {name: kwargs.pop(name) for name in OF_BUILDER if name in kwargs}
    model = model_entrypoint(architecture)(pretrained=False, pretrained_cfg=cfg, **kwargs)
    args = restructure(model, share_every, transform, mlp_transform, mlp_conv_kernel, share_norms).args
    model._model_args = dict(base=architecture, **args)  # timm adds what the caller gave

    if _family(model) is swin_transformer:
        feature_cfg = dict(flatten_sequential=True, out_indices=tuple(range(len(model.layers))))
    else:
        feature_cfg = dict(feature_cls='getter', out_indices=3)
    built = build_model_with_cfg(
        lambda **_: model,
        'multiplexed',
        pretrained,
        pretrained_cfg=cfg,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=feature_cfg,
        **for_builder,
        **kwargs,
    )
    record_channels(built, kwargs.get('in_chans', 3))
    return built
