"""ImageNet-22k by name: the classes of the released heads and no others, opened without an object for each image."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
from conftest import refused
from fake_datasets import image
from timm.data import ImageNetInfo

from tinyvit_zoo.checkpoints import CLASSES_22K
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data import imagenet_readers, load_dataset
from tinyvit_zoo.data.class_map import map_classes
from tinyvit_zoo.data.registry import REGISTRY

WNIDS = ('n00004475', 'n00005787', 'n00006024', 'n00007846')
LISTING = 'in22k_image_names.txt'


@pytest.fixture(autouse=True)
def four_classes(monkeypatch) -> None:
    """ImageNet-22k with four classes instead of 21841."""
    monkeypatch.setattr(imagenet_readers, '_wnids', lambda subset='imagenet-1k': WNIDS)
    monkeypatch.setitem(REGISTRY, 'imagenet-22k', replace(REGISTRY['imagenet-22k'], classes=4, counts=dict(train=9)))


def tree(root: Path, wnids: tuple[str, ...] = WNIDS, ending: str = 'JPEG') -> Path:
    """Two images a class, three of the last; their numbers sort as text."""
    for wnid in wnids:
        for number in (10001, 9, 17)[: 3 if wnid == WNIDS[-1] else 2]:
            image(root / wnid / f'{wnid}_{number}.{ending}', seed=number)
    return root


def names(dataset) -> list[str]:
    return [Path(dataset.describe(i)).name for i in range(len(dataset))]


def load(root: Path, **kwargs):
    return load_dataset('imagenet-22k', 'train', root, **kwargs)


def test_the_real_number_and_order_of_classes_are_those_of_the_released_heads(monkeypatch):
    monkeypatch.undo()
    classes = imagenet_readers._wnids('imagenet-22k')
    assert len(classes) == REGISTRY['imagenet-22k'].classes == CLASSES_22K
    assert list(classes) == sorted(ImageNetInfo('imagenet-22k').label_names())
    model = timm.create_model('tinyvit_5m_224.dist_in22k', device='meta')
    assert map_classes(model, classes).columns.tolist() == list(range(CLASSES_22K))


@pytest.mark.parametrize('place', ['.', 'train', 'fall11_whole'])
def test_images_are_those_of_the_folders_by_class_and_name(place, tmp_path, caplog):
    dataset = load(tree(tmp_path / place) and tmp_path)
    assert (dataset.classes, dataset.complete, caplog.messages) == (WNIDS, True, [])
    assert dataset.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert names(dataset)[-3:] == [f'{WNIDS[3]}_{n}.JPEG' for n in (10001, 17, 9)]
    assert dataset[0][0].size == (12, 10)
    assert dataset.fingerprint() == load(tree(tmp_path / 'other')).fingerprint()


@pytest.mark.parametrize('split', ['validation', 'test'])
def test_it_has_no_split_to_test_on(split, tmp_path):
    with pytest.raises(EvaluationError, match=f"no split '{split}', it has: train, all"):
        load_dataset('imagenet-22k', split, tree(tmp_path))


@pytest.mark.parametrize('listed', [False, True])
def test_a_tree_with_fewer_classes_is_refused_with_both_numbers(listed, tmp_path, caplog):
    """As winter 2021 is, whose classes are all among those of fall 2011."""
    tree(tmp_path, WNIDS[1:])
    if listed:
        (tmp_path / LISTING).write_text('\n'.join(f'{wnid}_9' for wnid in WNIDS[1:]))
    refused(lambda: load(tmp_path), 'has 3 classes here, and 4', 'fall 2011', kind=EvaluationError)
    caplog.clear()
    dataset = load(tmp_path, check_counts=False)
    assert (dataset.labels.min(), dataset.complete) == (1, False)
    assert 'has 3 classes here, and 4' in caplog.messages[0]


def test_a_tree_with_a_class_of_another_release_is_refused_with_both_numbers(tmp_path):
    tree(tmp_path, (*WNIDS, 'n99999999'))
    for kwargs in ({}, dict(check_counts=False)):
        refused(
            lambda k=kwargs: load(tmp_path, **k), '5 class folders', "'n99999999'", '4 classes', kind=EvaluationError
        )


def test_an_empty_class_is_a_missing_one(tmp_path):
    for path in (tree(tmp_path) / WNIDS[2]).iterdir():
        path.unlink()
    refused(lambda: load(tmp_path), 'has 3 classes here, and 4', kind=EvaluationError)


def test_another_number_of_images_is_told_and_no_error(tmp_path, caplog):
    (tree(tmp_path) / WNIDS[0] / f'{WNIDS[0]}_9.JPEG').unlink()
    dataset = load(tmp_path)
    assert (len(dataset), dataset.complete) == (8, False)
    assert 'has 8 images here, and 9' in caplog.messages[0]


def test_archives_that_are_not_unpacked_are_named(tmp_path):
    for suffix in ('zip', 'tar'):
        root = tmp_path / suffix
        root.mkdir()
        (root / f'{WNIDS[0]}.{suffix}').touch()
        refused(lambda r=root: load(r), f'1 archive ({WNIDS[0]}.{suffix})', 'unpack', kind=EvaluationError)


# --- opened cheaply


def test_every_folder_is_listed_once_and_no_image_is_opened_or_looked_at(tmp_path, monkeypatch):
    tree(tmp_path)
    listed, scandir = Counter(), os.scandir

    def counting(path='.'):
        listed[Path(path).name] += 1
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'scandir', counting)
        patch.setattr(Path, 'open', None)
        assert len(load(tmp_path)) == 9
    assert {wnid: listed[wnid] for wnid in WNIDS} == dict.fromkeys(WNIDS, 1)


def test_names_and_labels_are_two_arrays_and_nothing_else_has_an_entry_for_each_image(tmp_path):
    dataset = load(tree(tmp_path))
    source = dataset.source
    assert source.names.dtype == f'S{len(f"{WNIDS[0]}/{WNIDS[0]}_10001.JPEG")}'
    assert dataset.labels.dtype == np.int64
    parts = [part for holder in (dataset, source) for part in vars(holder).values() if part is not source]
    long = [type(part) for part in parts if hasattr(part, '__len__') and len(part) == 9]
    assert long == [np.ndarray, np.ndarray]


# --- by the list of the released code


def stems(root: Path) -> list[str]:
    return sorted(path.stem for path in root.glob('*/*'))


@pytest.mark.parametrize('ending', ['JPEG', 'jpeg', 'jpg'])
@pytest.mark.parametrize('order', [1, -1])
def test_a_list_gives_the_same_data_set_without_listing_a_folder(ending, order, tmp_path, monkeypatch):
    expected = load(tree(tmp_path, ending=ending))
    (tmp_path / LISTING).write_text('\n'.join(stems(tmp_path)[::order]) + '\n\n')
    with monkeypatch.context() as patch:
        patch.setattr(os, 'scandir', None)
        patch.setattr(imagenet_readers, 'CHUNK', 40)  # several parts
        dataset = load(tmp_path)
    assert names(dataset) == names(expected)
    assert dataset.labels.tolist() == expected.labels.tolist()
    assert dataset.fingerprint() == expected.fingerprint()
    assert dataset[8][1] == 3


def test_the_list_decides_which_images_there_are(tmp_path):
    tree(tmp_path)
    (tmp_path / LISTING).write_text('\n'.join(f'{wnid}_9' for wnid in WNIDS))
    assert names(load(tmp_path)) == [f'{wnid}_9.JPEG' for wnid in WNIDS]


@pytest.mark.parametrize(
    ('lines', 'words'),
    [
        ('n00004475_9\nn12_9\n', ("'n12_9'", 'none of the 4 classes', 'without its ending')),
        ('n00004475_9\n\nimages\n', ("'images'",)),
        ('n00004475_77\n', ('lists n00004475_77', '.JPEG or ', 'unpack')),
        ('\n \n', ('lists no image', 'remove it')),
        ('', ('lists no image',)),
    ],
)
def test_a_wrong_list_is_refused_in_one_sentence(lines, words, tmp_path):
    (tree(tmp_path) / LISTING).write_text(lines)
    refused(lambda: load(tmp_path), LISTING, *words, kind=EvaluationError)


def test_a_listed_image_that_is_missing_is_named_when_it_is_read(tmp_path):
    tree(tmp_path)
    (tmp_path / LISTING).write_text('\n'.join([*stems(tmp_path), f'{WNIDS[3]}_99']))
    dataset = load(tmp_path)
    refused(lambda: dataset[9], f'{WNIDS[3]}_99.JPEG', kind=EvaluationError)
