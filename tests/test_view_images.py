"""Views as images: the pixels of torchvision and timm, the same with any workers, order, threads and image files."""

import dataclasses
import hashlib
import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import fake_datasets
import numpy as np
import pytest
import torch
from conftest import refused
from PIL import Image, ImageFile
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, auto_augment
from timm.data.random_erasing import RandomErasing
from torch.utils.data import DataLoader
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.seeding import generator_states, same_states
from tinyvit_zoo.data import load_dataset
from tinyvit_zoo.data.image_dataset import Arrays, ImageDataset
from tinyvit_zoo.data.rand_augment import OPERATIONS, THREE
from tinyvit_zoo.data.replay import (
    Erasing,
    Place,
    RandAugment,
    ReplayedViews,
    View,
    ViewSpec,
    describe_view,
    draw_views,
    image_crc32,
    is_checked,
    make_image,
    to_tensor,
)
from tinyvit_zoo.data.view_apply import on_grid

SPEC = ViewSpec((24, 20), rand_augment=RandAugment(), color_jitter=(0.4, 0.4, 0.4, 0.1), erasing=Erasing(0.5, count=2))
CLIP = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
PLAIN_VIEW = View((40, 50), (3, 5, 30, 36), False, (), (), (), (24, 20), 9)


def noise(height=40, width=50, seed=0, mode='RGB'):
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(axis=2) if channels == 1 else pixels)


def in_memory(count=12):
    pixels = np.stack([np.asarray(noise(seed=i)) for i in range(count)])
    return ImageDataset('noise', 'train', ['a', 'b'], np.arange(count) % 2, Arrays(pixels, 'noise'))


def on_disk(folder, count=24):
    """Files of several formats and sizes, two classes."""
    for i in range(count):
        path = folder / 'ab'[i % 2] / f'{i:03d}.{("jpg", "png", "webp")[i % 3]}'
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(30 + 7 * (i % 5), 60 - 9 * (i % 4), i).save(path)
    return load_dataset(str(folder), 'all')


def sha1_of(items):
    """Of everything in the items of all positions, whichever order they came in."""
    digest = hashlib.sha1()
    for item in sorted(items, key=lambda item: (int(item.epoch), int(item.position))):
        digest.update(repr([int(value) for value in item[1:]]).encode() + item.image.numpy().tobytes())
    return digest.hexdigest()


def read_by(views, workers, order, batch_size=5):
    loader = DataLoader(views, batch_size=batch_size, sampler=order, num_workers=workers)
    return [type(batch)(*row) for batch in loader for row in zip(*batch, strict=True)]


def check_workers_and_orders(dataset, positions):
    views = ReplayedViews(dataset, SPEC, seed=3)
    shuffled = random.Random(0).sample(positions, len(positions))
    found = {sha1_of(read_by(views, workers, order)) for workers in (0, 1, 4) for order in (positions, shuffled)}
    assert len(found) == 1
    assert found == {sha1_of([views[i] for i in positions])}


@pytest.mark.filterwarnings('ignore:This DataLoader will create 4 worker processes')
def test_views_are_the_same_with_any_workers_in_any_order(tmp_path):
    check_workers_and_orders(on_disk(tmp_path), list(range(24)))


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:This DataLoader will create 4 worker processes')
def test_2000_views_are_the_same_with_any_workers_in_any_order(tmp_path):
    check_workers_and_orders(on_disk(tmp_path, 40).subset(np.arange(2000) % 40), list(range(2000)))


def test_epochs_are_asked_for_by_place():
    dataset = in_memory()
    views = ReplayedViews(dataset, SPEC, seed=3)
    mixed = views.__getitems__([Place(2, 5), (0, 5), 5, (2, 4)])
    alone = [ReplayedViews(dataset, SPEC, 3, epoch)[position] for epoch, position in ((2, 5), (0, 5), (0, 5), (2, 4))]
    for one, two in zip(mixed, alone, strict=True):
        assert one[1:] == two[1:]
        assert torch.equal(one.image, two.image)
    assert not torch.equal(mixed[0].image, mixed[1].image)


@pytest.mark.parametrize('index', [-1, 12, (0, 12), (1, -1)])
def test_a_position_outside_the_data_set_is_an_index_error(index):
    with pytest.raises(IndexError):
        ReplayedViews(in_memory(), SPEC, 0)[index]


def test_an_empty_batch_has_no_views():
    assert ReplayedViews(in_memory(), SPEC, 0).__getitems__([]) == []


def test_items_hold_label_place_and_check_value():
    views = ReplayedViews(in_memory().subset(np.arange(600) % 12), SPEC, seed=3, epoch=4)
    for position in (0, 1, 255, 256, 512, 513):
        item = views[position]
        view, image = views.view(position)
        assert item[1:4] == (position % 12 % 2, 4, position)
        assert item.crc32 == (image_crc32(image) if is_checked(position) else -1)
        assert torch.equal(item.image, to_tensor(image, view, SPEC, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))


def test_views_can_be_pickled_and_leave_the_global_generators_alone():
    views = ReplayedViews(in_memory(), SPEC, seed=3)
    before = generator_states()
    assert sha1_of([pickle.loads(pickle.dumps(views))[i] for i in range(12)]) == sha1_of([views[i] for i in range(12)])
    assert same_states(before, generator_states())


def test_threads_make_the_same_images():
    views = ReplayedViews(in_memory(), SPEC, seed=3)
    places = [Place(epoch, position) for epoch in range(8) for position in range(12)]
    with ThreadPoolExecutor(8) as pool:
        assert sha1_of(pool.map(views.__getitem__, places)) == sha1_of(map(views.__getitem__, places))


def test_images_of_a_batch_are_decoded_one_after_the_other(monkeypatch):
    dataset, log = in_memory(), []
    size, image = dataset.image_size, dataset.image
    monkeypatch.setattr(dataset, 'image_size', lambda i: log.append(('size', i)) or size(i))
    monkeypatch.setattr(dataset, 'image', lambda i: log.append(('image', i)) or image(i))
    monkeypatch.setattr(
        'tinyvit_zoo.data.replay.to_tensor', lambda *args: log.append(('done', None)) or to_tensor(*args)
    )
    ReplayedViews(dataset, SPEC, 0).__getitems__([4, 2, 7])
    done = ('done', None)
    assert log == [('size', 4), ('size', 2), ('size', 7), ('image', 4), done, ('image', 2), done, ('image', 7), done]


def test_sizes_of_files_come_from_headers(tmp_path, monkeypatch):
    dataset, loads = on_disk(tmp_path), []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, 'load', lambda image: loads.append(image) or load(image))
    sizes = [dataset.image_size(i) for i in range(len(dataset))]
    assert loads == []
    assert sizes == [(image.height, image.width) for image in map(dataset.image, range(len(dataset)))]


def test_a_wrong_size_in_a_header_changes_no_view(monkeypatch):
    dataset = in_memory()
    right = sha1_of([ReplayedViews(dataset, SPEC, 0)[i] for i in range(4)])
    monkeypatch.setattr(dataset._source, 'size', lambda i: (50, 40), raising=False)
    assert sha1_of(ReplayedViews(dataset, SPEC, 0).__getitems__(range(4))) == right


@pytest.mark.parametrize('size', [(1, 1), (1, 500), (500, 1), (2, 3), (600, 7)])
def test_the_smallest_and_narrowest_images_have_views(size):
    image = noise(*size)
    views = draw_views(SPEC, 0, 0, range(50), [size] * 50)
    assert {make_image(image, view, SPEC).size for view in views} == {(20, 24)}


@pytest.mark.parametrize('mode', ['L', 'LA', 'RGBA', 'CMYK'])
def test_images_of_any_mode_become_rgb_first(mode):
    image, views = noise(mode=mode), draw_views(SPEC, 0, 0, range(20), [(40, 50)] * 20)
    ours = [make_image(image, view, SPEC) for view in views]
    assert ours == [make_image(image.convert('RGB'), view, SPEC) for view in views]


def test_an_image_of_another_size_is_refused():
    refused(lambda: make_image(noise(50, 40), PLAIN_VIEW, SPEC), '40x50', '50x40', kind=EvaluationError)


@pytest.mark.parametrize('interpolation', ['nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos'])
def test_crop_resize_and_flip_are_those_of_torchvision(interpolation):
    spec = dataclasses.replace(SPEC, interpolation=interpolation, rand_augment=None)
    theirs = F.resized_crop(noise(), 3, 5, 30, 36, [24, 20], InterpolationMode(interpolation))
    assert make_image(noise(), PLAIN_VIEW, spec) == theirs
    assert make_image(noise(), dataclasses.replace(PLAIN_VIEW, flip=True), spec) == F.hflip(theirs)


@pytest.mark.parametrize(
    ('interpolation', 'crc32'), [('bicubic', 0x4A4E7ECE), ('bilinear', 0xEDC1695D), ('lanczos', 0xF0F1AD24)]
)
def test_rows_are_resized_before_columns(interpolation, crc32):
    """The values are of `Image.resize` of Pillow 9.5; that of Pillow 13 begins with the columns of such an image."""
    y, x = np.mgrid[:106, :60]
    pixels = np.stack([x * x * 7 % 256, y * y * 5 % 256, x * y * 3 % 256], axis=-1).astype(np.uint8)
    view = dataclasses.replace(PLAIN_VIEW, image_size=(106, 60), crop=(0, 0, 106, 60))
    spec = ViewSpec((96, 96), interpolation=interpolation)
    assert image_crc32(make_image(Image.fromarray(pixels), view, spec)) == crc32


@pytest.mark.parametrize('name', OPERATIONS)
@pytest.mark.parametrize('negative', [False, True])
def test_operations_are_those_of_timm(name, negative, monkeypatch):
    base = make_image(noise(), PLAIN_VIEW, SPEC)
    op = auto_augment.AugmentOp(
        name, prob=1.0, magnitude=7.3, hparams=dict(img_mean=SPEC.fill, interpolation=Image.Resampling.BICUBIC)
    )
    monkeypatch.setattr(auto_augment.random, 'random', lambda: 0.75 if negative else 0.25)
    argument = OPERATIONS[name]
    view = dataclasses.replace(PLAIN_VIEW, operations=((name, argument and argument(7.3, negative)),))
    assert make_image(noise(), view, SPEC) == op(base)


@pytest.mark.parametrize('name', ['Posterize', 'PosterizeIncreasing'])
@pytest.mark.parametrize('bits', [0, -3])
def test_posterize_to_no_bits_is_black(name, bits):
    view = dataclasses.replace(PLAIN_VIEW, operations=((name, bits),))
    assert make_image(noise(), view, SPEC).getextrema() == ((0, 0),) * 3


@pytest.mark.parametrize(
    ('name', 'function', 'factors'),
    [
        ('Brightness', F.adjust_brightness, (0.0, 0.4, 1.7)),
        ('Contrast', F.adjust_contrast, (0.0, 0.4, 1.7)),
        ('Saturation', F.adjust_saturation, (0.0, 0.4, 1.7)),
        ('Hue', F.adjust_hue, (-0.5, -0.13, 0.0, 0.0039, 0.3, 0.5)),
    ],
)
def test_color_jitter_is_that_of_torchvision(name, function, factors):
    base = make_image(noise(), PLAIN_VIEW, SPEC)
    views = [dataclasses.replace(PLAIN_VIEW, jitter=((name, factor),)) for factor in factors]
    assert [make_image(noise(), view, SPEC) for view in views] == [function(base, factor) for factor in factors]


def test_color_jitter_is_done_in_the_order_of_the_view():
    two = dataclasses.replace(PLAIN_VIEW, jitter=(('Brightness', 1.5), ('Contrast', 0.5)))
    image = make_image(noise(), two, SPEC)
    assert image == F.adjust_contrast(F.adjust_brightness(make_image(noise(), PLAIN_VIEW, SPEC), 1.5), 0.5)
    assert image != make_image(noise(), dataclasses.replace(two, jitter=two.jitter[::-1]), SPEC)


def test_tensors_are_those_of_torchvision():
    image = noise()
    ours = to_tensor(image, PLAIN_VIEW, SPEC, **CLIP)
    assert torch.equal(ours, F.normalize(F.to_tensor(image), CLIP['mean'], CLIP['std']))


@pytest.mark.parametrize('mode', ['pixel', 'rand', 'const'])
def test_rectangles_are_filled_as_the_mode_says(mode):
    spec = dataclasses.replace(SPEC, size=(200, 200), erasing=Erasing(mode=mode))
    view = dataclasses.replace(PLAIN_VIEW, erased=((20, 30, 100, 80), (150, 0, 50, 10)), grid=(200, 200))
    image = noise(200, 200)
    before, after = to_tensor(image, PLAIN_VIEW, spec, **CLIP), to_tensor(image, view, spec, **CLIP)
    inside = torch.zeros(200, 200, dtype=torch.bool)
    inside[20:120, 30:110] = inside[150:, :10] = True
    assert torch.equal(after[:, ~inside], before[:, ~inside])
    first, second = after[:, 20:120, 30:110], after[:, 150:, :10]
    levels = [len(part.unique()) for part in (*first, *second)]
    if mode == 'const':
        assert not after[:, inside].any()
    elif mode == 'rand':
        assert levels == [1] * 6
        assert len(after[:, inside].unique()) == 6
    else:
        assert min(levels) > 450
        assert abs(first.mean()) < 0.03
        assert abs(first.std() - 1) < 0.03
    assert torch.equal(after, to_tensor(image, view, spec, **CLIP))


def test_noise_differs_between_views_and_rectangles():
    boxes = ((0, 0, 10, 10), (12, 10, 10, 10))
    parts = []
    for key in (1, 2):
        view = dataclasses.replace(PLAIN_VIEW, erased=boxes, noise_key=key)
        pixels = to_tensor(noise(24, 20), view, SPEC, **CLIP)
        parts += [pixels[:, top : top + 10, left : left + 10] for top, left, *_ in boxes]
    assert len({part.numpy().tobytes() for part in parts}) == 4


def test_erasing_is_that_of_timm_on_the_normalized_image(monkeypatch):
    """Same rectangle, the same rule of what is inside: timm's with the noise replaced by a number."""
    view = dataclasses.replace(PLAIN_VIEW, erased=((6, 5, 9, 8),))
    monkeypatch.setattr('timm.data.random_erasing._get_pixels', lambda *args, **kwargs: torch.zeros(3, 1, 1))
    draws = iter([0.0, 72 / 480, 0.0])
    monkeypatch.setattr(random, 'random', lambda: next(draws))
    monkeypatch.setattr(random, 'uniform', lambda low, high: next(draws) if low > 0 else np.log(9 / 8))
    places = iter([6, 5])
    monkeypatch.setattr(random, 'randint', lambda low, high: next(places))
    theirs = RandomErasing(1.0, device='cpu')(to_tensor(noise(24, 20), PLAIN_VIEW, SPEC, **CLIP))
    spec = dataclasses.replace(SPEC, erasing=Erasing(mode='const'))
    assert torch.equal(to_tensor(noise(24, 20), view, spec, **CLIP), theirs)


def test_teacher_and_student_see_the_same_parts_at_their_own_size():
    dataset = in_memory()
    teacher = ReplayedViews(dataset, SPEC, 5, size=(48, 40), **CLIP)
    student = ReplayedViews(dataset, SPEC, 5)
    assert (teacher[0].image.shape, student[0].image.shape) == ((3, 48, 40), (3, 24, 20))
    assert teacher[0].crc32 == student[0].crc32
    view = dataclasses.replace(PLAIN_VIEW, erased=((3, 4, 10, 12),))
    spec = dataclasses.replace(SPEC, erasing=Erasing(mode='const'))
    smooth = Image.linear_gradient('L').resize((50, 40))
    large = to_tensor(make_image(smooth, view, spec, (48, 40)), view, spec, **CLIP)
    small = to_tensor(make_image(smooth, view, spec), view, spec, **CLIP)
    assert torch.equal(large[:, ::2, ::2] == 0, small == 0)
    assert (large[:, ::2, ::2] - small).abs().max() < 0.1


@pytest.mark.parametrize('size', [(1, 1), (7, 300), (224, 224), (448, 224), (223, 97)])
def test_rectangles_stay_within_images_of_any_size(size):
    for box in [(0, 0, 223, 223), (223, 223, 1, 1), (100, 50, 124, 3), (1, 222, 2, 2)]:
        top, left, height, width = on_grid(box, (224, 224), size)
        assert 0 <= top < size[0]
        assert 0 <= left < size[1]
        assert 0 <= height <= size[0] - top
        assert 0 <= width <= size[1] - left
        assert size != (224, 224) or (top, left, height, width) == box


def test_images_of_a_fixed_set_of_views_are_those_of_every_version():
    """A change of NumPy, Pillow or timm that shows here would show in stored labels."""
    three = dataclasses.replace(SPEC, rand_augment=RandAugment(THREE, probability=1.0))
    digest = hashlib.sha256()
    for spec in (SPEC, three, dataclasses.replace(SPEC, interpolation='bilinear')):
        for i, view in enumerate(draw_views(spec, 1, 0, range(200), [(40, 50)] * 200)):
            image = make_image(noise(seed=i % 7), view, spec)
            digest.update(image.tobytes() + to_tensor(image, view, spec, **CLIP).numpy().tobytes())
    assert digest.hexdigest()[:8] == '9759474b'


def test_a_view_is_described_in_words_numbers_and_as_an_image(tmp_path):
    dataset = on_disk(tmp_path)
    spec = dataclasses.replace(SPEC, erasing=Erasing(1.0), rand_augment=RandAugment(probability=1.0))
    described = describe_view(dataset, spec, 3, 1, 5)
    view, image = ReplayedViews(dataset, spec, 3).view((1, 5))
    assert View.from_record(described.record) == view
    assert described.words['image'] == dataset.describe(5)
    assert described.words['crc32'] == f'{image_crc32(image):08x}'
    for name, argument in view.operations:
        assert (name if argument is None else f'{name} {argument:.4g}') in described.words['operations']
    top, left, height, width = view.erased[0]
    assert f'{height}x{width} at row {top}, column {left}' == described.words['erased']
    shown, own = np.asarray(described.image), np.asarray(image)
    different = np.any(shown != own, axis=2)
    assert different[top : top + height, left : left + width].mean() > 0.9
    different[top : top + height, left : left + width] = False
    assert not different.any()


def test_a_view_without_changes_is_described_too():
    spec = ViewSpec((24, 20), hflip=0)
    words = describe_view(in_memory(), spec, 0, 0, 0).words
    assert [words[name] for name in ('flip', 'operations', 'color jitter', 'erased')] == ['none'] * 4


def test_registered_data_sets_have_views(tmp_path):
    fake_datasets.oxford_pets(tmp_path)
    for name, root in (('digits', None), ('oxford_pets', tmp_path)):
        dataset = load_dataset(name, 'train', root, check_counts=False)
        item = ReplayedViews(dataset, SPEC, 0)[1]
        assert item.image.shape == (3, 24, 20)
        assert item.label == dataset.labels[1]
