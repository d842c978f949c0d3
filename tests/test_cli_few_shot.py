"""The commands `fewshot` and `knn` from end to end, on real images with random weights."""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import fake_datasets as fake
import numpy as np
import pytest
import timm
import torch
from conftest import rest_is_full
from PIL import Image

from tinyvit_zoo.cli.options import ModelOptions
from tinyvit_zoo.data.registry import REGISTRY
from tinyvit_zoo.downstream.reports import few_shot as reports

SMALL = ('--random', '--img-size', 32)
MODELS = ('tinyvit_5m_224', 'mini_swin_tiny_patch4_window7_224', 'tinymim_vit_tiny_patch16_224', 'resnet10t')
DATA = ('digits', 'textures')
IN_TURN = [(model, DATA[i % len(DATA)]) for i, model in enumerate(MODELS)]


def results_of(folder) -> dict:
    return json.loads((folder / 'results.json').read_text())


@pytest.fixture
def forwards(monkeypatch) -> list[int]:
    """Images of each forward pass of a model that timm makes."""
    seen = []
    create = timm.create_model

    def watched(*args, **kwargs):
        model = create(*args, **kwargs)
        forward = model.forward_features

        def counted(x, *more, **options):
            seen.append(len(x))
            return forward(x, *more, **options)

        model.forward_features = counted
        return model

    monkeypatch.setattr(timm, 'create_model', watched)
    return seen


def test_fewshot_of_several_shots_passes_each_image_once(cli, tmp_path, forwards):
    code, out, err = cli(
        'fewshot', 'tinyvit_5m_224', *SMALL, '-d', 'digits', '--split', 'test', '--shots', '5,10', '--episodes', 30,
        '--seed', 1, '-o', tmp_path / 'out',
    )  # fmt: skip
    assert code == 0, err
    assert sum(forwards) == 450
    results = results_of(tmp_path / 'out')
    assert results['weights'] == 'random (seed 1)'
    assert 'random (seed 1)' in out
    five, ten = results['results']
    assert (five['shots'], ten['shots']) == (5, 10)
    assert 30 < five['accuracy'] < ten['accuracy'] < 100  # better than guessing, even so
    for row in (five, ten):
        assert f'{row["accuracy"]:.2f} ± {row["ci95"]:.2f} %' in out
        assert row['mean_per_class'] == row['accuracy']
        assert len(row['sha256']) == 64
    assert 'the mean per class is the accuracy' in out
    with (tmp_path / 'out' / 'episodes.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30
    assert np.mean([float(row['accuracy_10_shot']) for row in rows]) == pytest.approx(ten['accuracy'])
    with Image.open(tmp_path / 'out' / 'accuracy.png') as image:
        assert min(image.size) > 300


def test_the_same_seed_gives_the_same_numbers_and_a_cache_saves_the_forwards(cli, tmp_path, forwards):
    def run(folder, *more):
        arguments = ('-d', 'digits', '--split', 'test', '--shots', '3', '--episodes', 20, '--cache', tmp_path / 'cache')
        code, _, err = cli('fewshot', 'resnet10t', *SMALL, *arguments, *more, '-o', tmp_path / folder)
        assert code == 0, err
        return results_of(tmp_path / folder)

    one = run('one')
    done = sum(forwards)
    two = run('two', '--solver', 'cdfsl')
    assert one['results'] == two['results']
    assert sum(forwards) == done
    ridge = run('ridge', '--solver', 'ridge')
    assert ridge['results'][0]['sha256'] == one['results'][0]['sha256']
    assert ridge['results'][0]['solver'] == 'ridge'


def test_knn_answers_test_by_train(cli, tmp_path, forwards):
    code, out, err = cli(
        'knn', 'tinyvit_5m_224', *SMALL, '-d', 'digits', '-k', '5,20,100', '-o', tmp_path / 'out'
    )  # fmt: skip
    assert code == 0, err
    assert sum(forwards) == 1797
    results = results_of(tmp_path / 'out')
    assert [row['k'] for row in results['results']] == [5, 20, 100]
    assert all(50 < row['low'] < row['accuracy'] < row['high'] < 100 for row in results['results'])
    assert f'{results["results"][0]["accuracy"]:.2f} %' in out
    for name in ('per_class.csv', 'per_class.png', 'confusion.png'):
        assert (tmp_path / 'out' / name).stat().st_size > 100


def test_without_an_output_nothing_is_written(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli(
        'fewshot', 'resnet10t', *SMALL, '-d', 'digits', '--split', 'test', '--shots', 1, '--episodes', 5
    )
    assert code == 0, err
    assert '  1 shot:  ' in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('arguments', 'code', 'words'),
    [
        (('fewshot', '-d', 'digits', '--split', 'test', '--shots', '5,40'), 1, ['55']),
        (('fewshot', '-d', 'digits', '--ways', 11), 1, ['10 classes', '11']),
        (('fewshot', '-d', 'digits', '--shots', '5,many'), 2, ['--shots', '5,many']),
        (('fewshot', '-d', 'digits', '--shots', '0'), 2, ['--shots']),
        (('fewshot', '-d', 'digits', '--solver', 'svm'), 2, ['svm']),
        (('fewshot', '-d', 'digits', '-o', __file__), 1, ['another --output']),
        (('knn', '-d', 'digits', '-o', __file__), 1, ['another --output']),
        (('fewshot', '-d', 'digits', '--weights', 'x.pth'), 1, ['leave one of them out']),
        (('fewshot', '-d', 'nowhere'), 1, ['nowhere']),
        (('fewshot', '-d', 'digits', '--device', 'abacus'), 2, ['abacus']),
        (('knn', '-d', 'digits', '-k', '10,2000'), 1, ['1347', '2000']),
        (('knn', '-d', 'digits', '--split', 'train'), 2, ['train']),
        (('knn', '-d', 'digits', '--split', 'validation'), 1, ['validation']),
        (('knn', '-d', str(Path(__file__).parent / 'golden')), 1, ['no images']),
    ],
)
def test_impossible_settings_are_refused_in_a_sentence_before_any_forward(cli, forwards, arguments, code, words):
    command, *more = arguments
    ended, _, err = cli(command, 'resnet10t', *SMALL, *more)
    assert ended == code
    assert err.count('\n') == 1
    assert not forwards
    for word in words:
        assert word in err


def test_a_set_of_other_counts_is_taken_if_asked_and_says_so(cli, tmp_path, caplog):
    fake.class_folders(tmp_path / 'eurosat' / '2750', ('Forest', 'River'), images=4)
    line = ('fewshot', 'resnet10t', '-d', 'eurosat', '--root', tmp_path, *SMALL, '--ways', 2, '--shots', 1)
    more = ('--queries', 2, '--episodes', 3, '-o', tmp_path / 'out')
    code, _, err = cli(*line, *more)
    assert (code, err.count('\n')) == (1, 1)
    assert '--any-counts' in err
    code, _, err = cli(*line, *more, '--any-counts')
    assert code == 0, err
    assert '27,000' in caplog.text
    assert results_of(tmp_path / 'out')['data']['complete'] is False


def test_only_numbers_of_released_weights_on_whole_data_are_for_a_card(cli, tmp_path, monkeypatch):
    entries = []
    write = reports.write
    monkeypatch.setattr(reports, 'write', lambda *a, eval_results, **k: entries.append(eval_results) or write(*a, **k))
    fake.class_folders(tmp_path / 'eurosat' / '2750', ('Forest', 'River'), images=4)
    monkeypatch.setitem(REGISTRY, 'eurosat', replace(REGISTRY['eurosat'], counts=dict(all=8), classes=2))
    torch.save(timm.create_model('resnet10t').state_dict(), tmp_path / 'w.pth')
    monkeypatch.setattr(ModelOptions, 'origin', lambda options, seed: 'pretrained' if options.weights else 'random')
    line = ('fewshot', 'resnet10t', '-d', 'eurosat', '--root', tmp_path, '--img-size', 32, '--ways', 2, '--shots', 1)
    more = ('--queries', 2, '--episodes', 3, '-o', tmp_path / 'out')
    released = ('--weights', tmp_path / 'w.pth')
    for weights in (released, ('--random',)):
        code, _, err = cli(*line, *more, *weights)
        assert code == 0, err
    (tmp_path / 'eurosat' / '2750' / 'River' / '0.png').write_bytes(b'nothing')
    code, _, err = cli(*line, *more, *released, '--skip-unreadable')
    assert code == 0, err
    assert [list(entry) for entry in entries] == [['eurosat-1-shot'], [], []]
    assert 'blanchon/EuroSAT_RGB' in entries[0]['eurosat-1-shot']


def test_a_model_that_gives_nan_is_refused(cli, tmp_path):
    model = timm.create_model('resnet10t', num_classes=3)
    torch.nn.init.constant_(model.conv1[0].weight, torch.nan)
    torch.save(model.state_dict(), tmp_path / 'nan.pth')
    code, _, err = cli(
        'fewshot', 'resnet10t', '--weights', tmp_path / 'nan.pth', '--img-size', 32, '-d', 'digits', '--split', 'test'
    )
    assert code == 1
    assert err.count('\n') == 1


@pytest.mark.slow
@pytest.mark.parametrize(('model', 'data'), rest_is_full(product(MODELS, DATA), IN_TURN))
def test_models_of_every_kind_are_measured(cli, tmp_path, model, data):
    cache = ('--cache', tmp_path / 'cache')
    code, _, err = cli(
        'fewshot', model, *SMALL, '-d', data, '--split', 'test', '--crop', '--shots', '5,20', '--episodes', 50, *cache,
        '-o', tmp_path / 'few',
    )  # fmt: skip
    assert code == 0, err
    five, twenty = results_of(tmp_path / 'few')['results']
    assert 25 < five['accuracy'] < twenty['accuracy']
    code, _, err = cli('knn', model, *SMALL, '-d', data, *cache, '-o', tmp_path / 'knn')
    assert code == 0, err
    assert results_of(tmp_path / 'knn')['results'][0]['accuracy'] > 15


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(cli, tmp_path):
    arguments = ['fewshot', 'resnet10t', *map(str, SMALL), '-d', 'digits', '--shots', '5,20', '--episodes', '40', '-o']
    code, _, err = cli(*arguments, tmp_path / 'one')
    assert code == 0, err
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    done = subprocess.run(
        [*command, '-m', 'tinyvit_zoo.cli', *arguments, str(tmp_path / 'two')], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert results_of(tmp_path / 'two')['results'] == results_of(tmp_path / 'one')['results']
    assert done.stdout.count('Written to') == 1
