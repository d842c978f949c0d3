"""Subsets of the images to train on: which images they are, and that a run and a store know them."""

import json
import shlex

import fake_datasets as fake
import numpy as np
import pytest
import timm
import torch
from conftest import refused, small_of
from typer.main import get_command

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data import load_dataset
from tinyvit_zoo.data.replay import ViewSpec
from tinyvit_zoo.data.subsets import long_tailed, share_of_each_class, take_subset, write_kept
from tinyvit_zoo.data.unlabelled import load_unlabelled, with_classes
from tinyvit_zoo.downstream.finetune import finetune
from tinyvit_zoo.downstream.reproduce.jobs import State, run_rows
from tinyvit_zoo.downstream.reproduce.numbers import read_numbers
from tinyvit_zoo.downstream.results import record
from tinyvit_zoo.hub.folder import save_folder
from tinyvit_zoo.soft_labels import Teacher, save
from tinyvit_zoo.training.distillation import distil_from_store
from tinyvit_zoo.training.recipes import DISTILLATION, find_recipe
from tinyvit_zoo.training.soft_label_views import ViewSampler


@pytest.fixture(scope='module')
def digits():
    return load_dataset('digits', 'train')


def small():
    torch.manual_seed(0)
    return timm.create_model('test_vit', num_classes=10, img_size=32)


def denied(dataset, which, *words):
    return refused(lambda: take_subset(dataset, str(which)), *words, kind=EvaluationError)


# Shares


def test_a_smaller_share_lies_within_a_larger_one_and_has_its_part_of_every_class(digits):
    counts = np.bincount(digits.labels)
    within: set[int] = set()
    for share in (0.01, 0.1, 0.5):
        positions = share_of_each_class(digits.labels, share)
        assert np.bincount(digits.labels[positions]).tolist() == [round(share * n) for n in counts]
        assert within < set(positions.tolist())
        within = set(positions.tolist())


def test_a_share_has_an_image_of_every_class_and_depends_on_its_class_and_the_seed_alone(digits):
    assert len(share_of_each_class(digits.labels, 0.0001)) == 10
    tenth = share_of_each_class(digits.labels, 0.1)
    assert tenth.tolist() != share_of_each_class(digits.labels, 0.1, seed=1).tolist()
    without_nine = np.where(digits.labels == 9, 8, digits.labels)
    same = share_of_each_class(without_nine, 0.1)
    assert np.array_equal(tenth[digits.labels[tenth] < 8], same[without_nine[same] < 8])


def test_the_images_of_a_share_are_the_same_on_every_machine(digits):
    # Hard-coded: a run that was stopped on one machine resumes on another.
    subset = take_subset(digits, '10%')
    assert subset.selection.fingerprint[:16] == '84eebbadf6d3dfbf'
    assert subset.selection.words == '10%: 136 of 1,347 images of digits (train)'
    assert subset.classes == digits.classes
    assert take_subset(digits, '100%').fingerprint() == digits.fingerprint()


def test_images_without_labels_give_a_share_of_all_of_them(tmp_path):
    fake.class_folders(tmp_path, ('a', 'b'), images=20)
    dataset = load_unlabelled(str(tmp_path))
    assert len(take_subset(dataset, '10%')) == 4
    denied(dataset, 'long-tailed', 'has no classes')


def test_class_sizes_of_a_long_tail_fall_exponentially_to_a_hundredth():
    labels = np.repeat(np.arange(5), 1000)
    sizes = np.bincount(labels[long_tailed(labels)])
    assert sorted(sizes.tolist()) == [10, 32, 100, 316, 1000]
    assert sizes.tolist() != sorted(sizes.tolist(), reverse=True)  # the order of the classes is drawn
    few = np.repeat(np.arange(3), [1, 50, 200])
    assert (np.bincount(few[long_tailed(few)]) >= 1).all()


@pytest.mark.parametrize('which', ['0%', '101%', '1', 'half', 'nowhere.txt', '', ' ', 'a\0b'])
def test_what_is_no_subset_is_refused(digits, which):
    denied(digits, which, 'share')


# Files


@pytest.fixture
def animals(tmp_path):
    for name in ('cat/c1.png', 'cat/c2.png', 'dog/d 1.png', 'dog/same.png', 'cat/same.png'):
        fake.image(tmp_path / 'data' / name, seed=len(name))
    return load_dataset(str(tmp_path / 'data'), 'all')


@pytest.mark.parametrize(
    'text', ['c2.png\nd 1.png\n', '\ufeffdog/d 1.png\r\ncat/c2.png\r\n\r\ncat/c2.png', './cat/c2.png\nd 1.png']
)
def test_a_list_names_files_with_or_without_folders(animals, tmp_path, text):
    (tmp_path / 'list.txt').write_bytes(text.encode())
    subset = take_subset(animals, str(tmp_path / 'list.txt'))
    assert [subset.describe(i)[-6:] for i in range(len(subset))] == ['c2.png', ' 1.png']
    assert subset.selection.name == 'list.txt'


def test_a_list_may_name_whole_paths_and_folders_above_the_data(animals, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / 'data')
    here = load_dataset('.', 'all')
    (tmp_path / 'list.txt').write_text(f'{tmp_path}/data/cat/c1.png\ndata/dog/same.png\n')
    for dataset in (animals, here):
        subset = take_subset(dataset, str(tmp_path / 'list.txt'))
        assert [subset.describe(i).rpartition('/')[2] for i in range(len(subset))] == ['c1.png', 'same.png']
    (tmp_path / 'list.txt').write_text('/cat/c1.png\n')
    denied(here, tmp_path / 'list.txt', 'has 1 name, 1 of no image')


def test_a_list_of_other_data_or_with_unclear_names_is_refused(animals, tmp_path):
    path = tmp_path / 'list.txt'
    for text, *words in (
        ('c1.png\nc3.png\nc4.png', 'has 3 names, 2 of no image', 'c3.png'),
        ('same.png', 'several images', 'put the folder before it'),
        ('other/c1.png', 'has 1 name, 1 of no image'),
        (' \n', 'names no image'),
    ):
        path.write_text(text)
        denied(animals, path, *words)


def test_a_file_of_kept_images_is_read_again_for_the_same_images_only(animals, tmp_path):
    path = tmp_path / 'kept.json'
    write_kept(path, animals, np.array([0, 3]), top=5, folder='caf\udce9')  # a name that is no UTF-8
    kept = take_subset(animals, str(path))
    assert kept.selection.positions.tolist() == [1, 2, 4]
    denied(animals.subset(range(4)), path, 'is of other images')
    denied(animals.subset([1, 0, 2, 3, 4]), path, 'is of other images')
    content = json.loads(path.read_text())
    for damage in (
        dict(left_out=[5]), dict(left_out='all'), dict(version=2), dict(images=None), dict(left_out=[0.5]),
        dict(left_out=['0']), dict(left_out=[True]), dict(left_out=[[0], [3]]), dict(left_out={'0': 3}),
        dict(left_out=0), dict(images='5'), dict(left_out=[10**30]),
    ):  # fmt: skip
        path.write_text(json.dumps({**content, **damage}))
        denied(animals, path, 'not a list of kept images')
    path.write_text('[' * 100_000)
    denied(animals, path, 'not a list of kept images')
    write_kept(path, animals, np.arange(5))
    denied(animals, path, 'keeps no image')


@pytest.mark.parametrize('split', ['', 'train/'])
def test_a_folder_has_the_subsets_for_pretraining_that_it_has_for_finetuning(tmp_path, split):
    for i in range(12):
        fake.image(tmp_path / 'data' / f'{split}{"ab"[i % 2]}' / f'{i}.png', seed=i)
    name = str(tmp_path / 'data')
    labelled = load_dataset(name, 'train' if split else 'all')
    write_kept(tmp_path / 'kept.json', labelled, np.array([0, 7]))
    for which in ('50%', 'long-tailed', str(tmp_path / 'kept.json')):
        found = take_subset(with_classes(load_unlabelled(name), name), which)
        assert found.selection.fingerprint == take_subset(labelled, which).selection.fingerprint
    fake.image(tmp_path / 'data' / f'{split}beside.png')  # now one image has no class
    flat = load_unlabelled(name)
    assert with_classes(flat, name) is flat


def test_a_share_of_a_folder_with_unreadable_images_is_one_of_each_class(tmp_path):
    for i in range(20):
        fake.image(tmp_path / ('a' if i < 16 else 'b') / f'{i}.png', seed=i)
    for unreadable in ('a/3.png', 'b/17.png'):
        (tmp_path / unreadable).write_bytes(b'no image')
    name = str(tmp_path)
    images = with_classes(load_unlabelled(name, skip_unreadable=True), name)
    labelled = load_dataset(name, 'all', skip_unreadable=True)
    assert images.skipped == labelled.skipped == (str(tmp_path / 'a/3.png'), str(tmp_path / 'b/17.png'))
    assert (len(images), images.complete) == (18, False)
    half = take_subset(images, '50%')
    assert np.bincount(half.labels).tolist() == [8, 2]  # of 15 and 3
    assert half.selection.fingerprint == take_subset(labelled, '50%').selection.fingerprint
    fake.image(tmp_path / 'beside.png')  # now one image has no class
    flat = load_unlabelled(name, skip_unreadable=True)
    assert with_classes(flat, name) is flat


# Runs


def test_results_say_which_subset_was_trained_on(digits):
    subset = take_subset(digits, '1%')
    data = record('finetune', model=None, dataset=dict(train=subset, test=digits), seed=0)['data']
    assert data['train']['subset'] == dict(name='1%', images=10, of=1347, sha256=subset.selection.fingerprint)
    assert 'subset' not in data['test']


def test_a_run_on_another_subset_is_not_resumed(digits, tmp_path):
    recipe = find_recipe('tinyvit_scratch').changed(epochs=1, batch_size=8)

    def train(which, seed=0):
        subset = take_subset(digits, which, seed)
        options = dict(held_out=0.0, device=torch.device('cpu'), say=lambda text: None)
        return finetune(small(), subset, recipe, tmp_path, **options)

    assert train('1%').training_images == 10
    assert len(train('1%').history) == 1
    refused(lambda: train('2%'), 'another run', 'subset', kind=EvaluationError)
    refused(lambda: train('1%', seed=1), 'another run', 'subset', kind=EvaluationError)


@pytest.fixture(scope='module')
def store(digits, tmp_path_factory):
    teacher = Teacher.of_timm(small(), 'a small ViT')
    return save(
        teacher, digits.subset(range(200)), ViewSpec.from_timm((32, 32)), tmp_path_factory.mktemp('s'), [0], k=5
    )


def test_a_subset_of_a_stored_data_set_has_its_stored_views(digits, store, tmp_path, monkeypatch):
    whole = digits.subset(range(200))
    subset = take_subset(whole, '10%')
    recipe = DISTILLATION['tinyvit_22k_distill'].changed(epochs=1, batch_size=8, warmup_epochs=0)
    drawn, iterate = [], ViewSampler.__iter__

    def listed(self):
        places = list(iterate(self))
        drawn.extend(places)
        return iter(places)

    monkeypatch.setattr(ViewSampler, '__iter__', listed)
    options = dict(device=torch.device('cpu'), say=lambda text: None)
    distil_from_store(small(), subset, store, recipe, tmp_path, **options)
    assert len(drawn) == 16
    assert {place.position for place in drawn} <= set(subset.selection.positions.tolist())
    other = take_subset(whole, '10%', seed=1)
    refused(
        lambda: distil_from_store(small(), other, store, recipe, tmp_path, **options), 'another run', 'subset',
        kind=EvaluationError,
    )  # fmt: skip
    foreign = take_subset(digits, '10%')
    refused(
        lambda: distil_from_store(small(), foreign, store, recipe, tmp_path / 'o', **options), 'images 200',
        kind=EvaluationError,
    )  # fmt: skip


def test_every_command_that_trains_takes_a_subset():
    from tinyvit_zoo.cli.app import app

    commands = get_command(app).commands
    trainers = [commands['finetune'], commands['contract'], commands['distill'].commands['train']]
    trainers += commands['pretrain'].commands.values()
    assert len(trainers) == 9
    for trainer in trainers:
        assert any('--subset' in parameter.opts for parameter in trainer.params), trainer.name
    assert not any('--subset' in parameter.opts for parameter in commands['knn'].params)


def test_finetune_trains_on_the_subset_and_tests_on_all(cli, tmp_path):
    code, out, err = cli(
        'finetune', 'test_vit', '--random', '--img-size', 32, '-d', 'digits', '--subset', '1%', '--held-out', 0,
        '--epochs', 1, '-o', tmp_path / 'out',
    )  # fmt: skip
    assert code == 0, err
    assert 'Subset 1%: 10 of 1,347 images of digits (train).' in out
    results = json.loads((tmp_path / 'out' / 'results.json').read_text())
    assert results['training_images'] == 10
    assert results['data']['test']['images'] == 450


IMAGES = {'1%': 10, '10%': 136}


@pytest.mark.parametrize(
    ('kind', 'share'),
    [
        ('mae', '1%'),
        pytest.param('mae', '10%', marks=pytest.mark.slow),
        pytest.param('mocov3', '10%', marks=pytest.mark.slow),
    ],
)
def test_the_rows_that_are_pre_trained_on_a_share_say_a_command_that_does_it(kind, share, cli, tmp_path):
    """MAE-Lite's Table 3, on digits: an epoch of two updates, of images of 2 x 2 patches."""
    images, row = IMAGES[share], f'mae_lite/table3/{kind}-tiny-pre-trained-on-{share[:-1]}-in1k/top1/imagenet-1k'
    (line,) = run_rows([number for number in read_numbers() if number.id == row])
    assert (line.state, line.number.model.split()[-2]) == (State.NO_WEIGHTS, share)
    words = shlex.split(line.command)[1:]
    assert words[words.index('--subset') + 1] == share
    at_full = {'imagenet-1k': 'digits', 'OUT': str(tmp_path / 'run')}
    small = ('--img-size', 32, '--epochs', 1, '--batch-size', images // 2, '--device', 'cpu')
    code, out, err = cli(*(at_full.get(word, word) for word in words), *small)
    assert code == 0, err
    assert f'Subset {share}: {images:,} of 1,347 images of digits' in out
    results = json.loads((tmp_path / 'run' / 'results.json').read_text())
    assert results['data']['train']['subset']['images'] == images


@pytest.mark.parametrize('share', ['1%', pytest.param('10%', marks=pytest.mark.slow)])
def test_a_student_with_shared_weights_learns_from_a_share_and_is_fine_tuned_on_it(share, cli, tmp_path):
    images, batch = IMAGES[share], {'1%': 4, '10%': 68}[share]
    save_folder(small_of('mini_deit', img_size=32, num_classes=10), tmp_path / 'mini')
    common = ('-d', 'digits', '--subset', share, '--epochs', 1, '--batch-size', batch, '--device', 'cpu')
    taught = ('pretrain', 'minivit', '--student', tmp_path / 'mini', '--teacher', tmp_path / 'mini')
    tuned = ('finetune', tmp_path / 'taught' / 'model', '--held-out', 0)
    ends = [cli(*taught, *common, '-o', tmp_path / 'taught'), cli(*tuned, *common, '-o', tmp_path / 'tuned')]
    assert [(code, err) for code, _, err in ends] == [(0, '')] * 2
    results = [json.loads((tmp_path / run / 'results.json').read_text()) for run in ('taught', 'tuned')]
    assert [result['data']['train']['subset']['images'] for result in results] == [images] * 2
    assert [result['data']['train']['subset']['name'] for result in results] == [share] * 2
