"""The packaged mmseg configs, and the released segmentation backbones inside them."""

import numpy as np
import pytest
import torch
from dense_reference import released_dense
from golden_case import SINGLE, assert_close
from golden_rule import golden
from mm_configs import SEGMENTATION, build, packaged, parts, read, text
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.structures import PixelData
from mmseg.registry import DATASETS, HOOKS, METRICS, TRANSFORMS
from mmseg.structures import SegDataSample

from tinyvit_zoo.downstream.segmentation import ZooBackbone

NAMES = packaged(SEGMENTATION)
FULL = [name for name in NAMES if not name.startswith('ci/')]
CI = [name for name in NAMES if name.startswith('ci/')]


def samples(count: int, size: int, classes: int) -> dict:
    """A batch of noise, its labels in squares of 16 pixels."""
    cells = torch.randint(classes, (count, 1, size // 16, size // 16))
    maps = cells.repeat_interleave(16, 2).repeat_interleave(16, 3)
    shape = dict(img_shape=(size, size), ori_shape=(size, size))
    data = [SegDataSample(metainfo=shape, gt_sem_seg=PixelData(data=labels)) for labels in maps]
    return dict(inputs=[torch.randint(256, (3, size, size), dtype=torch.uint8) for _ in data], data_samples=data)


def test_there_is_a_config_for_every_segmentor():
    assert FULL == [
        'upernet_tinymim_base_160k_ade20k',
        'upernet_tinymim_star_tiny_160k_ade20k',
        'upernet_tinyvit_21m_160k_ade20k',
    ]


@pytest.mark.parametrize('name', NAMES)
def test_a_config_is_ten_lines_and_says_what_was_published(name):
    docstring, lines = text(SEGMENTATION, name)
    assert len(lines) <= 13
    if name in CI:
        assert 'No published result.' in docstring
    else:
        assert 'Published: ' in docstring
        assert 'Not trained here.' in docstring


@pytest.mark.parametrize('name', NAMES)
def test_a_config_builds_and_fits_its_heads(name):
    config = read(SEGMENTATION, name)
    model = build(config, 'meta')
    assert tuple(model.decode_head.in_channels) == model.backbone.channels
    assert model.auxiliary_head.in_channels == model.backbone.channels[model.auxiliary_head.in_index]
    assert model.backbone.strides == (4, 8, 16, 32)
    assert model.decode_head.num_classes == model.auxiliary_head.num_classes == (3 if name in CI else 150)
    assert build_optim_wrapper(model, config.optim_wrapper)


@pytest.mark.parametrize('name', NAMES)
def test_everything_a_config_names_is_registered(name):
    config = read(SEGMENTATION, name)
    assert config.custom_imports == dict(imports=['tinyvit_zoo.downstream.segmentation'], allow_failed_imports=False)
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        assert DATASETS.get(loader.dataset.type)
        assert all(TRANSFORMS.get(step['type']) for step in parts(loader.dataset.pipeline))
    assert METRICS.get(config.val_evaluator.type)
    assert all(HOOKS.get(hook['type']) for hook in parts([config.custom_hooks, config.default_hooks]))


@pytest.mark.parametrize('name', CI)
def test_a_ci_config_trains_and_tests_a_step(name):
    config = read(SEGMENTATION, name)
    model = revert_sync_batchnorm(build(config)).train()
    losses = model.train_step(samples(2, 128, 3), build_optim_wrapper(model, config.optim_wrapper))
    assert {'decode.loss_ce', 'aux.loss_ce'} <= losses.keys()
    assert all(torch.isfinite(v).all() for v in losses.values())
    results = model.eval().test_step(samples(2, 128, 3))
    assert [tuple(r.pred_sem_seg.data.shape) for r in results] == [(1, 128, 128)] * 2


@pytest.mark.parametrize(
    ('name', 'case'),
    [
        ('star_tiny', 'tinymimstar_tiny_seg224'),
        pytest.param('base', 'tinymim_base_seg224', marks=pytest.mark.slow),
    ],
)
def test_a_released_segmentation_checkpoint_gives_the_released_maps(name, case, tmp_path):
    """A whole segmentor as saved by mmseg 0.11: the backbone with its prefix, and the heads."""
    whole = {f'backbone.{k}': v for k, v in released_dense(case).items()}
    whole['decode_head.conv_seg.weight'] = torch.zeros(150, 768, 1, 1)
    torch.save(dict(meta=dict(iter=160000), state_dict=whole), tmp_path / 'iter_160000.pth')
    config = read(SEGMENTATION, f'upernet_tinymim_{name}_160k_ade20k').model.backbone
    config.pop('type'), config.pop('init_cfg')
    backbone = ZooBackbone(**config, img_size=224, pretrained=str(tmp_path / 'iter_160000.pth')).eval().double()
    expected = golden(case)
    images = np.random.RandomState(0).standard_normal((len(expected['out0']), 3, 224, 224)).astype(np.float32)
    with torch.no_grad():
        maps = backbone(torch.from_numpy(images).double())
    assert len(maps) == sum(key.endswith('_stride') for key in expected)
    for i, x in enumerate(maps):
        chans, rows, cols = expected[f'out{i}_stride']
        n, c, h, w = expected[f'out{i}'].shape
        assert_close(x[:n, ::chans, ::rows, ::cols][:, :c, :h, :w], expected[f'out{i}'], SINGLE)


def test_the_rates_of_tinymim_fall_from_layer_to_layer():
    config = read(SEGMENTATION, 'upernet_tinymim_base_160k_ade20k')
    model = build(config, 'meta')
    groups = build_optim_wrapper(model, config.optim_wrapper).optimizer.param_groups
    rates = {id(p): group['lr'] for group in groups for p in group['params']}
    names = dict(model.named_parameters())

    def rate(name: str) -> float:
        return rates[id(names[name])]

    for block in range(12):  # ids as in the released code: patches 0, block i i + 1, all else 13
        assert rate(f'backbone.net.net.blocks.{block}.attn.qkv.weight') == pytest.approx(1e-4 * 0.75 ** (12 - block))
    assert rate('backbone.net.net.patch_embed.proj.weight') == pytest.approx(1e-4 * 0.75**13)
    assert rate('backbone.net.pyramid.fpn1.0.weight') == rate('decode_head.conv_seg.weight') == 1e-4
