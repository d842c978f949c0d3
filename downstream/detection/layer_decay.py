"""Layer-wise learning rates and weight decay by the rules that timm's models bring with them.

BEiT's recipe, https://arxiv.org/abs/2106.08254: layer l of L has the rate times `layer_decay_rate` ** (L - l).
"""

import logging
from collections.abc import Iterator

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from timm.models import group_parameters
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

__all__ = ['ZooLayerDecayConstructor']

NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ZooLayerDecayConstructor(DefaultOptimWrapperConstructor):
    """Parameter groups of a detector or segmentor around a `ZooBackbone`."""

    def add_params(self, params: list[dict], module: nn.Module, **kwargs) -> None:
        """Append one group for every pair of rate and weight decay."""
        rate = self.paramwise_cfg.get('layer_decay_rate', 1.0)
        net = module.backbone.net
        layers = group_parameters(net, net.group_matcher(coarse=False), reverse=True)
        last = max(layers.values())
        no_decay = net.no_weight_decay() if hasattr(net, 'no_weight_decay') else set()
        groups = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            inside = name.removeprefix('backbone.net.')
            scale = rate ** (last - layers.get(inside, last)) if name.startswith('backbone.net.') else 1.0
            still = parameter.ndim <= 1 or (name.startswith('backbone.net.') and inside in no_decay)
            groups.setdefault((scale, still), []).append(parameter)
        for (scale, still), members in groups.items():
            params.append(
                dict(
                    params=members,
                    lr=self.base_lr * scale,
                    lr_scale=scale,
                    weight_decay=0.0 if still else self.base_wd,
                )
            )


_ = logging, Iterator, print_log, NORMS
