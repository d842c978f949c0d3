"""kNN against the plain one-hot vote; blocks, memory, errors."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import refused

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.downstream import knn

CLASSES, D = 12, 16


def make(N: int, Q: int, spread: float = 1.0) -> tuple[torch.Tensor, np.ndarray, torch.Tensor, np.ndarray]:
    """Features and labels of a bank and of queries, around a center of each class."""
    labels = torch.randint(CLASSES, (N + Q,))
    features = torch.randn(N + Q, D) + spread * torch.randn(CLASSES, D)[labels]
    return features[:N], labels[:N].numpy(), features[N:], labels[N:].numpy()


def one_hot_vote(bank, labels, queries, ks, T=0.07) -> dict[int, np.ndarray]:
    """The plain vote: a row of all classes for each neighbor."""
    similarity, at = (F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T).topk(max(ks), dim=1)
    votes = F.one_hot(torch.from_numpy(labels)[at], CLASSES) * (similarity / T).exp()[:, :, None]
    return {k: votes[:, :k].sum(dim=1).argmax(dim=1).numpy() for k in ks}


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks that a small bank is cut into many of, the last of them shorter than k."""
    for name, value in (('QUERIES', 7), ('BANK', 64), ('KEPT', 20)):
        monkeypatch.setattr(knn, name, value)


@pytest.mark.parametrize('ks', [(10, 20, 100, 200), (5,), (200, 1), (330,)])
def test_predictions_equal_those_of_the_one_hot_vote(ks, small_blocks):
    bank, labels, queries, truth = make(330, 45)
    result = knn.run(bank, labels, queries, truth, ks)
    expected = one_hot_vote(bank, labels, queries, ks)
    assert list(result.predictions) == list(ks)
    for k in ks:
        assert np.array_equal(result.predictions[k], expected[k])
        assert result.accuracy[k] == pytest.approx(100 * (expected[k] == truth).mean(), abs=1e-12)
    assert result.accuracy[ks[0]] > 60


def test_large_blocks_find_the_same_neighbors(monkeypatch):
    bank, labels, queries, truth = make(7003, 30)
    expected = one_hot_vote(bank, labels, queries, knn.KS)
    for block in (7003, 3505, 500):
        monkeypatch.setattr(knn, 'BANK', block)
        result = knn.run(bank, labels, queries, truth)
        for k in knn.KS:
            assert np.array_equal(result.predictions[k], expected[k])


@pytest.mark.parametrize('n', [16, 79, 80, 87, 1000])
def test_the_largest_of_a_row_are_found_by_strips(n):
    values = torch.randn(9, n)
    found, at = knn._largest(values, 5)
    assert torch.equal(found.sort(descending=True).values, values.topk(5).values)
    assert torch.equal(values.gather(1, at), found)


def test_a_neighbor_is_weighted_by_its_similarity():
    similarity = torch.tensor([[0.9, 0.8, 0.8], [0.5, 0.49, 0.49]])
    labels = torch.tensor([[0, 1, 1], [0, 1, 1]])
    answers = knn.vote(similarity, labels, 2, (3, 1, 2))
    assert list(answers) == [3, 1, 2]
    assert answers[1].tolist() == [0, 0]
    assert answers[3].tolist() == [0, 1]  # exp(.1 / .07) > 2, exp(.01 / .07) < 2
    assert knn.vote(similarity, labels, 2, (3,), temperature=1e-6)[3].tolist() == [0, 0]


def test_the_length_of_features_does_not_matter():
    bank, labels, queries, truth = make(200, 30)
    expected = knn.run(bank, labels, queries, truth, (10,)).predictions[10]
    scaled = knn.run(bank * torch.rand(200, 1) + bank, labels, 1e4 * queries, truth, (10,)).predictions[10]
    assert np.array_equal(scaled, expected)


def test_half_precision_features_and_labels_of_any_integer_type_are_accepted():
    bank, labels, queries, truth = make(200, 30)
    bank = (5000 * bank.abs()).half()  # the sums of their rows are beyond float16
    expected = knn.run(bank.float(), labels, queries, truth, (10,)).predictions[10]
    for kind in (np.uint8, np.int32):
        found = knn.run(bank, labels.astype(kind), queries, truth.astype(kind), (10,)).predictions[10]
        assert np.array_equal(found, expected)


def test_no_array_of_neighbors_by_classes_is_allocated():
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in (out if isinstance(out, tuple | list) else [out]) if torch.is_tensor(t))
            return out

    bank, labels, queries, truth = make(3000, 256)
    labels[0] = 999
    with Watch():
        knn.run(bank, labels, queries, truth)
    assert max(sizes) == 3000 * 256  # the similarities, not 256 * 200 * 1000 votes


def test_what_does_not_fit_is_refused():
    bank, labels, queries, truth = make(50, 10)
    broken = bank.clone()
    broken[7, 3] = torch.inf
    broken[8, 2] = -torch.inf
    broken[8, 3] = torch.inf
    for arguments, words in (
        ((bank, labels, queries, truth, (10, 51)), ['50', '51']),
        ((bank, labels, queries, truth, (0,)), ['from 1']),
        ((bank, labels, queries, truth, ()), ['from 1']),
        ((broken, labels, queries, truth, (5,)), ['Row 7', 'bank', '2 of 50']),
        ((bank, labels, broken[:10], truth, (5,)), ['Row 7', 'queries']),
        ((bank, labels[:-1], queries, truth, (5,)), ['50', '49']),
        ((bank, labels, queries[:0], truth[:0], (5,)), ['queries']),
        ((bank[None], labels, queries, truth, (5,)), ['(1, 50, 16)']),
        ((bank[:, :8], labels, queries, truth, (5,)), ['8', '16']),
        ((bank, labels - 5, queries, truth, (5,)), ['at 0']),
        ((bank, labels * 0, queries, truth, (5,)), ['one class']),
    ):
        refused(lambda a=arguments: knn.run(*a), *words, kind=EvaluationError)
    refused(lambda: knn.run(bank, labels, queries, truth, (5,), temperature=0), 'above 0', kind=EvaluationError)
