"""Weights of a `ZooBackbone`: from classifiers and detectors, and back; nothing is loaded in part."""

import copy
import logging

import numpy as np
import pytest
import timm
import torch
from conftest import SMALL_OF, assert_same, images_for, load, refused, small_of
from dense_reference import released_dense
from golden_case import SINGLE, assert_close
from golden_rule import fill_by_rule, golden
from zoo_backbones import DYNAMIC, SWIN, args_of, backbone_of, heavy, images, mmdet_swin

from tinyvit_zoo.downstream.detection import (  # before mmdet, whose operators it installs
    SimpleFeaturePyramid,
    ZooBackbone,
)

# isort: split
from mmdet.models.backbones import ResNet
from mmengine.model import BaseModel, BaseModule
from mmengine.registry import MODELS
from safetensors.torch import save_file
from torch import nn

from tinyvit_zoo.hub.convert import open_checkpoint
from tinyvit_zoo.layers import pyramid


class Detector(BaseModel):
    """A model that mmengine trains and saves, with parameters outside the backbone."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = nn.Conv2d(4, 4, 1)

    def forward(self, *args, **kwargs): ...


def history() -> dict:
    """State that mmengine saves along with the weights: arrays, and an object with named methods."""
    from mmengine.logging import HistoryBuffer

    return {'log_scalars': {'train/loss': HistoryBuffer([1.0, 0.5], [1, 1])}, 'palette': np.zeros((2, 3), np.uint8)}


def save_detector(backbone: nn.Module, path) -> str:
    meta = dict(cfg='model = dict()', dataset_meta=dict(classes=('a',), palette=[(0, 0, 0)]))
    torch.save(dict(meta=meta, message_hub=history(), state_dict=Detector(backbone).state_dict()), path)
    return str(path)


OFFICIAL = {
    'tiny_vit_5m_224': 'tinyvit_5m_224',
    'mini_swin_tiny': 'mini_swin_tiny_patch4_window7_224',
    'mini_deit_tiny_patch16_224': 'mini_deit_tiny_patch16_224',
    'tinymim_vit_tiny_patch16_ft': 'tinymim_vit_tiny_patch16_224',
    'maelite_vit_tiny_patch16_ft': 'mae_lite_vit_tiny_patch16_224',
}


@pytest.mark.parametrize('way', ['pretrained', 'init_cfg'])
@pytest.mark.parametrize('file', OFFICIAL)
def test_files_in_the_released_layout(file, way, official_file):
    name, path = OFFICIAL[file], str(official_file(file))
    more = dict(num_heads=12) if file.startswith('maelite') else {}
    if way == 'pretrained':
        backbone = ZooBackbone(name, pretrained=path, **more)
    else:
        backbone = ZooBackbone(name, init_cfg=dict(type='Pretrained', checkpoint=path), **more)
        Detector(backbone).init_weights()
    whole = load(name, path, **more)
    own = backbone.net.state_dict()
    assert_same(own, {k: v for k, v in whole.state_dict().items() if k in own})
    assert set(whole.state_dict()) - set(own) <= {
        f'{part}.{leaf}' for part in ('head', 'head.fc', 'head.norm', 'norm', 'fc_norm') for leaf in ('weight', 'bias')
    }


def test_weights_given_to_the_constructor_outlive_init_weights(official_file):
    """mmengine would reinitialize every layer that has a method for it, as timm's models have."""
    backbone = ZooBackbone('tinyvit_5m_224', pretrained=str(official_file('tiny_vit_5m_224')))
    before = copy.deepcopy(backbone.state_dict())
    detector = Detector(backbone)
    neck = detector.neck.weight.clone()
    detector.init_weights()
    assert_same(backbone.state_dict(), before)
    assert isinstance(backbone, BaseModule)
    torch.testing.assert_close(detector.neck.weight, neck)


def test_windows_of_another_size_are_resized_as_in_the_classifier(official_file):
    path = str(official_file('tiny_vit_5m_224'))
    backbone = ZooBackbone('tinyvit_5m_224', pretrained=path, img_size=512)
    whole = load('tinyvit_5m_224', path, img_size=512)
    own = backbone.net.state_dict()
    assert_same(own, {k: v for k, v in whole.state_dict().items() if k in own})


def test_the_layout_of_the_configs_takes_the_same_weights(official_file):
    name, path = OFFICIAL['mini_swin_tiny'], str(official_file('mini_swin_tiny'))
    plain = ZooBackbone(name, pretrained=path)
    wide = ZooBackbone(name, img_size=448, window_sizes=7, pretrained=path)
    assert_same(wide.state_dict(), plain.state_dict())
    assert [any(stage.shift) for stage in plain.net.stages] == [True, True, True, False]
    assert [any(stage.shift) for stage in wide.net.stages] == [True] * 4


DENSE = {
    'tinymim_base_seg224': 'tinymim_base_seg',
    'tinymimstar_tiny_seg224': 'tinymim_star_tiny_seg',
    'maelite_vitdet_tiny_224': 'mae_lite_vitdet_tiny',
}


@pytest.mark.parametrize('case', [heavy(case) for case in DENSE])
def test_dense_forms_give_the_released_maps(case, tmp_path):
    torch.save({'model': released_dense(case)}, tmp_path / 'dense.pth')
    backbone = ZooBackbone(DENSE[case], img_size=224, pretrained=str(tmp_path / 'dense.pth')).eval()
    assert_maps_of(case, backbone.double())
    if 'vitdet' in case:
        assert backbone.channels == (256,) * 5


def assert_maps_of(case: str, backbone: nn.Module) -> None:
    expected = golden(case)
    output, first = ('p{}', 2) if 'vitdet' in case else ('out{}', 0)
    batch = len(expected[output.format(first)])
    x = np.random.RandomState(0).standard_normal((batch, 3, 224, 224)).astype(np.float32)
    with torch.no_grad():
        maps = backbone(torch.from_numpy(x).double())
    for i, y in enumerate(maps):
        key = output.format(i + first)
        assert tuple(y.shape) == tuple(expected[f'{key}_shape'])
        chans, rows, cols = expected[f'{key}_stride']
        n, c, h, w = expected[key].shape
        assert_close(y[:n, ::chans, ::rows, ::cols][:, :c, :h, :w], expected[key], SINGLE)


def test_the_neck_gives_the_released_levels():
    """MAE-Lite's form in two parts: its trunk gives the map, the neck the five levels."""
    form = ZooBackbone('mae_lite_vitdet_tiny', img_size=224)
    from tinyvit_zoo.dense import load_dense

    load_dense(form.net, released_dense('maelite_vitdet_tiny_224'))
    neck = MODELS.build(dict(type='SimpleFeaturePyramid', in_channels=192, out_channels=256, num_outs=5))
    neck.load_state_dict(form.net.pyramid.state_dict())

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.neck = form.net.net, neck

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return self.neck((self.trunk(x),))

    assert_maps_of('maelite_vitdet_tiny_224', Both().double().eval())


def test_the_neck_behind_a_plain_backbone():
    backbone, neck = backbone_of('tinymim'), SimpleFeaturePyramid(48, 24, num_outs=4)
    levels = neck(backbone(images(64, 96)))
    assert isinstance(levels, tuple)
    assert [tuple(y.shape[1:]) for y in levels] == [(24, 16, 24), (24, 8, 12), (24, 4, 6), (24, 2, 3)]
    assert isinstance(neck, pyramid.SimpleFeaturePyramid)
    with pytest.raises(ValueError, match='num_outs must be 4 or 5'):
        SimpleFeaturePyramid(48, 24, num_outs=3)


@pytest.mark.parametrize(
    ('form', 'encoder', 'channels'),
    [
        ('tinymim_tiny_seg', 'tinymim_vit_tiny_student_patch16_224', (192,) * 4),
        ('mae_lite_vitdet_small', 'mae_lite_vit_small_encoder_patch16_224', (256,) * 5),
        pytest.param('tinymim_small_seg', 'tinymim_vit_small_student_patch16_224', (384,) * 4, marks=pytest.mark.slow),
    ],
)
def test_dense_forms_of_unpublished_sizes_start_from_their_encoder(form, encoder, channels, tmp_path):
    weights = timm.create_model(encoder).state_dict()
    torch.save({'model': weights}, tmp_path / 'encoder.pth')
    more = dict(as_init=True) if 'seg' in form else {}
    backbone = ZooBackbone(form, img_size=64, pretrained=str(tmp_path / 'encoder.pth'), **more)
    assert backbone.channels == channels
    own = backbone.net.net.state_dict()
    taken = [k for k in weights if k.startswith(('blocks.', 'patch_embed.'))]
    assert len(taken) == 12 * 12 + 2
    assert_same({k: own[k] for k in taken}, {k: weights[k] for k in taken})


@pytest.mark.slow
def test_a_pretraining_file_initializes_the_segmentor_of_tinymim(tmp_path):
    """Its model had other heads in the last block, which the released recipe accepts: `as_init=True`."""
    encoder = small_file('tinymim_vit_base_student_patch16_224', tmp_path, trained_as='tinymim_vit_base_patch16')
    refused(lambda: ZooBackbone('tinymim_base_seg', img_size=64, pretrained=encoder), 'as_init=True')
    backbone = ZooBackbone('tinymim_base_seg', img_size=64, pretrained=encoder, as_init=True)
    assert backbone.channels == (768,) * 4


def small_file(name: str, folder, trained_as: str) -> str:
    import argparse

    weights = timm.create_model(name).state_dict()
    torch.save({'model': weights, 'args': argparse.Namespace(model=trained_as)}, folder / 'encoder.pth')
    return str(folder / 'encoder.pth')


@pytest.mark.parametrize('kind', [*DYNAMIC, 'swin'])
def test_the_backbone_of_a_detector_is_loaded_again(kind, tmp_path, caplog):
    backbone = backbone_of(kind)
    path = save_detector(backbone, tmp_path / 'detector.pth')
    name, arguments = args_of(kind)
    with caplog.at_level(logging.INFO, logger='tinyvit_zoo.downstream.detection'):
        again = ZooBackbone(name, init_cfg=dict(type='Pretrained', checkpoint=path), **arguments)
        again.init_weights()
    assert_same(again.state_dict(), backbone.state_dict())
    line = next(m for m in caplog.messages if 'at their initial values' in m)
    assert 'at their initial values: nothing; left out: neck (2)' in line
    with_prefix = dict(type='Pretrained', checkpoint=path, prefix='backbone')
    third = ZooBackbone(name, init_cfg=with_prefix, **arguments)
    third.init_weights()
    assert_same(third.state_dict(), backbone.state_dict())


@pytest.mark.parametrize('kind', ['tinyvit', 'mini_swin', 'mini_deit', 'tinymim', 'mae_lite_rpe'])
def test_the_backbone_of_a_detector_becomes_a_timm_model_again(kind, tmp_path, cli, caplog):
    """Straight from the detector's file, and by `tinyvit-zoo convert`, which says what it leaves out."""
    backbone = backbone_of(kind)
    path = save_detector(backbone, tmp_path / 'detector.pth')
    code, out, err = cli('convert', path, tmp_path / 'out.safetensors')
    assert code == 0, err
    assert 'left out of a detector: ' in out
    assert 'neck (2)' in out
    assert ('norm0 (2)' in out) == (kind == 'mini_swin')
    x = images_for(backbone.net, batch=1) if kind == 'mae_lite_rpe' else images(224, 224, batch=1)
    with torch.no_grad():
        plain = backbone_of(kind, out_norm=False)(x)
    name, arguments = args_of(kind)
    for file in (path, tmp_path / 'out.safetensors'):
        with caplog.at_level(logging.WARNING, logger='tinyvit_zoo'):
            headless = load(name, file, num_classes=0, **arguments)
            features = load(name, file, features_only=True, **arguments)
        assert any('ends with the last block' in m for m in caplog.messages)
        with torch.no_grad():
            given = headless.forward_intermediates(x, indices=list(backbone.out_indices), intermediates_only=True)
            torch.testing.assert_close(given, list(plain), rtol=0, atol=1e-6)
            last = features(x)[-1]
            last = last.permute(0, 3, 1, 2) if kind == 'mini_swin' else last
            torch.testing.assert_close(last, plain[-1], rtol=0, atol=1e-6)
    refused(lambda: load(name, path, **arguments), 'has no classes')


def test_convert_reads_over_what_mmengine_saves(tmp_path):
    path = save_detector(backbone_of('tinyvit'), tmp_path / 'detector.pth')
    checkpoint = open_checkpoint(path)
    assert checkpoint.key_map.family == 'TinyViT'
    assert sorted(checkpoint.detector_keys) == ['neck.bias', 'neck.weight']


def test_detectors_of_mmdet_initialize_the_baselines(tmp_path, official_file):
    """mmdet's Swin and the released Swin under their own names, and a ResNet, whose names are the same everywhere."""
    theirs = mmdet_swin()
    backbone = ZooBackbone(SWIN[0], **SWIN[1], pretrained=save_detector(theirs, tmp_path / 'swin.pth')).eval()
    x = images(224, 224, batch=1)
    with torch.no_grad():
        torch.testing.assert_close(backbone(x), theirs(x), rtol=1e-4, atol=1e-5)
    resnet = ResNet(18)
    fill_by_rule(resnet)
    backbone = ZooBackbone('resnet18', pretrained=save_detector(resnet, tmp_path / 'resnet.pth')).eval()
    with torch.no_grad():
        torch.testing.assert_close(backbone(x), resnet(x), rtol=1e-4, atol=1e-4)


def test_a_classifier_of_timm_fills_its_backbone(tmp_path):
    whole = fill_by_rule(timm.create_model(SWIN[0], **SWIN[1], num_classes=7))
    save_file(whole.state_dict(), tmp_path / 'classifier.safetensors')
    path = str(tmp_path / 'classifier.safetensors')
    backbone = ZooBackbone(SWIN[0], **SWIN[1], pretrained=path)
    own = backbone.net.state_dict()
    assert_same(own, {k: v for k, v in whole.state_dict().items() if k in own})
    half = {k: v for k, v in whole.state_dict().items() if k != 'layers.1.blocks.0.norm1.bias'}
    save_file(half, tmp_path / 'half.safetensors')
    bad = str(tmp_path / 'half.safetensors')
    refused(lambda: ZooBackbone(SWIN[0], **SWIN[1], pretrained=bad), '1 missing', 'layers.1.blocks.0.norm1.bias')


SHARED_SWIN = dict(SWIN[1], base=SWIN[0], share_every='stage', transform=False, share_norms=True)


def test_a_swin_that_shares_its_weights_fills_its_backbone_and_stays_shared(tmp_path):
    """What `compress --no-transform` and a training write: the student of MiniViT's Table 6, row 2."""
    from tinyvit_zoo.hub.folder import save_folder

    whole = fill_by_rule(timm.create_model('multiplexed', **SHARED_SWIN, num_classes=7))
    folder = str(save_folder(whole, tmp_path / 'shared'))
    backbone = ZooBackbone('multiplexed', **SHARED_SWIN, init_cfg=dict(type='Pretrained', checkpoint=folder))
    backbone.init_weights()
    own = backbone.net.state_dict()
    assert_same(own, {k: v for k, v in whole.state_dict().items() if k in own})
    for stage in backbone.net.layers:
        first, second = stage.blocks
        assert first.attn.qkv is second.attn.qkv
        assert first.norm1 is second.norm1
    again = ZooBackbone('multiplexed', **SHARED_SWIN, pretrained=save_detector(backbone, tmp_path / 'detector.pth'))
    assert_same(again.state_dict(), backbone.state_dict())
    x = images(64, 96, batch=1)
    with torch.no_grad():
        assert [tuple(y.shape[1:]) for y in backbone.eval()(x)] == [(16 * 2**i, 16 >> i, 24 >> i) for i in range(4)]
    losses = sum(y.square().mean() for y in backbone.train()(x))
    losses.backward()
    assert [k for k, p in backbone.named_parameters() if p.grad is None] == []
    other = dict(SHARED_SWIN, transform=True, share_norms=False)
    refused(lambda: ZooBackbone('multiplexed', **other, pretrained=folder), folder, 'not of multiplexed')


def test_folders_for_the_hub(tmp_path):
    from tinyvit_zoo.hub.folder import save_folder

    name, arguments = args_of('tinyvit')
    folder = save_folder(small_of('tinyvit'), tmp_path / 'mine')
    backbone = ZooBackbone(name, **arguments, pretrained=f'local-dir:{folder}')
    whole = small_of('tinyvit').state_dict()
    assert_same(backbone.net.state_dict(), {k: whole[k] for k in backbone.net.state_dict()})
    other, arguments = args_of('mini_swin')
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        ZooBackbone(other, **arguments, pretrained=f'local-dir:{folder}')


@pytest.mark.parametrize('way', ['pretrained', 'init_cfg'])
def test_what_does_not_fit_is_refused_and_changes_nothing(way, tmp_path, official_file):
    def start(name: str, source: str, **kwargs):
        if way == 'pretrained':
            return lambda: ZooBackbone(name, pretrained=source, **kwargs)
        backbone = ZooBackbone(name, init_cfg=dict(type='Pretrained', checkpoint=source), **kwargs)
        before = copy.deepcopy(backbone.state_dict())

        def run():
            try:
                Detector(backbone).init_weights()
            finally:
                assert_same(backbone.state_dict(), before)

        return run

    tinyvit = str(official_file('tiny_vit_5m_224'))
    refused(start('mini_swin_tiny_patch4_window7_224', tinyvit), 'TinyViT weights, not Mini-Swin', tinyvit)
    refused(start('resnet18', tinyvit), 'TinyViT weights, not resnet18')
    refused(start('tinyvit_11m_224', tinyvit), 'of a wrong shape')
    refused(start('mae_lite_vitdet_tiny', tinyvit, img_size=64), 'TinyViT')
    resnet = str(tmp_path / 'resnet.pth')
    torch.save(timm.create_model('resnet18').state_dict(), resnet)
    refused(start('tinyvit_5m_224', resnet), 'not TinyViT weights')
    refused(start(SWIN[0], resnet, **SWIN[1]), resnet)
    detector = save_detector(backbone_of('mini_swin'), tmp_path / 'detector.pth')
    refused(start(*SMALL_OF['tinyvit'][:1], detector), 'Mini-Swin weights, not TinyViT')
    torch.save({'state_dict': {'neck.weight': torch.zeros(1)}}, tmp_path / 'headless.pth')
    refused(start('tinyvit_5m_224', str(tmp_path / 'headless.pth')), 'not TinyViT weights')


def test_missing_files_and_other_init_cfgs_are_refused(tmp_path):
    from tinyvit_zoo.checkpoints import WeightsNotFoundError

    missing = str(tmp_path / 'missing.pth')
    refused(lambda: ZooBackbone('tinyvit_5m_224', pretrained=missing), missing, kind=WeightsNotFoundError)
    named = ZooBackbone('tinyvit_5m_224', init_cfg=dict(type='Pretrained', checkpoint=missing))
    instead = ('--cfg-options', 'model.backbone.init_cfg.checkpoint=FILE', 'model.backbone.init_cfg=None')
    refused(named.init_weights, missing, *instead, kind=WeightsNotFoundError)
    refused(lambda: ZooBackbone('resnet18', pretrained='torchvision://resnet18'), 'torchvision://resnet18')
    refused(lambda: ZooBackbone('mae_lite_vitdet_tiny', pretrained=True), 'no weights of its own')
    backbone = ZooBackbone('tinyvit_5m_224', init_cfg=dict(type='Kaiming', layer='Conv2d'))
    with pytest.raises(ValueError, match="dict\\(type='Pretrained', checkpoint=\\.\\.\\.\\)"):
        backbone.init_weights()


def test_a_missing_norm_of_a_map_is_reported(tmp_path):
    backbone = backbone_of('mini_swin')
    state_dict = {k: v for k, v in backbone.state_dict().items() if k != 'norm2.bias'}
    torch.save({'state_dict': {f'backbone.{k}': v for k, v in state_dict.items()}}, tmp_path / 'detector.pth')
    name, arguments = args_of('mini_swin')
    refused(lambda: ZooBackbone(name, **arguments, pretrained=str(tmp_path / 'detector.pth')), '1 missing: norm2.bias')
