"""Data sets by name: their content, order and labels, and the messages if they are missing."""

import io
import json
import sys
import tarfile
import types
from dataclasses import replace
from pathlib import Path

import fake_datasets as fake
import numpy as np
import pytest
from conftest import refused
from fake_datasets import denied
from PIL import Image

from tinyvit_zoo.common.errors import EvaluationError, MissingSplitError
from tinyvit_zoo.data.datasets import load_dataset
from tinyvit_zoo.data.image_dataset import Arrays, ImageDataset, join
from tinyvit_zoo.data.imagenet_readers import CORRUPTIONS
from tinyvit_zoo.data.offline import CROPS, crop_box
from tinyvit_zoo.data.registry import REGISTRY

REAL = ((), (970, 795), (230, 231))
"""Labels of the first validation images, from github.com/google-research/reassessed-imagenet."""


def names_of(dataset) -> list[str]:
    """File names, in order."""
    return [Path(dataset.describe(i)).name for i in range(len(dataset))]


# Offline


@pytest.mark.parametrize('name', ['digits', 'textures'])
def test_train_and_test_are_disjoint_and_complete(name):
    train, test, everything = (load_dataset(name, split) for split in ('train', 'test', 'all'))
    pixels = [{np.asarray(d[i][0]).tobytes() for i in range(len(d))} for d in (train, test)]
    assert not pixels[0] & pixels[1]
    assert len(everything) == len(train) + len(test)
    assert set(train.labels) == set(test.labels) == set(range(len(train.classes)))


def test_textures_are_crops_of_21_photographs_from_disjoint_regions():
    dataset = load_dataset('textures', 'test')
    assert len(dataset.classes) == 21
    assert np.bincount(dataset.labels).tolist() == [CROPS['test']] * 21
    assert dataset[0][0].mode == 'RGB'
    for size in ((512, 512), (300, 451), (1000, 200), (102, 102)):
        longer = int(size[1] > size[0])
        boxes = {p: [crop_box(size, p, 'x', i, 0) for i in range(50)] for p in ('train', 'test')}
        assert max(box[longer + 2] for box in boxes['train']) <= min(box[longer] for box in boxes['test'])
        assert all(0 <= box[k] and box[k + 2] <= size[k] for p in boxes for box in boxes[p] for k in (0, 1))


def test_the_same_seed_gives_the_same_images_on_every_machine():
    # Hard-coded: these are the images that published numbers are about.
    assert load_dataset('digits', 'train').fingerprint()[:16] == '067cd9c8dcf9ec24'
    assert load_dataset('textures', 'train').fingerprint()[:16] == 'ff64ad3355434a5e'
    assert load_dataset('digits', 'test').fingerprint() != load_dataset('digits', 'test', seed=1).fingerprint()


# Items


def test_items_are_rgb_images_with_labels_and_copies_do_not_share_transforms(tmp_path):
    fake.class_folders(tmp_path, ('a', 'b'))
    Image.new('L', (5, 5)).save(tmp_path / 'a' / '0.png')
    dataset = load_dataset(str(tmp_path), 'all')
    sized = dataset.with_transform(lambda image: image.size)
    assert sized[0] == ((5, 5), 0)
    assert sized[-1] == ((12, 10), 1)
    assert dataset[0][0].mode == 'RGB'
    assert dataset.labels.dtype == np.int64
    with pytest.raises(IndexError):
        dataset[4]


def test_a_subset_keeps_the_given_order_and_all_classes(tmp_path):
    fake.class_folders(tmp_path, ('a', 'b'))
    dataset = load_dataset(str(tmp_path), 'all')
    some = dataset.subset([3, 0]).subset([1, 0, 0])
    assert some.labels.tolist() == [0, 1, 1]
    assert names_of(some) == ['0.png', '1.png', '1.png']
    assert some.classes == dataset.classes
    assert some[1][0].tobytes() == dataset[3][0].tobytes()


def test_the_fingerprint_depends_on_images_labels_and_order_but_not_on_the_folder(tmp_path):
    for place in ('here', 'there'):
        fake.class_folders(tmp_path / place, ('a', 'b'))
    first, second = (load_dataset(str(tmp_path / place), 'all') for place in ('here', 'there'))
    assert first.fingerprint() == second.fingerprint()
    assert first.subset([0, 1, 2]).fingerprint() != first.fingerprint()
    assert first.subset([1, 0, 2, 3]).fingerprint() != first.fingerprint()
    fake.image(tmp_path / 'there' / 'b' / '1.png', seed=7)
    assert load_dataset(str(tmp_path / 'there'), 'all').fingerprint() != first.fingerprint()


@pytest.mark.parametrize('extension', ['png', 'bmp', 'tar'])
def test_the_fingerprint_detects_a_change_in_the_middle_of_a_large_file(extension, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    prints = []
    for _ in range(2):
        pixels[150] += 1
        (tmp_path / 'a').mkdir(exist_ok=True)
        path = tmp_path / 'a' / ('0.bmp' if extension == 'bmp' else '0.png')
        Image.fromarray(pixels).save(path, **(dict(compress_level=0) if extension != 'bmp' else {}))
        assert path.stat().st_size > 2**18
        if extension == 'tar':
            tar_of(tmp_path / 'test.tar', {'0.png': path.read_bytes(), '0.cls': b'0'})
        name = 'wds/x' if extension == 'tar' else str(tmp_path)
        prints.append(load_dataset(name, 'test' if extension == 'tar' else 'all', tmp_path).fingerprint())
    assert prints[0] != prints[1]


def test_16_bit_grey_levels_are_scaled_not_clipped(tmp_path):
    levels = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    (tmp_path / 'a').mkdir()
    Image.fromarray(levels).save(tmp_path / 'a' / '0.png')
    image, _ = load_dataset(str(tmp_path), 'all')[0]
    assert np.asarray(image)[..., 1].ravel().tolist() == list(range(256))


def test_parts_join_under_the_longest_list_of_classes_and_never_under_different_ones():
    def part(classes: str) -> ImageDataset:
        pixels = np.zeros((len(classes), 8, 8, 3), np.uint8)
        return ImageDataset('x', 'train', tuple(classes), range(len(classes)), Arrays(pixels, 'x'))

    assert join([part('01'), part('012')], 'all').classes == ('0', '1', '2')
    refused(lambda: join([part('ab'), part('ba')], 'all'), 'different classes', kind=EvaluationError)


# The registry

UNCHECKED = dict(check_counts=False)


@pytest.mark.parametrize('entry', REGISTRY.values(), ids=REGISTRY)
def test_every_entry_names_its_source_and_an_alternative(entry, tmp_path):
    assert entry.source
    assert entry.license
    assert {part for parts in entry.splits.values() for part in parts} == set(entry.counts)
    missing = next(split for split in ('validation', 'train', 'test', 'all', '') if split not in entry.splits)
    if missing:
        denied(entry.name, missing, tmp_path, words=(f"has no split '{missing}'", next(iter(entry.splits))))
    if entry.layout:
        split = next(iter(entry.splits))
        denied(entry.name, split, words=('needs a root', entry.source, entry.layout, entry.if_dead))
        denied(entry.name, split, tmp_path / 'nowhere', words=('is not a folder', entry.layout))
        denied(entry.name, split, tmp_path, words=(str(tmp_path),))


def test_an_unknown_name_suggests_the_nearest():
    denied('cifar_10', words=('Did you mean cifar10?',))
    denied('tfds/mnist', words=('stream',))
    denied('digits', 'val', words=("no split 'val'", 'validation'))


def test_another_number_of_images_or_classes_is_an_error_that_names_the_source(tmp_path, monkeypatch, caplog):
    fake.class_folders(tmp_path / 'eurosat' / '2750', ('Forest', 'River'))
    denied('eurosat', 'all', tmp_path, words=('4 images', '27,000', 'check_counts=False', '--any-counts'))
    part = load_dataset('eurosat', 'all', tmp_path, **UNCHECKED)
    assert (len(part), part.complete) == (4, False)
    assert '27,000' in caplog.text
    assert load_dataset('digits', 'test', **UNCHECKED).complete
    monkeypatch.setitem(REGISTRY, 'eurosat', replace(REGISTRY['eurosat'], counts=dict(all=4)))
    denied('eurosat', 'all', tmp_path, words=('2 classes', ' 10 according to '))
    fake.class_folders(tmp_path / 'dataset' / 'train', ('x',))
    denied('crop_disease', 'train', tmp_path, words=('43,456', 'not verified'))


def test_cifar_is_unpickled_only_after_its_md5_was_checked(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    fake.cifar10(tmp_path)
    denied('cifar10', 'train', tmp_path, words=('damaged', 'cifar-10-batches-py'))  # not the real MD5
    monkeypatch.setattr(CIFAR10, '_check_integrity', lambda self: True)
    monkeypatch.setattr(CIFAR10, 'meta', {**CIFAR10.meta, 'md5': None})
    train = load_dataset('cifar10', 'train', tmp_path, **UNCHECKED)
    assert len(train) == 15
    assert train.classes[train[1][1]] == 'truck'
    assert train[0][0].size == (32, 32)
    assert load_dataset('cifar10', 'all', tmp_path, **UNCHECKED).describe(15) == 'cifar10/test[0]'


def test_flowers_train_on_train_and_val(tmp_path):
    fake.flowers102(tmp_path)
    train = load_dataset('flowers102', 'train', tmp_path, **UNCHECKED)
    assert names_of(train) == ['image_00003.jpg', 'image_00001.jpg', 'image_00005.jpg', 'image_00005.jpg']
    assert train.labels.tolist() == [0, 76, 101, 101]
    assert len(train.classes) == 102
    assert load_dataset('flowers102', 'test', tmp_path, **UNCHECKED).labels.tolist() == [1, 3, 5]
    (tmp_path / 'flowers-102' / 'setid.mat').write_bytes(b'no matlab')
    denied('flowers102', 'test', tmp_path, words=('setid.mat', 'damaged'))


def test_cars_have_labels_in_both_splits(tmp_path):
    fake.stanford_cars(tmp_path)
    test = load_dataset('stanford_cars', 'test', tmp_path, **UNCHECKED)
    assert [test.classes[i] for i in test.labels] == ['Acura RL Sedan 2012', 'AM General Hummer SUV 2000']
    assert test.describe(0).endswith('cars_test/00001.jpg')
    assert load_dataset('stanford_cars', 'train', tmp_path, **UNCHECKED)[0][0].size == (12, 10)


def test_pets_are_numbered_from_the_lists(tmp_path):
    fake.oxford_pets(tmp_path)
    train = load_dataset('oxford_pets', 'train', tmp_path, **UNCHECKED)
    assert train.classes == ('Abyssinian', 'american_bulldog')
    assert train.labels.tolist() == [0, 1, 0]
    assert names_of(train)[1] == 'american_bulldog_10.jpg'


def test_aircraft_are_variants_with_spaces_in_their_names(tmp_path):
    fake.fgvc_aircraft(tmp_path)
    train = load_dataset('fgvc_aircraft', 'train', tmp_path, **UNCHECKED)
    assert [train.classes[i] for i in train.labels] == ['707-320', 'Boeing 717']
    assert load_dataset('fgvc_aircraft', 'test', tmp_path, **UNCHECKED).labels.tolist() == [2]


def test_inaturalist_is_split_by_the_lists_of_the_competition(tmp_path):
    fake.inat2018(tmp_path)
    train = load_dataset('inat2018', 'train', tmp_path, **UNCHECKED)
    assert names_of(train) == ['5.jpg', '3.jpg']
    assert train.classes == ('Species 0', 'Species 1')
    assert train.labels.tolist() == [1, 1]
    validation, test = (load_dataset('inat2018', split, tmp_path, **UNCHECKED) for split in ('validation', 'test'))
    assert names_of(validation) == names_of(test) == ['9.jpg']
    (tmp_path / 'val2018.json').unlink()
    denied('inat2018', 'test', tmp_path, words=('val2018.json',))


def test_isic_labels_are_the_nonzero_column(tmp_path):
    fake.isic2018(tmp_path)
    dataset = load_dataset('isic2018', 'all', tmp_path, **UNCHECKED)
    assert dataset.classes == ('MEL', 'NV', 'BCC', 'AKIEC', 'BKL', 'DF', 'VASC')
    assert dataset.labels.tolist() == [1, 0, 6]
    (tmp_path / 'ISIC2018_Task3_Training_Input' / 'ISIC_0024306.jpg').unlink()
    denied('isic2018', 'all', tmp_path, words=('ISIC_0024306.jpg', 'not on disk'), **UNCHECKED)


def test_lists_with_unexpected_content_are_refused_in_one_sentence(tmp_path):
    fake.isic2018(tmp_path)
    path = next(tmp_path.rglob('*.csv'))
    path.write_text(path.read_text().replace('1.0', 'yes'))
    denied('isic2018', 'all', tmp_path, words=('isic2018 (train)', 'damaged', 'yes', 'HAM10000'))
    (tmp_path / 'Data_Entry_2017.csv').write_text('Image Index,Finding Labels\n00000001_000.png\n')
    denied('chestx', 'all', tmp_path, words=('chestx (all)', 'damaged'))


def test_chestx_keeps_images_with_one_label_of_seven_scaled_to_256(tmp_path):
    fake.chestx(tmp_path)
    dataset = load_dataset('chestx', 'all', tmp_path, **UNCHECKED)
    assert names_of(dataset) == ['00000001_000.png', '00000005_000.png', '00000007_000.png']
    assert [dataset.classes[i] for i in dataset.labels] == ['Cardiomegaly', 'Pneumothorax', 'Atelectasis']
    assert dataset[0][0].size == (256, 256)
    assert dataset[0][0].mode == 'RGB'
    assert len(dataset.classes) == 7


def test_imagenet_folders_get_their_index_among_all_1000_classes(tmp_path):
    fake.class_folders(tmp_path / 'train', fake.WNIDS[1:])
    fake.class_folders(tmp_path / 'val', fake.WNIDS)
    assert load_dataset('imagenet-1k', 'train', tmp_path, **UNCHECKED).labels.tolist() == [1, 1]
    test = load_dataset('imagenet-1k', 'test', tmp_path, **UNCHECKED)
    assert test.labels.tolist() == [0, 0, 1, 1]
    assert len(test.classes) == 1000
    fake.class_folders(tmp_path / 'val', ('lynx',))
    denied('imagenet-1k', 'validation', tmp_path, words=("'lynx'", '1000 classes'))


def test_real_labels_follow_the_original_file_names(tmp_path):
    names = ['ILSVRC2012_val_00000001.JPEG', 'ILSVRC2012_val_00000003.JPEG']
    for name in names:
        fake.image(tmp_path / 'val' / fake.WNIDS[0] / name)
    dataset = load_dataset('imagenet-real', 'test', tmp_path, **UNCHECKED)
    assert dataset.label_sets == (REAL[0], REAL[2])
    assert dataset.subset([1]).label_sets == (REAL[2],)
    fake.image(tmp_path / 'val' / fake.WNIDS[0] / 'cat.jpg')
    denied('imagenet-real', 'test', tmp_path, words=('cat', 'original file names'), **UNCHECKED)


def test_the_folders_of_v2_are_numbers(tmp_path):
    folder = tmp_path / 'imagenetv2-matched-frequency-format-val'
    fake.class_folders(folder, ('0', '1', '10', '2', '999'), images=1)
    dataset = load_dataset('imagenet-v2', 'test', tmp_path, **UNCHECKED)
    assert dataset.labels.tolist() == [0, 1, 2, 10, 999]
    assert dataset.classes[0] == fake.WNIDS[0]
    assert len(dataset.classes) == 1000


@pytest.mark.parametrize('name', ['imagenet-a', 'imagenet-r'])
def test_a_and_r_have_200_of_the_1000_classes(name, tmp_path):
    from timm.data import ImageNetInfo

    known = ImageNetInfo('imagenet-1k').label_names()
    fake.class_folders(tmp_path / name, ('n01498041',))
    dataset = load_dataset(name, 'test', tmp_path, **UNCHECKED)
    assert len(dataset.classes) == 200
    assert [known.index(c) for c in dataset.classes] == sorted(known.index(c) for c in dataset.classes)
    assert dataset.classes[dataset.labels[0]] == 'n01498041'
    fake.class_folders(tmp_path / name, ('n99999999',))
    denied(name, 'test', tmp_path, words=('none of the 200 classes',))


def test_a_corruption_and_a_severity_are_part_of_the_name(tmp_path):
    fake.class_folders(tmp_path / 'fog' / '3', fake.WNIDS)
    dataset = load_dataset('imagenet-c/fog/3', 'test', tmp_path, **UNCHECKED)
    assert dataset.name == 'imagenet-c/fog/3'
    assert dataset.labels.tolist() == [0, 0, 1, 1]
    assert len(CORRUPTIONS) == 15 + 4
    denied('imagenet-c/fog/6', 'test', tmp_path, words=('severity of 1 to 5', 'gaussian_noise'))
    denied('imagenet-c', 'test', tmp_path, words=('imagenet-c/CORRUPTION/SEVERITY',))


# timm's names


def tar_of(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, 'w') as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_webdataset_tars_are_read_without_unpacking(tmp_path):
    png = [fake.image(tmp_path / f'{i}.png', seed=i).read_bytes() for i in range(3)]
    tar_of(tmp_path / 'set-train-0001.tar', {'k/c.png': png[2], 'k/c.json': b'{"label": 0}'})
    tar_of(tmp_path / 'set-train-0000.tar', {'a.png': png[0], 'a.cls': b'1', 'b.cls': b'3', 'b.png': png[1]})
    dataset = load_dataset('wds/set', 'train', tmp_path)
    assert dataset.labels.tolist() == [1, 3, 0]
    assert dataset.describe(1).endswith('set-train-0000.tar:b.png')
    assert dataset[2][0].tobytes() == Image.open(tmp_path / '2.png').tobytes()
    assert dataset.fingerprint() == load_dataset('wds/other', 'all', tmp_path).fingerprint()
    denied('wds/set', 'test', tmp_path, words=("has no split 'test'", 'train'))
    (tmp_path / 'set-test.tar').write_bytes(b'no tar')
    denied('wds/set', 'test', tmp_path, words=('set-test.tar', 'not a readable tar'))
    tar_of(tmp_path / 'set-test.tar', {'a.png': png[0], 'a.json': b'{"label": [1, 2]}'})
    tar_of(tmp_path / 'set-Val-0.tar', {'a.png': png[0], 'a.cls': b'1'})
    assert load_dataset('wds/set', 'validation', tmp_path).labels.tolist() == [1]
    denied('wds/set', 'test', tmp_path, words=('set-test.tar', 'not a readable tar'))


def test_webdataset_splits_follow_info_json_if_there_is_one(tmp_path):
    png = fake.image(tmp_path / 'x.png').read_bytes()
    for i in range(2):
        tar_of(tmp_path / f'train-{i}.tar', {'a.png': png, 'a.cls': b'%d' % i})
    info = dict(splits=dict(validation=dict(filenames=['train-1.tar'])))
    (tmp_path / '_info.json').write_text(json.dumps(info))
    assert load_dataset('wds/set', 'validation', tmp_path).labels.tolist() == [1]
    denied('wds/set', 'train', tmp_path, words=("has no split 'train'", 'validation'))
    (tmp_path / '_info.json').write_text('{"splits": 3}')
    denied('wds/set', 'train', tmp_path, words=('_info.json',))


def test_labels_of_no_class_are_refused(tmp_path):
    tar_of(tmp_path / 'test-0.tar', {'1.png': fake.image(tmp_path / '1.png').read_bytes(), '1.cls': b'-1'})
    refused(lambda: load_dataset('wds/x', 'test', tmp_path), '-1', 'another split', kind=MissingSplitError)


def test_torchvision_sets_load_by_timms_names(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    denied('torch/cifar10', 'train', words=('needs a root',))
    denied('torch/cifar10', 'train', tmp_path, words=('cannot be loaded',))
    fake.cifar10(tmp_path)
    monkeypatch.setattr(CIFAR10, '_check_integrity', lambda self: True)
    monkeypatch.setattr(CIFAR10, 'meta', {**CIFAR10.meta, 'md5': None})
    ours, theirs = (
        load_dataset('cifar10', 'test', tmp_path, **UNCHECKED),
        load_dataset('torch/cifar10', 'test', tmp_path),
    )
    assert ours.fingerprint() == theirs.fingerprint()
    denied('torch/cifar10', 'validation', tmp_path, words=("has no split 'validation'", 'train'))


def test_torchvision_sets_without_labels_are_refused_but_folders_are_not(tmp_path, monkeypatch):
    fake.class_folders(tmp_path / 'train', ('a', 'b'))
    dataset = load_dataset('torch/folder', 'train', tmp_path)
    assert dataset.labels.tolist() == [0, 0, 1, 1]
    assert dataset[3][0].size == (12, 10)
    assert len({dataset.subset([i]).fingerprint() for i in range(4)}) == 4
    from torchvision.datasets import INaturalist

    monkeypatch.setattr(INaturalist, '__init__', lambda self, **kwargs: None)
    denied('torch/inat', 'train', tmp_path, words=('does not list its labels',))


def test_hub_sets_need_the_package_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, 'datasets', None)
    denied('hfds/uoft-cs/cifar10', words=('pip install datasets',))


def test_hub_sets_are_read_by_timm_with_their_own_columns(tmp_path, monkeypatch):
    import timm.data

    files = [fake.image(tmp_path / f'{i}.png', seed=i) for i in range(3)]
    features = dict(img=None, fine_label=types.SimpleNamespace(names=['a', 'b']), coarse_label=None)
    asked = []

    class Reader:
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return files[i].open('rb'), i % 2

        def iter_targets(self):
            return (i % 2 for i in range(3))

    class Data:
        reader = Reader()

        def __len__(self):
            return 3

    def create_dataset(name, root, split, input_key, target_key):
        asked.append((name, split, input_key, target_key))
        return Data()

    package = types.SimpleNamespace(
        get_dataset_split_names=lambda name: ['train', 'val'],
        load_dataset=lambda name, split, cache_dir: types.SimpleNamespace(features=features),
    )
    monkeypatch.setitem(sys.modules, 'datasets', package)
    monkeypatch.setattr(timm.data, 'create_dataset', create_dataset)
    dataset = load_dataset('hfds/x/y', 'validation')
    assert asked == [('hfds/x/y', 'val', 'img', 'fine_label')]
    assert dataset.labels.tolist() == [0, 1, 0]
    assert dataset.classes == ('a', 'b')
    assert dataset[2][0].tobytes() == Image.open(files[2]).tobytes()
    assert dataset.describe(2) == 'hfds/x/y/val[2]'
    assert len(load_dataset('hfds/x/y', 'all')) == 6
    before = dataset.fingerprint()
    fake.image(files[1], seed=5)
    assert load_dataset('hfds/x/y', 'validation').fingerprint() != before
    denied('hfds/x/y', 'test', words=("has no split 'test'", 'train, val, all'))
    del features['img']
    denied('hfds/x/y', 'train', words=('no column of images', 'fine_label'))
