"""Relations of classes: correlations of outputs, their order, and what the command leaves."""

import csv
import json

import numpy as np
import pytest
import timm
import torch
from conftest import refused

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data import load_dataset
from tinyvit_zoo.downstream.analysis import class_relations as module
from tinyvit_zoo.downstream.analysis.analysed_model import AnalysedModel
from tinyvit_zoo.downstream.analysis.class_relations import (
    ClassRelations,
    Correlations,
    cluster_order,
    file_order,
    measure,
)
from tinyvit_zoo.downstream.reports.class_relations import relation_words, relations_figure
from tinyvit_zoo.hub import save_folder

ANIMALS = ('cat', 'oak', 'dog', 'pine', 'car')


def correlated(values, parts=7):
    sums = Correlations(values.shape[1])
    for part in np.array_split(values, parts):
        sums.add(torch.from_numpy(part))
    return sums.result()


@pytest.mark.parametrize('offset', [0, 1000])
@pytest.mark.parametrize(('exact', 'close'), [(100, 1e-12), (10, 1e-6)], ids=['float64', 'float32'])
def test_correlations_of_rows_in_parts_are_numpy_s(offset, exact, close, monkeypatch):
    monkeypatch.setattr(module, 'EXACT', exact)
    monkeypatch.setattr(module, 'ROWS', 100)
    monkeypatch.setattr(module, 'BLOCK', 16)
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((500, 40)) @ rng.standard_normal((40, 40)) + offset).astype('f4')
    found = correlated(values)
    assert np.abs(found - np.corrcoef(values.astype('f8'), rowvar=False)).max() < close
    assert np.array_equal(found, found.T)
    assert (np.diagonal(found) == 1).all()


def test_a_constant_output_has_no_correlation():
    values = np.random.default_rng(0).standard_normal((50, 4)).astype('f4')
    values[:, 2] = 0.1
    found = ClassRelations(correlated(values), tuple('abcd'), np.arange(4), 'nothing', 50)
    assert found.constant == [2]
    assert np.isnan(found.correlation[2]).all()
    assert np.isfinite(np.delete(np.delete(found.correlation, 2, 0), 2, 1)).all()
    assert sorted(cluster_order(found.correlation)) == [0, 1, 2, 3]
    assert found.summary()['constant'] == ['c']
    assert 'such as that of c' in list(relation_words(found))[-1]


def groups(seed=0):
    """Outputs of two groups, 0, 2, 4 and 1, 3: those of one group are alike, the groups opposed."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((200, 1))
    signs = np.array([1, -1, 1, -1, 1])
    return (common * signs + 0.3 * rng.standard_normal((200, 5))).astype('f4')


def test_clustering_puts_related_classes_beside_each_other():
    correlation = correlated(groups())
    order = cluster_order(correlation).tolist()
    assert {frozenset(order[:2]), frozenset(order[:3])} & {frozenset({1, 3}), frozenset({0, 2, 4})}
    found = ClassRelations(correlation, tuple('abcde'), np.array(order), 'clustering', 200)
    highest, lowest = found.extremes(4)
    assert {(i + j) % 2 for i, j in highest} == {0}
    assert {(i + j) % 2 for i, j in lowest} == {1}
    pairs = correlation[np.triu_indices(5, 1)]
    assert correlation[highest[0]] == pairs.max()
    assert correlation[lowest[0]] == pairs.min()
    assert found.summary()['mean'] == pytest.approx(pairs.mean())
    assert found.summary()['negative_share'] == pytest.approx(0.6)
    assert found.neighbors() > pairs.mean()


def test_a_tree_orders_the_classes_by_its_branches(tmp_path):
    tree = tmp_path / 'tree.txt'
    tree.write_text('thing plant\nthing animal\nplant pine\nplant oak\nanimal dog\nanimal cat\ncat thing2\n')
    order, words = file_order(tree, ANIMALS)
    assert [ANIMALS[i] for i in order] == ['pine', 'oak', 'dog', 'cat', 'car']
    assert 'lacks 1 of 5 classes' in words
    tree.write_text('a b\nb a\n')
    refused(lambda: file_order(tree, ANIMALS), 'none of the 5 classes', kind=EvaluationError)
    tree.write_text('a b c\n')
    refused(lambda: file_order(tree, ANIMALS), 'line 1', kind=EvaluationError)
    refused(lambda: file_order(tmp_path / 'no.txt', ANIMALS), 'cannot be read', kind=EvaluationError)


def model(**kwargs):
    torch.manual_seed(0)
    return AnalysedModel.of_timm(timm.create_model('test_vit', img_size=32, **{'num_classes': 10, **kwargs}), 'a ViT')


def test_a_model_is_measured_on_images_in_any_batches_and_left_as_it_is():
    dataset = load_dataset('digits', 'test').subset(range(30))
    vit = model()
    whole, parts = (measure(vit, dataset, batch_size=n, progress=False) for n in (30, 7))
    assert whole.correlation == pytest.approx(parts.correlation, abs=1e-6)
    with torch.no_grad():
        logits = torch.cat([vit(vit.transform(dataset.image(i))[None]) for i in range(30)])
    assert whole.correlation == pytest.approx(np.corrcoef(logits.double().numpy(), rowvar=False), abs=1e-6)
    assert whole.names == dataset.classes
    assert not any(m._forward_hooks for m in vit.model.modules())


def test_what_has_no_classes_or_too_few_images_is_refused():
    dataset = load_dataset('digits', 'test').subset(range(3))
    refused(lambda: measure(model(num_classes=0), dataset), 'not a timm classifier', kind=EvaluationError)
    refused(lambda: measure(model(), dataset.subset([0, 1])), 'at least 3 images', kind=EvaluationError)
    broken = model()
    broken.model.head.weight.data[3] = torch.nan
    refused(lambda: measure(broken, dataset, progress=False), 'not finite', kind=EvaluationError)


def test_many_classes_are_averaged_for_the_map(monkeypatch):
    from tinyvit_zoo.downstream.reports import class_relations as report

    monkeypatch.setattr(report, 'MOST_CELLS', 10)
    correlation = correlated(np.random.default_rng(0).standard_normal((60, 45)).astype('f4'))
    found = ClassRelations(correlation, tuple(map(str, range(45))), np.arange(45)[::-1], 'clustering', 60)
    shown = relations_figure(found, 'a map').axes[0].images[0].get_array()
    assert shown.shape == (9, 9)
    assert shown[0, 1] == pytest.approx(found.ordered()[:5, 5:10].mean())


def test_the_command_leaves_results_that_order_another_run(cli, tmp_path):
    save_folder(model().model, tmp_path / 'vit')
    name = f'local-dir:{tmp_path / "vit"}'
    command = ('analyze', 'class-relations', name, '-d', 'digits', '--per-class', 2)
    code, out, err = cli(*command, '-o', tmp_path / 'a')
    assert code == 0, err
    assert '10 outputs over 20 images' in out
    results = json.loads((tmp_path / 'a' / 'results.json').read_text())
    assert results['result']['ordered_by'] == 'clustering'
    assert np.load(tmp_path / 'a' / 'correlation.npy').shape == (10, 10)
    assert (tmp_path / 'a' / 'class_relations.png').exists()
    with (tmp_path / 'a' / 'order.csv').open() as file:
        order = [row['class'] for row in csv.DictReader(file)]
    code, out, err = cli(*command, '--seed', 1, '--order', tmp_path / 'a' / 'order.csv', '-o', tmp_path / 'b')
    assert code == 0, err
    with (tmp_path / 'b' / 'order.csv').open() as file:
        assert [row['class'] for row in csv.DictReader(file)] == order
    (tmp_path / 'other.csv').write_text('place,output,class,name\n0,0,zero,zero\n')
    assert 'orders other classes' in cli(*command, '--order', tmp_path / 'other.csv')[2]
