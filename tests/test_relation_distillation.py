"""TinyMIM's relation loss: the released values and gradients, the paper's formula, finite where the released is not."""

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import refused
from golden_rule import golden
from torch import nn

from tinyvit_zoo.distill import HeadQKV, relation_distillation_loss, relation_logits
from tinyvit_zoo.pretrain.encoder import head_qkv

SINGLE = 5e-6  # the reference is single precision


@pytest.fixture(scope='module')
def official() -> dict[str, torch.Tensor]:
    """Inputs and results of the released code, in float64 (it computed in float32)."""
    return {name: torch.from_numpy(array).double() for name, array in golden('tinymim_relation_unit').items()}


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float = SINGLE) -> None:
    torch.testing.assert_close(actual.detach(), expected, rtol=0, atol=atol)


def heads_of(official: dict[str, torch.Tensor], who: str) -> HeadQKV:
    return HeadQKV(*[official[f'{who}_{name}'].clone().requires_grad_(who == 's') for name in 'qkv'])


def draw(heads: int = 3, width: int = 4, images: int = 2, tokens: int = 5, scale: float = 1.0) -> HeadQKV:
    return HeadQKV(*[scale * torch.randn(images, heads, tokens, width, dtype=torch.float64) for _ in 'qkv'])


def plain_loss(student: HeadQKV, teacher: HeadQKV) -> tuple[float, float]:
    """Paper Eq. 4, 5 and 9, row by row; the mean over images and queries is the released code's."""

    def relation(a: torch.Tensor, b: torch.Tensor) -> list[float]:
        scores = [math.exp(sum(x * y for x, y in zip(a, row, strict=True)) / math.sqrt(len(a))) for row in b]
        return [score / sum(scores) for score in scores]

    def mean_kl(rows: str, columns: str) -> float:
        images, heads, tokens, _ = student.q.shape
        total = 0.0
        for i in range(images):
            for h in range(heads):
                for n in range(tokens):
                    p, t = (
                        relation(getattr(x, rows)[i, h, n].tolist(), getattr(x, columns)[i, h].tolist())
                        for x in (student, teacher)
                    )
                    total += sum(b * math.log(b / a) for a, b in zip(p, t, strict=True))
        return total / (images * heads * tokens)

    return mean_kl('q', 'k'), mean_kl('v', 'v')


# the released code


def test_the_relations_are_the_released_ones(official):
    for who in 'st':
        q, k, v = heads_of(official, who)
        close(relation_logits(q, k).softmax(-1), official[f'{who}_qk'])
        close(relation_logits(v, v).softmax(-1), official[f'{who}_vv'])


def test_the_loss_and_its_parts_are_the_released_ones(official):
    loss = relation_distillation_loss(heads_of(official, 's'), heads_of(official, 't'))
    close(loss.qk, official['qk_loss'])
    close(loss.vv, official['vv_loss'])
    close(loss.total, official['loss'])


def test_the_gradients_of_queries_keys_and_values_are_the_released_ones(official):
    student = heads_of(official, 's')
    relation_distillation_loss(student, heads_of(official, 't')).total.backward()
    for name, tensor in zip('qkv', student, strict=True):
        close(tensor.grad, official[f'grad_s_{name}'])


def test_the_gradients_of_the_projection_are_the_released_ones(official):
    qkv = nn.Linear(24, 72, dtype=torch.float64)
    qkv.load_state_dict({'weight': official['s_qkv_w'], 'bias': official['s_qkv_b']})
    block = SimpleNamespace(norm1=nn.Identity(), attn=SimpleNamespace(qkv=qkv, num_heads=4))
    tokens = official['s_x'].clone().requires_grad_()
    relation_distillation_loss(head_qkv(block, tokens), heads_of(official, 't')).total.backward()
    close(tokens.grad, official['grad_s_x'])
    close(qkv.weight.grad, official['grad_s_qkv_w'])
    close(qkv.bias.grad, official['grad_s_qkv_b'])


# the paper


@pytest.mark.parametrize(('width', 'teacher_width'), [(4, 4), (2, 7)])
def test_the_loss_is_the_papers_whatever_the_widths(width, teacher_width):
    student, teacher = draw(width=width), draw(width=teacher_width)
    loss = relation_distillation_loss(student, teacher)
    qk, vv = plain_loss(student, teacher)
    assert loss.qk.item() == pytest.approx(qk, abs=1e-12)
    assert loss.vv.item() == pytest.approx(vv, abs=1e-12)
    assert loss.total.item() == pytest.approx(qk + vv, abs=1e-12)


def test_the_loss_is_0_where_the_relations_agree():
    same = draw()
    assert relation_distillation_loss(same, same).total.item() == pytest.approx(0, abs=1e-12)


# numbers


def sharp() -> tuple[HeadQKV, HeadQKV]:
    """A student whose relations underflow float32, and a teacher whose do not."""
    return HeadQKV(*[x.float() for x in draw(scale=9.0)]), HeadQKV(*[x.float() for x in draw()])


def released_formula(student: HeadQKV, teacher: HeadQKV) -> torch.Tensor:
    """Softmax first, logarithm second."""
    p, t = (relation_logits(x.q, x.k).softmax(-1) for x in (student, teacher))
    return nn.KLDivLoss(reduction='none')(p.log(), t).sum(-1).mean()


def test_the_loss_is_finite_and_right_where_softmax_then_log_is_not():
    student, teacher = sharp()
    assert not released_formula(student, teacher).isfinite()
    in_double = (HeadQKV(*[x.double() for x in side]) for side in (student, teacher))
    expected = released_formula(*in_double)
    assert expected.isfinite()
    torch.testing.assert_close(relation_distillation_loss(student, teacher).qk.double(), expected, rtol=1e-6, atol=0)


def test_the_loss_is_finite_where_the_teacher_underflows_too():
    student, _ = sharp()
    teacher, _ = sharp()
    assert released_formula(student, teacher).isnan()
    student = HeadQKV(*[x.requires_grad_() for x in student])
    loss = relation_distillation_loss(student, teacher)
    loss.total.backward()
    assert loss.total.isfinite()
    assert all(x.grad.isfinite().all() for x in student)


def test_half_precision_is_computed_in_single():
    student, teacher = (HeadQKV(*[x.bfloat16() for x in draw()]) for _ in range(2))
    expected = relation_distillation_loss(*(HeadQKV(*[x.float() for x in side]) for side in (student, teacher)))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = relation_distillation_loss(student, teacher)
    assert loss.total.dtype == torch.float32
    assert torch.equal(loss.total, expected.total)


def test_no_gradient_goes_into_the_teacher():
    student, teacher = (HeadQKV(*[x.requires_grad_() for x in draw()]) for _ in range(2))
    relation_distillation_loss(student, teacher).total.backward()
    assert all(x.grad is not None for x in student)
    assert all(x.grad is None for x in teacher)


# refusals


def test_other_heads_are_refused_with_advice():
    words = ('12', '6', 'last_heads')
    refused(lambda: relation_distillation_loss(draw(heads=12), draw(heads=6)), *words, kind=ValueError)


def test_other_tokens_are_refused():
    refused(lambda: relation_distillation_loss(draw(tokens=5), draw(tokens=6)), '5', '6', kind=ValueError)


def test_merged_heads_are_refused():
    merged = HeadQKV(*[x.flatten(2) for x in draw()])
    refused(lambda: relation_distillation_loss(merged, draw()), 'student', '(B, H, N, d)', kind=ValueError)


def test_an_empty_batch_is_refused():
    refused(lambda: relation_distillation_loss(draw(images=0), draw(images=0)), 'empty', kind=ValueError)
