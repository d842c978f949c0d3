"""A user's own detection data: labels, metric and outputs follow the names of the classes; odd data is told."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_squares import SIZE, make_squares
from conftest import for_each, refused
from mm_configs import DETECTION, read
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from mmengine.registry import DATASETS, METRICS, init_default_scope
from PIL import Image

from tinyvit_zoo.common.errors import EvaluationError, ImageError
from tinyvit_zoo.data.image_file import load_image
from tinyvit_zoo.downstream.detection import ZooCocoDataset, ZooCocoMetric, ZooLoadImage
from tinyvit_zoo.downstream.detection.config_parts import heads_of, kind_of, own_classes_of, pipeline_steps
from tinyvit_zoo.downstream.detection.custom_data import CustomData, match_by_name, use_custom_data
from tinyvit_zoo.downstream.detection.data_checks import check_data

pytestmark = pytest.mark.slow  # detectors' metrics, though in a few pixels

BOXES, MASKS = 'ci/ci_retinanet_tinyvit_5m', 'ci/ci_mask_rcnn_tinyvit_5m'
ORIENTATION = 0x0112


def configure(root: Path, name=MASKS, classes=(), trained=False, config=None):
    config = config or read(DETECTION, name)
    files = dict(train_annotations=Path('train.json'), validation_annotations=Path('val.json'))
    use_custom_data(config, CustomData(root, classes=tuple(classes), **files), trained)
    return config


def check(config, training=True) -> str:
    said = []
    check_data(config, training, said.append)
    return ' '.join(said)


def labels(config, content, split='train') -> dict[str, str]:
    """Name of each object in the file -> name of the output that its label is."""
    dataset = DATASETS.build(config[f'{split}_dataloader'].dataset)
    outputs = config.test_dataloader.dataset.metainfo.classes
    names = {category['id']: category['name'] for category in content['categories']}
    corners = {(found['image_id'], *found['bbox'][:2]): names[found['category_id']] for found in content['annotations']}
    found = {}
    for i in range(len(dataset)):
        entry = dataset.get_data_info(i)
        for one in entry['instances']:
            found[corners[entry['img_id'], *one['bbox'][:2]]] = outputs[one['bbox_label']]
    return found


def perfect(config, content, split='val', **settings) -> dict[str, float]:
    """Metrics of a detector that finds every object with its exact mask, by the name of its class."""
    dataset = DATASETS.build(config[f'{split}_dataloader'].dataset)
    metric = METRICS.build(dict(config[f'{split}_evaluator'], **settings))
    metric.dataset_meta = dataset.metainfo
    names = {category['id']: category['name'] for category in content['categories']}
    outputs = list(config.test_dataloader.dataset.metainfo.classes)
    for i in range(len(dataset)):
        number = dataset.get_data_info(i)['img_id']
        found = [entry for entry in content['annotations'] if entry['image_id'] == number]
        boxes = torch.tensor([entry['bbox'] for entry in found], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = torch.zeros(len(found), SIZE, SIZE, dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(masks, boxes.long().tolist(), strict=True):
            mask[top:bottom, left:right] = True
        kinds = torch.tensor([outputs.index(names[entry['category_id']]) for entry in found], dtype=torch.long)
        result = dict(bboxes=boxes, scores=torch.ones(len(found)), labels=kinds, masks=masks)
        metric.process({}, [dict(img_id=number, ori_shape=(SIZE, SIZE), pred_instances=result)])
    return metric.evaluate(len(dataset))


def only(*kept):
    def change(content):
        ids = [category['id'] for category in content['categories'] if category['name'] in kept]
        content['categories'] = [category for category in content['categories'] if category['id'] in ids]
        content['annotations'] = [found for found in content['annotations'] if found['category_id'] in ids]

    return change


def bare(content):
    """Without what can be derived."""
    for found in content['annotations']:
        for key in ('area', 'iscrowd', 'id', 'bbox'):
            found.pop(key)
    for image in content['images']:
        image.pop('width'), image.pop('height')


MATCHED = {
    'alike': ({}, {}, ''),
    'listed in another order than the ids': (dict(listed='cab'), dict(listed='cab'), ''),
    'ids with gaps': (dict(ids=dict(a=7, b=5, c=90)), dict(ids=dict(a=7, b=5, c=90)), ''),
    'ids that are text': (dict(ids=dict(a='z', b='y', c='x')), dict(ids=dict(a='z', b='y', c='x')), ''),
    'classes in another order': ({}, {}, 'cba'),
    'fewer classes than categories': ({}, {}, 'ca'),
    'validation in another order': ({}, dict(listed='bca'), ''),
    'validation with other ids': ({}, dict(ids=dict(a=3, b=1, c=2)), ''),
    'validation with one class': ({}, dict(change=only('c')), ''),
    'validation with a category that has no object': (
        {},
        dict(change=lambda content: content['categories'].insert(0, dict(id=0, name='objects'))),
        '',
    ),
}


@for_each('case', MATCHED)
def test_labels_and_metrics_follow_the_names(case, tmp_path):
    train, val, classes = MATCHED[case]
    root = tmp_path / case
    taught, held = make_squares(root / 'train.json', **train), make_squares(root / 'val.json', **val)
    config = configure(root, classes=classes)
    check(config)
    wanted = set(classes or 'abc')
    assert labels(config, taught) == {name: name for name in wanted}
    only(*wanted)(held)
    metrics = perfect(config, held, classwise=True)
    assert metrics['coco/bbox_mAP'] == metrics['coco/segm_mAP'] == 1
    assert all(head['num_classes'] == len(wanted) for head in heads_of(config.model))


@for_each('listed', ['abc', 'cab'])
def test_the_metric_of_each_class_is_under_its_name(listed, tmp_path):
    make_squares(tmp_path / 'train.json')
    held = make_squares(tmp_path / 'val.json', ids=dict(a=5, b=9, c=2), listed=listed)
    config = configure(tmp_path)
    only('b')(held)  # the detector finds nothing else
    metrics = perfect(config, held, classwise=True)
    assert [metrics[f'coco/{name}_precision'] for name in 'abc'] == [0, 1, 0]


@for_each('metric', ['proposal', 'proposal_fast'])
def test_proposals_are_measured_without_what_can_be_derived(metric, tmp_path):
    make_squares(tmp_path / 'train.json')
    held = make_squares(tmp_path / 'val.json', listed='cab')
    make_squares(tmp_path / 'val.json', listed='cab', change=bare)
    assert perfect(configure(tmp_path), held, metric=metric)['coco/AR@100'] == 1


def test_results_are_written_with_the_ids_of_the_file(tmp_path):
    make_squares(tmp_path / 'train.json')
    held = make_squares(tmp_path / 'val.json', ids=dict(a=5, b=9, c=2))
    perfect(configure(tmp_path), held, outfile_prefix=str(tmp_path / 'out'))
    for kind in ('bbox', 'segm'):
        found = json.loads((tmp_path / f'out.{kind}.json').read_text())
        assert [entry['category_id'] for entry in found] == [5, 9, 2] * 2


def test_results_are_written_for_images_without_annotations(tmp_path):
    content = make_squares(tmp_path / 'val.json')
    rewrite(tmp_path, lambda c: c.pop('annotations'), 'val')
    make_squares(tmp_path / 'train.json')
    config = configure(tmp_path)
    refused(lambda: check(config, training=False), 'val.json', 'nothing to measure', kind=EvaluationError)
    config.test_evaluator.update(format_only=True, outfile_prefix=str(tmp_path / 'results'))
    check(config, training=False)
    perfect(config, content, 'test')
    assert len(json.loads((tmp_path / 'results.bbox.json').read_bytes())) == 6


def test_classes_may_be_the_lines_of_a_file(tmp_path):
    (tmp_path / 'classes.txt').write_text('c\na\nb\n')
    assert own_classes_of(dict(metainfo=dict(classes=str(tmp_path / 'classes.txt')))) == ('c', 'a', 'b')


def test_files_without_what_can_be_derived_train_and_validate(tmp_path):
    whole = make_squares(tmp_path / 'train.json')
    make_squares(tmp_path / 'train.json', change=bare)
    held = make_squares(tmp_path / 'val.json')
    make_squares(tmp_path / 'val.json', change=bare)
    config = configure(tmp_path)
    assert not check(config)
    assert labels(config, whole) == dict(a='a', b='b', c='c')
    assert perfect(config, held)['coco/segm_mAP'] == 1


def test_on_a_good_file_the_data_set_and_metric_are_those_of_mmdet(tmp_path):
    for part in ('train', 'val'):
        held = make_squares(tmp_path / f'{part}.json', ids=dict(a=1, b=7, c=90))
    config = configure(tmp_path)
    ours, metrics = DATASETS.build(config.train_dataloader.dataset), perfect(config, held)
    config.train_dataloader.dataset.type = config.val_dataloader.dataset.type = 'mmdet.CocoDataset'
    config.val_evaluator.type = 'mmdet.CocoMetric'
    theirs = DATASETS.build(config.train_dataloader.dataset)
    assert (type(ours), type(theirs)) == (ZooCocoDataset, CocoDataset)
    assert [ours.get_data_info(i) for i in range(2)] == [theirs.get_data_info(i) for i in range(2)]
    assert perfect(config, held) == metrics
    assert ZooCocoMetric.__mro__[1] is CocoMetric


# ---- classes that do not meet


def test_a_validation_class_that_is_not_trained_is_refused_or_left_out(tmp_path):
    make_squares(tmp_path / 'train.json')
    held = make_squares(tmp_path / 'val.json', names='abcd')
    refused(lambda: configure(tmp_path), "'d'", 'val.json', '--classes', kind=EvaluationError)
    config = configure(tmp_path, classes='abc')
    only(*'abc')(held)
    assert perfect(config, held)['coco/bbox_mAP'] == 1


def test_classes_that_do_not_exist_or_are_named_twice_are_refused(tmp_path):
    for part in ('train', 'val'):
        make_squares(tmp_path / f'{part}.json')
    refused(lambda: configure(tmp_path, classes='abd'), "'d'", 'train.json', kind=EvaluationError)
    refused(lambda: configure(tmp_path, classes='aba'), "'a'", '--classes', kind=EvaluationError)


def test_classes_without_an_object_are_told(tmp_path):
    make_squares(tmp_path / 'train.json', change=lambda content: content['categories'].append(dict(id=4, name='star')))
    make_squares(tmp_path / 'val.json', change=only('a'))
    said = check(configure(tmp_path))
    assert 'train.json has no object of 1 of 4 classes, which cannot be learned: star' in said
    assert 'val.json has no object of 3 of 4 classes, which do not count in the metric: b, c, star' in said


@for_each('held', [dict(listed='cab'), dict(ids=dict(a=3, b=1, c=2)), dict(change=only('b', 'c'))])
def test_a_trained_detector_keeps_its_classes(held, tmp_path):
    make_squares(tmp_path / 'train.json')
    content = make_squares(tmp_path / 'val.json', **held)
    trained = configure(tmp_path)
    files = CustomData(tmp_path, validation_annotations=Path('val.json'))
    assert use_custom_data(trained, files, trained=True) == ('a', 'b', 'c')
    check(trained, training=False)
    assert perfect(trained, content, 'test')['coco/bbox_mAP'] == 1


def test_the_outputs_of_a_trained_detector_are_not_renamed(tmp_path):
    for part in ('train', 'val'):
        make_squares(tmp_path / f'{part}.json')
    trained = configure(tmp_path)
    refused(lambda: configure(tmp_path, classes='cba', trained=True, config=trained), 'a, b, c', kind=EvaluationError)
    make_squares(tmp_path / 'val.json', names='abcd')
    files = CustomData(tmp_path, validation_annotations=Path('val.json'))
    refused(lambda: use_custom_data(trained, files, trained=True), "'d'", 'val.json', kind=EvaluationError)
    kept = CustomData(tmp_path, validation_annotations=Path('val.json'), classes=('a', 'b', 'c'))
    assert use_custom_data(trained, kept, trained=True) == ('a', 'b', 'c')


def test_a_config_keeps_its_classes_with_its_training_data(tmp_path):
    make_squares(tmp_path / 'val.json', names=('dog', 'cat'))
    config = read(DETECTION, 'retinanet_tinyvit_5m_fpn_1x_coco')
    classes = use_custom_data(config, CustomData(tmp_path, validation_annotations=Path('val.json')))
    init_default_scope('mmdet')
    assert classes == tuple(CocoDataset.METAINFO['classes'])


# ---- checks before the training


def both(root, change=None, **settings):
    for part in ('train', 'val'):
        make_squares(root / f'{part}.json', change=change, **settings)
    return root


def rewrite(root, change, part='train'):
    content = json.loads((root / f'{part}.json').read_text())
    change(content)
    (root / f'{part}.json').write_text(json.dumps(content))


def scale(content):
    for found in content['annotations']:
        found['bbox'] = [v / SIZE for v in found['bbox']]


def shrink(root):
    for number in (1, 2):
        Image.new('RGB', (20, 20)).save(root / f'train_{number}.png')
    rewrite(root, lambda c: [image.update(width=20, height=20) for image in c['images']])
    rewrite(root, lambda c: c.update(annotations=c['annotations'][::3]))


def add_line(root, part):
    Image.new('RGB', (3000, 2)).save(root / 'line.png')
    rewrite(root, lambda c: c['images'].append(dict(id=9, file_name='line.png', width=3000, height=2)), part)


STOPPED = {
    'no object': (lambda root: rewrite(root, lambda c: c['annotations'].clear()), 'train.json', 'nothing to learn'),
    'no object to find': (
        lambda root: rewrite(root, lambda c: c['annotations'].clear(), 'val'), 'val.json', 'nothing to measure'
    ),
    'crowds alone': (
        lambda root: rewrite(root, lambda c: [f.update(iscrowd=1) for f in c['annotations']]), 'train.json', 'crowds'
    ),
    'objects to ignore alone': (
        lambda root: rewrite(root, lambda c: [f.update(ignore=1) for f in c['annotations']]), 'train.json', 'to ignore'
    ),
    'a name that no system can hold': (
        lambda root: rewrite(root, lambda c: c['images'][1].update(file_name='x' * 5000), 'val'), '1 of 2 images', 'xx'
    ),
    'parts of the image': (lambda root: rewrite(root, scale), 'train.json', 'boxes are in pixels'),
    'parts of the validation image': (lambda root: rewrite(root, scale, 'val'), 'val.json', 'boxes are in pixels'),
    'an image that is gone': (lambda root: (root / 'val_2.png').unlink(), '1 of 2 images', 'val_2.png'),
    'an image under two names': (
        lambda root: rewrite(root, lambda c: c['images'][1].update(file_name=str(root / 'train_1.png'))),
        'train.json', 'several entries', 'train_1.png',
    ),
    'a text as image': (lambda root: (root / 'train_2.png').write_text('no'), 'train_2.png', 'known format'),
    'another size': (
        lambda root: rewrite(root, lambda c: c['images'][1].update(width=65)), 'train_2.png', '64x64', '65x64'
    ),
    'images too small to train on': (shrink, 'train.json', 'below 32 pixels'),
    'a line of pixels': (lambda root: add_line(root, 'val'), 'line.png', '3000x2', 'too narrow'),
    'a validation file that is gone': (
        lambda root: (root / 'val.json').unlink(), 'val.json', '--validation-annotations'
    ),
    'an empty mask of validation': (
        lambda root: rewrite(root, lambda c: c['annotations'][3].update(segmentation=[]), 'val'),
        'Object 4 of image 2', 'val.json', 'an empty mask',
    ),
}  # fmt: skip


@for_each('case', STOPPED)
def test_data_that_would_stop_or_spoil_a_run_is_named_before_it(case, tmp_path):
    damage, *words = STOPPED[case]
    config = configure(both(tmp_path / case))
    damage(tmp_path / case)
    refused(lambda: check(config), *words, kind=ImageError if 'known format' in words else EvaluationError)


TOLD = {
    'boxes as corners': (lambda c: c['annotations'][2].update(bbox=[3, 35, 28, 60]), 'reach out', 'object 3'),
    'a box below a pixel': (lambda c: c['annotations'][1].update(bbox=[3, 3, 0.5, 9]), 'below 1 pixel', 'object 2'),
    'an object to ignore': (lambda c: c['annotations'][1].update(ignore=True), 'not trained on', 'object 2'),
    'a box without extent': (lambda c: c['annotations'][1].update(bbox=[3, 3, 0, 9], segmentation=[]), 'left out'),
}


@for_each('case', TOLD)
def test_odd_boxes_are_told(case, tmp_path):
    change, *words = TOLD[case]
    root = both(tmp_path / case)
    rewrite(root, change)
    said = check(configure(root, BOXES))
    for word in ('train.json', *words):
        assert word in said


def test_a_metric_on_other_images_is_refused(tmp_path):
    config = configure(both(tmp_path))
    make_squares(tmp_path / 'other.json')
    config.val_evaluator.ann_file = str(tmp_path / 'other.json')
    refused(lambda: check(config), 'other.json', 'val.json', 'lacks 2 images', kind=EvaluationError)
    config.val_evaluator.ann_file = str(tmp_path / 'none.json')
    refused(lambda: check(config), 'none.json', 'val_evaluator', kind=EvaluationError)


def turn(path: Path, orientation: int, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.new('RGB', size, (9, 99, 9)).save(path, exif=exif)


@pytest.mark.parametrize('part', ['train', 'val'])
@for_each('orientation', [5, 6, 7, 8])
def test_a_turned_image_has_the_size_of_its_annotations_or_is_refused(part, orientation, tmp_path):
    root = both(tmp_path)
    config = configure(root)
    turn(root / f'{part}_2.png', orientation, (80, SIZE))
    rewrite(root, lambda c: c['images'][1].update(width=80), part)
    words = (f'{part}_2.png', '64x80', f'orientation ({orientation})', '80x64')
    refused(lambda: check(config), *words, kind=EvaluationError)
    rewrite(root, lambda c: c['images'][1].update(width=SIZE, height=80), part)
    assert not check(config)


@for_each('orientation', [2, 3, 4, 6])
def test_an_image_whose_size_does_not_tell_how_it_was_annotated_is_told(orientation, tmp_path):
    root = both(tmp_path)
    turn(root / 'val_1.png', orientation, (SIZE, SIZE))
    said = check(configure(root))
    assert 'val_1.png' in said
    assert 'EXIF orientation' in said


# ---- reading images

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
READERS = {
    '16 bits': ('x.png', Image.fromarray(GREY.astype(np.uint16) * 257)),
    '32 bits': ('x.tif', Image.fromarray(GREY.astype(np.int32) * 257)),
    'floats': ('x.tif', Image.fromarray(GREY.astype(np.float32) / 255)),
    'palette': ('x.gif', Image.fromarray(GREY).convert('P')),
    'CMYK': ('x.tif', Image.new('CMYK', (16, 16), (55, 225, 165, 0))),
    'alpha': ('x.png', Image.new('RGBA', (16, 16), (200, 30, 90, 10))),
}


@for_each('name', READERS)
def test_pipelines_read_images_like_every_command(name, tmp_path):
    file, image = READERS[name]
    image.save(tmp_path / file)
    result = ZooLoadImage().transform(dict(img_path=str(tmp_path / file)))
    assert np.array_equal(result['img'][:, :, ::-1], np.asarray(load_image(tmp_path / file)))  # blue first
    assert result['img_shape'] == result['ori_shape'] == (16, 16)


def test_a_pipeline_names_an_image_that_it_cannot_read_or_that_has_changed(tmp_path):
    (tmp_path / 'x.png').write_text('no')
    refused(lambda: ZooLoadImage().transform(dict(img_path=tmp_path / 'x.png')), 'x.png', kind=EvaluationError)
    Image.new('RGB', (4, 3)).save(tmp_path / 'x.png')
    told = dict(img_path=tmp_path / 'x.png', width=3, height=4)
    refused(lambda: ZooLoadImage().transform(told), 'x.png', '4x3', '3x4', kind=EvaluationError)


@for_each('name', [BOXES, MASKS, 'cascade_mask_rcnn_tinyvit_5m_fpn_1x_coco', 'mask_rcnn_tinyvit_5m_fpn_1x_coco'])
def test_own_data_is_read_by_our_reader_and_coco_as_published(name, tmp_path):
    def readers(config):
        loaders = (config.train_dataloader, config.val_dataloader, config.test_dataloader)
        kinds = [kind_of(step) for loader in loaders for step in pipeline_steps(loader.dataset.pipeline)]
        return {kind for kind in kinds if 'LoadImage' in kind}

    assert readers(configure(both(tmp_path), name)) == {'ZooLoadImage'}
    published = read(DETECTION, name)
    match_by_name(published)
    assert readers(published) == ({'ZooLoadImage'} if 'ci/' in name else {'LoadImageFromFile'})
    assert published.train_dataloader.dataset.type == 'ZooCocoDataset'
    assert published.custom_imports.imports == ['tinyvit_zoo.downstream.detection']
