"""The stand-in for mmcv's compiled ops, called as mmdet calls it: through `mmcv.ops`.

Everything is held against torchvision called directly and against slow arithmetic written here, which would tell
height from width and one argument from another. mmdet's own unit tests cannot be run: neither its wheel nor its source
distribution on the package index has them. Its RoI heads are run here over the inputs that it ships for such tests.
"""

import itertools

import numpy as np
import pytest
import torch
import torchvision

from tinyvit_zoo.downstream.detection import mmcv_ext

# isort: split
import mmcv.ops as mmcv_ops  # the import above has installed the stand-in


def slow_roi_align(features, rois, size, scale, sampling_ratio, aligned):
    """He et al. 2017, section 3, sample by sample; gradients by autograd."""
    H, W = features.shape[2:]
    shift = 0.5 if aligned else 0.0
    out = []
    for image, *corners in rois.tolist():
        x1, y1, x2, y2 = (corner * scale - shift for corner in corners)
        width, height = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1.0), max(y2 - y1, 1.0))
        bin_h, bin_w = height / size[0], width / size[1]
        ny, nx = (sampling_ratio or int(np.ceil(side)) for side in (bin_h, bin_w))
        for row, column in itertools.product(range(size[0]), range(size[1])):
            samples = [
                slow_bilinear(features[int(image)], y1 + (row + (i + 0.5) / ny) * bin_h, x, H, W)
                for i in range(ny)
                for x in (x1 + (column + (j + 0.5) / nx) * bin_w for j in range(nx))
            ]
            out.append(sum(samples) / max(ny * nx, 1))
    return torch.stack(out).reshape(len(rois), *size, -1).permute(0, 3, 1, 2)


def slow_bilinear(features, y, x, H, W):
    """(C,); 0 more than a pixel outside the map, the edge's value up to there."""
    if not (-1 <= y <= H and -1 <= x <= W):
        return features[:, 0, 0] * 0
    y, x = min(max(y, 0.0), H - 1.0), min(max(x, 0.0), W - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, H - 1), min(left + 1, W - 1)
    upper = features[:, top, left] * (1 - x + left) + features[:, top, right] * (x - left)
    lower = features[:, bottom, left] * (1 - x + left) + features[:, bottom, right] * (x - left)
    return upper * (1 - y + top) + lower * (y - top)


def slow_nms(boxes, scores, threshold, offset=0):
    kept = []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if all(slow_iou(boxes[i].tolist(), boxes[j].tolist(), offset) <= threshold for j in kept):
            kept.append(i)
    return kept


def slow_iou(a, b, offset):
    width = max(min(a[2], b[2]) - max(a[0], b[0]) + offset, 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]) + offset, 0)
    areas = [(c[2] - c[0] + offset) * (c[3] - c[1] + offset) for c in (a, b)]
    return width * height / (sum(areas) - width * height)


def some_boxes(n, seed=0, width=120, height=60, dtype=torch.float64):
    """(n, 4) that overlap, and distinct scores (n,)."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(n, 2, generator=generator, dtype=dtype) * torch.tensor([width, height])
    sides = 2 + torch.rand(n, 2, generator=generator, dtype=dtype) * torch.tensor([width, height]) / 2
    scores = (torch.randperm(n, generator=generator) + 1).to(dtype) / (n + 1)
    return torch.cat([corners, corners + sides], 1), scores


def some_rois(scale, H=9, W=14):
    """Inside, across every edge, outside, smaller than a pixel, on either of two images."""
    rois = [
        [0, 2.2, 1.1, 9.7, 6.4],
        [1, -2.0, 3.0, 5.5, H + 1.6],
        [1, W - 3.1, -2.3, W + 2.0, 2.9],
        [0, 3.3, 4.4, 3.6, 4.5],
        [0, W + 4.0, 1.0, W + 9.0, 4.0],
    ]
    return torch.tensor(rois, dtype=torch.float64) * torch.tensor([1, *[1 / scale] * 4], dtype=torch.float64)


def with_gradient(function, features, weights):
    features = features.clone().requires_grad_()
    out = function(features)
    (out * weights).sum().backward()
    return out.detach(), features.grad


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize('scale', [1.0, 0.25, 1 / 32])
@pytest.mark.parametrize('sampling_ratio', [0, 2])
@pytest.mark.parametrize('aligned', [True, False])
def test_roi_align_and_its_gradient(aligned, sampling_ratio, scale, dtype):
    torch.manual_seed(0)
    size = (2, 3)
    features, rois = torch.randn(2, 3, 9, 14, dtype=dtype), some_rois(scale)
    weights = torch.randn(len(rois), 3, *size, dtype=dtype)
    args = (size, scale, sampling_ratio)
    out, grad = with_gradient(lambda x: mmcv_ops.roi_align(x, rois.to(dtype), *args, 'avg', aligned), features, weights)
    theirs = with_gradient(lambda x: torchvision.ops.roi_align(x, rois.to(dtype), *args, aligned), features, weights)
    slow = with_gradient(lambda x: slow_roi_align(x, rois, *args, aligned), features.double(), weights.double())
    assert torch.equal(out, theirs[0])
    assert torch.equal(grad, theirs[1])
    tolerance = dict(rtol=0, atol=1e-12 if dtype == torch.float64 else 2e-6)
    torch.testing.assert_close(out.double(), slow[0], **tolerance)
    torch.testing.assert_close(grad.double(), slow[1], **tolerance)
    assert slow[1].abs().max() > 0.1


def test_the_module_and_its_derivative():
    layer = mmcv_ops.RoIAlign((2, 3), 0.5, 2)
    features = torch.randn(2, 2, 5, 7, dtype=torch.float64, requires_grad=True)
    rois = some_rois(0.5, 5, 7)[:4]
    assert torch.autograd.gradcheck(lambda x: layer(x, rois), features)


def test_roi_align_without_rois():
    features = torch.randn(1, 2, 5, 7, requires_grad=True)
    out = mmcv_ops.roi_align(features, torch.zeros(0, 5), (2, 3), 0.5, 0, 'avg', True)
    out.sum().backward()
    assert out.shape == (0, 2, 2, 3)
    assert torch.equal(features.grad, torch.zeros_like(features))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_float32_rounded_once(dtype):
    """Under AMP mmdet hands over features and boxes in half precision."""
    torch.manual_seed(0)
    features, weights = torch.randn(2, 3, 9, 14).to(dtype), torch.randn(5, 3, 2, 3).to(dtype)
    rois = some_rois(0.25).to(dtype)
    args = ((2, 3), 0.25, 2, 'avg', True)
    half = with_gradient(lambda x: mmcv_ops.roi_align(x, rois, *args), features, weights)
    single = with_gradient(lambda x: mmcv_ops.roi_align(x, rois.float(), *args), features.float(), weights.float())
    assert len(half) == 2
    for a, b in zip(half, single, strict=True):
        assert a.dtype == dtype
        assert torch.equal(a, b.to(dtype))


def test_autocast_keeps_the_dtype_of_the_features():
    features = torch.randn(1, 2, 5, 7, dtype=torch.bfloat16, requires_grad=True)
    rois = some_rois(1.0)[:1].bfloat16()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = mmcv_ops.roi_align(features, rois, (2, 3), 1.0, 0, 'avg', True)
    out.sum().backward()
    assert out.dtype == features.grad.dtype == torch.bfloat16


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.2, 0.5, 0.7])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_nms(dtype, threshold, offset):
    boxes, scores = some_boxes(80)
    if offset:  # so small that one more pixel decides
        boxes = boxes / 8
    dets, kept = mmcv_ops.nms(boxes.to(dtype), scores.to(dtype), threshold, offset=offset)
    assert kept.tolist() == slow_nms(boxes, scores, threshold, offset)
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], 1)[kept].to(dtype))
    direct = torchvision.ops.nms(boxes, scores, threshold).tolist()
    assert (kept.tolist() == direct) == (offset == 0)
    assert len(kept) < len(boxes)


def test_nms_keeps_the_better_scores_and_at_most_a_given_number():
    boxes, scores = some_boxes(60)
    _, kept = mmcv_ops.nms(boxes, scores, 0.5, score_threshold=0.4, max_num=7)
    good = torch.where(scores > 0.4)[0]
    assert kept.tolist() == good[slow_nms(boxes[good], scores[good], 0.5)].tolist()[:7]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_nms_in_half_precision(dtype):
    boxes, scores = some_boxes(40)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    dets, kept = mmcv_ops.nms(boxes, scores, 0.5)
    assert dets.dtype == dtype
    assert kept.tolist() == torchvision.ops.nms(boxes.float(), scores.float(), 0.5).tolist()


def test_nms_of_arrays_and_of_nothing():
    boxes, scores = some_boxes(20)
    dets, kept = mmcv_ops.nms(boxes.numpy(), scores.numpy(), 0.5)
    assert isinstance(dets, np.ndarray)
    assert kept.tolist() == slow_nms(boxes, scores, 0.5)
    dets, kept = mmcv_ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert (dets.shape, kept.shape, kept.dtype) == ((0, 5), (0,), torch.int64)
    dets, kept = mmcv_ops.batched_nms(
        torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long), dict(type='nms', iou_threshold=0.5), True
    )
    assert (dets.shape, kept.shape) == ((0, 5), (0,))


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('split_thr', [10000, 10], ids=['at_once', 'class_by_class'])
def test_batched_nms(split_thr, offset):
    boxes, scores = some_boxes(80)
    classes = torch.arange(80) % 3
    config = dict(type='nms', iou_threshold=0.4, split_thr=split_thr, offset=offset)
    dets, kept = mmcv_ops.batched_nms(boxes, scores, classes, config)
    own = [torch.where(classes == c)[0] for c in range(3)]
    expected = {int(k) for ids in own for k in ids[slow_nms(boxes[ids], scores[ids], 0.4, offset)]}
    assert set(kept.tolist()) == expected
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], 1)[kept])
    assert (dets[:-1, 4] >= dets[1:, 4]).all()
    if not offset:
        assert kept.tolist() == torchvision.ops.batched_nms(boxes, scores, classes, 0.4).tolist()
    if split_thr > 80:  # otherwise mmcv calls NMS class by class anyway
        everything, _ = mmcv_ops.batched_nms(boxes, scores, classes, config, class_agnostic=True)
        assert len(everything) < len(dets)


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('gamma', [1.0, 2.0, 2.5])
def test_sigmoid_focal_loss(gamma, weighted):
    """Lin et al. 2017, eq. 5, with the class `C` for background."""
    torch.manual_seed(0)
    target = torch.tensor([0, 2, 3, 1, 3])
    weight = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64) if weighted else None
    if weighted:
        target = target.clamp(max=2)
    factors = weight[target, None] if weighted else 1.0

    def by_hand(logits):
        p = logits.sigmoid()
        positive = torch.arange(3) == target[:, None]
        loss = torch.where(positive, -0.3 * (1 - p) ** gamma * p.log(), -0.7 * p**gamma * (1 - p).log())
        return loss * factors

    logits, grad_output = torch.randn(5, 3, dtype=torch.float64) * 3, torch.randn(5, 3, dtype=torch.float64)
    expected = with_gradient(by_hand, logits, grad_output)
    got = with_gradient(
        lambda x: mmcv_ops.sigmoid_focal_loss(x, target, gamma, 0.3, weight, 'none'), logits, grad_output
    )
    assert len(got) == 2
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_the_focal_loss_on_a_gpu_is_that_on_the_cpu():
    """On a GPU mmdet uses mmcv's op, on a CPU its own arithmetic; the op itself is the same on both."""
    from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss, sigmoid_focal_loss

    torch.manual_seed(0)
    logits, target = torch.randn(6, 4) * 3, torch.tensor([0, 1, 2, 3, 4, 4])
    rows = torch.rand(6)
    one_hot = torch.nn.functional.one_hot(target, 5)[:, :4]
    losses = [
        with_gradient(lambda x, f=f, t=t: f(x, t, rows, reduction='sum'), logits, torch.tensor(1.0))
        for f, t in ((sigmoid_focal_loss, target), (py_sigmoid_focal_loss, one_hot))
    ]
    assert [len(pair) for pair in losses] == [2, 2]
    for a, b in zip(*losses, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ('op', 'call'),
    [
        ('softnms', lambda: mmcv_ops.soft_nms(*some_boxes(4))),
        ('roi_pool_forward', lambda: mmcv_ops.roi_pool(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5), (2, 2))),
        ('nms_rotated', lambda: mmcv_ops.nms_rotated(torch.zeros(2, 5), torch.zeros(2), 0.5)),
        (
            'roi_align_forward',
            lambda: mmcv_ops.roi_align(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5), 2, 1.0, 0, 'max', True),
        ),
    ],
)
def test_any_other_op_is_named_when_it_is_called(op, call):
    with pytest.raises(NotImplementedError) as e:
        call()
    message = str(e.value)
    assert f"'{op}'" in message
    assert ('max' in message) == (op == 'roi_align_forward')
    assert 'install a compiled mmcv' in message
    assert 'onedl-mmcv' in message
    assert '\n' not in message


def test_it_is_a_module_like_others():
    from mmcv.utils import collect_env, ext_loader

    assert not hasattr(mmcv_ext, '__path__')
    assert not hasattr(mmcv_ext, '_private')
    assert ext_loader.load_ext('_ext', ['nms', 'an_op_of_tomorrow']).nms is mmcv_ext.nms
    assert ext_loader.check_ops_exist()
    assert 'tinyvit-zoo' in collect_env()['MMCV Compiler']


def test_mmdets_extractor_of_four_levels_is_torchvisions():
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

    torch.manual_seed(0)
    layer = dict(type='RoIAlign', output_size=7, sampling_ratio=2, aligned=False)
    extractor = SingleRoIExtractor(layer, out_channels=3, featmap_strides=[4, 8, 16, 32])
    sides = torch.logspace(1, 2.75, 40)[:, None]  # 10 to 562 pixels
    corners = torch.rand(40, 2) * 100
    boxes = torch.cat([corners, corners + sides * torch.tensor([1.2, 0.9])], 1)
    maps = [torch.randn(2, 3, 320 // s, 512 // s) for s in (4, 8, 16, 32)]
    theirs = torchvision.ops.MultiScaleRoIAlign(['0', '1', '2', '3'], 7, 2)
    expected = theirs({str(i): m for i, m in enumerate(maps)}, [boxes[:25], boxes[25:]], [(320, 512)] * 2)
    rois = torch.cat([(torch.arange(40)[:, None] >= 25).float(), boxes], 1)
    levels = extractor.map_roi_levels(rois, 4)
    assert levels.unique().tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(extractor(maps, rois), expected, rtol=0, atol=1e-6)


def test_mmdets_fpn_is_torchvisions():
    from mmdet.models.necks import FPN

    torch.manual_seed(0)
    channels = [8, 16, 24, 32]
    ours, theirs = (
        FPN(channels, 12, num_outs=5),
        torchvision.ops.FeaturePyramidNetwork(channels, 12, torchvision.ops.feature_pyramid_network.LastLevelMaxPool()),
    )
    names = {'inner_blocks': 'lateral_convs', 'layer_blocks': 'fpn_convs'}
    state = ours.state_dict()
    for key in theirs.state_dict():
        kind, level, _, leaf = key.split('.')
        theirs.state_dict()[key].copy_(state[f'{names[kind]}.{level}.conv.{leaf}'])
    # Odd sizes: the coarser map is not half of the finer one.
    maps = [torch.randn(1, c, *size) for c, size in zip(channels, [(25, 34), (13, 17), (7, 9), (4, 5)], strict=True)]
    expected = theirs({str(i): m for i, m in enumerate(maps)}).values()
    assert len(expected) == 5
    for a, b in zip(ours(maps), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize('boxes', [[5, 3], [0, 2], [0, 0]], ids=str)
@pytest.mark.parametrize(
    'name', ['mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', 'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py']
)
def test_mmdets_roi_heads_over_its_own_demo_inputs(name, boxes):
    """As in mmdet's unit tests: a loss per head, also without any object, and gradients."""
    from mmdet.registry import MODELS
    from mmdet.testing import demo_mm_inputs, demo_mm_proposals
    from mmengine.hub import get_config
    from mmengine.registry import init_default_scope

    init_default_scope('mmdet')  # a run of another test may have left its own
    torch.manual_seed(0)
    config = get_config(f'mmdet::{name}').model
    head = MODELS.build(small_roi_head(config))
    images = [(3, 96, 128), (3, 128, 96)]
    packed = demo_mm_inputs(2, images, num_items=boxes, num_classes=4, with_mask=True)
    samples = packed['data_samples']
    maps = tuple(torch.randn(2, 16, 128 // s, 128 // s, requires_grad=True) for s in (4, 8, 16, 32))
    losses = head.loss(maps, demo_mm_proposals(images, 20), samples)
    sum(v.sum() for k, v in losses.items() if 'loss' in k).backward()
    of_boxes = [v for k, v in losses.items() if 'loss_bbox' in k]
    assert of_boxes
    assert all(torch.isfinite(v).all() for v in losses.values())
    assert all((v > 0) == any(boxes) for v in of_boxes)
    assert any(m.grad is not None and m.grad.abs().max() > 0 for m in maps)
    results = head.eval().predict(maps, demo_mm_proposals(images, 20), samples, rescale=True)
    assert [r.masks.shape[1:] for r in results] == [s.ori_shape for s in samples]


def small_roi_head(model):
    """The head of a config with 16 channels, 4 classes and narrow layers."""
    head = model.roi_head
    several = isinstance(head.bbox_head, list)
    for h in head.bbox_head if several else [head.bbox_head]:
        h.update(in_channels=16, fc_out_channels=32, num_classes=4)
    head.mask_head.update(in_channels=16, conv_out_channels=16, num_convs=1, num_classes=4)
    for extractor in (head.bbox_roi_extractor, head.mask_roi_extractor):
        extractor.out_channels = 16
    head.update(train_cfg=model.train_cfg.rcnn, test_cfg=model.test_cfg.rcnn)
    return head
