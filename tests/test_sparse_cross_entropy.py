"""TinyViT's loss against a teacher's K largest probabilities: golden values, and a dense target in float64."""

import numpy as np
import pytest
import torch
from golden_rule import golden
from torch.utils._python_dispatch import TorchDispatchMode

from tinyvit_zoo.distill import sparse_cross_entropy


def dense(logits: torch.Tensor, ids: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """The released code's target and loss, written out."""
    target = ((1 - p.sum(1, keepdim=True)) / (logits.shape[1] - ids.shape[1])).expand_as(logits)
    target = target.scatter(1, ids, p)
    return -(target * logits.log_softmax(1)).sum(1).mean()


def draw(B: int = 3, C: int = 12, K: int = 4, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    logits = torch.randn(B, C, dtype=dtype, requires_grad=True)
    p, ids = torch.randn(B, C, dtype=torch.float64).softmax(1).topk(K)
    return logits, ids, p.to(dtype)


class Shapes(TorchDispatchMode):
    """Shapes of everything that is computed inside."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.seen.append(tuple(result.shape))
        return result


@pytest.fixture(scope='module')
def official() -> dict[str, np.ndarray]:
    return golden('tinyvit_sparse_labels')


def test_a_small_batch_has_the_loss_and_gradient_of_the_released_code(official):
    logits = torch.from_numpy(official['small.student_logits']).double().requires_grad_()
    ids, p = (torch.from_numpy(official[f'small.{name}']) for name in ('index_i16', 'value_f16'))
    loss = sparse_cross_entropy(logits, ids, p.double())
    loss.backward()
    assert abs(loss.item() - official['small.loss']) < 5e-7  # the released code computes in single precision
    assert np.abs(logits.grad.numpy() - official['small.grad']).max() < 1e-8


def test_the_size_of_the_papers_data_has_the_loss_and_gradient_of_the_released_code(official):
    draws = np.random.RandomState(100)
    draws.standard_normal((2, 21841))  # the teacher's logits, from which the golden labels were made
    logits = torch.from_numpy(draws.standard_normal((2, 21841)).astype('f4')).double().requires_grad_()
    ids, p = (torch.from_numpy(official[f'full.{name}']) for name in ('index_i16', 'value_f16'))
    loss = sparse_cross_entropy(logits, ids, p.double())
    loss.backward()
    assert abs(loss.item() - official['full.loss']) < 1e-5
    assert np.abs(logits.grad[:, :64].numpy() - official['full.grad_first64']).max() < 1e-8


def test_a_rest_below_zero_is_the_released_codes_unless_it_is_clamped(official):
    p = torch.from_numpy(official['neg.value_f16']).double()
    ids, logits = torch.arange(3)[None], torch.randn(1, 8, dtype=torch.float64)
    assert p.sum() > 1
    share = official['neg.recovered'].min()
    assert share < 0
    target = torch.full((1, 8), float(share), dtype=torch.float64).scatter(1, ids, p)
    released = -(target * logits.log_softmax(1)).sum()
    assert sparse_cross_entropy(logits, ids, p).item() == pytest.approx(released.item(), abs=1e-6)
    clamped = -(torch.zeros(1, 8, dtype=torch.float64).scatter(1, ids, p) * logits.log_softmax(1)).sum()
    assert sparse_cross_entropy(logits, ids, p, clamp=True).item() == pytest.approx(clamped.item(), abs=1e-12)


@pytest.mark.parametrize(('C', 'K'), [(12, 4), (12, 1), (12, 11), (200, 100)])
def test_value_and_gradient_equal_those_of_a_dense_target(C, K):
    logits, ids, p = draw(C=C, K=K)
    loss, expected = sparse_cross_entropy(logits, ids, p), dense(logits, ids, p)
    assert abs(loss - expected).item() < 1e-12
    ours, theirs = (torch.autograd.grad(x, logits)[0] for x in (loss, expected))
    assert (ours - theirs).abs().max() < 1e-13


def test_all_classes_stored_is_the_cross_entropy_with_the_teacher():
    logits, ids, p = draw(C=6, K=6)
    expected = torch.nn.functional.cross_entropy(logits, torch.zeros(3, 6, dtype=torch.float64).scatter(1, ids, p))
    assert sparse_cross_entropy(logits, ids, p).item() == pytest.approx(expected.item(), abs=1e-12)


def test_large_logits_lose_no_digits():
    logits, ids, p = draw()
    far = (logits.detach() + 1e4).requires_grad_()
    assert sparse_cross_entropy(far, ids, p).item() == pytest.approx(dense(logits, ids, p).item(), abs=1e-9)


def test_no_target_of_all_classes_is_made():
    logits, ids, p = draw(B=2, C=64, K=3)
    logits = logits.detach()
    with Shapes() as shapes:
        sparse_cross_entropy(logits, ids, p)
    assert (2, 3) in shapes.seen
    assert (2, 64) not in shapes.seen


@pytest.mark.parametrize('dtype', [torch.uint16, torch.int16, torch.int32])
def test_stored_types_are_taken_as_they_are(dtype):
    logits, ids, p = draw()
    assert torch.equal(sparse_cross_entropy(logits, ids.to(dtype), p), sparse_cross_entropy(logits, ids, p))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    logits, ids, p = draw()
    low = sparse_cross_entropy(logits.to(dtype), ids, p.half())
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(dense(logits.to(dtype).double(), ids, p.half().double()).item(), abs=1e-5)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(sparse_cross_entropy(logits.to(dtype), ids, p.half()), low)


def test_no_gradient_reaches_the_teacher():
    logits, ids, p = draw()
    p.requires_grad_()
    sparse_cross_entropy(logits, ids, p).backward()
    assert p.grad is None


@pytest.mark.parametrize(
    ('logits', 'ids', 'p', 'word'),
    [
        ((2, 8), (2, 3), (2, 4), 'belong together'),
        ((2, 8), (3, 3), (3, 3), 'belong together'),
        ((8,), (2, 3), (2, 3), 'belong together'),
        ((2, 8), (2, 9), (2, 9), '9 probabilities for 2 images of 8 classes'),
        ((2, 8), (2, 0), (2, 0), '0 probabilities'),
        ((0, 8), (0, 3), (0, 3), '0 images'),
    ],
)
def test_shapes_that_do_not_fit_are_refused(logits, ids, p, word):
    with pytest.raises(ValueError, match=word):
        sparse_cross_entropy(torch.zeros(logits), torch.zeros(ids, dtype=torch.long), torch.zeros(p))


def test_ids_that_are_no_integers_are_refused():
    with pytest.raises(ValueError, match=r'integers, not torch\.float32'):
        sparse_cross_entropy(torch.zeros(2, 8), torch.zeros(2, 3), torch.zeros(2, 3))
