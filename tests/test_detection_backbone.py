"""`ZooBackbone`: the maps are timm's, whatever the size; training leaves nothing out; nothing is loaded by half."""

import copy
import logging
import pickle

import numpy as np
import pytest
import timm
import torch
from conftest import ARCHITECTURES, SMALL_OF, assert_same, images_for, load, refused, small_of
from dense_reference import released_dense
from golden_case import SINGLE, assert_close
from golden_rule import fill_by_rule, golden

from downstream.detection import SimpleFeaturePyramid, ZooBackbone  # before mmdet, whose operators it puts in place

# isort: split
from mmdet.models.backbones import ResNet, SwinTransformer
from mmengine.model import BaseModel, BaseModule
from mmengine.registry import MODELS
from safetensors.torch import save_file
from torch import nn

from downstream.detection.weights import mmdet_swin_to_timm
from tinyvit_zoo.convert import open_checkpoint
from tinyvit_zoo.layers import pyramid

KINDS = list(SMALL_OF)
DYNAMIC = [kind for kind in KINDS if kind != 'mae_lite_rpe']
SWIN = ('swin_tiny_patch4_window7_224', dict(embed_dim=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4)))


def args_of(kind: str) -> tuple[str, dict]:
    if kind == 'swin':
        return SWIN
    name, arguments = SMALL_OF[kind]
    return name, {k: v for k, v in arguments.items() if k != 'num_classes'}


def backbone_of(kind: str, **kwargs) -> ZooBackbone:
    """A small backbone with weights far from their start values, in eval mode."""
    name, arguments = args_of(kind)
    return fill_by_rule(MODELS.build(dict(type='ZooBackbone', model_name=name, **{**arguments, **kwargs})))


def images(height: int = 64, width: int = 96, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, height, width)


def train_step(backbone: nn.Module, x: torch.Tensor) -> None:
    torch.manual_seed(1)
    sum((y * torch.randn_like(y)).sum() for y in backbone(x)).backward()


# --- maps


def heavy(name: str):
    return pytest.param(name, marks=() if '_tiny' in name or '_5m' in name else pytest.mark.slow)


@pytest.mark.parametrize('name', [heavy(name) for name in ARCHITECTURES])
def test_maps_are_those_of_timm(name):
    """Of every released architecture at its own size; Mini-Swin's before the norms that detectors put on them."""
    whole = fill_by_rule(timm.create_model(name))
    backbone = ZooBackbone(name, out_norm=False)
    backbone.net.load_state_dict({k: v for k, v in whole.state_dict().items() if k in backbone.net.state_dict()})
    x = images_for(whole, batch=1)
    with torch.no_grad():
        maps = backbone.eval()(x)
        expected = whole.forward_intermediates(x, indices=list(backbone.out_indices), intermediates_only=True)
    torch.testing.assert_close(list(maps), expected, rtol=0, atol=1e-6)
    info = whole.feature_info
    assert backbone.channels == tuple(info[i]['num_chs'] for i in backbone.out_indices)
    assert backbone.strides == ((4, 8, 16, 32) if len(maps) == 4 else (16,))
    assert [tuple(y.shape[1:]) for y in maps] == [
        (c, x.shape[2] // s, x.shape[3] // s) for c, s in zip(backbone.channels, backbone.strides, strict=True)
    ]


@pytest.mark.parametrize('size', [(64, 96), (61, 83), (33, 40), (1, 90), (75, 1), (5, 3)])
@pytest.mark.parametrize('kind', [*DYNAMIC, 'swin'])
def test_images_of_any_size(kind, size):
    """Down to one row of pixels: every map has a cell for each begun stride."""
    backbone = backbone_of(kind)
    with torch.no_grad():
        maps = backbone(images(*size, batch=1))
    assert [tuple(y.shape) for y in maps] == [
        (1, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(backbone.channels, backbone.strides, strict=True)
    ]
    assert all(y.isfinite().all() for y in maps)


@pytest.mark.parametrize('name', ['resnet10t', 'convnext_atto', 'efficientnet_b0', 'vit_tiny_patch16_224'])
def test_any_timm_model_with_features(name):
    backbone = ZooBackbone(name).train()
    maps = backbone(images(70, 51))
    assert [tuple(y.shape) for y in maps] == [
        (2, c, -(-70 // s), -(-51 // s)) for c, s in zip(backbone.channels, backbone.strides, strict=True)
    ]
    assert backbone.strides == ((16,) if 'vit' in name else (4, 8, 16, 32))
    train_step(backbone, images(70, 51))
    assert [k for k, p in backbone.named_parameters() if p.grad is None] == []


def test_a_model_with_fixed_tables_takes_smaller_images_and_refuses_larger_ones():
    backbone = backbone_of('mae_lite_rpe', img_size=(64, 96))
    x = images(50, 70)
    padded = nn.functional.pad(x, (0, 26, 0, 14))
    with torch.no_grad():
        torch.testing.assert_close(backbone(x)[0], backbone(padded)[0][:, :, :4, :5], rtol=0, atol=0)
    with pytest.raises(ValueError, match='up to 64 x 96, got 80 x 96: give img_size'):
        backbone(images(80, 96))


@pytest.mark.parametrize('name', ['mae_lite_vitdet_tiny', 'tinymim_star_tiny_seg'])
def test_dense_forms_take_any_size(name):
    backbone = ZooBackbone(name, img_size=64).eval()
    with torch.no_grad():
        maps = backbone(images(50, 33, batch=1))
    assert [tuple(y.shape[2:]) for y in maps] == [(-(-50 // s), -(-33 // s)) for s in backbone.strides]
    assert backbone.strides[:4] == (4, 8, 16, 32)


def mmdet_swin() -> SwinTransformer:
    theirs = SwinTransformer(embed_dims=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4))
    fill_by_rule(theirs)  # mmdet's .eval() gives nothing back
    return theirs


def test_swin_is_that_of_mmdet():
    """The papers' baseline: windows shift in every stage, and maps are normalised.

    At sizes that windows fill. Of others mmdet pads a map before it shifts, timm (and Mini-Swin) after it.
    """
    theirs = mmdet_swin()
    ours = ZooBackbone(SWIN[0], **SWIN[1]).eval()
    weights, norms = mmdet_swin_to_timm(theirs.state_dict())
    ours.load_state_dict({f'net.{k}': v for k, v in weights.items()} | norms)
    for size in ((224, 224), (448, 224)):
        x = images(*size, batch=1)
        with torch.no_grad():
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_windows_and_size_can_be_chosen():
    assert backbone_of('tinyvit').net.window_sizes[1:] == ((7, 7), (14, 14), (7, 7))
    assert backbone_of('tinyvit', img_size=512).net.window_sizes[1:] == ((16, 16), (32, 32), (16, 16))
    assert backbone_of('tinyvit', window_sizes=(5, 10, 5)).net.window_sizes[1:] == ((5, 5), (10, 10), (5, 5))
    assert backbone_of('mini_swin', window_sizes=8).net.window_sizes == ((8, 8),) * 4


def test_many_sizes_leave_nothing_behind():
    """Multi-scale training sees thousands of sizes: masks and tables are not kept."""

    def tensors(module: nn.Module) -> int:
        found = [v for m in module.modules() for v in vars(m).values() if isinstance(v, (dict, list, torch.Tensor))]
        return sum(len(v) if isinstance(v, (dict, list)) else 1 for v in found)

    for kind in (*DYNAMIC, 'swin'):
        backbone = backbone_of(kind)
        with torch.no_grad():
            backbone(images(64, 64, batch=1))
            before = tensors(backbone), len(pickle.dumps(backbone))
            for side in range(40, 90, 9):
                backbone(images(side, 64, batch=1))
        assert (tensors(backbone), len(pickle.dumps(backbone))) == before


@pytest.mark.parametrize('kind', [*KINDS, 'swin'])
def test_bfloat16_autocast(kind):
    backbone = backbone_of(kind, **({'img_size': 64} if kind == 'mae_lite_rpe' else {})).train()
    with torch.autocast('cpu', torch.bfloat16):
        maps = backbone(images(64, 64))
    assert all(y.isfinite().all() for y in maps)
    sum(y.float().square().mean() for y in maps).backward()
    assert all(p.grad is not None for p in backbone.parameters())


def test_out_indices_choose_maps_and_are_checked():
    backbone = backbone_of('tinyvit', out_indices=(0, 2))
    assert [y.shape[1] for y in backbone(images())] == list(backbone.channels) == [16, 32]
    assert len(backbone.net.stages) == 3
    for indices in ((4,), (), (1, 0), (1, 1)):
        with pytest.raises(ValueError, match='has maps 0 to 3'):
            backbone_of('tinyvit', out_indices=indices)
    with pytest.raises(ValueError, match='all 5 maps of its pyramid'):
        ZooBackbone('mae_lite_vitdet_tiny', out_indices=(1, 2))
    with pytest.raises(ValueError, match='no_such_argument'):
        ZooBackbone('tinyvit_5m_224', no_such_argument=1)


def test_norms_of_maps_follow_the_recipe_of_the_family_or_the_caller():
    assert [n for n, _ in backbone_of('mini_swin', out_indices=(1, 3)).named_children()] == ['net', 'norm1', 'norm3']
    assert not backbone_of('tinyvit').out_norm
    normed = ZooBackbone(*args_of('tinyvit')[:1], **args_of('tinyvit')[1], out_norm=True).eval()
    with torch.no_grad():
        for y in normed(images()):
            torch.testing.assert_close(y.mean(1), torch.zeros_like(y.mean(1)), rtol=0, atol=1e-5)


# --- training


@pytest.mark.parametrize('indices', [None, (0, 1), (1,)])
@pytest.mark.parametrize('kind', [*KINDS, 'swin'])
def test_every_parameter_gets_a_gradient(kind, indices):
    """So DistributedDataParallel needs no search for unused ones."""
    size = {'img_size': (64, 96)} if kind == 'mae_lite_rpe' else {}
    backbone = backbone_of(kind, out_indices=indices, **size).train()
    train_step(backbone, images())
    assert [k for k, p in backbone.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize('name', ['mae_lite_vitdet_tiny', 'tinymim_star_tiny_seg'])
def test_every_parameter_of_a_dense_form_gets_a_gradient(name):
    backbone = ZooBackbone(name, img_size=64).train()
    train_step(backbone, images(64, 64))
    assert [k for k, p in backbone.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('kind', [*KINDS, 'swin'])
def test_checkpointing_changes_memory_and_nothing_else(kind):
    """Same maps, gradients and running statistics, random depth included; blocks run twice and keep less."""
    size = {'img_size': (64, 96)} if kind == 'mae_lite_rpe' else {}
    results = []
    for with_cp in (False, True):
        backbone = backbone_of(kind, with_cp=with_cp, drop_path_rate=0.3, **size).train()
        blocks = [m for n, m in backbone.net.named_modules() if n.endswith('blocks.0')]
        calls, kept = [], {}
        for block in blocks:
            block.register_forward_pre_hook(lambda *_, calls=calls: calls.append(None))

        def keep(t, kept=kept):
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        torch.manual_seed(3)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            maps = backbone(images())
        sum((i + 1) * y.square().mean() for i, y in enumerate(maps)).backward()
        results.append((maps, {k: p.grad for k, p in backbone.named_parameters()}, dict(backbone.named_buffers())))
        results[-1] += (len(calls), sum(kept.values()))
    (maps, grads, buffers, once, much), (maps_cp, grads_cp, buffers_cp, twice, little) = results
    torch.testing.assert_close(maps_cp, maps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grads_cp, grads, rtol=1e-4, atol=1e-5)
    assert_same(buffers_cp, buffers)
    assert (twice, once > 0) == (2 * once, True)
    assert little < much / 2


@pytest.mark.parametrize('stages', [0, 1, 2])
@pytest.mark.parametrize('kind', ['tinyvit', 'mini_swin', 'swin', 'mini_deit', 'tinymim'])
def test_frozen_stages_stay_as_they_are(kind, stages):
    depth = dict(depth=8) if kind == 'mini_deit' else {}  # four blocks that run twice
    backbone = backbone_of(kind, frozen_stages=stages, drop_path_rate=0.5, **depth)
    part = 'layers' if kind == 'swin' else 'stages' if kind in ('tinyvit', 'mini_swin') else 'blocks'
    frozen = ('net.patch_embed', 'net.pos_embed', 'net.cls_token', *(f'net.{part}.{i}.' for i in range(stages)))
    if backbone.out_norm:
        frozen += tuple(f'norm{i}.' for i in range(stages))
    for _ in range(2):  # also after .eval() and back
        backbone.train()
        for name, parameter in backbone.named_parameters():
            assert parameter.requires_grad != name.startswith(frozen), name
        for name, module in backbone.named_modules():
            if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm, nn.Linear)):
                assert module.training != f'{name}.'.startswith(frozen), name
        backbone.eval()
        assert not any(module.training for module in backbone.modules())
    before = copy.deepcopy(backbone.state_dict())
    backbone.train()
    train_step(backbone, images())
    torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], 1e-3).step()
    changed = {k for k, v in backbone.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert not any(k.startswith(frozen) for k in changed)


def test_batch_norms_can_be_kept_in_eval_mode():
    backbone = backbone_of('tinyvit', norm_eval=True).train()
    before = {k: v.clone() for k, v in backbone.named_buffers()}
    train_step(backbone, images())
    assert_same(dict(backbone.named_buffers()), before)
    assert backbone.net.stages[1].training


@pytest.mark.parametrize('kind', ['tinyvit', 'mini_swin', 'swin', 'tinymim'])
def test_it_can_be_copied_pickled_and_saved(kind):
    backbone = backbone_of(kind, frozen_stages=1, with_cp=True)
    x = images()
    with torch.no_grad():
        expected = backbone(x)
        for again in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
            torch.testing.assert_close(again(x), expected, rtol=0, atol=0)
        other = backbone_of(kind)
        nn.init.zeros_(next(other.parameters()))
        other.load_state_dict(backbone.state_dict())
        torch.testing.assert_close(other(x), expected, rtol=0, atol=0)
    prefixes = {k.partition('.')[0] for k in backbone.state_dict()}
    assert prefixes == ({'net', 'norm0', 'norm1', 'norm2', 'norm3'} if backbone.out_norm else {'net'})


# --- weights


class Detector(BaseModel):
    """What mmengine trains and saves, with something beside the backbone."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = nn.Conv2d(4, 4, 1)

    def forward(self, *args, **kwargs): ...


def history() -> dict:
    """What mmengine saves beside the weights: arrays, and an object whose methods are named."""
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
    """mmengine would start every layer afresh that has a method for it, as timm's models have."""
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
    """The form of MAE-Lite taken apart: its trunk gives the map, the neck the five levels."""
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


@pytest.mark.slow
def test_a_pretraining_file_starts_the_segmentor_of_tinymim(tmp_path):
    """Its model had other heads in the last block, as the released recipe knows: `as_init=True`."""
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
def test_the_backbone_of_a_detector_comes_back(kind, tmp_path, caplog):
    backbone = backbone_of(kind)
    path = save_detector(backbone, tmp_path / 'detector.pth')
    name, arguments = args_of(kind)
    with caplog.at_level(logging.INFO, logger='downstream.detection'):
        again = ZooBackbone(name, init_cfg=dict(type='Pretrained', checkpoint=path), **arguments)
        again.init_weights()
    assert_same(again.state_dict(), backbone.state_dict())
    line = next(m for m in caplog.messages if 'at their start values' in m)
    assert 'at their start values: nothing; left out: neck (2)' in line
    with_prefix = dict(type='Pretrained', checkpoint=path, prefix='backbone')
    third = ZooBackbone(name, init_cfg=with_prefix, **arguments)
    third.init_weights()
    assert_same(third.state_dict(), backbone.state_dict())


@pytest.mark.parametrize('kind', ['tinyvit', 'mini_swin', 'mini_deit', 'tinymim', 'mae_lite_rpe'])
def test_and_becomes_a_timm_model_again(kind, tmp_path, cli, caplog):
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
    assert sorted(checkpoint.beside) == ['neck.bias', 'neck.weight']


def test_detectors_of_mmdet_start_the_baselines(tmp_path, official_file):
    """Their Swin under its own names, the released Swin under its, and a ResNet, whose names all share."""
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
    refused(start('tinyvit_5m_224', resnet), 'no TinyViT weights')
    refused(start(SWIN[0], resnet, **SWIN[1]), resnet)
    detector = save_detector(backbone_of('mini_swin'), tmp_path / 'detector.pth')
    refused(start(*SMALL_OF['tinyvit'][:1], detector), 'Mini-Swin weights, not TinyViT')
    torch.save({'state_dict': {'neck.weight': torch.zeros(1)}}, tmp_path / 'headless.pth')
    refused(start('tinyvit_5m_224', str(tmp_path / 'headless.pth')), 'no TinyViT weights')


def test_missing_files_and_other_init_cfgs_are_told(tmp_path):
    from tinyvit_zoo.checkpoints import WeightsNotFoundError

    missing = str(tmp_path / 'missing.pth')
    refused(lambda: ZooBackbone('tinyvit_5m_224', pretrained=missing), missing, kind=WeightsNotFoundError)
    refused(lambda: ZooBackbone('resnet18', pretrained='torchvision://resnet18'), 'torchvision://resnet18')
    refused(lambda: ZooBackbone('mae_lite_vitdet_tiny', pretrained=True), 'no weights of its own')
    backbone = ZooBackbone('tinyvit_5m_224', init_cfg=dict(type='Kaiming', layer='Conv2d'))
    with pytest.raises(ValueError, match="dict\\(type='Pretrained', checkpoint=\\.\\.\\.\\)"):
        backbone.init_weights()


def test_a_norm_of_a_map_that_the_file_lacks_is_missed(tmp_path):
    backbone = backbone_of('mini_swin')
    state_dict = {k: v for k, v in backbone.state_dict().items() if k != 'norm2.bias'}
    torch.save({'state_dict': {f'backbone.{k}': v for k, v in state_dict.items()}}, tmp_path / 'detector.pth')
    name, arguments = args_of('mini_swin')
    refused(lambda: ZooBackbone(name, **arguments, pretrained=str(tmp_path / 'detector.pth')), '1 missing: norm2.bias')
