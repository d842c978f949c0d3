"""Dimensions of TinyViT's Supplement, Table 1, read off the model on the meta device."""

import re
from functools import cache
from typing import Any

import torch
from timm.models._input import get_model_input_config
from torch import nn

from tinyvit_zoo.build import build_model

__all__ = ['read_dimension']


def read_dimension(architecture: str, metric: str) -> int:
    """A dimension of a TinyViT by its name in the published numbers.

    Args:
        architecture: Such as 'tinyvit_5m_224'.
        metric: 'mlp_ratio', 'mbconv_expansion', 'head_dim', or 'PART.WHAT': parts are 'patch_embed', 'stage_1' to
            'stage_4' and 'downsampling_1' to 'downsampling_3'.

    Raises:
        LookupError: If the metric is not such a name.
    """
    model = _model(architecture)
    part, _, what = metric.rpartition('.')
    if not part:
        return _ratio(model, metric)
    number = int(re.sub(r'\D', '', part) or 0)
    if what == 'embed_dim':
        return model.feature_info[number - 1]['num_chs']
    if what == 'blocks':
        return len(model.stages[number - 1].blocks)
    if what == 'window':
        return _same(model.window_sizes[number - 1])
    if what == 'output_px':
        return _same(_outputs(architecture)[part])
    return _convolutions(_parts(model)[part], what)


@cache
def _model(architecture: str) -> Any:
    return build_model(architecture, device='meta')


def _ratio(model: Any, metric: str) -> int:
    if metric == 'mbconv_expansion':
        conv = next(m for m in model.stages[0].blocks[0].modules() if isinstance(m, nn.Conv2d))
        return conv.out_channels // conv.in_channels
    blocks = [block for stage in model.stages for block in stage.blocks if hasattr(block, 'attn')]
    if metric == 'mlp_ratio':
        return _same([block.mlp.fc1.out_features // block.mlp.fc1.in_features for block in blocks])
    if metric == 'head_dim':
        return _same([block.attn.head_dim for block in blocks])
    raise LookupError(metric)


def _convolutions(module: nn.Module, what: str) -> int:
    """Kernel, stride or padding of the convolutions of a part, or their number; of a merge, that of the largest one."""
    convs = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    if what == 'n_convs':
        return len(convs)
    largest = max(conv.kernel_size for conv in convs)
    attribute = {'kernel': 'kernel_size'}.get(what, what)
    return _same([side for conv in convs if conv.kernel_size == largest for side in getattr(conv, attribute)])


def _parts(model: Any) -> dict[str, nn.Module]:
    """Modules by the paper's names: downsampling 1 is in front of stage 2."""
    return dict(
        patch_embed=model.patch_embed,
        **{f'stage_{i + 1}': stage for i, stage in enumerate(model.stages)},
        **{f'downsampling_{i + 1}': stage.downsample for i, stage in enumerate(model.stages[1:])},
    )


@cache
def _outputs(architecture: str) -> dict[str, tuple[int, int]]:
    """Height and width of what each part gives, by one forward pass on the meta device."""
    model, sizes = _model(architecture), {}
    hooks = [
        module.register_forward_hook(lambda _, __, output, part=part: sizes.update({part: tuple(output.shape[-2:])}))
        for part, module in _parts(model).items()
    ]
    with torch.no_grad():
        model(torch.empty(1, *get_model_input_config(model)['input_size'], device='meta'))
    for hook in hooks:
        hook.remove()
    return sizes


def _same(values: Any) -> int:
    """The one value of several.

    Raises:
        LookupError: If they differ.
    """
    different = set(values)
    if len(different) != 1:
        raise LookupError(f'{sorted(different)} differ')
    return different.pop()
