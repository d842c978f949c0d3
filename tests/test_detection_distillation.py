"""DistilledCascadeRCNN: its teacher, its loss and gradients, and its checkpoints."""

import copy
import re

import pytest
import timm
import torch
from conftest import refused
from mm_configs import DETECTION, build, read
from mmdet.models import CascadeRCNN
from mmdet.testing import demo_mm_inputs
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint, save_checkpoint
from torch import nn

from tinyvit_zoo.downstream.detection import DistilledCascadeRCNN, ZooBackbone
from tinyvit_zoo.downstream.detection.distillation import load_teacher

SMALL_SWIN = dict(model_name='swin_tiny_patch4_window7_224', embed_dim=24, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8))
TEACHER = dict(type='ZooBackbone', **SMALL_SWIN)


def student_config(**model):
    config = read(DETECTION, 'ci/ci_distilled_cascade_mini_swin_tiny')
    # The smallest hierarchy of four maps.
    config.model.backbone.model_name = 'tinyvit_5m_224'
    config.model.neck.in_channels = [64, 128, 160, 320]
    config.model.teacher_config = dict(backbone=TEACHER, neck=dict(in_channels=[24, 48, 96, 192]))
    config.model.update(model)
    return config


@pytest.fixture(scope='module')
def detector() -> DistilledCascadeRCNN:
    torch.manual_seed(0)
    model = build(student_config())
    model.init_weights()
    return model.train()


@pytest.fixture
def batch():
    return demo_mm_inputs(2, [[3, 64, 96], [3, 96, 64]], num_items=[2, 1], num_classes=2, with_mask=True)


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def test_a_step_changes_the_student_and_leaves_the_teacher(detector, batch):
    detector = copy.deepcopy(detector)
    student, teacher = tensors(detector), tensors(detector.teacher)
    optim = build_optim_wrapper(detector, student_config().optim_wrapper)
    losses = detector.train_step(batch, optim)
    assert losses['loss_distill'] > 0
    assert all(torch.equal(v, teacher[k]) for k, v in detector.teacher.state_dict().items())
    changed = {k.split('.')[0] for k, v in detector.state_dict().items() if not torch.equal(v, student[k])}
    assert changed == {'backbone', 'neck', 'rpn_head', 'roi_head', 'distill_projections'}


def test_the_teacher_is_frozen_in_eval_mode_and_no_part_of_the_model(detector):
    detector.eval().train()
    assert not any(m.training for m in detector.teacher.modules())
    assert not any(p.requires_grad for p in detector.teacher.parameters())
    inside = {id(p) for p in detector.parameters()}
    assert not any(id(p) in inside for p in detector.teacher.parameters())
    assert not any('teacher' in k for k in detector.state_dict())


def test_the_loss_is_the_weighted_mean_square_of_projected_maps(detector, batch):
    data = detector.data_preprocessor(batch, True)
    losses = detector.loss(data['inputs'], data['data_samples'])
    with torch.no_grad():
        student, teacher = detector.backbone(data['inputs']), detector.teacher(data['inputs'])
        total = 0.0
        for conv, s, t in zip(detector.distill_projections, student, teacher, strict=True):
            projected = torch.einsum('oi,bihw->bohw', conv.weight[:, :, 0, 0], s) + conv.bias[:, None, None]
            total += ((projected - t) ** 2).sum() / t.numel()
    assert losses['loss_distill'].item() == pytest.approx(0.1 * total.item() / 4, rel=1e-5)


def test_gradients_of_the_distillation_reach_the_backbone_and_the_projections_alone(detector, batch):
    data = detector.data_preprocessor(batch, True)
    detector.zero_grad(set_to_none=True)
    detector.loss(data['inputs'], data['data_samples'])['loss_distill'].backward()
    reached = {k.split('.')[0] for k, p in detector.named_parameters() if p.grad is not None}
    assert reached == {'backbone', 'distill_projections'}
    assert all(p.grad is not None for p in detector.backbone.parameters())
    assert all(p.grad is None for p in detector.teacher.parameters())
    detector.zero_grad(set_to_none=True)


def test_a_checkpoint_is_that_of_a_plain_cascade(detector, batch, tmp_path):
    file = str(tmp_path / 'epoch_1.pth')
    save_checkpoint(dict(state_dict=detector.state_dict(), meta={}), file)
    config = student_config(type='CascadeRCNN')
    for key in ('teacher_config', 'teacher_checkpoint', 'distill_weight'):
        config.model.pop(key)
    plain = build(config)
    assert type(plain) is CascadeRCNN
    loaded = load_checkpoint(plain, file, map_location='cpu')
    extra = loaded['state_dict'].keys() - plain.state_dict().keys()
    assert not plain.state_dict().keys() - loaded['state_dict'].keys()
    assert {k.split('.')[0] for k in extra} == {'distill_projections'}
    detector = copy.deepcopy(detector).eval()
    inputs = detector.data_preprocessor(batch)['inputs']
    for a, b in zip(detector.extract_feat(inputs), plain.eval().extract_feat(inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_testing_needs_no_teacher(batch):
    detector = build(student_config(teacher_checkpoint='nowhere.pth')).eval()
    assert len(detector.test_step(batch)) == 2


@pytest.mark.parametrize('checkpoint', [None, 'nowhere.pth'])
def test_training_without_the_teachers_file_fails_before_it_starts(checkpoint):
    detector = build(student_config(teacher_checkpoint=checkpoint))
    refused(detector.init_weights, 'teacher_checkpoint')


def test_the_teacher_is_the_backbone_of_its_detector(tmp_path):
    backbone = ZooBackbone(**SMALL_SWIN)
    whole = {f'backbone.{k}': torch.randn_like(v) for k, v in backbone.state_dict().items()}
    torch.save(dict(state_dict={**whole, 'neck.conv.weight': torch.zeros(1)}), tmp_path / 'teacher.pth')
    teacher = load_teacher(TEACHER, tmp_path / 'teacher.pth')
    assert all(torch.equal(v, whole[f'backbone.{k}']) for k, v in teacher.state_dict().items())


def test_the_teacher_is_read_from_the_released_files_of_swin(tmp_path):
    """Their layout: prefix `backbone.`, patches merged at the end of a stage, one norm per map, buffers."""
    backbone = ZooBackbone(**SMALL_SWIN)
    want = {k: torch.randn_like(v) for k, v in backbone.state_dict().items()}
    released = {}
    for key, value in want.items():
        key = key.removeprefix('net.')
        key = re.sub(r'layers\.(\d)\.downsample', lambda m: f'layers.{int(m[1]) - 1}.downsample', key)
        released[f'backbone.{key}'] = value
        if key.endswith('relative_position_bias_table'):
            released[f'backbone.{key}'.replace('bias_table', 'index')] = torch.zeros(49, 49, dtype=torch.long)
    released['neck.lateral_convs.0.conv.weight'] = torch.zeros(1)
    torch.save(dict(meta={}, state_dict=released), tmp_path / 'released.pth')
    teacher = load_teacher(TEACHER, tmp_path / 'released.pth')
    assert all(torch.equal(v, want[k]) for k, v in teacher.state_dict().items())


def test_a_checkpoint_of_another_architecture_is_no_teacher(tmp_path):
    torch.save(timm.create_model('tinyvit_5m_224').state_dict(), tmp_path / 'other.pth')
    refused(lambda: load_teacher(TEACHER, tmp_path / 'other.pth'), 'other.pth')


def test_a_student_is_initialized_the_same_with_and_without_a_teacher():
    states = []
    for checkpoint in ('random', None):
        torch.manual_seed(5)
        detector = build(student_config(teacher_checkpoint=checkpoint))
        if checkpoint:
            detector.init_weights()
        else:
            CascadeRCNN.init_weights(detector)
        states.append((detector.state_dict(), torch.rand(1)))
    (first, a), (second, b) = states
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    assert a == b


def test_the_teacher_follows_to_another_dtype_and_into_a_copy(detector):
    moved = copy.deepcopy(detector).to(torch.float64)
    assert {p.dtype for p in moved.teacher.parameters()} == {torch.float64}
    assert moved.teacher is not detector.teacher
    assert {p.dtype for p in detector.teacher.parameters()} == {torch.float32}


def test_the_loss_is_float32_under_autocast(detector, batch):
    data = detector.data_preprocessor(batch, True)
    with torch.autocast('cpu', torch.bfloat16):
        loss = detector.loss(data['inputs'].contiguous(), data['data_samples'])['loss_distill']
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


def test_processes_that_train_together_average_the_student_alone(detector, batch, tmp_path):
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        wrapped = MMDistributedDataParallel(copy.deepcopy(detector))
        losses = wrapped.train_step(batch, build_optim_wrapper(wrapped, student_config().optim_wrapper))
    finally:
        torch.distributed.destroy_process_group()
    assert losses['loss_distill'] > 0
    assert len(list(wrapped.parameters())) == len(list(detector.parameters()))


def test_missing_configs_and_maps_that_do_not_match_are_refused():
    missing = student_config(teacher_config='no_such_detector')
    refused(lambda: build(missing), 'no_such_detector', kind=FileNotFoundError)
    three = student_config(teacher_config=read(DETECTION, 'ci/ci_retinanet_tinyvit_5m').model)
    refused(lambda: build(three), '4 maps', '3', kind=ValueError)


def test_projections_lead_to_the_widths_of_the_packaged_teachers():
    for name in ('distilled_cascade_mask_rcnn_mini_swin_tiny_fpn_1x_coco', 'ci/ci_distilled_cascade_mini_swin_tiny'):
        detector = build(read(DETECTION, name), 'meta')
        with torch.device('meta'):
            teacher = MODELS.build(detector.teacher_backbone)
        assert teacher.channels == tuple(
            project.out_channels if isinstance(project, nn.Conv2d) else chans
            for project, chans in zip(detector.distill_projections, detector.backbone.channels, strict=True)
        )


def test_equal_widths_need_no_projection():
    detector = build(student_config(teacher_config='ci_cascade_mask_rcnn_tinyvit_5m'))
    assert not list(detector.distill_projections.parameters())
