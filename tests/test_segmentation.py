"""The packaged mmseg configs, and the released segmentation backbones inside them."""

import numpy as np
import pytest
import torch
from conftest import for_each, refused
from dense_reference import released_dense
from golden_case import SINGLE, assert_close
from golden_rule import golden
from mm_configs import SEGMENTATION, build, packaged, parts, read, text
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.structures import PixelData
from mmseg.registry import DATASETS, HOOKS, METRICS, TRANSFORMS
from mmseg.structures import SegDataSample
from PIL import Image
from synthetic_ade import make_ade

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.downstream.detection.custom_data import CustomData, use_custom_data
from tinyvit_zoo.downstream.detection.data_checks import check_data
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
        'upernet_tinymim_small_160k_ade20k',
        'upernet_tinymim_star_tiny_160k_ade20k',
        'upernet_tinymim_tiny_160k_ade20k',
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


def label_maps(root, *classes):
    """What is said of own data in ADE20K's layout before a training, and the config's training data set."""
    config, said = read(SEGMENTATION, 'upernet_tinyvit_21m_160k_ade20k'), []
    use_custom_data(config, CustomData(root, classes=classes))
    check_data(config, training=True, say=said.append)
    return ' '.join(said), DATASETS.build(config.train_dataloader.dataset)


def test_label_maps_have_the_classes_in_the_order_of_their_names(tmp_path):
    """Though ADE20K has other labels for these names."""
    said, dataset = label_maps(make_ade(tmp_path, train=2, val=1, size=64), 'sky', 'wall', 'my own', 'fourth')
    assert 'no pixel of 1 of 4 classes, which cannot be learned: fourth' in said
    assert dataset.metainfo['classes'] == ('sky', 'wall', 'my own', 'fourth')
    entry = dataset.pipeline.transforms[1](dict(dataset.get_data_info(0)))
    with Image.open(entry['seg_map_path']) as labels:
        assert np.array_equal(entry['gt_seg_map'], np.asarray(labels) - 1)


DAMAGED = {
    'no images': (lambda root: [f.unlink() for f in root.glob('images/training/*')], 'no images that end in .jpg'),
    'no label map': (lambda root: (root / 'annotations/training/0001.png').unlink(), '0001.jpg', 'no label map'),
    'another size': (lambda root: relabel(root, 'validation/0000', (9, 8)), '64x64', '9x8'),
    'colors': (lambda root: relabel(root, 'training/0000', mode='RGB'), 'RGB', 'one channel'),
    'a label too high': (lambda root: relabel(root, 'validation/0000', label=4), 'the label 4', '1 to 3'),
    'nothing labelled': (
        lambda root: [relabel(root, f'training/{name}', label=0) for name in ('0000', '0001')], 'pixel of any class'
    ),
}  # fmt: skip


def relabel(root, name, size=(64, 64), mode='L', label=1):
    Image.new(mode, size, label).save(root / f'annotations/{name}.png')


@for_each('case', DAMAGED)
def test_label_maps_that_would_stop_or_spoil_a_run_are_named_before_it(case, tmp_path):
    root = make_ade(tmp_path / case, train=2, val=1, size=64)
    damage, *words = DAMAGED[case]
    damage(root)
    refused(lambda: label_maps(root, 'a', 'b', 'c'), *words, kind=EvaluationError)


@for_each('label', [255, 256, 299])
def test_labels_above_those_that_mmseg_reads_are_none(label, tmp_path):
    root, names = make_ade(tmp_path, train=2, val=1, size=64), [f'class {i}' for i in range(300)]
    relabel(root, 'training/0000', mode='I;16', label=label)
    if label == 255:  # means nothing in mmseg
        assert 'no pixel of 297 of 300 classes' in label_maps(root, *names)[0]
    else:
        refused(lambda: label_maps(root, *names), f'label {label}', '1 to 254', kind=EvaluationError)


def test_images_that_mmseg_does_not_list_are_told_and_hidden_files_do_not_matter(tmp_path):
    root = make_ade(tmp_path, train=2, val=1, size=64)
    (root / 'images/training/._0000.jpg').write_bytes(b'of a Mac')
    Image.new('RGB', (64, 64)).save(root / 'images/training/0002.JPG')
    said, dataset = label_maps(root, 'a', 'b', 'c')
    assert '1 image left out' in said
    assert '0002.JPG' in said
    assert len(dataset) == 2


def test_a_turned_image_and_its_label_map_are_refused(tmp_path):
    root, exif = make_ade(tmp_path, train=2, val=1, size=64), Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (80, 64)).save(root / 'images/training/0001.jpg', exif=exif)
    Image.new('L', (80, 64), 1).save(root / 'annotations/training/0001.png')
    refused(lambda: label_maps(root, 'a', 'b', 'c'), '0001.jpg', 'EXIF orientation (6)', kind=EvaluationError)


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


@pytest.mark.parametrize(('size', 'decay'), [('base', 0.75), ('small', 0.75), ('tiny', 0.8)])
def test_the_rates_of_tinymim_fall_from_layer_to_layer(size, decay):
    config = read(SEGMENTATION, f'upernet_tinymim_{size}_160k_ade20k')
    model = build(config, 'meta')
    groups = build_optim_wrapper(model, config.optim_wrapper).optimizer.param_groups
    rates = {id(p): group['lr'] for group in groups for p in group['params']}
    names = dict(model.named_parameters())

    def rate(name: str) -> float:
        return rates[id(names[name])]

    for block in range(12):  # ids as in the released code: patches 0, block i i + 1, all else 13
        assert rate(f'backbone.net.net.blocks.{block}.attn.qkv.weight') == pytest.approx(1e-4 * decay ** (12 - block))
    assert rate('backbone.net.net.patch_embed.proj.weight') == pytest.approx(1e-4 * decay**13)
    assert rate('backbone.net.pyramid.fpn1.0.weight') == rate('decode_head.conv_seg.weight') == 1e-4


@pytest.mark.parametrize(('size', 'width', 'heads'), [('tiny', 192, 3), ('small', 384, 6)])
def test_segmentors_of_unpublished_sizes_are_that_of_tinymim_b_at_their_width(size, width, heads):
    model = build(read(SEGMENTATION, f'upernet_tinymim_{size}_160k_ade20k'), 'meta')
    base = build(read(SEGMENTATION, 'upernet_tinymim_base_160k_ade20k'), 'meta')
    shapes, of_base = ({k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (model, base))
    table = 'relative_position_bias_table'

    def narrowed(key: str, side: int) -> int:
        if key.endswith(table):
            return heads if side == 12 else side
        return side * width // 768 if side % 768 == 0 else side

    narrow = {k: tuple(narrowed(k, side) for side in shape) for k, shape in of_base.items()}
    different = {k for k in shapes if shapes[k] != narrow[k]}
    assert shapes.keys() == of_base.keys()
    assert different <= {k for k in shapes if 'auxiliary_head' in k or 'decode_head' in k}, different
    assert [block.attn.num_heads for block in model.backbone.net.net.blocks] == [heads] * 12
