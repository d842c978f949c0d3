"""TinyMIM's relation distillation: the student's query-key and value-value relations against its teacher's.

Paper: TinyMIM: An Empirical Study of Distilling MIM Pre-trained Models, https://arxiv.org/abs/2301.01296, Eq. 4, 5, 9.
Released code: https://github.com/OliverRensu/TinyMIM.

Shape legend: `B` images, `H` heads, `N` tokens (class token included), `d` width of a head.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F

from .feature_targets import SMOOTH_L1_BETA
from .precision import autocast_off, in_full_precision

__all__ = [
    'RELATIONS',
    'HeadQKV',
    'Relation',
    'RelationLoss',
    'check_names',
    'relation_distillation_loss',
    'relation_logits',
    'relation_losses',
]

Relation = Literal['qq', 'kk', 'vv', 'qk', 'qv', 'kv']
"""Which rows are multiplied with which columns, such as queries with keys."""
RELATIONS: tuple[Relation, ...] = ('qk', 'vv')
"""Those of the paper's default and of the released code."""


class HeadQKV(NamedTuple):
    """Queries, keys and values of one layer, split into heads: each (B, H, N, d)."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor


class RelationLoss(NamedTuple):
    """The loss and its two parts, scalars."""

    total: torch.Tensor
    """qk + vv, to be minimised."""
    qk: torch.Tensor
    """Of the query-key relations."""
    vv: torch.Tensor
    """Of the value-value relations."""


def relation_logits(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Scaled products of all pairs of tokens, before any softmax: rows columns^T / sqrt(d).

    The relations of the paper are `relation_logits(q, k).softmax(-1)` and `relation_logits(v, v).softmax(-1)`; the
    first is the attention map. Computed in at least float32, autocast or not: the released code multiplies in half
    precision under autocast.

    Args:
        rows: (B, H, N, d).
        columns: (B, H, M, d).

    Returns:
        (B, H, N, M), float32 or wider.
    """
    dtype = reduce(torch.promote_types, (rows.dtype, columns.dtype), torch.float32)
    with autocast_off(rows.device.type):
        return (rows.to(dtype) * rows.shape[-1] ** -0.5) @ columns.to(dtype).transpose(-2, -1)


def relation_distillation_loss(student: HeadQKV, teacher: HeadQKV) -> RelationLoss:
    """KL(teacher || student) of the Q-K and of the V-V relations, mean over images, heads and queries.

    Weights 1 and 1, no temperature; each side is scaled by its own head width. Computed from logits by log-softmax:
    where a relation of the student underflows, the released code (softmax, then log) gives NaN or infinity, and this
    does not. No gradient goes into the teacher. Half precision is computed in float32, autocast or not.

    Args:
        student: Of the adaptive block, which has as many heads as the teacher.
        teacher: Of the target block; the same N as the student, d may differ.

    Returns:
        The sum and its two parts. Their minimum is 0.

    Raises:
        ValueError: If the heads differ (build one of the models with other `last_heads`), or images or tokens do.
    """
    parts = relation_losses(student, teacher)
    return RelationLoss(parts['qk'] + parts['vv'], parts['qk'], parts['vv'])


def relation_losses(
    student: HeadQKV, teacher: HeadQKV, relations: Sequence[Relation] = RELATIONS, softmax: bool = True
) -> dict[str, torch.Tensor]:
    """The loss of each relation, as the paper's Table 7 varies them; their sum is to be minimised.

    With softmax KL(teacher || student), see `relation_distillation_loss`. Without, the scaled products themselves are
    compared. The paper does not say how, and KL is not defined there: here it is the smooth L1 loss of its Eq. 8
    (beta 2), mean over all pairs of tokens.

    Args:
        student: As in `relation_distillation_loss`.
        teacher: As in `relation_distillation_loss`.
        relations: Any of `Relation`, each once.
        softmax: See above.

    Returns:
        A scalar for each relation, in the order given.

    Raises:
        ValueError: On no or an unknown relation, one that is given twice, and as `relation_distillation_loss`.
    """
    check_names(relations)
    _check_relations(student, teacher)
    compare = _relation_kl if softmax else _smooth_l1
    losses: dict[str, torch.Tensor] = {}
    for relation in relations:
        with torch.no_grad():
            target = relation_logits(*(getattr(teacher, side) for side in relation))
        losses[relation] = compare(relation_logits(*(getattr(student, side) for side in relation)), target)
    return losses


def check_names(relations: Sequence[str]) -> None:
    """Raises: ValueError: On no or an unknown relation, or one that is given twice."""
    known = get_args(Relation)
    if not relations or len(set(relations)) < len(relations) or not set(relations) <= set(known):
        raise ValueError(f'relations must be some of {", ".join(known)}, each once, not {", ".join(relations)!r}.')


def _check_relations(student: HeadQKV, teacher: HeadQKV) -> None:
    for name, side in (('student', student), ('teacher', teacher)):
        if any(x.ndim != 4 or x.shape != side.q.shape for x in side):
            shapes = ', '.join(str(tuple(x.shape)) for x in side)
            raise ValueError(f'q, k and v of the {name} must be three (B, H, N, d) of one shape, got {shapes}.')
        if not side.q.numel():
            raise ValueError(f'q, k and v of the {name}, {tuple(side.q.shape)}, are empty.')
    (images, heads, tokens, _), (teacher_images, teacher_heads, teacher_tokens, _) = student.q.shape, teacher.q.shape
    if heads != teacher_heads:
        raise ValueError(
            f'The student has {heads} heads in its last block, the teacher {teacher_heads} in its target block, and '
            "relations are compared head by head: build the teacher (or the student) with the other's number of heads "
            'as last_heads.'
        )
    if images != teacher_images or tokens != teacher_tokens:
        raise ValueError(
            f'{images} images of {tokens} tokens of the student, {teacher_images} of {teacher_tokens} of the teacher: '
            'both need the same images, patches and prefix tokens.'
        )


@in_full_precision
def _relation_kl(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    student, teacher = student_logits.log_softmax(dim=-1), teacher_logits.log_softmax(dim=-1)
    return F.kl_div(student, teacher, reduction='sum', log_target=True) / student[..., 0].numel()


@in_full_precision
def _smooth_l1(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    return F.smooth_l1_loss(student_logits, teacher_logits, beta=SMOOTH_L1_BETA)
