"""Losses of weight distillation: the released code's values and gradients, the paper's equations, bounded memory."""

import math

import pytest
import torch
import torch.nn.functional as F
from golden_rule import golden
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tinyvit_zoo.distill import (
    MINI_DEIT,
    MINI_SWIN,
    PAPER,
    QKV,
    WeightDistillation,
    feature_map_loss,
    hidden_mse_loss,
    hidden_relation_ce_loss,
    hidden_relation_loss,
    prediction_ce_loss,
    prediction_hard_loss,
    prediction_kl_per_logit_loss,
    qkv_relation_loss,
)

LAYERS = 3  # of the golden file: widths 4, 8, 8 of the student, 6, 12, 12 of the teacher; 9 tokens


@pytest.fixture(scope='module')
def official() -> dict[str, torch.Tensor]:
    """Inputs and results of the released code, in float64 (it computed in float32)."""
    return {name: torch.from_numpy(array).double() for name, array in golden('minivit_distill_losses').items()}


def leaf(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone().requires_grad_()


def qkv_of(official: dict[str, torch.Tensor], who: str) -> list[QKV]:
    return [QKV(*[leaf(official[f'in.{who}_{part}.{layer}']) for part in 'qkv']) for layer in range(LAYERS)]


def hidden_of(official: dict[str, torch.Tensor], who: str) -> list[torch.Tensor]:
    return [leaf(official[f'in.{who}_hidden.{layer}']) for layer in range(LAYERS)]


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to the float32 in which the released code computed."""
    torch.testing.assert_close(actual, expected, rtol=2e-7, atol=3e-7)


# the released code


@pytest.mark.parametrize('relation_heads', [1, 2])
def test_relations_of_qkv_are_the_released_ones(official, relation_heads):
    student = qkv_of(official, 'student')
    loss = qkv_relation_loss(student, qkv_of(official, 'teacher'), relation_heads)
    loss.backward()
    close(loss, official[f'relation_loss.Ar{relation_heads}'])
    for layer, parts in enumerate(student):
        for name, part in parts._asdict().items():
            close(part.grad, official[f'relation_grad.Ar{relation_heads}.{name}.{layer}'])


def test_relations_of_hidden_states_are_the_released_ones(official):
    student = hidden_of(official, 'student')
    loss = hidden_relation_loss(student, hidden_of(official, 'teacher'))
    loss.backward()
    close(loss, official['hidden_relation_loss'])
    for layer, hidden in enumerate(student):
        close(hidden.grad, official[f'hidden_relation_grad.{layer}'])


def test_hidden_states_of_equal_width_are_compared_as_released(official):
    teacher = [official[f'in.teacher_hidden_samewidth.{layer}'] for layer in range(LAYERS)]
    close(hidden_mse_loss(hidden_of(official, 'student'), teacher), official['hidden_mse_loss'])


def test_soft_cross_entropy_is_the_released_one(official):
    student = leaf(official['in.student_logits'])
    loss = prediction_ce_loss(student, official['in.teacher_logits'])
    loss.backward()
    close(loss, official['soft_ce'])
    close(student.grad, official['soft_ce_grad'])


@pytest.mark.parametrize(
    ('case', 'recipe'),
    [
        ('soft.a1.0.t1.0', MINI_DEIT),
        ('soft.a0.5.t3.0', WeightDistillation(0.5, 0, 0, 0.5, prediction='kl_per_logit', temperature=3.0)),
        ('hard.a0.5.t1.0', WeightDistillation(0.5, 0, 0, 0.5, prediction='hard')),
        ('none.a0.5.t1.0', WeightDistillation(0, 0, 0, 1)),
    ],
)
def test_predictions_are_distilled_as_in_the_released_mini_deit(official, case, recipe):
    student = leaf(official['in.student_logits'])
    truth = F.cross_entropy(student, official['in.soft_targets'])
    loss = recipe(student, official['in.teacher_logits'], truth=truth)['total']
    loss.backward()
    close(loss, official[f'deit_distill.{case}'])
    close(student.grad, official[f'deit_distill_grad.{case}'])


def test_the_whole_recipe_is_the_released_one_and_names_its_parts(official):
    losses = MINI_SWIN(
        official['in.student_logits'],
        official['in.teacher_logits'],
        student_qkv=qkv_of(official, 'student'),
        teacher_qkv=qkv_of(official, 'teacher'),
        student_hidden=hidden_of(official, 'student'),
        teacher_hidden=hidden_of(official, 'teacher'),
    )
    assert list(losses) == ['prediction', 'relation', 'hidden', 'total']
    close(losses['total'].float().double(), official['recipe_total'])
    assert losses['total'] == losses['prediction'] + losses['relation'] + 0.1 * losses['hidden']


# the paper


def test_prediction_loss_is_equation_9():
    student, teacher = torch.randn(2, 5, 7, dtype=torch.float64)
    p, q = (teacher / 4).softmax(-1), (student / 4).softmax(-1)
    torch.testing.assert_close(prediction_ce_loss(student, teacher, 4.0), -(p * q.log()).sum(-1).mean())


def test_relation_loss_is_equation_10_for_one_layer_and_one_image():
    S, T = torch.randn(3, 5, 8, dtype=torch.float64), torch.randn(3, 5, 12, dtype=torch.float64)
    expected = 0.0
    for i in range(3):
        for j in range(3):
            r_s = (S[i] @ S[j].T / math.sqrt(8)).softmax(-1)
            r_t = (T[i] @ T[j].T / math.sqrt(12)).softmax(-1)
            for n in range(5):
                expected -= (r_t[n] * r_s[n].log()).sum()
    loss = qkv_relation_loss([QKV(*S[:, None])], [QKV(*T[:, None])])
    torch.testing.assert_close(loss, expected / (9 * 5))


def equation_11(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    (r_s, r_t) = ((h @ h.mT / math.sqrt(h.shape[-1])).softmax(-1) for h in (student, teacher))
    return -(r_t * r_s.log()).sum(-1).mean()


@pytest.mark.parametrize('chunk_elements', [1, 50, 10**6])
def test_hidden_relations_are_equation_11_for_every_chunk_size(chunk_elements):
    student, teacher = torch.randn(2, 13, 8, dtype=torch.float64), torch.randn(2, 13, 12, dtype=torch.float64)
    ours, direct = leaf(student), leaf(student)
    loss, expected = hidden_relation_ce_loss([ours], [teacher], chunk_elements), equation_11(direct, teacher)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.grad, direct.grad, rtol=0, atol=1e-14)


def test_the_paper_recipe_differs_from_the_released_one_in_the_hidden_states_only(official):
    arguments = dict(
        student_qkv=qkv_of(official, 'student'),
        teacher_qkv=qkv_of(official, 'teacher'),
        student_hidden=hidden_of(official, 'student'),
        teacher_hidden=hidden_of(official, 'teacher'),
    )
    logits = official['in.student_logits'], official['in.teacher_logits']
    paper, released = PAPER(*logits, **arguments), MINI_SWIN(*logits, **arguments)
    assert [name for name in ('prediction', 'relation', 'hidden') if paper[name] != released[name]] == ['hidden']


def test_the_two_soft_predictions_have_proportional_gradients_at_temperature_1():
    student, teacher = leaf(torch.randn(4, 10, dtype=torch.float64)), torch.randn(4, 10, dtype=torch.float64)
    (ce,) = torch.autograd.grad(prediction_ce_loss(student, teacher), student)
    (kl,) = torch.autograd.grad(prediction_kl_per_logit_loss(student, teacher), student)
    torch.testing.assert_close(kl, ce / 10)


# memory and numbers


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


@pytest.mark.parametrize('loss', [hidden_relation_loss, hidden_relation_ce_loss])
def test_no_token_by_token_matrix_exists_forward_or_backward(loss):
    B, L = 2, 512
    student, teacher = leaf(torch.randn(B, L, 8)), torch.randn(B, L, 12)
    options = dict(chunk_elements=B * 16 * L) if loss is hidden_relation_ce_loss else {}
    with LargestTensor() as seen:
        loss([student], [teacher], **options).backward()
    assert student.grad is not None
    assert seen.largest <= max(teacher.numel(), B * 16 * L)
    with LargestTensor() as direct:
        equation_11(leaf(student.detach()), teacher).backward()
    assert direct.largest == B * L * L  # the measurement itself works


@pytest.mark.parametrize('loss', [hidden_relation_loss, hidden_relation_ce_loss])
def test_memory_for_the_backward_pass_grows_with_the_tokens_not_with_their_square(loss):
    def saved(L: int) -> int:
        kept = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.data_ptr(), tensor.numel()] = tensor
            return tensor

        options = dict(chunk_elements=8 * L) if loss is hidden_relation_ce_loss else {}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss([leaf(torch.randn(1, L, 8))], [torch.randn(1, L, 12)], **options)
        return sum(tensor.numel() for tensor in kept.values())

    assert saved(512) <= 2.1 * saved(256)


def direct_relation_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    a, b = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    return 49 * F.mse_loss(a @ a.mT, b @ b.mT)


@pytest.mark.parametrize('tokens', [5, 12, 13, 60])
def test_hidden_relations_equal_the_direct_sum_on_either_side_of_the_width(tokens):
    student, teacher = torch.randn(2, tokens, 8, dtype=torch.float64), torch.randn(2, tokens, 12, dtype=torch.float64)
    ours, direct = leaf(student), leaf(student)
    loss, expected = hidden_relation_loss([ours], [teacher]), direct_relation_loss(direct, teacher)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.grad, direct.grad, rtol=0, atol=1e-14)


@pytest.mark.parametrize(('noise', 'value_error', 'gradient_error'), [(1.0, 1e-6, 3e-6), (0.1, 2e-4, 2e-4)])
def test_hidden_relations_of_similar_features_are_precise_in_float32(noise, value_error, gradient_error):
    """The three large terms nearly cancel when a student is close to its teacher."""
    teacher = torch.randn(1, 1, 96) + torch.randn(1, 784, 8) @ torch.randn(8, 96) / 8**0.5
    student = teacher + noise * torch.randn(1, 784, 96)
    ours, exact = leaf(student), leaf(student.double())
    loss, expected = hidden_relation_loss([ours], [teacher]), direct_relation_loss(exact, teacher.double())
    loss.backward()
    expected.backward()
    assert abs(loss.item() / expected.item() - 1) < value_error
    assert (ours.grad - exact.grad).norm() / exact.grad.norm() < gradient_error


def all_losses(dtype: torch.dtype) -> list[torch.Tensor]:
    """Every loss on the same numbers, which are exact in bfloat16 and float16."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randint(-8, 9, shape, generator=generator).to(dtype) / 4  # noqa: E731
    logits = draw(4, 10), draw(4, 10)
    hidden = [draw(2, 30, 8)], [draw(2, 30, 12)]
    qkv = [QKV(draw(2, 9, 4), draw(2, 9, 4), draw(2, 9, 4))], [QKV(draw(2, 9, 6), draw(2, 9, 6), draw(2, 9, 6))]
    return [
        *[loss(*logits) for loss in (prediction_ce_loss, prediction_kl_per_logit_loss, prediction_hard_loss)],
        *[loss(*hidden) for loss in (hidden_relation_loss, hidden_relation_ce_loss)],
        qkv_relation_loss(*qkv),
        hidden_mse_loss(hidden[0], [draw(2, 30, 8)]),
        feature_map_loss(hidden[0], [draw(2, 30, 8)]),
    ]


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    halves, floats = all_losses(dtype), all_losses(torch.float32)
    assert {loss.dtype for loss in halves} == {torch.float32}
    torch.testing.assert_close(halves, floats, rtol=0, atol=0)


def test_autocast_does_not_lower_the_precision():
    expected = all_losses(torch.float32)
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(all_losses(torch.float32), expected, rtol=0, atol=0)


def test_float64_stays_float64():
    assert {loss.dtype for loss in all_losses(torch.float64)} == {torch.float64}


@pytest.mark.parametrize('loss', [hidden_relation_loss, hidden_relation_ce_loss, hidden_mse_loss, feature_map_loss])
def test_the_teacher_gets_no_gradient(loss):
    student, teacher = leaf(torch.randn(1, 20, 8)), leaf(torch.randn(1, 20, 8))
    loss([student], [teacher]).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


def test_the_best_student_is_the_teacher():
    hidden = torch.randn(1, 20, 24, dtype=torch.float64)
    qkv = QKV(*torch.randn(3, 2, 9, 8, dtype=torch.float64))
    student = leaf(hidden), QKV(*map(leaf, qkv))
    (hidden_relation_loss([student[0]], [hidden]) + hidden_relation_ce_loss([student[0]], [hidden])).backward()
    qkv_relation_loss([student[1]], [qkv]).backward()
    assert hidden_relation_loss([hidden], [hidden]) == 0
    for tensor in (student[0], *student[1]):
        assert tensor.grad.abs().max() < 1e-15


# detection


def test_feature_maps_are_compared_level_by_level():
    student, teacher = ([torch.full((1, 4, s, s), v) for s, v in ((8, 1.0), (4, 3.0))] for _ in range(2))
    assert feature_map_loss(student, teacher) == 0
    teacher = [torch.zeros_like(x) for x in student]
    assert feature_map_loss(student, teacher) == (1 + 9) / 2


# mistakes


def qkv_like(*shape: int) -> QKV:
    return QKV(*torch.zeros(3, *shape))


@pytest.mark.parametrize(
    ('student', 'teacher', 'heads', 'message'),
    [
        ([qkv_like(1, 4, 8)], [], 1, '1 layers of the student, 0 of the teacher'),
        ([], [], 1, 'no layer given'),
        ([qkv_like(4, 49, 8)], [qkv_like(9, 49, 8)], 1, 'Layer 0: 4 windows .* 9 of the teacher'),
        ([qkv_like(1, 4, 8)] * 2, [qkv_like(1, 4, 8), qkv_like(1, 5, 8)], 1, 'Layer 1: 4 tokens .*drop_prefix_tokens'),
        ([qkv_like(1, 4, 8)], [qkv_like(1, 4, 6)], 4, 'teacher: width 6 is not divisible by 4'),
        ([qkv_like(1, 4, 6)], [qkv_like(1, 4, 8)], 4, 'student: width 6 is not divisible by 4'),
        ([QKV(*torch.zeros(2, 1, 4, 8), torch.zeros(1, 4, 2))], [qkv_like(1, 4, 8)], 1, 'of one shape, got .*4, 2'),
    ],
)
def test_relations_that_do_not_match_are_refused(student, teacher, heads, message):
    with pytest.raises(ValueError, match=message):
        qkv_relation_loss(student, teacher, heads)


@pytest.mark.parametrize('loss', [hidden_relation_loss, hidden_relation_ce_loss, hidden_mse_loss])
@pytest.mark.parametrize(
    ('student', 'teacher', 'message'),
    [
        ([(1, 4, 8)], [(1, 4, 8)] * 2, '1 layers of the student, 2 of the teacher'),
        ([(1, 4, 8)], [(1, 5, 8)], '4 tokens of the student, 5 of the teacher'),
        ([(2, 4, 8)], [(1, 4, 8)], 'with the same B'),
        ([(1, 2, 2, 8)], [(1, 2, 2, 8)], r'must be \(B, L, C\)'),
    ],
)
def test_hidden_states_that_do_not_match_are_refused(loss, student, teacher, message):
    with pytest.raises(ValueError, match=message):
        loss([torch.zeros(s) for s in student], [torch.zeros(s) for s in teacher])


def test_widths_that_only_relations_can_compare_are_refused():
    with pytest.raises(ValueError, match='only relations can be compared'):
        hidden_mse_loss([torch.zeros(1, 4, 8)], [torch.zeros(1, 4, 6)])
    with pytest.raises(ValueError, match=r'Level 0: map .* Project'):
        feature_map_loss([torch.zeros(1, 8, 4, 4)], [torch.zeros(1, 6, 4, 4)])


@pytest.mark.parametrize('loss', [prediction_ce_loss, prediction_kl_per_logit_loss, prediction_hard_loss])
def test_logits_of_other_classes_are_refused(loss):
    with pytest.raises(ValueError, match='do not match'):
        loss(torch.zeros(2, 10), torch.zeros(2, 1000))


@pytest.mark.parametrize('loss', [prediction_ce_loss, prediction_kl_per_logit_loss])
@pytest.mark.parametrize('temperature', [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_above_0_is_refused(loss, temperature):
    with pytest.raises(ValueError, match='temperature must be above 0'):
        loss(torch.zeros(2, 10), torch.zeros(2, 10), temperature)


@pytest.mark.parametrize('heads', [0, -1])
def test_fewer_than_one_relation_head_is_refused(heads):
    with pytest.raises(ValueError, match='At least one relation head'):
        qkv_relation_loss([qkv_like(1, 4, 8)], [qkv_like(1, 4, 8)], heads)


def test_empty_batches_are_refused():
    for loss in (prediction_ce_loss, prediction_kl_per_logit_loss, prediction_hard_loss):
        with pytest.raises(ValueError, match=r'Logits \(0, 10\) are empty'):
            loss(torch.zeros(0, 10), torch.zeros(0, 10))
    for loss in (hidden_relation_loss, hidden_relation_ce_loss, hidden_mse_loss):
        with pytest.raises(ValueError, match='must be non-empty'):
            loss([torch.zeros(0, 4, 8)], [torch.zeros(0, 4, 8)])
    with pytest.raises(ValueError, match='must be non-empty'):
        qkv_relation_loss([qkv_like(0, 4, 8)], [qkv_like(0, 4, 8)])


def test_a_recipe_reports_missing_inputs():
    logits = torch.zeros(2, 10)
    with pytest.raises(ValueError, match='Relations of q, k and v: no layer given'):
        MINI_SWIN(logits, logits)
    with pytest.raises(ValueError, match=r'truth_weight is 0\.5'):
        WeightDistillation(0.5, 0, 0, 0.5)(logits, logits)
    with pytest.raises(ValueError, match='Every weight is 0'):
        WeightDistillation(0, 0, 0)(logits, logits)
    with pytest.raises(ValueError, match="must be one of ce, kl_per_logit, hard, got 'kl'"):
        WeightDistillation(prediction='kl')
