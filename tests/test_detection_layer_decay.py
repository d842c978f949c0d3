"""Learning rates and weight decay of detectors and segmentors, as timm's models and the released code have them."""

import json

import pytest
import torch
from conftest import SMALL_OF
from golden_rule import GOLDEN
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIMIZERS
from timm.optim import param_groups_layer_decay
from torch import nn

from tinyvit_zoo.downstream.detection import ZooBackbone

LR, WD = 1e-3, 0.05


class Detector(nn.Module):
    def __init__(self, model_name: str, **kwargs) -> None:
        super().__init__()
        self.backbone = ZooBackbone(model_name, **kwargs)
        self.neck = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))


def optimizer_of(model: nn.Module, **paramwise) -> torch.optim.Optimizer:
    cfg = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=LR, weight_decay=WD))
    build = dict(type='ZooLayerDecayConstructor', optim_wrapper_cfg=cfg, paramwise_cfg=paramwise)
    return OPTIM_WRAPPER_CONSTRUCTORS.build(build)(model).optimizer


def pairs_of(model: nn.Module, **paramwise) -> dict[str, tuple[float, float]]:
    """(scale of the learning rate, weight decay) of every parameter that is trained."""
    names = {id(p): name for name, p in model.named_parameters()}
    pairs = {}
    for group in optimizer_of(model, **paramwise).param_groups:
        assert group['lr'] == pytest.approx(LR * group['lr_scale'])
        for parameter in group['params']:
            assert names[id(parameter)] not in pairs
            pairs[names[id(parameter)]] = (group['lr_scale'], group['weight_decay'])
    return pairs


def small_detector(kind: str, **kwargs) -> Detector:
    name, arguments = SMALL_OF[kind]
    return Detector(name, **{k: v for k, v in arguments.items() if k != 'num_classes'}, **kwargs)


def test_the_released_rules_of_tinymim_are_reproduced():
    """Quirks included: tokens and positions with weight decay, the distillation token at the full rate."""
    reference = json.loads((GOLDEN / 'tinymim_seg_layer_decay.json').read_text())
    model = Detector('tinymim_star_tiny_seg', img_size=64)
    pairs = pairs_of(model, layer_decay_rate=reference['layer_decay'])
    expected = {}
    for name, pair in reference['lr_scale_and_wd'].items():
        if name.startswith('backbone.'):
            name = name.removeprefix('backbone.')
            part = 'pyramid' if name.startswith(('fpn', 'conv1x1')) else 'net'
            expected[f'backbone.net.{part}.{name}'] = pytest.approx(tuple(pair))
    assert {k: v for k, v in pairs.items() if k.startswith('backbone.')} == expected
    assert pairs['neck.0.weight'] == (1.0, WD)
    assert pairs['neck.0.bias'] == pairs['neck.1.weight'] == (1.0, 0.0)


@pytest.mark.parametrize('kind', ['tinyvit', 'mini_swin', 'tinymim', 'mini_deit', 'mae_lite_rpe'])
def test_layers_and_exceptions_are_those_of_timm(kind):
    """With one more layer for all parameters after the backbone."""
    model = small_detector(kind)
    net = model.backbone.net
    groups = param_groups_layer_decay(net, WD, net.no_weight_decay(), layer_decay=0.5)
    names = {id(p): name for name, p in net.named_parameters()}
    expected = {
        f'backbone.net.{names[id(p)]}': (0.5 * g['lr_scale'], g['weight_decay']) for g in groups for p in g['params']
    }
    pairs = pairs_of(model, layer_decay_rate=0.5)
    assert {k: v for k, v in pairs.items() if k.startswith('backbone.net.')} == expected
    assert len({scale for scale, _ in expected.values()}) >= 3
    others = {k: v[0] for k, v in pairs.items() if not k.startswith('backbone.net.')}
    assert set(others.values()) == {1.0}
    assert ('backbone.norm0.weight' in others) == (kind == 'mini_swin')


def test_without_layer_decay_all_rates_are_equal():
    model = small_detector('tinyvit')
    pairs = pairs_of(model, layer_decay_rate=1.0)
    assert pairs.keys() == {name for name, _ in model.named_parameters()}
    assert {scale for scale, _ in pairs.values()} == {1.0}
    assert pairs['backbone.net.stages.1.blocks.0.attn.attention_biases'][1] == 0.0
    assert pairs['backbone.net.stages.1.blocks.0.attn.qkv.weight'][1] == WD


def test_norms_and_biases_can_have_weight_decay():
    pairs = pairs_of(small_detector('mini_swin'), norm_decay_mult=0.5, bias_decay_mult=1.0)
    assert pairs['backbone.norm1.weight'][1] == pairs['backbone.norm1.bias'][1] == pytest.approx(WD / 2)
    assert pairs['backbone.net.stages.0.blocks.0.attn.qkv.bias'][1] == WD
    assert pairs['backbone.net.stages.0.blocks.0.attn.relative_position_bias_table'][1] == 0.0


def test_frozen_parameters_are_in_no_group():
    model = small_detector('tinyvit', frozen_stages=2)
    pairs = pairs_of(model, layer_decay_rate=0.5)
    assert pairs.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith(('backbone.net.patch_embed', 'backbone.net.stages.0.')) for name in pairs)


def test_a_wrapped_model_is_unwrapped():
    model = small_detector('tinyvit')
    wrapped = nn.Module()
    wrapped.module = model
    names = [len(g['params']) for g in optimizer_of(wrapped, layer_decay_rate=0.5).param_groups]
    assert sum(names) == len(list(model.parameters()))


def test_an_optimizer_without_weight_decay_keeps_none():
    cfg = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=LR))
    build = dict(type='ZooLayerDecayConstructor', optim_wrapper_cfg=cfg, paramwise_cfg=dict(layer_decay_rate=0.9))
    groups = OPTIM_WRAPPER_CONSTRUCTORS.build(build)(small_detector('tinyvit')).optimizer.param_groups
    assert {g['weight_decay'] for g in groups} == {0.0}
    assert 'SGD' in OPTIMIZERS


def test_unsupported_cases_are_refused():
    with pytest.raises(ValueError, match=r'knows layer_decay_rate, .*, not layer_decay\.'):
        pairs_of(small_detector('tinyvit'), layer_decay=0.5)
    other = nn.Module()
    other.backbone = nn.Conv2d(1, 1, 1)
    with pytest.raises(ValueError, match='a ZooBackbone, got Module around Conv2d'):
        pairs_of(other, layer_decay_rate=0.5)
