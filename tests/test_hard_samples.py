"""Hard samples: by a teacher at work and by stored soft labels, and training without them."""

import json

import numpy as np
import pytest
import timm
import torch
from conftest import refused

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data import load_dataset
from tinyvit_zoo.data.image_dataset import ImageDataset
from tinyvit_zoo.data.replay import ViewSpec
from tinyvit_zoo.data.subsets import take_subset
from tinyvit_zoo.downstream.analysis.hard_samples import (
    HardSamples,
    draw_positions,
    hard_in_store,
    hard_of_teacher,
)
from tinyvit_zoo.hub import save_folder
from tinyvit_zoo.soft_labels import Store, Teacher, save

PLAIN = ViewSpec((32, 32), scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0)
"""The whole image, which is a square, as evaluation with a crop of 1 has it."""


@pytest.fixture(scope='module')
def digits():
    return load_dataset('digits', 'train').subset(range(120))


@pytest.fixture(scope='module')
def net():
    torch.manual_seed(3)
    model = timm.create_model('test_vit', num_classes=10, img_size=32)
    torch.nn.init.normal_(model.head.weight)
    model.pretrained_cfg = {**model.pretrained_cfg, 'crop_pct': 1.0, 'interpolation': 'bicubic'}
    return model.eval()


def stored(net, digits, folder, spec=PLAIN, epochs=(0,), k=5) -> Store:
    return save(Teacher.of_timm(net, 'a small ViT'), digits, spec, folder, list(epochs), k=k, progress=False)


def test_a_store_of_plain_views_says_what_the_live_teacher_says(net, digits, tmp_path):
    live = hard_of_teacher(net, digits, progress=False)
    assert 0 < live.hard.sum() < len(digits)
    found = hard_in_store(stored(net, digits, tmp_path, epochs=(0, 1)), digits)
    assert (live.views, found.views) == (1, 2)
    assert np.array_equal(found.hard, live.hard)
    assert np.array_equal(found.guesses, live.guesses)
    assert np.array_equal(found.outside, 2 * live.outside)


def test_hard_is_what_is_outside_the_logits_top_k(net, digits):
    with torch.no_grad():
        images = torch.stack([view_of(net, digits, i) for i in range(20)])
        top = net(images).topk(3, dim=1).indices.numpy()
    expected = [digits.labels[i] not in top[i] for i in range(20)]
    assert hard_of_teacher(net, digits.subset(range(20)), 3, progress=False).hard.tolist() == expected


def view_of(net, digits, i):
    from tinyvit_zoo.data.transforms import eval_transform

    return eval_transform(net)(digits.image(i))


def test_an_image_is_hard_when_most_stored_epochs_say_so(tmp_path, net, digits):
    store = stored(net, digits, tmp_path, ViewSpec.from_timm((32, 32)), epochs=range(4))
    found = hard_in_store(store, digits)
    counts = np.zeros(len(digits), int)
    for number in range(4):
        ids = store.epoch(number).read(np.arange(len(digits))).ids
        counts += [label not in row[:5] for label, row in zip(digits.labels, ids, strict=True)]
    assert np.array_equal(found.outside, counts)
    assert {2, 3} <= set(counts.tolist())
    assert np.array_equal(found.hard, counts > 2)  # 2 of 4 are not most
    assert hard_in_store(store, digits, epochs=[1]).views == 1
    assert HardSamples(5, 4, np.array([2, 3]), np.zeros(2, int), np.arange(2)).hard.tolist() == [False, True]


def test_too_few_probabilities_classes_or_labels_are_refused(net, digits, tmp_path):
    few = stored(net, digits, tmp_path / 'few', k=4)
    refused(lambda: hard_in_store(few, digits), '4 most probable classes', 'at least 5', kind=EvaluationError)
    assert hard_in_store(few, digits, 4).top == 4
    refused(lambda: hard_in_store(few, digits.subset(range(50)), 4), 'images 120', kind=EvaluationError)
    refused(lambda: hard_of_teacher(net, digits, 10), 'from 1 to 9', kind=EvaluationError)
    unlabelled = ImageDataset('photos', 'all', (), [-1] * len(digits), digits.source)
    refused(lambda: hard_of_teacher(net, unlabelled), 'no labels', kind=EvaluationError)


def test_the_command_writes_a_list_that_a_training_takes(cli, net, tmp_path):
    save_folder(net, tmp_path / 'teacher')
    kept = tmp_path / 'hard images' / 'kept.json'
    teacher = f'local-dir:{tmp_path / "teacher"}'
    code, out, err = cli('analyze', 'hard-samples', '-d', 'digits', '--teacher', teacher, '--top', 5, '-o', kept)
    assert code == 0, err
    dataset = load_dataset('digits', 'train')
    content = json.loads(kept.read_text())
    subset = take_subset(dataset, str(kept))
    assert len(subset) == content['kept'] == 1347 - len(content['left_out'])
    assert f'{len(content["left_out"])} of 1,347 images' in out
    assert f"--subset '{kept}'" in out  # as a shell takes it
    assert content['about']['teacher']['name'] == teacher
    table = kept.with_suffix('.csv').read_text().splitlines()
    assert len(table) == 1 + len(content['left_out'])
    assert table[0] == 'position,image,label,name,outside,views,guess'
    assert kept.with_suffix('.png').exists()
    results = json.loads((kept.parent / 'results.json').read_text())
    assert results == content['about']
    assert (results['images'], results['hard'], results['kept']) == (1347, len(table) - 1, len(subset))
    assert (results['top'], results['list'], results['data']['images']) == (5, 'kept.json', 1347)

    store = tmp_path / 'store'
    stored(net, dataset, store)
    again = tmp_path / 'again.json'
    code, out, err = cli('analyze', 'hard-samples', '-d', 'digits', '--store', store, '-o', again)
    assert code == 0, err
    assert json.loads(again.read_text())['left_out'] == content['left_out']


def test_some_images_are_drawn_and_the_list_has_none_of_the_others(cli, net, digits, tmp_path):
    store, seen = stored(net, digits, tmp_path / 'store'), draw_positions(digits, 40, seed=0)
    whole, live, read = (
        hard_of_teacher(net, digits, progress=False),
        hard_of_teacher(net, digits, positions=seen, progress=False),
        hard_in_store(store, digits, positions=seen),
    )
    assert len(seen) == 40
    assert set(draw_positions(digits, 20, seed=0)) < set(seen)
    assert set(seen) != set(draw_positions(digits, 40, seed=1))
    for found in (live, read):
        assert np.array_equal(found.hard, whole.hard[seen])
        assert np.array_equal(found.guesses, whole.guesses[seen])
    save_folder(net, tmp_path / 'teacher')
    kept = tmp_path / 'out' / 'kept.json'
    line = ('analyze', 'hard-samples', '-d', 'digits', '--teacher', f'local-dir:{tmp_path / "teacher"}', '--images', 50)
    code, out, err = cli(*line, '-o', kept)
    assert code == 0, err
    assert ' of 50 images' in out
    assert 'drawn from 1,347' in out
    content, dataset = json.loads(kept.read_text()), load_dataset('digits', 'train')
    subset = take_subset(dataset, str(kept))
    assert len(subset) == content['kept'] == 50 - content['about']['hard']
    assert set(subset.selection.positions) < set(draw_positions(dataset, 50, seed=0))


def test_the_results_of_another_evaluator_are_not_replaced(cli, tmp_path):
    (tmp_path / 'results.json').write_text('{"evaluator": "knn"}')
    for name in ('kept.json', 'results.json'):
        line = ('analyze', 'hard-samples', '-d', 'digits', '--teacher', 'no_such_model', '-o', tmp_path / name)
        code, out, err = cli(*line)
        assert (code, out, err.count('\n')) == (1, '', 1)
        assert 'results.json would be replaced' in err
    assert (tmp_path / 'results.json').read_text() == '{"evaluator": "knn"}'


def test_a_list_that_cannot_be_written_is_refused_before_the_teacher_works(cli, tmp_path):
    (tmp_path / 'folder.json').mkdir()
    (tmp_path / 'file').touch()
    for path in (tmp_path / 'folder.json', tmp_path / 'file' / 'kept.json'):
        code, out, err = cli('analyze', 'hard-samples', '-d', 'digits', '--teacher', 'no_such_model', '-o', path)
        assert (code, out, err.count('\n')) == (1, '', 1)
        assert 'cannot be written' in err
    assert [path.name for path in (tmp_path / 'folder.json').iterdir()] == []


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ((), 'either --store'),
        (('--store', 's', '--teacher', 't'), 'either --store'),
        (('--store', 's', '--weights', 'w.pth'), '--teacher-weights needs --teacher NAME'),
    ],
)
def test_a_command_without_one_source_is_refused(cli, options, words):
    code, _, err = cli('analyze', 'hard-samples', '-d', 'digits', *options, '-o', 'kept.json')
    assert code == 2
    assert words in err
