"""The packaged mmdet configs: they build, agree with the recipes that they name, and stay short."""

import pytest
import torch
from conftest import for_each, rest_is_full
from mm_configs import DETECTION, build, packaged, parts, read, text
from mmdet.registry import DATASETS, HOOKS, LOOPS, METRICS, TRANSFORMS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from torch import nn

NAMES = packaged(DETECTION)
FULL = [name for name in NAMES if not name.startswith('ci/')]

CASCADE_PARAMETERS = {  # in millions; Swin-T and Swin-B as in the README of Swin's detection code
    'swin_tiny_fpn_1x': 86,
    'swin_base_fpn_3x': 145,
    'mini_swin_tiny_fpn_1x': 69,
    'mini_swin_tiny_ws_fpn_1x': 69,
    'tinyvit_21m_fpn_1x': 79,
}
VITDETS = {'tiny_lsj640': 640, 'tiny_lsj1024': 1024, 'small_lsj640': 640}


def test_there_is_a_config_for_every_detector_of_the_papers():
    cascades = [f'tinyvit_{size}' for size in ('5m', '11m', '21m')]
    cascades += [f'mini_swin_{size}' for size in ('tiny', 'small', 'base')] + ['swin_tiny']
    expected = {f'cascade_mask_rcnn_{name}_fpn_{n}x_coco' for name in cascades for n in (1, 3)}
    expected |= {f'cascade_mask_rcnn_mini_swin_tiny_{form}_fpn_1x_coco' for form in ('ws', 'ws_wt')}
    expected |= {'cascade_mask_rcnn_swin_base_fpn_3x_coco', 'distilled_cascade_mask_rcnn_mini_swin_tiny_fpn_1x_coco'}
    expected |= {f'{d}_tinyvit_{size}_fpn_1x_coco' for d in ('mask_rcnn', 'retinanet') for size in ('5m', '11m')}
    expected |= {f'mask_rcnn_vitdet_mae_lite_{of}_100ep_coco' for of in VITDETS}
    assert set(FULL) == expected


@for_each('name', NAMES)
def test_a_config_is_ten_lines_and_says_what_was_published(name):
    docstring, lines = text(DETECTION, name)
    assert len(lines) <= 13
    if name.startswith('ci/'):
        assert 'No published result.' in docstring
    else:
        assert 'Published: ' in docstring
        assert 'Not trained here.' in docstring


# The schedule of three times as many epochs changes nothing of the model.
ONE_OF_A_MODEL = [name for name in FULL if '_3x_' not in name or name.replace('_3x_', '_1x_') not in FULL]


@pytest.mark.slow
@pytest.mark.parametrize('name', rest_is_full(FULL, ONE_OF_A_MODEL))
def test_a_full_size_config_builds_and_fits_its_fpn(name):
    model = build(read(DETECTION, name), 'meta')
    neck = getattr(model, 'neck', None)
    if neck is not None:
        assert tuple(neck.in_channels) == model.backbone.channels
    if 'vitdet' in model.backbone.model_name:
        assert model.backbone.channels == (256,) * 5
    millions = round(sum(p.numel() for p in model.parameters()) / 1e6)
    assert millions == CASCADE_PARAMETERS.get(name.removeprefix('cascade_mask_rcnn_').removesuffix('_coco'), millions)


@pytest.mark.parametrize('name', [name for name in NAMES if name.startswith('ci/')])
def test_a_ci_config_builds_and_its_maps_go_through(name):
    model = build(read(DETECTION, name)).eval()
    with torch.no_grad():
        maps = model.extract_feat(torch.zeros(1, 3, 64, 96))
    assert {x.shape[1] for x in maps} == {64}
    assert len(maps) == 5


@for_each('name', NAMES)
def test_everything_a_config_names_is_registered(name):
    config = read(DETECTION, name)
    assert config.custom_imports == dict(imports=['tinyvit_zoo.downstream.detection'], allow_failed_imports=False)
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        assert DATASETS.get(loader.dataset.type)
        assert all(TRANSFORMS.get(step['type']) for step in parts(loader.dataset.pipeline))
    assert METRICS.get(config.val_evaluator.type)
    assert LOOPS.get(config.train_cfg.type)
    assert [hook['type'] for hook in config.custom_hooks] == ['RandomStateHook', 'CurvesHook']
    assert all(HOOKS.get(hook['type']) for hook in parts([config.custom_hooks, config.default_hooks]))


@pytest.mark.parametrize('name', [name for name in ONE_OF_A_MODEL if 'mini_swin' in name])
def test_mini_swin_shifts_its_windows_in_every_stage_as_swin_does(name):
    backbone = build(read(DETECTION, name), 'meta').backbone
    if hasattr(backbone.net, 'stages'):
        shifts = [stage.shift for stage in backbone.net.stages]
    else:  # timm's Swin, whose stages share their weights
        shifts = [stage.blocks[1].shift_size for stage in backbone.net.layers]
    assert shifts == [(3, 3)] * 4


def test_training_uses_the_eleven_sizes_of_swin():
    scales = read(DETECTION, 'cascade_mask_rcnn_tinyvit_21m_fpn_1x_coco').train_pipeline[3].transforms[0][0].scales
    assert scales == [(short, 1333) for short in (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)]


def test_a_box_detector_reads_no_masks():
    boxes = read(DETECTION, 'retinanet_tinyvit_5m_fpn_1x_coco')
    for loader in (boxes.train_dataloader, boxes.val_dataloader, boxes.test_dataloader):
        loads = [step for step in loader.dataset.pipeline if step.type == 'LoadAnnotations']
        assert [step.with_mask for step in loads] == [False]
    assert boxes.val_evaluator.metric == boxes.test_evaluator.metric == 'bbox'
    assert read(DETECTION, 'mask_rcnn_tinyvit_5m_fpn_1x_coco').train_pipeline[1].with_mask


@pytest.mark.parametrize('name', VITDETS)
def test_vitdet_pads_to_the_square_that_its_tables_are_for(name):
    config, size = read(DETECTION, f'mask_rcnn_vitdet_mae_lite_{name}_100ep_coco'), VITDETS[name]
    assert f'_{name.partition("_")[0]}' in config.model.backbone.model_name
    assert config.model.data_preprocessor.pad_size_divisor == config.model.backbone.img_size == size
    steps = {step.type: step for step in config.train_dataloader.dataset.pipeline}
    assert steps['RandomResize'].scale == steps['RandomCrop'].crop_size == (size, size)
    assert config.test_dataloader.dataset.pipeline[1].scale == (size, size)
    assert config.train_cfg.max_iters == 184375
    assert config.param_scheduler[1].milestones == [163888, 177546]


def test_epochs_of_the_1x_and_3x_schedules():
    for n, epochs, steps in ((1, 12, [8, 11]), (3, 36, [27, 33])):
        config = read(DETECTION, f'cascade_mask_rcnn_swin_tiny_fpn_{n}x_coco')
        assert config.train_cfg.max_epochs == config.param_scheduler[1].end == epochs
        assert config.param_scheduler[1].milestones == steps


@pytest.mark.parametrize('name', ['tinyvit_5m', 'mini_swin_tiny', 'mini_swin_tiny_ws', 'swin_tiny'])
def test_swins_recipe_does_not_decay_norms_and_tables(name):
    config = read(DETECTION, f'cascade_mask_rcnn_{name}_fpn_1x_coco')
    model = build(config, 'meta')
    groups = build_optim_wrapper(model, config.optim_wrapper).optimizer.param_groups
    decay = {id(p): group['weight_decay'] for group in groups for p in group['params']}
    norms = {
        id(p)
        for m in model.modules()
        if isinstance(m, nn.LayerNorm | nn.modules.batchnorm._BatchNorm)
        for p in m.parameters(recurse=False)
    }
    for key, parameter in model.named_parameters():
        still = id(parameter) in norms or key.endswith(('relative_position_bias_table', 'attention_biases'))
        assert decay[id(parameter)] == (0.0 if still else 0.05), key
    assert {group['lr'] for group in groups} == {1e-4}


def test_a_config_survives_being_written_as_one_file(tmp_path):
    config = read(DETECTION, 'cascade_mask_rcnn_tinyvit_5m_fpn_1x_coco')
    config.dump(tmp_path / 'mine.py')
    again = Config.fromfile(tmp_path / 'mine.py')
    assert again.model == config.model
    assert again.train_dataloader == config.train_dataloader


@pytest.mark.slow
def test_the_full_size_cascade_of_tinyvit_21m_trains_and_validates_a_step():
    config = read(DETECTION, 'cascade_mask_rcnn_tinyvit_21m_fpn_1x_coco')
    model = revert_sync_batchnorm(build(config))
    batch = demo_mm_inputs(1, [[3, 480, 800]], num_items=[5], num_classes=80, with_mask=True)
    optim = build_optim_wrapper(model, config.optim_wrapper)
    reached = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: reached.append(id(p)))
    losses = model.train().train_step(batch, optim)
    assert len([k for k in losses if 'loss' in k]) == 12
    assert all(torch.isfinite(v).all() for v in losses.values())
    assert [k for k, p in model.named_parameters() if id(p) not in reached] == []
    (result,) = model.eval().val_step(batch)
    assert result.pred_instances.bboxes.shape[1] == 4
    assert result.pred_instances.masks.shape[1:] == (480, 800)
