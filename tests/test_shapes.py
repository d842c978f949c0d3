"""Drawn shapes for detectors and segmenters: the same on every machine, in the layouts that mmdet and mmseg read."""

import json

import numpy as np
import pytest
from PIL import Image

from tinyvit_zoo.data.shapes import CLASSES, SIDE, make_detection_set, make_segmentation_set


@pytest.fixture(scope='module')
def detection(tmp_path_factory):
    root = tmp_path_factory.mktemp('shapes')
    make_detection_set(root)
    return root


def test_shapes_have_boxes_outlines_and_all_three_sizes_of_coco(detection):
    content = json.loads((detection / 'val.json').read_text())
    assert [category['name'] for category in content['categories']] == list(CLASSES)
    assert len(content['images']) == 8
    areas = [entry['area'] for entry in content['annotations']]
    assert min(areas) < 32**2 < 96**2 < max(areas)
    for entry in content['annotations']:
        left, top, width, height = entry['bbox']
        assert 0 <= left < left + width <= SIDE
        assert 0 <= top < top + height <= SIDE
        outline = np.reshape(entry['segmentation'][0], (-1, 2))
        assert (outline.min(axis=0) >= (left - 0.01, top - 0.01)).all()
        assert (outline.max(axis=0) <= (left + width + 0.01, top + height + 0.01)).all()
    assert len({entry['id'] for entry in content['annotations']}) == len(areas)


def test_shapes_are_the_same_again_and_others_for_validation(detection, tmp_path):
    make_detection_set(tmp_path)
    for name in ('train.json', 'val.json', 'train/0003.png'):
        assert (tmp_path / name).read_bytes() == (detection / name).read_bytes()
    train, val = (json.loads((detection / f'{part}.json').read_text())['annotations'] for part in ('train', 'val'))
    assert train != val


def test_labels_of_pixels_are_those_of_the_shapes(tmp_path):
    make_segmentation_set(tmp_path, train=1, validation=2)
    labels = np.asarray(Image.open(tmp_path / 'annotations/validation/0002.png'))
    image = np.asarray(Image.open(tmp_path / 'images/validation/0002.jpg')).astype(int)
    assert set(np.unique(labels)) <= {1, 2, 3}
    redness = image[..., 0] - image[..., 2]
    found = {label: np.median(redness[labels == label]) for label in np.unique(labels)}
    assert abs(found.pop(1)) < 15
    assert {label: value > 0 for label, value in found.items()} == {label: label == 2 for label in found}
    assert len(found) > 0
    assert len(list((tmp_path / 'images/training').iterdir())) == 1
