"""Layer-wise learning rates and weight decay by the rules that timm's models define.

BEiT's recipe, https://arxiv.org/abs/2106.08254, as timm's `param_groups_layer_decay` has it: layer l of L has the
learning rate times `layer_decay_rate` ** (L - l).
"""

import logging
from fnmatch import fnmatch
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from timm.models._manipulate import group_with_matcher
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from .backbone import ZooBackbone

__all__ = ['ZooLayerDecayConstructor']

NET = 'backbone.net.'
NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm)
OPTIONS = ('layer_decay_rate', 'norm_decay_mult', 'bias_decay_mult')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ZooLayerDecayConstructor(DefaultOptimWrapperConstructor):
    """Parameter groups of a detector or segmentor with a `ZooBackbone`.

    Layers are those of the timm model's `group_matcher`; the norms of the maps, neck and heads learn at the full
    rate. Parameters of one dimension (norms, biases) and those that the model lists in `no_weight_decay`, such as
    position embeddings and tables, have no weight decay. Frozen parameters are in no group.

    `paramwise_cfg` may hold `layer_decay_rate` (default 1: equal rates), and `norm_decay_mult` and `bias_decay_mult`,
    the factors of the weight decay of norms and biases (default 0).

    For the dense forms of TinyMIM the result is that of the released code, quirks included: class token and position
    embedding have weight decay (there because their names start with 'backbone.'), and the distillation token learns
    at the full rate.
    """

    def add_params(self, params: list[dict[str, Any]], module: nn.Module, **kwargs: Any) -> None:
        """Append a group for every pair of learning rate and weight decay.

        Args:
            params: Groups, changed in place.
            module: Detector or segmentor.
            **kwargs: mmengine's; no effect.

        Raises:
            ValueError: On an unknown option, or if `backbone` is not a `ZooBackbone`.
        """
        unknown = set(self.paramwise_cfg) - set(OPTIONS)
        if unknown:
            raise ValueError(f'ZooLayerDecayConstructor knows {", ".join(OPTIONS)}, not {", ".join(sorted(unknown))}.')
        backbone = getattr(module, 'backbone', None)
        if not isinstance(backbone, ZooBackbone):
            raise ValueError(
                f'ZooLayerDecayConstructor needs a model whose backbone is a ZooBackbone, got {type(module).__name__} '
                f'around {type(backbone).__name__}.'
            )
        scales = _layer_scales(backbone.net, self.paramwise_cfg.get('layer_decay_rate', 1.0))
        decays = self._decays(module, backbone.net)
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        frozen = 0
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                pair = scales.get(name, 1.0), decays[name]
                groups.setdefault(pair, []).append(parameter)
            else:
                frozen += 1
        for (scale, decay), members in sorted(groups.items(), key=lambda item: item[0]):
            params.append(dict(params=members, lr=self.base_lr * scale, lr_scale=scale, weight_decay=decay))
        print_log(
            f'{len(params)} parameter groups: learning rates {self.base_lr * min(scale for scale, _ in groups):.3g} to '
            f'{self.base_lr:.3g}, {sum(len(m) for (_, d), m in groups.items() if d == 0)} tensors without weight '
            f'decay, {sum(len(m) for (_, d), m in groups.items() if d != 0)} with, {frozen} frozen.',
            logger='current',
            level=logging.INFO,
        )

    def _decays(self, model: nn.Module, net: Any) -> dict[str, float]:
        """Weight decay of every parameter."""
        full = self.base_wd or 0.0
        norm, bias = (full * self.paramwise_cfg.get(f'{kind}_decay_mult', 0.0) for kind in ('norm', 'bias'))
        none = [f'{NET}{name}' for name in net.no_weight_decay()] if hasattr(net, 'no_weight_decay') else []
        decays = {}
        for prefix, module in model.named_modules():
            for leaf, parameter in module.named_parameters(prefix, recurse=False):
                if any(fnmatch(leaf, pattern) for pattern in none):
                    decays[leaf] = 0.0
                elif isinstance(module, NORMS):
                    decays[leaf] = norm
                elif leaf.endswith('bias') and parameter.ndim <= 1:
                    decays[leaf] = bias
                else:
                    decays[leaf] = full if parameter.ndim > 1 else 0.0
        return decays


def _layer_scales(net: Any, rate: float) -> dict[str, float]:
    """Scale of the learning rate of every parameter of the timm model, by its name in the detector.

    Raises:
        ValueError: If the model has no `group_matcher`.
    """
    if rate == 1.0:
        return {}
    if not hasattr(net, 'group_matcher'):
        raise ValueError(f'{type(net).__name__} has no group_matcher: layer_decay_rate must be 1.')
    after = '(after the backbone)'  # a layer of its own, which no pattern matches
    names = [*((name, None) for name, _ in net.named_parameters()), (after, None)]
    layer_of = group_with_matcher(iter(names), net.group_matcher(coarse=False), reverse=True)
    last = layer_of.pop(after)
    return {f'{NET}{name}': rate ** (last - layer) for name, layer in layer_of.items()}
