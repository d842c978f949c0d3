"""The views of converted dumps: those of the released code, for the images that it saw; a training on them."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import refused
from PIL import Image
from test_official_views import CASES, NORMS, image
from torch.utils.data import DataLoader

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data import load_dataset
from tinyvit_zoo.data.replay import ModelInput, Place
from tinyvit_zoo.soft_labels import Store, Teacher, check_data, check_teacher, check_views, official_views
from tinyvit_zoo.soft_labels.legacy import convert
from tinyvit_zoo.soft_labels.official_views import draw_official_view, official_spec, official_tensor
from tinyvit_zoo.soft_labels.stored_views import ConvertedViews, describe_stored, released_settings
from tinyvit_zoo.training.soft_label_views import SoftLabelViews

K, CLASSES = 3, ('n2', 'n3', 'n4', 'n10')
MODEL = ModelInput((32, 40), *NORMS['default'])


def write_dump(folder: Path, seeds: dict[str, int], epoch: int = 0) -> None:
    """An epoch in two files, as the released code's ranks write it; seed s has the classes s to s + 2, modulo 4."""
    place = folder / f'logits_top{K}_epoch{epoch}'
    place.mkdir(parents=True)
    for rank in (0, 1):
        items = list(seeds.items())[rank::2]
        values = b''.join(
            np.array(seed, '<i4').tobytes()
            + (np.arange(seed, seed + K) % len(CLASSES)).astype('<i2').tobytes()
            + np.array([0.5, 0.25, 0.125], '<f2').tobytes()
            for _, seed in items
        )
        (place / f'rank{rank}-values.bin').write_bytes(values)
        (place / f'rank{rank}-keys.txt').write_text(''.join(f'{key}\n' for key, _ in items))


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """A data set of class folders: six images of noise each."""
    root, rng = tmp_path_factory.mktemp('data'), np.random.default_rng(0)
    for name in CLASSES:
        (root / 'train' / name).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 256, (30 + i, 44, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / 'train' / name / f'{name}_{7 * i}.png')
    return root


def by_name(folder: Path) -> dict[str, int]:
    """A seed for each image, by name."""
    return {path.stem: 1000 + i for i, path in enumerate(sorted(folder.rglob('*.png'), reverse=True))}


def converted(place: Path, seeds: dict[str, int], **changes) -> Store:
    write_dump(place / 'dump', seeds)
    return convert(
        place / 'dump', place / 's', **dict(classes=len(CLASSES), views=released_settings(), teacher='CLIP') | changes
    )


@pytest.fixture(scope='module')
def data(folder):
    return load_dataset(str(folder), 'train')


@pytest.fixture(scope='module')
def store(folder, tmp_path_factory) -> Store:
    return converted(tmp_path_factory.mktemp('labels'), by_name(folder))


@pytest.mark.parametrize('norm', NORMS)
def test_every_pixel_is_that_of_the_authors_transform(norm, tmp_path):
    names = {f'{"abcd"[i % 4]}_{i}': case for i, case in enumerate(c for c in CASES.values() if c['norm'] == norm)}
    for name in names:
        (tmp_path / 'data' / 'train' / name[0]).mkdir(parents=True, exist_ok=True)
        image().save(tmp_path / 'data' / 'train' / name[0] / f'{name}.png')
    store = converted(tmp_path, {name: case['seed'] for name, case in names.items()})
    data = load_dataset(str(tmp_path / 'data'), 'train')
    views = SoftLabelViews(data, store, ModelInput((224, 224), *NORMS[norm]))
    for position in range(len(data)):
        tensor = views[Place(0, position)].image.numpy()
        assert hashlib.sha256(tensor.tobytes()).hexdigest() == names[Path(data.describe(position)).stem]['sha256']


def test_each_image_has_the_seed_and_the_labels_of_its_name(folder, data, store):
    seeds, views = by_name(folder), SoftLabelViews(data, store, MODEL)
    spec = official_spec(MODEL.size)
    for view, position in zip(views.__getitems__([Place(0, p) for p in (17, 0, 9)]), (17, 0, 9), strict=True):
        seed, original = seeds[Path(data.describe(position)).stem], data.image(position)
        official = draw_official_view(seed, (original.height, original.width), spec)
        assert torch.equal(view.image, official_tensor(original, official, spec))
        assert view.ids.tolist() == [(seed + i) % 4 for i in range(K)]
        assert view.label == data.labels[position]


def test_numbers_are_positions_in_the_order_of_torchvisions_folders(folder, data, tmp_path):
    """As text, 'n10' comes before 'n2' and 'n2_14' before 'n2_7'; timm counts classes as numbers."""
    order = sorted(folder.rglob('*.png'), key=lambda path: (path.parent.name, path.name))
    store = converted(tmp_path, {str(i): 5000 + i for i in range(len(order))})
    rows = ConvertedViews(store, data, MODEL).rows
    assert rows.tolist() == [order.index(Path(data.describe(i))) for i in range(len(data))]
    assert rows.tolist() != list(range(len(data)))


def test_the_fill_color_follows_the_mean_of_the_model(data, store):
    views = ConvertedViews(store, data, MODEL._replace(mean=(0.1, 0.2, 0.3)))
    assert views.spec.fill == (26, 51, 76)
    assert views.spec.size == MODEL.size


def test_images_are_not_turned_as_exif_says(tmp_path):
    place = tmp_path / 'data' / 'train'
    for i, name in enumerate('abcd'):
        (place / name).mkdir(parents=True)
        pixels = Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 50, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by 90 degrees
        pixels.save(place / name / f'{name}_1.png', exif=exif)
    data = load_dataset(str(tmp_path / 'data'), 'train')
    assert data.image(0).size == (20, 50)
    store = converted(tmp_path, by_name(place))
    assert ConvertedViews(store, data, MODEL).dataset.image(0).size == (50, 20)


def test_workers_make_the_same_views(data, store):
    views, places = SoftLabelViews(data, store, MODEL), [Place(0, i) for i in range(6)]
    next(iter(views.__getitems__(places[:1])))  # opened here, so that the worker has to open it again
    alone, apart = (
        torch.cat([batch[0] for batch in DataLoader(views, batch_sampler=[places[:3], places[3:]], num_workers=n)])
        for n in (0, 1)
    )
    assert torch.equal(alone, apart)


def test_checks_know_that_the_files_name_neither_weights_nor_checksums(data, store):
    check_data(store, data)
    assert check_views(store, data, [0]) == 0
    torch.manual_seed(0)
    teacher = Teacher.of_timm(timm.create_model('test_vit', num_classes=4, img_size=32), 'another one')
    assert check_teacher(store, data, teacher, [0], share=0.5).views == len(data) // 2


@pytest.mark.parametrize(
    ('positions', 'words'),
    [([0] * 24, ('other images than', 'the released code saw')), (range(5), ('images 24', '5'))],
    ids=['other images', 'fewer images'],
)
def test_data_that_the_released_code_did_not_see_is_refused(positions, words, data, store):
    other = data.subset(positions)
    refused(lambda: SoftLabelViews(other, store, MODEL), *words, kind=EvaluationError)
    refused(lambda: check_data(store, other), *words, kind=EvaluationError)


@pytest.mark.parametrize(
    ('views', 'words'),
    [
        ({}, ('does not say', 'convert')),
        ({'released code': official_spec(color_jitter=0.4).settings()}, ('color jitter',)),
        ({'released code': official_spec().settings() | dict(version=99)}, ('version 99',)),
    ],
)
def test_settings_that_no_seed_replays_are_refused(views, words, folder, data, tmp_path):
    store = converted(tmp_path, by_name(folder), views=views)
    refused(lambda: SoftLabelViews(data, store, MODEL), *words, kind=EvaluationError)


def test_a_numpy_that_draws_other_numbers_is_refused(data, store, monkeypatch):
    monkeypatch.setattr(official_views, 'KNOWN', (8.9, ['4', '0', '1', '0'], -0.6))
    refused(lambda: SoftLabelViews(data, store, MODEL), f'NumPy {np.__version__}', '1.26', kind=EvaluationError)


def test_a_view_is_described(folder, data, store):
    found = describe_stored(store, data, 0, 3)
    view = draw_official_view(by_name(folder)[Path(data.describe(3)).stem], found.record['image_size'], official_spec())
    assert tuple(found.record['crop']) == view.view.crop
    assert found.image.size == (224, 224)
    assert found.words['image'] == data.describe(3)


def test_the_commands_convert_show_check_and_train(folder, cli, tmp_path):
    def ran(*words) -> str:
        code, out, err = cli('distill', *map(str, words))
        assert code == 0, err
        return out

    write_dump(tmp_path / 'dump', by_name(folder))
    ran('convert', tmp_path / 'dump', tmp_path / 's', '--num-classes', '4')
    shown = ran('info', tmp_path / 's', '--view', '0:7', '-d', folder, '--image', tmp_path / 'v.png')
    assert 'crop:' in shown
    assert Image.open(tmp_path / 'v.png').size == (224, 224)
    assert 'none carries a checksum' in ran('check', tmp_path / 's', '-d', folder)
    options = ('--random', '--epochs', '1', '--batch-size', '8', '--device', 'cpu', '--img-size', '32')
    ran('train', 'test_vit', '-d', folder, '--store', tmp_path / 's', '-o', tmp_path / 'run', *options)
    results = json.loads((tmp_path / 'run' / 'results.json').read_text())
    assert results['soft_labels']['teacher'] == 'clip_vit_large_patch14_22k'
    assert np.isfinite(results['loss'])
