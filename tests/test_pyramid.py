"""Pyramids against the same computation written out from their state dicts, on maps of odd and unequal sides."""

import pytest
import torch
import torch.nn.functional as F
from golden_rule import fill_by_rule

from tinyvit_zoo.layers.pyramid import SimpleFeaturePyramid, TinyMimNeck, TinyMimStarNeck


def filled(pyramid: torch.nn.Module) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    pyramid = fill_by_rule(pyramid.double())
    return pyramid, pyramid.state_dict()


def up(x, w, name):
    return F.conv_transpose2d(x, w[f'{name}.weight'], w[f'{name}.bias'], stride=2)


def channel_norm(x, weight, bias, eps=1e-6):
    mean = x.mean(1, keepdim=True)
    var = ((x - mean) ** 2).mean(1, keepdim=True)
    return (x - mean) / (var + eps).sqrt() * weight[:, None, None] + bias[:, None, None]


def vitdet_out(x, w, first, second):
    for name, padding in ((first, 0), (second, 1)):
        x = F.conv2d(x, w[f'{name}.weight'], padding=padding)
        x = channel_norm(x, w[f'{name}.norm.weight'], w[f'{name}.norm.bias'])
    return x


def test_simple_feature_pyramid():
    pyramid, w = filled(SimpleFeaturePyramid(16, 12, top_pool=True))
    x = torch.randn(2, 16, 5, 7, dtype=torch.float64) * 1e-2  # small, so that the eps of the norms matters
    p2 = F.gelu(channel_norm(up(x, w, 'simfp_2.0'), w['simfp_2.1.weight'], w['simfp_2.1.bias']))
    p2 = vitdet_out(up(p2, w, 'simfp_2.3'), w, 'simfp_2.4', 'simfp_2.5')
    p3 = vitdet_out(up(x, w, 'simfp_3.0'), w, 'simfp_3.1', 'simfp_3.2')
    p4 = vitdet_out(x, w, 'simfp_4.0', 'simfp_4.1')
    p5 = vitdet_out(F.max_pool2d(x, 2), w, 'simfp_5.1', 'simfp_5.2')
    torch.testing.assert_close(pyramid(x), [p2, p3, p4, p5, p5[:, :, ::2, ::2]])
    torch.testing.assert_close(pyramid([x]), pyramid(x), rtol=0, atol=0)


def tinymim_first(x, w):
    x = up(x, w, 'fpn1.0')
    mean, var = (w[f'fpn1.1.running_{k}'][:, None, None] for k in ('mean', 'var'))
    x = (x - mean) / (var + 1e-5).sqrt() * w['fpn1.1.weight'][:, None, None] + w['fpn1.1.bias'][:, None, None]
    return up(F.gelu(x), w, 'fpn1.3')


def test_neck_of_tinymim_base():
    neck, w = filled(TinyMimNeck(12))
    a, b, c, d = (torch.randn(2, 12, 5, 7, dtype=torch.float64) for _ in range(4))
    torch.testing.assert_close(neck([a, b, c, d]), [tinymim_first(a, w), up(b, w, 'fpn2.0'), c, F.max_pool2d(d, 2)])


def test_neck_of_tinymim_star_tiny():
    neck, w = filled(TinyMimStarNeck(12, 20))
    a, b, c, d = (torch.randn(2, 12, 5, 7, dtype=torch.float64) * 1e-2 for _ in range(4))
    wide = channel_norm(d, w['conv1x1.0.weight'], w['conv1x1.0.bias'], eps=1e-5)
    wide = F.gelu(F.conv2d(wide, w['conv1x1.1.weight'][..., None, None], w['conv1x1.1.bias']))
    expected = [
        tinymim_first(a, w),
        up(b, w, 'fpn2.0'),
        F.conv2d(c, w['fpn3.weight'], w['fpn3.bias']),
        F.conv2d(wide, w['fpn4.0.weight'], w['fpn4.0.bias'], stride=2, padding=1),
    ]
    torch.testing.assert_close(neck([a, b, c, d]), expected)


PYRAMIDS = (
    SimpleFeaturePyramid(8, 6),
    SimpleFeaturePyramid(8, 6, top_pool=True),
    TinyMimNeck(8),
    TinyMimStarNeck(8, 10),
)


@pytest.mark.parametrize('pyramid', PYRAMIDS, ids=lambda p: f'{type(p).__name__}-{len(p.levels)}')
def test_channels_and_scales_are_those_declared(pyramid):
    levels = pyramid([torch.randn(1, 8, 8, 12) for _ in range(pyramid.num_maps)])
    assert [tuple(level.shape[1:]) for level in levels] == [
        (chans, 8 * scale, 12 * scale) for chans, scale in zip(pyramid.out_channels, pyramid.scales, strict=True)
    ]
    assert all(hasattr(pyramid, level) for level in pyramid.levels)


@pytest.mark.parametrize('pyramid', PYRAMIDS, ids=lambda p: f'{type(p).__name__}-{len(p.levels)}')
def test_every_parameter_gets_a_gradient(pyramid):
    pyramid.train()
    maps = [torch.randn(2, 8, 4, 4) for _ in range(pyramid.num_maps)]
    loss = sum((level * torch.randn_like(level)).sum() for level in pyramid(maps))
    gradients = torch.autograd.grad(loss, list(pyramid.parameters()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize('make', [SimpleFeaturePyramid, TinyMimNeck, TinyMimStarNeck])
def test_device_and_dtype_reach_every_parameter(make):
    pyramid = make(8, device='meta', dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in pyramid.parameters()} == {('meta', torch.bfloat16)}


def test_converting_to_sync_batch_norm_keeps_the_names():
    neck = TinyMimNeck(8)
    names = list(neck.state_dict())
    synchronised = torch.nn.SyncBatchNorm.convert_sync_batchnorm(neck)
    assert isinstance(synchronised.fpn1[1], torch.nn.SyncBatchNorm)
    assert list(synchronised.state_dict()) == names
