"""A folder of images as a data set: its splits, its classes, and the layouts that are refused with advice."""

import os
import shutil
import sys
from pathlib import Path

import fake_datasets as fake
import numpy as np
import pytest
from conftest import refused
from fake_datasets import denied
from PIL import Image
from timm.data import create_dataset

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data.datasets import load_dataset


def test_all_splits_of_a_folder_have_the_classes_of_train(tmp_path):
    fake.class_folders(tmp_path / 'train', ('a', 'b', 'c'))
    fake.class_folders(tmp_path / 'val', ('c', 'a'), images=1)
    validation = load_dataset(str(tmp_path), 'validation')
    assert validation.classes == ('a', 'b', 'c')
    assert validation.labels.tolist() == [0, 2]
    assert len(load_dataset('folder', 'all', tmp_path)) == 8
    denied(str(tmp_path), 'test', words=("has no split 'test'", 'train, validation, all'))
    fake.class_folders(tmp_path / 'val', ('d',))
    denied(str(tmp_path), 'validation', words=("'d'", 'none of the 3 classes'))


def test_a_class_named_train_is_not_a_split(tmp_path):
    fake.class_folders(tmp_path, ('car', 'train'))
    assert load_dataset(str(tmp_path), 'all').classes == ('car', 'train')
    denied(str(tmp_path), 'train', words=("has no split 'train', it has: all",))


@pytest.mark.parametrize(
    'names', [('Train', 'Test', 'Val'), ('TRAINING', 'TESTING', 'Valid'), ('train', 'Test', 'VALIDATION')]
)
def test_folders_of_splits_are_known_in_any_case(names, tmp_path):
    for i, name in enumerate(names):
        fake.class_folders(tmp_path / name, ('a', 'b'), images=i + 1)
    for split, images in (('train', 2), ('test', 4), ('validation', 6), ('all', 12)):
        assert len(load_dataset(str(tmp_path), split)) == images
    assert load_dataset(str(tmp_path), 'all').classes == ('a', 'b')


def test_two_folders_for_one_split_are_named(tmp_path):
    for name in ('train', 'val', 'Validation'):
        fake.class_folders(tmp_path / name, ('a', 'b'))
    for split in ('train', 'validation', 'all'):
        denied(str(tmp_path), split, words=('val/', 'Validation/', 'rename or remove'))


@pytest.mark.parametrize('inner', ['inner', 'inner/most'])
@pytest.mark.parametrize('layout', [('train/a', 'train/b', 'val/a'), ('Train/a', 'Train/b'), ('a', 'b')])
def test_one_folder_too_many_is_named_with_the_folder_to_give(inner, layout, tmp_path):
    for name in layout:
        fake.image(tmp_path / inner / name / '0.png')
    (tmp_path / '__MACOSX').mkdir()
    (tmp_path / 'notes.txt').write_text('no image')
    for split in ('train', 'all'):
        denied(str(tmp_path), split, words=('one folder too many', f'give {tmp_path / "inner"}'))


def test_a_folder_of_data_sets_and_one_folder_too_many_in_train_are_named(tmp_path):
    for name in ('flowers/train/a/0.png', 'pets/train/b/0.png'):
        fake.image(tmp_path / 'sets' / name)
    denied(str(tmp_path / 'sets'), 'all', words=('one folder too many', 'sets/flowers or', 'sets/pets instead'))
    for name in ('train/images/a/0.png', 'train/images/b/0.png', 'val/a/0.png'):
        fake.image(tmp_path / 'deep' / name)
    denied(str(tmp_path / 'deep'), 'train', words=('one folder too many', 'deep/train/images', 'move its folders up'))


def test_a_single_class_of_images_in_a_folder_is_no_folder_too_many(tmp_path):
    fake.image(tmp_path / 'ant' / 'images' / '0.png')
    assert load_dataset(str(tmp_path), 'all').classes == ('ant',)


def test_folders_without_splits_or_without_classes_get_advice(tmp_path):
    fake.class_folders(tmp_path / 'flat', ('ant', 'bee'))
    for split in ('train', 'validation', 'test'):
        words = (f"has no split '{split}'", 'ant, bee', 'train/', 'val/ or test/')
        denied(str(tmp_path / 'flat'), split, words=words)
    fake.image(tmp_path / 'bare' / '0.png')
    fake.image(tmp_path / 'split' / 'Train' / '0.png')
    fake.image(tmp_path / 'split' / 'val' / '0.png')
    for split in ('train', 'test', 'all'):
        denied(str(tmp_path / 'bare'), split, words=('no class folders', 'train/ and val/'))
        denied(str(tmp_path / 'split'), split, words=('Train/, val/ without class folders', 'Train/CLASS/'))


@pytest.mark.parametrize(
    ('layout', 'words'),
    [
        (('train2017/a', 'train2017/b', 'val2017/a'), ('train2017/, val2017/', 'train/, val/ and test/')),
        (('seg_train/a', 'seg_test/a'), ('seg_test/, seg_train/', 'train/, val/ and test/')),
        (('Trainset/a', 'Testset/a'), ('Testset/, Trainset/', 'train/, val/ and test/')),
        (('ant/train', 'ant/test', 'bee/train'), ('within ant/, bee/', 'test/ant/ instead of ant/test/')),
        (('images/train', 'images/val', 'labels/train'), ('within images/, labels/', 'train/images/')),
    ],
)
def test_layouts_that_would_mix_the_splits_are_refused_with_advice(layout, words, tmp_path):
    for name in layout:
        fake.image(tmp_path / name / '0.png')
    for split in ('train', 'test', 'all'):
        denied(str(tmp_path), split, words=words)


def test_classes_whose_names_hold_the_word_of_a_split_stay_classes(tmp_path):
    fake.class_folders(tmp_path, ('test tube', 'train_car'))
    assert load_dataset(str(tmp_path), 'all').classes == ('test tube', 'train_car')
    for name in ('ant/train', 'bee/wings'):
        fake.image(tmp_path / 'parts' / name / '0.png')
    assert load_dataset(str(tmp_path / 'parts'), 'all').classes == ('ant', 'bee')


def test_a_class_that_train_lacks_gets_advice(tmp_path):
    fake.class_folders(tmp_path / 'train', ('Ant', 'Bee'))
    for name, words in (('ant', "rename it to 'Ant'"), ('cat', 'rename it, or take it away')):
        fake.class_folders(tmp_path / 'val', (name,))
        denied(str(tmp_path), 'validation', words=(f"'{name}'", 'none of the 2 classes', words))
        shutil.rmtree(tmp_path / 'val')
    fake.class_folders(tmp_path / 'val' / 'images', ('Ant', 'Bee'))
    denied(str(tmp_path), 'validation', words=("'images'", f'those of {tmp_path / "val/images"} up'))


def test_links_of_classes_and_splits_that_lead_nowhere_are_reported(tmp_path, caplog):
    fake.class_folders(tmp_path / 'train', ('ant', 'bee'))
    (tmp_path / 'train' / 'cat').symlink_to(tmp_path / 'no disk')
    (tmp_path / 'val').symlink_to(tmp_path / 'no disk')
    assert load_dataset(str(tmp_path), 'train').classes == ('ant', 'bee')
    for folder, name in ((tmp_path, 'val'), (tmp_path / 'train', 'cat')):
        assert f'{folder}: left out, as they are links that lead nowhere: {name}.' in caplog.text


@pytest.mark.skipif(sys.platform != 'linux', reason='others have no names that are not UTF-8')
def test_a_class_folder_whose_name_cannot_be_written_is_named_before_anything_is_computed(tmp_path):
    fake.class_folders(tmp_path, ('ant', os.fsdecode(b'b\xe9')))
    denied(str(tmp_path), 'all', words=('b\\udce9', 'rename it'))


def test_a_missing_split_says_what_there_is_instead(tmp_path, caplog):
    fake.class_folders(tmp_path / 'train', ('ant', 'bee'))
    fake.class_folders(tmp_path / 'eval', ('ant', 'bee'))
    fake.image(tmp_path / 'test' / '0.png')
    denied(str(tmp_path), 'validation', words=("has no split 'validation'", 'val/CLASS/', 'eval'))
    denied(str(tmp_path), 'test', words=("has no split 'test'", 'test has no class folders'))
    assert len(load_dataset(str(tmp_path), 'all')) == 4
    assert 'left out, as they are not splits: eval/, test/' in caplog.text


def test_files_of_other_kinds_are_counted_and_reported(tmp_path, caplog):
    fake.class_folders(tmp_path, ('a', 'b'))
    for i, ending in enumerate(('jfif', 'JPE', 'avif', 'jp2', 'tga')):
        Image.new('RGB', (8, 8)).save(
            tmp_path / 'a' / f'{i}.{ending}', **dict(jfif=dict(format='JPEG')).get(ending, {})
        )
    for name in ('a/x.HEIC', 'a/y.heic', 'b/clip.mp4', 'b/nothing', 'a/notes.txt', 'b/labels.csv'):
        (tmp_path / name).write_bytes(b'0')
    fake.image(tmp_path / 'beside.png')
    (tmp_path / 'empty').mkdir()
    dataset = load_dataset(str(tmp_path), 'all')
    assert len(dataset) == len(dataset.without_unreadable()) == 9
    assert '4 files of other kinds: .heic (2), .mp4 (1), without ending (1)' in caplog.text
    assert 'left out beside the class folders: 1 image.' in caplog.text
    assert 'classes without images: empty/' in caplog.text
    assert '.txt' not in caplog.text


def test_a_folder_with_files_of_other_kinds_only_says_so(tmp_path):
    for i in range(2):
        (tmp_path / 'a').mkdir(exist_ok=True)
        (tmp_path / 'a' / f'{i}.heic').write_bytes(b'0')
    denied(str(tmp_path), 'all', words=('2 files of other kinds: .heic (2)', '.png or .jpg'))


def test_links_to_a_folder_above_are_not_followed(tmp_path):
    fake.class_folders(tmp_path, ('a', 'b'))
    (tmp_path / 'a' / 'again').symlink_to(tmp_path / 'a')
    (tmp_path / 'a' / 'up').symlink_to(tmp_path)
    (tmp_path / 'b' / 'across').symlink_to(tmp_path / 'c')
    fake.image(tmp_path / 'c' / '0.png')
    (tmp_path / 'c' / 'back').symlink_to(tmp_path / 'b')
    dataset = load_dataset(str(tmp_path), 'all')
    assert np.bincount(dataset.labels).tolist() == [2, 3, 3]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    fake.class_folders(tmp_path, ('a', 'b'))
    scandir = os.scandir

    def closed(folder):
        if Path(folder).name == 'b':
            raise PermissionError(13, 'Permission denied')
        return scandir(folder)

    monkeypatch.setattr(os, 'scandir', closed)
    denied(str(tmp_path), 'all', words=(str(tmp_path / 'b'), 'Permission denied'))


def test_classes_of_a_folder_are_in_timms_order(tmp_path):
    fake.class_folders(tmp_path, ('class10', 'class9', 'Zebra', 'ant', '10', '9'), images=1)
    reader = create_dataset('', str(tmp_path)).reader
    dataset = load_dataset(str(tmp_path), 'all')
    assert {name: i for i, name in enumerate(dataset.classes)} == reader.class_to_idx


def test_links_are_followed_and_hidden_files_skipped(tmp_path):
    fake.class_folders(tmp_path / 'data', ('a', 'b'), images=1)
    fake.image(tmp_path / 'elsewhere' / 'linked.png')
    (tmp_path / 'data' / 'a' / 'more').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'data' / 'c').symlink_to(tmp_path / 'elsewhere')
    fake.image(tmp_path / 'data' / 'a' / '.ipynb_checkpoints' / '0-checkpoint.png')
    (tmp_path / 'data' / 'a' / '._0.png').write_bytes(b'of another system')
    (tmp_path / 'data' / 'b' / 'folder.png').mkdir()
    dataset = load_dataset(str(tmp_path / 'data'), 'all')
    assert [Path(dataset.describe(i)).name for i in range(4)] == ['0.png', 'linked.png', '0.png', 'linked.png']
    assert dataset.labels.tolist() == [0, 0, 1, 2]


def test_an_empty_folder_and_one_without_images_are_named(tmp_path):
    denied(str(tmp_path), 'all', words=(str(tmp_path), 'no images'))
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / 'notes.txt').write_text('no image')
    for split in ('all', 'train'):
        denied(str(tmp_path), split, words=(str(tmp_path / ''), 'no images'))
    fake.image(tmp_path / 'a' / '0.png')
    denied(str(tmp_path), 'train', words=("has no split 'train'",))


def test_an_unreadable_image_is_named_and_skipped_only_on_request(tmp_path):
    fake.class_folders(tmp_path, ('a', 'b'))
    bad = tmp_path / 'a' / '1.png'
    bad.write_bytes(bad.read_bytes()[:60])
    dataset = load_dataset(str(tmp_path), 'all')
    refused(lambda: dataset[1], str(bad), 'skip_unreadable', kind=EvaluationError)
    kept = load_dataset(str(tmp_path), 'all', skip_unreadable=True)
    assert kept.skipped == (str(bad),)
    assert (dataset.complete, kept.complete) == (True, False)
    assert kept.labels.tolist() == [0, 1, 1]
    for path in tmp_path.rglob('*.png'):
        path.write_bytes(b'nothing')
    denied(str(tmp_path), 'all', skip_unreadable=True, words=('no image that can be read',))
