"""Accuracy with every class counting the same, beside the accuracy in every evaluator; and how sure a choice is."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from tinyvit_zoo.common.per_class import at_zero, mean_per_class, per_class_words
from tinyvit_zoo.downstream import linear_probe
from tinyvit_zoo.downstream.classifiers import logistic, ridge
from tinyvit_zoo.downstream.classifiers.choice import Choice, edges

EVALUATORS = {
    'evaluate': ('evaluate',),
    'knn': ('knn', '-k', '3,25'),
    'ridge': ('probe', '--mode', 'ridge'),
    'logistic': ('probe', '--mode', 'logistic'),
    'cached': ('probe', '--mode', 'cached', '--epochs', '2', '--step-batch', '8', '--lrs', '0.01,0.1'),
    'live': ('probe', '--mode', 'live', '--epochs', '1', '--step-batch', '8', '--lrs', '0.01,0.1'),
    'finetune': ('finetune', '--epochs', '1', '--lr', '1e-9'),
}


def test_every_class_that_occurs_counts_the_same():
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels, predictions = rng.integers(0, 7, (2, 60))
        labels[labels == 3] = 5  # 3 does not occur; it may be predicted
        by_class = [(predictions[labels == c] == c).mean() for c in set(labels.tolist())]
        assert mean_per_class(labels, predictions) == pytest.approx(100 * sum(by_class) / 6, rel=1e-12)
    always = np.zeros(43, dtype=np.int64)
    labels = np.array([0] * 40 + [1] * 3)
    assert mean_per_class(labels, always) == 50
    assert at_zero(labels, always, ['bee', 'ant', 'absent']) == ['ant']


def test_the_words_name_the_classes_of_which_nothing_is_right():
    assert per_class_words(93.456, []) == 'mean per class 93.46 %'
    assert per_class_words(50, ['ant']) == 'mean per class 50.00 % (0 % on ant)'
    many = ['tench, Tinca tinca', 'b', 'c', 'd']
    assert per_class_words(1, many) == 'mean per class 1.00 % (0 % on 4 classes: tench, Tinca tinca; b; c; ...)'


@pytest.fixture(scope='module')
def uneven(tmp_path_factory):
    """Folders of 40 images of a class and 3 of another, all of them alike: nothing tells the classes apart."""
    root = tmp_path_factory.mktemp('uneven')
    for split in ('train', 'val'):
        for name, images in dict(ant=3, bee=40).items():
            (root / split / name).mkdir(parents=True)
            for i in range(images):
                Image.new('RGB', (32, 32), (i % 4, 0, 0)).save(root / split / name / f'{i}.png')
    return root


def tables(folder):
    return {path.stem: list(csv.DictReader(path.open(newline='', encoding='utf-8'))) for path in folder.glob('*.csv')}


@pytest.mark.parametrize('evaluator', EVALUATORS)
def test_every_evaluator_prints_and_stores_it_and_names_the_class_that_is_never_right(
    cli, uneven, tmp_path, monkeypatch, evaluator
):
    monkeypatch.setattr(logistic, 'MAX_ITERATIONS', 2)  # these images cannot be told apart
    command, *options = EVALUATORS[evaluator]
    source = ['local-dir:' + str(classifier(tmp_path))] if command == 'evaluate' else ['test_resnet', '--random']
    code, out, err = cli(
        command, *source, '--img-size', 32, '--data', uneven, '--device', 'cpu', *options, '--output', tmp_path / 'out'
    )
    assert code == 0, err
    results = json.loads((tmp_path / 'out' / 'results.json').read_text())
    found = results['results'][-1] if command == 'knn' else results
    mean = next(found[key] for key in ('test_mean_per_class', 'mean_per_class') if key in found)
    top1 = next(found[key] for key in ('test_accuracy', 'top1', 'accuracy') if key in found)
    zero = next(found[key] for key in ('test_classes_at_zero', 'classes_at_zero') if key in found)
    rows = {row['name']: row for row in tables(tmp_path / 'out')['per_class']}
    assert {name: int(row['images']) for name, row in rows.items()} == dict(ant=3, bee=40)
    assert top1 == pytest.approx(100 * 40 / 43)
    assert (mean, zero) == (50, ['ant'])
    assert 'mean per class 50.00 % (0 % on ant)' in out


def classifier(folder):
    """A saved model that answers 'bee' to everything."""
    import timm

    from tinyvit_zoo.hub import save_folder

    model = timm.create_model('test_resnet', num_classes=2)
    torch.nn.init.zeros_(model.get_classifier().weight)
    with torch.no_grad():
        model.get_classifier().bias.copy_(torch.tensor([0.0, 1.0]))
    return save_folder(model, folder / 'model', label_names=['ant', 'bee'], tag='bees')


def test_two_models_are_compared_by_class_too(cli, uneven, tmp_path):
    code, out, err = cli(
        'compare', 'test_resnet', 'test_vit', '--random-a', '--random-b', '--img-size', 32, '--data', uneven,
        '--device', 'cpu', '--ways', 2, '--shots', 1, '--queries', 2, '--episodes', 2, '-k', 25,
        '--output', tmp_path,
    )  # fmt: skip
    assert code == 0, err
    assert 'kNN (k = 25): A: mean per class 50.00 % (0 % on ant); B: mean per class 50.00 % (0 % on ant).' in out
    rows = {row['task']: row for row in json.loads((tmp_path / 'results.json').read_text())['rows']}
    few, votes, probe = rows.values()
    assert few['a_mean_per_class'] == few['a']  # as many queries of each class
    assert (votes['a_mean_per_class'], votes['b_mean_per_class']) == (50, 50)
    assert 'equally good' in ' '.join(probe['remarks'])
    assert [row['a_mean_per_class'] for row in tables(tmp_path)['compare']] == [str(row['a']) for row in (few,)] + [
        str(row['a_mean_per_class']) for row in (votes, probe)
    ]


# how sure a choice is


def test_a_value_at_the_edge_of_its_grid_is_reported():
    assert edges('C', 1e-6, [1, 1e-6]) == ('C 1e-06 is the smallest of 2',)
    assert edges('C', 3, [1, 2, 3, 3]) == ('C 3 is the largest of 3',)
    assert edges('C', 2, [1, 2, 3]) == ()
    assert edges('weight decay', 0, [0, 1]) == ()  # nothing is below it
    assert edges('C', 1, [1, 1]) == ()  # nothing was chosen
    words = Choice(('C 1e-06 is the smallest of 2',), 3, 'the smallest C').words()
    assert words == (
        '3 are equally good on the held-out images, of which the smallest C is taken; C 1e-06 is the smallest of 2, so '
        'the best may lie beyond the grid'
    )
    assert not Choice((), 1, 'the smallest C').words()


def blobs(images=60, distance=3.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, images)
    return (rng.normal(size=(images, 4)) + distance * labels[:, None]).astype(np.float32), labels


@pytest.mark.parametrize(('probe', 'name'), [(ridge.probe, 'the penalty'), (logistic.probe, 'C')])
def test_ridge_and_logistic_say_where_their_choice_lies(probe, name):
    parts = [*blobs(seed=0), *blobs(seed=1), *blobs(seed=2)]
    tied = probe(*parts, [0.5, 1.0, 2.0]).choice
    assert tied.tied == 3  # all of them separate the blobs
    assert tied.edges == ('C 0.5 is the smallest of 3' if name == 'C' else 'the penalty 2 is the largest of 3',)
    alone = probe(*parts, [1.0]).choice
    assert (alone.edges, alone.tied) == ((), 1)


def test_a_grid_of_linear_heads_says_where_its_choice_lies():
    (x, y), (held, held_labels), (test, test_labels) = (blobs(distance=1.5, seed=i) for i in range(3))
    features = ({'pooled': torch.from_numpy(part)} for part in (x, held, test))
    train, held, test = features
    result = linear_probe.cached(
        train, y, held, held_labels, test, test_labels, num_classes=2, lrs=[1e-9, 1e-8], epochs=1, weight_decays=[0.0],
        progress=False,
    )  # fmt: skip
    lowest = {head.loss: head.setting.lr for head in result.heads}
    chosen = result.heads[result.chosen].setting.lr
    assert len(lowest) == 2
    assert result.choice.tied == sum(head.last == result.heads[result.chosen].last for head in result.heads)
    assert result.choice.edges == (
        f'the learning rate {chosen:.3g} is the {"smallest" if chosen == 1e-9 else "largest"} of 2',
    )
    assert result.mean_per_class == mean_per_class(test_labels, result.predictions)
