"""D-MAE's attention loss: the released values and gradients, and the paper's formula on logits."""

import math

import pytest
import torch
from conftest import refused
from golden_rule import golden

from tinyvit_zoo.distill import (
    attention_distillation_loss,
    prediction_hard_loss,
    prediction_kl_per_logit_loss,
    relation_logits,
)

SINGLE = 5e-6  # the reference is single precision


@pytest.fixture
def official() -> dict[str, torch.Tensor]:
    """Inputs and results of the released code, in float64 (it computed in float32)."""
    return {name: torch.from_numpy(array).double() for name, array in golden('maelite_attn_distill_unit').items()}


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual.detach(), expected, rtol=0, atol=SINGLE)


def test_the_loss_and_its_gradients_are_the_released_ones(official):
    q, k, head_map = (official[name].requires_grad_() for name in ('s_q', 's_k', 'adapter_weight'))
    student, teacher = relation_logits(q, k), relation_logits(official['t_q'], official['t_k'])
    close(student, official['s_attn'])
    close(teacher, official['t_attn'])
    loss = attention_distillation_loss(student, teacher, head_map)
    loss.backward()
    close(loss, official['loss'])
    close(q.grad, official['grad_s_q'])
    close(k.grad, official['grad_s_k'])
    close(head_map.grad, official['grad_adapter'])


def test_the_loss_is_the_mean_squared_difference_after_the_head_map():
    student, teacher = torch.randn(2, 3, 4, 4).double(), torch.randn(2, 5, 4, 4).double()
    head_map = torch.randn(5, 3, 1, 1).double()
    squares = []
    for b in range(2):
        for g in range(5):
            for i in range(4):
                for j in range(4):
                    mapped = sum(head_map[g, h, 0, 0].item() * student[b, h, i, j].item() for h in range(3))
                    squares.append((mapped - teacher[b, g, i, j].item()) ** 2)
    loss = attention_distillation_loss(student, teacher, head_map)
    assert loss.item() == pytest.approx(math.fsum(squares) / len(squares), abs=1e-12)


def test_without_a_head_map_logits_are_compared_directly():
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    expected = ((student - teacher) ** 2).mean()
    torch.testing.assert_close(attention_distillation_loss(student, teacher), expected)


def test_half_precision_is_computed_in_single():
    student, teacher, head_map = torch.randn(1, 2, 3, 3), torch.randn(1, 4, 3, 3), torch.randn(4, 2, 1, 1)
    student, teacher = student.bfloat16(), teacher.bfloat16()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = attention_distillation_loss(student, teacher, head_map)
    assert torch.equal(loss, attention_distillation_loss(student.float(), teacher.float(), head_map))


def test_no_gradient_goes_into_the_teacher():
    student, teacher = torch.randn(1, 2, 3, 3, requires_grad=True), torch.randn(1, 2, 3, 3, requires_grad=True)
    attention_distillation_loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_shapes_that_do_not_match_are_refused():
    student, teacher = torch.randn(1, 2, 3, 3), torch.randn(1, 4, 3, 3)
    refused(lambda: attention_distillation_loss(student, teacher), 'head_map', kind=ValueError)
    refused(lambda: attention_distillation_loss(student, teacher, torch.randn(4, 3, 1, 1)), '(4, 3', kind=ValueError)


# MAE-Lite also distils in fine-tuning, with losses that are already here


@pytest.mark.parametrize(
    ('reference', 'loss', 'alpha'),
    [
        ('loss_hard_a0.5_t1.0', prediction_hard_loss, 0.5),
        ('loss_soft_a0.5_t1.0', prediction_kl_per_logit_loss, 0.5),
        ('loss_soft_a0.1_t3.0', lambda *logits: prediction_kl_per_logit_loss(*logits, temperature=3.0), 0.1),
    ],
)
def test_the_losses_of_distillation_in_fine_tuning_are_those_of_deit(reference, loss, alpha):
    official = {name: torch.from_numpy(array) for name, array in golden('maelite_ft_distill_unit').items()}
    truth = torch.nn.functional.cross_entropy(official['outputs'].double(), official['target'])
    distilled = loss(official['outputs_dist'].double(), official['teacher'].double())
    close((1 - alpha) * truth + alpha * distilled, official[reference])
