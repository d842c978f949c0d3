"""Losses of MiniViT's weight distillation: prediction, relations of queries, keys and values, and hidden states.

Paper: MiniViT: Compressing Vision Transformers with Weight Multiplexing, https://arxiv.org/abs/2204.07154, Sec. 3.1.2.
Released code: https://github.com/microsoft/Cream/tree/main/MiniViT. Where it differs from the paper, both versions are
here under different names; each docstring says which is which.

No gradient goes into the teacher. Half precision is computed in float32, autocast or not (a product of hidden states
overflows float16, and a difference of two nearly equal bfloat16 numbers has few correct digits); float64 stays float64.

Shape legend: `B` images, `K` classes, `W` sequences that attend within themselves (windows of all images, or B where
attention is global), `N` tokens of such a sequence, `L` tokens of an image, `C` channels. Only `C` and the number of
heads may differ between student and teacher.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from .precision import check_temperature, in_full_precision

__all__ = [
    'MINI_DEIT',
    'MINI_SWIN',
    'PAPER',
    'QKV',
    'WeightDistillation',
    'feature_map_loss',
    'hidden_mse_loss',
    'hidden_relation_ce_loss',
    'hidden_relation_loss',
    'prediction_ce_loss',
    'prediction_hard_loss',
    'prediction_kl_per_logit_loss',
    'qkv_relation_loss',
]

WINDOW_AREA = 49
"""Factor of the released hidden-state loss: the cells of Swin's 7x7 window, used for every resolution and window."""

CHUNK_ELEMENTS = 2**22
"""Elements of the largest chunk of a relation matrix held at once: 16 MB in float32."""


class QKV(NamedTuple):
    """Queries, keys and values of one layer as projected, all heads merged: each (W, N, C)."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor


def _cross_entropy(scores: torch.Tensor, teacher_scores: torch.Tensor, reduction: str = 'mean') -> torch.Tensor:
    """Cross-entropy of softmax(scores) against softmax(teacher_scores) along the last dimension."""
    last = scores.shape[-1]
    target = teacher_scores.reshape(-1, last).softmax(dim=-1)
    return F.cross_entropy(scores.reshape(-1, last), target, reduction=reduction)


# Predictions


def _check_logits(student: torch.Tensor, teacher: torch.Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(f'Logits of student {tuple(student.shape)} and teacher {tuple(teacher.shape)} do not match.')
    if not student.numel():
        raise ValueError(f'Logits {tuple(student.shape)} are empty.')


@in_full_precision
def prediction_ce_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Cross-entropy of the student's softmax against the teacher's: paper Eq. 9, released Mini-Swin.

    Mean over images, without a factor T^2: the gradient shrinks as the temperature rises.

    Args:
        student_logits: (B, K).
        teacher_logits: (B, K).
        temperature: T, which divides both logits. 1 in the paper.

    Returns:
        Scalar. Its minimum is the entropy of the teacher's softmax, not 0.

    Raises:
        ValueError: If the shapes differ, there are no logits, or T is not above 0.
    """
    _check_logits(student_logits, teacher_logits)
    check_temperature(temperature)
    return _cross_entropy(student_logits / temperature, teacher_logits / temperature)


@in_full_precision
def prediction_kl_per_logit_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """KL(teacher || student) * T^2 / (B * K): released Mini-DeiT, as DeiT before it.

    Divided by the number of logits, not of images: with 1000 classes a thousandth of the usual mean, so its weight is
    not comparable with that of `prediction_ce_loss`. At T = 1 its gradient is that of `prediction_ce_loss` / K.

    Args and errors: as in `prediction_ce_loss`. Minimum: 0.
    """
    _check_logits(student_logits, teacher_logits)
    check_temperature(temperature)
    student = (student_logits / temperature).log_softmax(dim=-1)
    teacher = (teacher_logits / temperature).log_softmax(dim=-1)
    return F.kl_div(student, teacher, reduction='sum', log_target=True) * (temperature**2 / student.numel())


@in_full_precision
def prediction_hard_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Cross-entropy against the teacher's most probable class: released Mini-DeiT, `--distillation-type hard`.

    Args and errors: as in `prediction_ce_loss`, without a temperature.
    """
    _check_logits(student_logits, teacher_logits)
    return F.cross_entropy(student_logits, teacher_logits.argmax(dim=-1))


# Relations among queries, keys and values


def _check_layers(student: Sequence, teacher: Sequence, kind: str) -> None:
    if len(student) != len(teacher):
        raise ValueError(f'{kind}: {len(student)} layers of the student, {len(teacher)} of the teacher.')
    if not student:
        raise ValueError(f'{kind}: no layer given.')


def _check_qkv(layer: int, student: QKV, teacher: QKV, relation_heads: int) -> None:
    for name, tensors in (('student', student), ('teacher', teacher)):
        if len({x.shape for x in tensors}) != 1 or tensors[0].ndim != 3:
            shapes = ', '.join(str(tuple(x.shape)) for x in tensors)
            raise ValueError(
                f'Layer {layer} of the {name}: q, k and v must be three tensors (W, N, C) of one shape, got {shapes}.'
            )
        if tensors[0].shape[-1] % relation_heads:
            raise ValueError(
                f'Layer {layer} of the {name}: width {tensors[0].shape[-1]} is not divisible by '
                f'{relation_heads} relation heads.'
            )
    windows, teacher_windows = student[0].shape[0], teacher[0].shape[0]
    if windows != teacher_windows:
        raise ValueError(
            f'Layer {layer}: {windows} windows (times images) of the student, {teacher_windows} of the teacher; '
            'both need the same image and window size.'
        )
    _check_tokens(layer, student[0], teacher[0])


def _check_tokens(layer: int, student: torch.Tensor, teacher: torch.Tensor) -> None:
    if student.shape[1] != teacher.shape[1]:
        raise ValueError(
            f'Layer {layer}: {student.shape[1]} tokens of the student, {teacher.shape[1]} of the teacher. Image, patch '
            'and window size must agree; class tokens that only one of them has can be dropped when the features are '
            'taken (drop_prefix_tokens).'
        )
    if not student.numel() or not teacher.numel():
        raise ValueError(
            f'Layer {layer}: features {tuple(student.shape)} of the student and {tuple(teacher.shape)} of the teacher; '
            'both must be non-empty.'
        )


def qkv_relation_loss(student: Sequence[QKV], teacher: Sequence[QKV], relation_heads: int = 1) -> torch.Tensor:
    """Cross-entropy between the nine relations of queries, keys and values: paper Eq. 10, released `cal_relation_loss`.

    For each ordered pair (i, j) from {q, k, v}: R_ij = softmax(S_i S_j^T / sqrt(C / Ar)) within each of Ar groups of
    channels; the mean over rows, pairs and layers. For one layer and Ar = 1 that is Eq. 10; the mean over layers,
    windows and images is that of the released code, as the paper does not specify one. The scale is that of the merged
    heads, so R_qk equals the layer's attention map only if it has one head.

    Args:
        student: Queries, keys and values (W, N, C) of each layer to match.
        teacher: The same number of layers, with the same W and N; C may differ.
        relation_heads: Ar, at least 1. 1 as released. It must divide both widths.

    Returns:
        Scalar. Its minimum is the mean entropy of the teacher's relations.

    Raises:
        ValueError: If layers, windows or tokens do not match or are empty, q, k and v differ in shape, or Ar is below 1
            or does not divide C.
    """
    if relation_heads < 1:
        raise ValueError(f'At least one relation head is needed, got {relation_heads}.')
    _check_layers(student, teacher, 'Relations of q, k and v')
    losses = []
    for layer, (s, t) in enumerate(zip(student, teacher, strict=True)):
        _check_qkv(layer, s, t, relation_heads)
        losses.append(_layer_relation_loss(torch.stack(tuple(s), 1), torch.stack(tuple(t), 1), relation_heads))
    return torch.stack(losses).mean()


@in_full_precision
def _layer_relation_loss(student: torch.Tensor, teacher: torch.Tensor, relation_heads: int) -> torch.Tensor:
    return _cross_entropy(_relation_scores(student, relation_heads), _relation_scores(teacher, relation_heads))


def _relation_scores(qkv: torch.Tensor, relation_heads: int) -> torch.Tensor:
    """(W, 3, N, C) -> (W, Ar, 3, N, 3, N): all nine products in one matrix product."""
    W, _, N, C = qkv.shape
    d = C // relation_heads
    x = qkv.view(W, 3, N, relation_heads, d).permute(0, 3, 1, 2, 4).reshape(W, relation_heads, 3 * N, d)
    return ((x * d**-0.5) @ x.transpose(-2, -1)).view(W, relation_heads, 3, N, 3, N)


# Hidden states


def _mean_over_layers(
    loss: Callable[..., torch.Tensor], student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], **kwargs
) -> torch.Tensor:
    _check_layers(student, teacher, 'Hidden states')
    losses = []
    for layer, (s, t) in enumerate(zip(student, teacher, strict=True)):
        if s.ndim != 3 or t.ndim != 3 or s.shape[0] != t.shape[0]:
            raise ValueError(
                f'Layer {layer}: hidden states must be (B, L, C) with the same B, got {tuple(s.shape)} of the student '
                f'and {tuple(t.shape)} of the teacher.'
            )
        _check_tokens(layer, s, t)
        losses.append(loss(s, t, **kwargs))
    return torch.stack(losses).mean()


def hidden_relation_loss(student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean squared difference of the cosine similarities of all pairs of tokens, times 49: released Mini-Swin.

    That is `cal_hidden_relation_loss` (`--hidden_relation`), not paper Eq. 11, for which see
    `hidden_relation_ce_loss`. Mean over layers. The L x L similarities of a long sequence are never formed: with rows
    A and B of norm 1, |A A^T - B B^T|^2 = |A^T A|^2 - 2 |A^T B|^2 + |B^T B|^2, which needs C x C products only. At
    L = 3136 and widths 96 and 128 that is 34 times as fast on CPU as the direct sum, forward and backward, and the
    products take 0.15 MB per image instead of 79 MB. Errors measured in float32 at such sizes: of the mean square, at
    most 5e-9 (direct: 6e-10); of the gradient, 7e-6 of its norm where the mean square is 1e-3 (direct: 1e-6) and 4e-5
    where it is 5e-5 (direct: 8e-6). For a sequence shorter than its width the direct sum is used.
    For nearly collapsed tokens the loss is below the rounding error of float32: one vector for all plus noise of 0.01,
    L = 3136, gave -4e-7 to 8e-7 in six draws where float64 gave 3e-8 to 1e-7; pass float64 there.

    Args:
        student: Hidden states (B, L, C) of each layer to match.
        teacher: The same number, with the same B and L; C may differ.

    Returns:
        Scalar. Its minimum is 0, up to rounding in either direction.

    Raises:
        ValueError: If layers, images or tokens do not match or are empty.
    """
    return WINDOW_AREA * _mean_over_layers(_gram_mse, student, teacher)


@in_full_precision
def _gram_mse(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    a, b = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    L = a.shape[1]
    if max(a.shape[2], b.shape[2]) >= L:
        return (a @ a.transpose(1, 2) - b @ b.transpose(1, 2)).square().mean()
    # The three terms nearly cancel. The rounding errors of the products are random and average out in the sum of
    # squares, but the sum itself must be exact.
    return (_squared_norm(a, a) - 2 * _squared_norm(a, b) + _squared_norm(b, b)).mean().to(a.dtype) / L**2


def _squared_norm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """|A^T B|^2 of each image, in float64: (B, L, C), (B, L, C') -> (B,)."""
    return (a.transpose(1, 2) @ b).double().square().sum(dim=(1, 2))


def hidden_relation_ce_loss(
    student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], chunk_elements: int = CHUNK_ELEMENTS
) -> torch.Tensor:
    """Cross-entropy between softmax(H H^T / sqrt(C)) of student and teacher, mean over rows: paper Eq. 11.

    The released code differs, see `hidden_relation_loss`; for the H of the paper see `PAPER`. Mean over layers.
    Computed, and recomputed in the backward pass, a few rows at a time, so that memory is bounded for any L.

    Args:
        student: Hidden states (B, L, C) of each layer to match.
        teacher: The same number, with the same B and L; C may differ.
        chunk_elements: Most elements of a relation matrix held at once (at least one row of each image).

    Returns:
        Scalar. Its minimum is the mean entropy of the teacher's relations.

    Raises:
        ValueError: If layers, images or tokens do not match or are empty.
    """
    return _mean_over_layers(_row_relation_ce, student, teacher, chunk_elements=chunk_elements)


@in_full_precision
def _row_relation_ce(student: torch.Tensor, teacher: torch.Tensor, chunk_elements: int) -> torch.Tensor:
    B, L, _ = student.shape
    rows = max(1, chunk_elements // (B * L))
    total = student.new_zeros(())
    for start in range(0, L, rows):
        chunk = slice(start, start + rows)
        total = total + checkpoint(_rows_ce, student, teacher, chunk, use_reentrant=False, preserve_rng_state=False)
    return total / (B * L)


def _rows_ce(student: torch.Tensor, teacher: torch.Tensor, chunk: slice) -> torch.Tensor:
    scores, teacher_scores = ((h[:, chunk] * h.shape[-1] ** -0.5) @ h.transpose(1, 2) for h in (student, teacher))
    return _cross_entropy(scores, teacher_scores, reduction='sum')


def hidden_mse_loss(student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean squared difference of the hidden states, mean over layers: released Mini-Swin without `--hidden_relation`.

    Args and errors: as in `hidden_relation_loss`, and the widths must be equal too.
    """
    return _mean_over_layers(_mse, student, teacher)


@in_full_precision
def _mse(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    if student.shape != teacher.shape:
        raise ValueError(
            f'Widths {student.shape[-1]} of the student and {teacher.shape[-1]} of the teacher differ; only relations '
            'can be compared.'
        )
    return F.mse_loss(student, teacher)


# Detection


def feature_map_loss(student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean squared difference of the feature maps of two backbones: paper Sec. 4.4 (detection), weight 0.1 there.

    The code was never released and the text leaves two questions open: the levels are averaged here, and the caller
    must first project maps of different widths (as those of the paper's own pair, Mini-Swin-T and Swin-B).

    Args:
        student: Map of each level, all in the same layout, e.g. (B, C, H, W).
        teacher: The same number, of the same shapes.

    Returns:
        Scalar, without the weight.

    Raises:
        ValueError: If the number of levels or a shape differs.
    """
    _check_layers(student, teacher, 'Feature maps')
    losses = []
    for level, (s, t) in enumerate(zip(student, teacher, strict=True)):
        if s.shape != t.shape:
            raise ValueError(
                f'Level {level}: map {tuple(s.shape)} of the student, {tuple(t.shape)} of the teacher. Project the '
                "student's maps to the teacher's widths first."
            )
        losses.append(_mse(s, t))
    return torch.stack(losses).mean()


# The whole recipe

PREDICTION_LOSSES = {
    'ce': prediction_ce_loss,
    'kl_per_logit': prediction_kl_per_logit_loss,
    'hard': prediction_hard_loss,
}
HIDDEN_LOSSES = {
    'relation': hidden_relation_loss,
    'relation_ce': hidden_relation_ce_loss,
    'mse': hidden_mse_loss,
}


@dataclass(frozen=True)
class WeightDistillation:
    """Weighted sum of the parts (paper Eq. 12: L_pred + beta L_attn + gamma L_hddn); the defaults are Mini-Swin's.

    Every part has its own weight. (The released `alpha` weights the ground truth in Mini-Swin and the teacher in
    Mini-DeiT; both recipes give the ground truth a weight of 0.) A part of weight 0 is not computed and needs no
    features.

    Args:
        prediction_weight: Of the prediction loss.
        relation_weight: Of the q, k, v relations; the paper's beta.
        hidden_weight: Of the hidden states; the paper's gamma.
        truth_weight: Of the loss against the ground truth, which the caller computes.
        prediction: 'ce' (`prediction_ce_loss`), 'kl_per_logit' or 'hard'.
        hidden: 'relation' (released), 'relation_ce' (paper Eq. 11) or 'mse'.
        temperature: Of the prediction loss; 'hard' has none.
        relation_heads: Ar of the q, k, v relations.
    """

    prediction_weight: float = 1.0
    relation_weight: float = 1.0
    hidden_weight: float = 0.1
    truth_weight: float = 0.0
    prediction: Literal['ce', 'kl_per_logit', 'hard'] = 'ce'
    hidden: Literal['relation', 'relation_ce', 'mse'] = 'relation'
    temperature: float = 1.0
    relation_heads: int = 1

    def __post_init__(self) -> None:
        for name, value, known in (
            ('prediction', self.prediction, PREDICTION_LOSSES),
            ('hidden', self.hidden, HIDDEN_LOSSES),
        ):
            if value not in known:
                raise ValueError(f'{name} must be one of {", ".join(known)}, got {value!r}.')

    def __call__(
        self,
        student_logits: torch.Tensor,
        teacher_logits: torch.Tensor,
        *,
        student_qkv: Sequence[QKV] = (),
        teacher_qkv: Sequence[QKV] = (),
        student_hidden: Sequence[torch.Tensor] = (),
        teacher_hidden: Sequence[torch.Tensor] = (),
        truth: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """The parts by name ('prediction', 'relation', 'hidden', 'truth'), unweighted, and their weighted 'total'.

        Args:
            student_logits: (B, K).
            teacher_logits: (B, K).
            student_qkv: See `qkv_relation_loss`; needed if `relation_weight` is not 0.
            teacher_qkv: Likewise.
            student_hidden: See `hidden_relation_loss`; needed if `hidden_weight` is not 0.
            teacher_hidden: Likewise.
            truth: Scalar loss of the student against the ground truth; needed if `truth_weight` is not 0.

        Raises:
            ValueError: If an input that a weight requires is missing or does not match, or all weights are 0.
        """
        parts = {}
        if self.prediction_weight:
            temperature = {} if self.prediction == 'hard' else dict(temperature=self.temperature)
            parts['prediction'] = PREDICTION_LOSSES[self.prediction](student_logits, teacher_logits, **temperature)
        if self.relation_weight:
            parts['relation'] = qkv_relation_loss(student_qkv, teacher_qkv, self.relation_heads)
        if self.hidden_weight:
            parts['hidden'] = HIDDEN_LOSSES[self.hidden](student_hidden, teacher_hidden)
        if self.truth_weight:
            if truth is None:
                raise ValueError(f'truth_weight is {self.truth_weight}: pass the loss against the ground truth.')
            parts['truth'] = truth
        if not parts:
            raise ValueError('Every weight is 0: set at least one of them.')
        total = sum(getattr(self, f'{name}_weight') * loss for name, loss in parts.items())
        return {**parts, 'total': total}


MINI_SWIN = WeightDistillation()
"""As released for Mini-Swin (README of the code): relations of q, k and v, cosine relations of hidden states."""

PAPER = WeightDistillation(hidden='relation_ce')
"""Paper Eq. 9-12: as MINI_SWIN, but Eq. 11 for the hidden states.

Which states those are is the caller's choice. The paper's are "the features output by MLP" (Eq. 8); `FeatureTap` takes
the output of the block, residual stream included, as the released code does.
"""

MINI_DEIT = WeightDistillation(prediction='kl_per_logit', relation_weight=0.0, hidden_weight=0.0)
"""As released for Mini-DeiT, whose teacher is a ConvNet (`regnety_160.deit_in1k`): predictions only."""
