"""COCO-format files: what they lack is derived, what contradicts itself is named, and classes go by their names."""

import json
import math

import numpy as np
import pytest
from coco_squares import SIZE, make_squares
from conftest import for_each, refused
from pycocotools import mask as coco_mask

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.downstream.detection.coco_file import category_names, read_annotations, read_coco
from tinyvit_zoo.downstream.detection.coco_masks import read_mask

NAMES = ('a', 'b', 'c')


def read(path, classes=NAMES, masks=True):
    return read_coco(path, classes, lambda image: (SIZE, SIZE), masks)


def objects(file) -> list[tuple]:
    """(image's file, class, box) of every object."""
    images = {image['id']: image['file_name'] for image in file.content['images']}
    names = {category['id']: category['name'] for category in file.content['categories']}
    return [
        (images[found['image_id']], names[found['category_id']], found['bbox']) for found in file.content['annotations']
    ]


def set_all(part, **values):
    return lambda content: [entry.update(values) for entry in content[part]]


def drop(part, key):
    return lambda content: [entry.pop(key) for entry in content[part]]


def as_text(part, *keys):
    return lambda content: [entry.update({key: str(entry[key]) for key in keys}) for entry in content[part]]


def all_of(*changes):
    return lambda content: [change(content) for change in changes]


def as_runs(compressed):
    def change(content):
        for found in content['annotations']:
            runs = coco_mask.merge(coco_mask.frPyObjects(found['segmentation'], SIZE, SIZE))
            pixels = coco_mask.decode(runs).T.ravel()
            counts, edges = runs['counts'].decode(), np.flatnonzero(np.diff(pixels, prepend=0)).tolist()
            lengths = np.diff([0, *edges, SIZE * SIZE]).tolist()
            found['segmentation'] = dict(size=[SIZE, SIZE], counts=counts if compressed else lengths)

    return change


READ = {
    'as it should be': lambda content: None,
    'no area': drop('annotations', 'area'),
    'no iscrowd': drop('annotations', 'iscrowd'),
    'null iscrowd': set_all('annotations', iscrowd=None),
    'no boxes but masks': drop('annotations', 'bbox'),
    'no sizes': all_of(drop('images', 'width'), drop('images', 'height')),
    'sizes of 0': set_all('images', width=0, height=0),
    'sizes as text': as_text('images', 'width', 'height'),
    'no ids of objects': drop('annotations', 'id'),
    'object ids as text': as_text('annotations', 'id'),
    'image ids as text in one place': as_text('images', 'id'),
    'image ids as text': all_of(as_text('images', 'id'), as_text('annotations', 'image_id')),
    'one image id as text': lambda content: content['images'][0].update(id='1'),
    'category ids as text in one place': as_text('categories', 'id'),
    'category ids as text': all_of(as_text('categories', 'id'), as_text('annotations', 'category_id')),
    'ids as floats': lambda content: [
        found.update(image_id=float(found['image_id'])) for found in content['annotations']
    ],
    'a polygon that is not nested': lambda content: [
        found.update(segmentation=found['segmentation'][0]) for found in content['annotations']
    ],
    'a polygon of two numbers beside a good one': lambda content: content['annotations'][0]['segmentation'].append(
        [1, 2]
    ),
    'runs': as_runs(compressed=False),
    'compressed runs': as_runs(compressed=True),
    'spaces around a name': lambda content: content['categories'][0].update(name=' a'),
    'ignore as text': set_all('annotations', ignore='0'),
}


@for_each('name', READ)
def test_what_can_be_derived_is(name, tmp_path):
    whole = make_squares(tmp_path / 'whole.json')
    make_squares(tmp_path / 'x.json', change=READ[name])
    file = read(tmp_path / 'x.json')
    expected = [
        (f'x_{found["image_id"]}.png', 'abc'[found['category_id'] - 1], found['bbox']) for found in whole['annotations']
    ]
    assert objects(file) == expected
    for found, right in zip(file.content['annotations'], whole['annotations'], strict=True):
        assert found['area'] == pytest.approx(right['area'])
        assert found['iscrowd'] == 0
        assert found['id'] == right['id']
        assert read_mask(found['segmentation'], (SIZE, SIZE)) == found['segmentation']
    assert all((image['width'], image['height']) == (SIZE, SIZE) for image in file.content['images'])
    assert len({type(image['id']) for image in file.content['images']}) == 1  # pycocotools sorts them
    assert not file.notes


def test_a_file_that_lacks_nothing_stays_as_it_is(tmp_path):
    content = make_squares(tmp_path / 'x.json', ids=dict(a=1, b=7, c=90))
    file = read(tmp_path / 'x.json')
    assert file.content == content
    assert file.category_ids == [1, 7, 90]


@for_each('area', [None, 0, -3, math.nan, '12', True])
def test_an_area_that_is_none_is_derived_from_the_mask_else_from_the_box(area, tmp_path):
    def change(content):
        set_all('annotations', area=area)(content)
        content['annotations'][0]['segmentation'] = [[3, 3, 28, 3, 28, 28]]
        content['annotations'][1]['segmentation'] = []

    make_squares(tmp_path / 'x.json', change=change)
    triangle, box = read(tmp_path / 'x.json', masks=False).content['annotations'][:2]
    assert triangle['area'] == pytest.approx(25 * 25 / 2, rel=0.1)
    assert box['area'] == 25 * 25


def first(**values):
    return lambda content: content['annotations'][0].update(values)


REFUSED = {
    'no dictionary': (lambda c: [c.clear(), c.update(images=[])], 'it has no categories'),
    'null categories': (lambda c: c.update(categories=None), 'it has no categories'),
    'objects by id': (lambda c: c.update(annotations={'1': {}}), 'annotations are not a list'),
    'text among the images': (lambda c: c['images'].append('x'), 'images are not a list'),
    'no images': (lambda c: c['images'].clear(), 'names no images'),
    'a name twice': (lambda c: c['categories'].append(dict(id=9, name='a')), 'several categories called a'),
    'a name twice but for a space': (lambda c: c['categories'].append(dict(id=9, name='a ')), 'categories called a'),
    'a name that configs replace': (
        lambda c: c['categories'][1].update(name='{{fileBasename}}'),
        'configs cannot hold',
    ),
    'a category id twice': (lambda c: c['categories'][1].update(id='1'), 'several categories of id 1'),
    'no name': (lambda c: c['categories'][1].update(name=' '), 'without a name, of id 2'),
    'an image id twice': (lambda c: c['images'][1].update(id=1.0), 'several images of id 1'),
    'no image id': (lambda c: c['images'][1].update(id=None), 'image number 2'),
    'a file twice': (
        lambda c: c['images'][1].update(file_name='./x_1.png'),
        'several images with the file name x_1.png',
    ),
    'no file name': (lambda c: c['images'][1].pop('file_name'), 'Image 2', 'no file_name'),
    'an object id twice': (lambda c: c['annotations'][1].update(id=1), 'several objects of id 1'),
    'an unknown image': (first(image_id=999), 'Object 1 of image 999', 'no image of the file'),
    'an unknown category': (first(category_id=77), 'Object 1 of image 1', 'category 77'),
    'no category': (first(category_id=None), 'no category_id'),
    'NaN in a box': (first(bbox=[math.nan, 1, 2, 3]), 'the box [nan, 1, 2, 3]'),
    'a huge number': (first(bbox=[10**400, 1, 2, 3]), 'the box [1000', '...'),
    'three numbers': (first(bbox=[1, 2, 3]), 'the box [1, 2, 3]', 'left, top, width and height'),
    'text in a box': (first(bbox=['1', 2, 3, 4]), "the box ['1', 2, 3, 4]"),
    'two corners': (first(bbox=[20, 20, -3, 5]), 'negative', 'not two corners'),
    'a box off the image': (first(bbox=[64, 3, 9, 9]), 'outside its image of 64x64'),
    'neither box nor mask': (first(bbox=None, segmentation=[]), 'neither a box nor a mask'),
    'crowd or not': (first(iscrowd='perhaps'), "iscrowd 'perhaps'"),
    'ignored or not': (first(ignore='perhaps'), "ignore 'perhaps'"),
    'an empty mask': (first(segmentation=[]), 'Object 1 of image 1', 'an empty mask'),
    'no mask': (first(segmentation=None), 'an empty mask'),
    'two numbers': (first(segmentation=[[10, 10]]), 'a polygon of 2 numbers'),
    'four numbers': (first(segmentation=[[10, 10, 20, 20]]), 'a polygon of 4 numbers'),
    'seven numbers': (first(segmentation=[[10, 10, 20, 10, 20, 20, 9]]), 'a polygon of 7 numbers'),
    'NaN in a mask': (first(segmentation=[[math.nan] * 8]), 'something else than numbers'),
    'a mask off the image': (first(segmentation=[[70, 3, 90, 3, 90, 9]]), 'mask outside its image'),
    'a mask that pycocotools does not survive': (first(segmentation=[[0, 0, 1e9, 0, 1e9, 1e9]]), '1e+09 pixels away'),
    'an endless run': (first(segmentation=dict(size=[64, 64], counts='o' * 10**6)), 'damaged'),
    'runs of another size': (first(segmentation=dict(size=[50, 50], counts=[2500])), 'size [50, 50]', '[64, 64]'),
    'runs that are too few': (first(segmentation=dict(size=[64, 64], counts=[10, 20])), 'damaged', '4096 pixels'),
    'runs below 0': (first(segmentation=dict(size=[64, 64], counts=[4097, -1])), 'damaged'),
    'damaged runs': (first(segmentation=dict(size=[64, 64], counts='zzzz')), 'damaged'),
    'no runs': (first(segmentation=dict(size=[64, 64])), 'damaged'),
    'runs of nothing': (first(segmentation=dict(size=[64, 64], counts=[4096])), 'an empty mask'),
}


@for_each('name', REFUSED)
def test_what_contradicts_itself_is_named_with_the_file(name, tmp_path):
    change, *words = REFUSED[name]
    make_squares(tmp_path / 'x.json', change=change)
    refused(lambda: read(tmp_path / 'x.json'), 'x.json', *words, kind=EvaluationError)


def test_masks_that_cannot_be_read_do_not_matter_where_none_is_needed(tmp_path):
    make_squares(tmp_path / 'x.json', change=set_all('annotations', segmentation=[[1, 2]]))
    found = read(tmp_path / 'x.json', masks=False).content['annotations']
    assert len(found) == 6
    assert not any('segmentation' in entry for entry in found)


@for_each('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-32'])
def test_json_of_any_encoding_is_read(encoding, tmp_path):
    content = make_squares(tmp_path / 'x.json', names=('Müller', 'b'))
    (tmp_path / 'x.json').write_bytes(json.dumps(content, ensure_ascii=False).encode(encoding))
    assert category_names(read_annotations(tmp_path / 'x.json'), tmp_path) == ('Müller', 'b')


@for_each('data', [b'', b'{', b'\xff\xfe\xfd', b'[' * 100_000, b'no', b'[]', b'3', b'null'])
def test_other_files_are_refused_in_a_sentence(data, tmp_path):
    (tmp_path / 'x.json').write_bytes(data)
    refused(lambda: read_annotations(tmp_path / 'x.json'), 'x.json', kind=EvaluationError)


def test_folders_may_be_separated_as_on_windows(tmp_path):
    make_squares(tmp_path / 'x.json', change=lambda c: c['images'][0].update(file_name='sub\\more\\x.png'))
    assert read(tmp_path / 'x.json').content['images'][0]['file_name'] == 'sub/more/x.png'


def test_an_object_without_extent_is_left_out_with_a_note(tmp_path):
    make_squares(tmp_path / 'x.json', change=first(bbox=[5, 5, 0, 9], segmentation=None))
    file = read(tmp_path / 'x.json')
    assert len(file.content['annotations']) == 5
    assert 'Object 1 of image 1' in file.notes[0]


# ---- classes


@for_each('order', ['abc', 'cab', 'bca'])
@for_each('ids', [dict(a=1, b=2, c=3), dict(a=7, b=5, c=90), dict(a='x', b='y', c='z'), dict(a=0, b=1, c=2)])
def test_categories_are_the_classes_in_their_order(ids, order, tmp_path):
    make_squares(tmp_path / 'x.json', ids=ids, listed=order)
    for classes in ('abc', 'cba'):
        file = read(tmp_path / 'x.json', classes=tuple(classes))
        assert [category['name'] for category in file.content['categories']] == list(classes)
        numbers = [category['id'] for category in file.content['categories']]
        assert numbers == sorted(set(numbers))  # pycocotools and mmdet sort them
        assert file.category_ids == [ids[name] for name in classes]
        assert [name for _, name, _ in objects(file)] == ['a', 'b', 'c'] * 2


def test_a_class_without_a_category_keeps_its_place_and_other_categories_are_left_out(tmp_path):
    make_squares(tmp_path / 'x.json')
    file = read(tmp_path / 'x.json', classes=('c', 'd', 'a'))
    assert [category['name'] for category in file.content['categories']] == ['c', 'd', 'a']
    assert file.category_ids == [3, None, 1]
    assert [name for _, name, _ in objects(file)] == ['a', 'c'] * 2
    assert file.counts() == dict(a=2, c=2)
    assert '2 objects (b)' in file.notes[0]


def test_classes_go_by_their_letters_however_these_are_written(tmp_path):
    make_squares(tmp_path / 'x.json', names=('e\u0301', 'b'))
    file = read(tmp_path / 'x.json', classes=('b ', '\xe9'))
    assert [category['name'] for category in file.content['categories']] == ['b ', '\xe9']
    assert file.counts() == {'b ': 2, '\xe9': 2}
    refused(lambda: read(tmp_path / 'x.json', classes=('b', 'b ')), 'several classes', kind=EvaluationError)


def test_what_is_to_be_ignored_is_measured_and_not_learned(tmp_path):
    make_squares(tmp_path / 'x.json', change=first(ignore=1))
    file = read(tmp_path / 'x.json')
    assert file.counts() == dict(a=2, b=2, c=2)
    assert file.counts(learned=True) == dict(a=1, b=2, c=2)


def test_crowds_count_as_no_objects(tmp_path):
    make_squares(tmp_path / 'x.json', change=set_all('annotations', iscrowd=1))
    assert not read(tmp_path / 'x.json').counts()


@for_each('listed', ['abc', 'cab'])
def test_names_go_by_the_ids_of_the_file(listed, tmp_path):
    make_squares(tmp_path / 'x.json', ids=dict(a=10, b=9, c=11), listed=listed)
    assert category_names(read_annotations(tmp_path / 'x.json'), tmp_path) == ('b', 'a', 'c')
