"""Taps for weight distillation: queries, keys, values and hidden states of the logical layers of a transformer.

Forward hooks take them, so neither teacher nor student needs changes: any timm VisionTransformer (ViT, DeiT, MAE, CLIP,
DINO, ...) or SwinTransformer, Mini-DeiT, Mini-Swin, and models of `tinyvit_zoo.compress`. A logical layer is one call
of a block: a block that runs twice gives two layers, and so do two blocks that hold the same weights.

Shape legend: `B` images, `W` sequences that attend within themselves (B where attention is global, else all windows
of all images, image by image), `N` tokens of such a sequence, `L` tokens of an image, `C` channels.
"""

import operator
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import nn

from .losses import QKV

__all__ = ['FeatureTap', 'LayerFeatures', 'match_layers', 'stage_depths']

MAX_PAIRS = 6
"""Number of pairs of layers that the released recipes compare."""

SEPARATE = ('q_proj', 'k_proj', 'v_proj')
"""timm's names of the projections where they are not fused."""


class LayerFeatures(NamedTuple):
    """Features of the chosen logical layers, in ascending order."""

    layers: tuple[int, ...]
    """Their indices, counted from 0."""
    qkv: list[QKV]
    """Per layer: (W, N, C) each, all heads merged, before any scaling, norm or mixing."""
    hidden: list[torch.Tensor]
    """Per layer: output of the block as released (MiniViT's paper: of its MLP), (B, L, C), before any downsampling."""


@dataclass
class _Record:
    """State of the hooks during one forward pass."""

    grad: bool
    """Whether the call is to record gradients."""
    trains: bool = False
    """Whether a layer so far should get a gradient but cannot."""
    calls: int = 0
    projections: dict[str, torch.Tensor] = field(default_factory=dict)
    """Outputs of the projections of the layer that is running."""
    qkv: dict[int, QKV] = field(default_factory=dict)
    hidden: dict[int, torch.Tensor] = field(default_factory=dict)
    versions: list[tuple[torch.Tensor, int]] = field(default_factory=list)


class FeatureTap:
    """A model whose calls also return the features of some layers.

    A context manager; the hooks exist only inside it. Nothing is recorded when the model is called directly, nor when
    gradient checkpointing recomputes a block. Several threads may use one tap at once. A model cannot be deep-copied
    while a tap on it is open.

        with FeatureTap(student, layers) as student_tap, FeatureTap(teacher, teacher_layers, grad=False) as teacher_tap:
            logits, features = student_tap(images)
            teacher_logits, teacher_features = teacher_tap(images)

    Args:
        model: Its blocks are the modules that have both `attn` and `mlp`; `attn` has a fused `qkv` projection whose
            output is q, k and v one after the other (timm's layout), or `q_proj`, `k_proj` and `v_proj`. It must not
            be compiled. The caller sets evaluation or training mode.
        layers: Indices of logical layers in any order; the features are returned in ascending order, each once. None:
            all.
        grad: False runs the model under `torch.no_grad()`: for the teacher.
        qkv: Whether to take queries, keys and values.
        hidden: Whether to take hidden states.
        drop_prefix_tokens: Drop class, distillation and register tokens (`model.num_prefix_tokens`), for a pair of
            teacher and student of which only one has them.

    Raises:
        ValueError: If the model has no such blocks (a ConvNet), or no layer or a negative one is requested.
        TypeError: If a layer is not an integer.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Iterable[int] | None = None,
        *,
        grad: bool = True,
        qkv: bool = True,
        hidden: bool = True,
        drop_prefix_tokens: bool = False,
    ) -> None:
        self.model = model
        self.layers = None if layers is None else tuple(sorted(set(map(operator.index, layers))))
        if self.layers is not None and (not self.layers or self.layers[0] < 0):
            raise ValueError(f'Layers are counted from 0, and at least one is needed; got {self.layers}.')
        self.grad = grad
        self.qkv = qkv
        self.hidden = hidden
        self.num_prefix_tokens = getattr(_unwrap(model), 'num_prefix_tokens', 0) if drop_prefix_tokens else 0
        self._blocks = _find_blocks(model)
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._local = threading.local()

    def __enter__(self) -> 'FeatureTap':
        if self._handles:
            raise RuntimeError('This tap is already open.')
        # Shared modules get one hook each, regardless of how many blocks hold them: a hook fires once per call.
        projections: dict[nn.Module, str] = {}
        for block in self._blocks:
            projections.update({module: name for name, module in _projections(block.attn).items()})
            self._handles += [
                block.register_forward_pre_hook(self._enter_block),
                block.register_forward_hook(self._leave_block),
            ]
        for module, name in projections.items():
            self._handles.append(module.register_forward_hook(partial(self._after_projection, name)))
        return self

    def __exit__(self, *exc_info: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, LayerFeatures]:
        """Call the model. Returns its output and the features of the chosen layers.

        Raises:
            ValueError: If the model has fewer layers than requested, the output of a fused projection is not three
                tensors of one width, or hidden states are maps (B, C, H, W).
            RuntimeError: Outside the context, or if hooks cannot see the features: the model is compiled, computes
                without calling its projections, or overwrites their outputs. Also if gradients are wanted and
                re-entrant checkpointing would leave the features without a gradient.
        """
        if not self._handles:
            raise RuntimeError('Open the tap first: `with FeatureTap(model) as tap: output, features = tap(images)`.')
        record = self._local.record = _Record(self.grad and torch.is_grad_enabled())
        try:
            with torch.set_grad_enabled(record.grad):
                output = self.model(*args, **kwargs)
        finally:
            self._local.record = None
        return output, self._features(record)

    def _features(self, record: _Record) -> LayerFeatures:
        layers = tuple(range(record.calls)) if self.layers is None else self.layers
        if not record.calls:
            raise RuntimeError(
                'No hook of a block was called: a compiled model runs without hooks. Tap the model before compiling it.'
            )
        if layers and layers[-1] >= record.calls:
            raise ValueError(f'Layer {layers[-1]} was requested, but the model has {record.calls} (counted from 0).')
        if any(tensor._version != version for tensor, version in record.versions):
            raise RuntimeError('The model overwrites its features in place, so hooks cannot take them.')
        return LayerFeatures(
            layers,
            [record.qkv[layer] for layer in layers] if self.qkv else [],
            [record.hidden[layer] for layer in layers] if self.hidden else [],
        )

    def _current(self) -> _Record | None:
        return getattr(self._local, 'record', None)

    def _enter_block(self, block: Any, args: tuple) -> None:
        if record := self._current():
            record.projections = {}
            self._refuse_lost_gradients(record, block, args)

    def _after_projection(self, name: str, module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        record = self._current()
        if record and self.qkv and self._chosen(record.calls):
            if name in record.projections:
                raise RuntimeError(f'Layer {record.calls} calls its projection {name} more than once.')
            self._watch(record, output)
            record.projections[name] = output

    def _leave_block(self, block: Any, args: tuple, output: torch.Tensor) -> None:
        record = self._current()
        if record is None:
            return
        layer = record.calls
        record.calls += 1
        if not self._chosen(layer):
            return
        if self.qkv:
            record.qkv[layer] = self._take_qkv(record, layer, block)
        if self.hidden:
            _refuse_channels_first(layer, block, output)
            self._watch(record, output)
            record.hidden[layer] = self._drop_prefix(output.flatten(1, -2))

    def _take_qkv(self, record: _Record, layer: int, block: Any) -> QKV:
        outputs = record.projections
        if outputs.keys() != _projections(block.attn).keys():
            raise RuntimeError(
                f'Layer {layer}: {type(block.attn).__name__} computes queries, keys and values without calling its '
                'projection as a module, so hooks cannot see them.'
            )
        for output in outputs.values():
            if output.ndim != 3:
                raise RuntimeError(
                    f'Layer {layer}: {type(block.attn).__name__} projects a tensor of {output.ndim} dimensions; only '
                    '(sequences, tokens, channels) shows which tokens attend to each other.'
                )
        if 'qkv' in outputs and outputs['qkv'].shape[-1] % 3:
            raise ValueError(
                f'Layer {layer}: {type(block.attn).__name__} projects to width {outputs["qkv"].shape[-1]}, not to '
                'queries, keys and values of one width.'
            )
        split = outputs['qkv'].chunk(3, dim=-1) if 'qkv' in outputs else [outputs[n] for n in SEPARATE]
        return QKV(*[self._drop_prefix(x) for x in _biased(block.attn, split)])

    def _refuse_lost_gradients(self, record: _Record, block: nn.Module, args: tuple) -> None:
        # Re-entrant checkpointing runs a layer without gradient, and the tensors that the hooks then see are not those
        # differentiated later. That does no harm to a frozen layer unless a layer before it trains.
        if not record.grad or torch.is_grad_enabled():
            return
        record.trains |= any(getattr(x, 'requires_grad', False) for x in (*args, *block.parameters()))
        if record.trains and self._chosen(record.calls):
            raise RuntimeError(
                f'Layer {record.calls} trains, but the model runs it without gradient, as re-entrant checkpointing '
                'does: its features would have no gradient. Use non-re-entrant checkpointing '
                '(`timm.layers.set_reentrant_ckpt(False)`, `checkpoint(..., use_reentrant=False)`), or grad=False.'
            )

    def _chosen(self, layer: int) -> bool:
        return self.layers is None or layer in self.layers

    def _drop_prefix(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, self.num_prefix_tokens :]

    def _watch(self, record: _Record, tensor: torch.Tensor) -> None:
        """Remember the version of a tensor, to notice when the model writes to it later."""
        if not tensor.is_inference():
            record.versions.append((tensor, tensor._version))


def _unwrap(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def _find_blocks(model: nn.Module) -> list[Any]:
    """The transformer blocks, each object once."""
    blocks: list[Any] = [m for m in model.modules() if hasattr(m, 'attn') and hasattr(m, 'mlp')]
    if not blocks:
        raise ValueError(
            f'{type(_unwrap(model)).__name__} has no transformer blocks (modules with attn and mlp) to take features '
            'from; with such a teacher or student, distil predictions only, as Mini-DeiT does.'
        )
    for block in blocks:
        if not _projections(block.attn):
            raise ValueError(
                f'{type(block.attn).__name__} of {type(_unwrap(model)).__name__} has neither a fused qkv projection '
                'in the order q, k, v nor q_proj, k_proj and v_proj.'
            )
    return blocks


def _projections(attn: Any) -> dict[str, nn.Module]:
    """The projections of an attention layer by name: the fused one, or all three; empty if the layout is unknown."""
    # LeViT, TinyViT and MaxViT store q, k and v of one head next to each other: thirds would mix them up.
    if hasattr(attn, 'attention_biases') or getattr(attn, 'head_first', False):
        return {}
    if isinstance(getattr(attn, 'qkv', None), nn.Module):
        return {'qkv': attn.qkv}
    if all(isinstance(getattr(attn, name, None), nn.Module) for name in SEPARATE):
        return {name: getattr(attn, name) for name in SEPARATE}
    return {}


def _biased(attn: Any, split: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Queries, keys and values with the biases that BEiT's attention adds to what its projection returns."""
    biases = (getattr(attn, name, None) for name in ('q_bias', 'k_bias', 'v_bias'))
    return [x if bias is None else x + bias for x, bias in zip(split, biases, strict=True)]


def _refuse_channels_first(layer: int, block: Any, hidden: torch.Tensor) -> None:
    """Distinguish (B, C, H, W) from (B, H, W, C) by the width of the projected queries, and refuse the former."""
    name, projection = next(iter(_projections(block.attn).items()))
    width = getattr(projection, 'out_features', 0) // (3 if name == 'qkv' else 1)
    if hidden.ndim == 4 and hidden.shape[1] == width != hidden.shape[-1]:
        raise ValueError(
            f'Layer {layer}: {type(block).__name__} returns maps {tuple(hidden.shape)} with channels first; hidden '
            'states are taken from (B, L, C) and (B, H, W, C) only.'
        )


def stage_depths(model: nn.Module, images: torch.Tensor) -> tuple[int, ...]:
    """Number of logical layers of each stage, found by running the model once: (12,) for DeiT, (2, 2, 6, 2) for Swin-T.

    Args:
        model: See `FeatureTap`.
        images: A batch of its input size; one image is enough.

    Returns:
        Lengths of the runs of layers whose hidden states have one shape.
    """
    with FeatureTap(model, grad=False, qkv=False) as tap:
        _, features = tap(images)
    shapes = [hidden.shape for hidden in features.hidden]
    return tuple(len(list(run)) for _, run in groupby(shapes))


def match_layers(
    student_depths: Sequence[int], teacher_depths: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Pairs of layers of a student and its teacher to compare.

    The released lists as a rule for any depths: at most six pairs; one at the end of each stage, the rest spread
    evenly over the deepest stage, where at most every second layer takes part. Mini-Swin-T with Swin-B as its teacher
    gives 1, 3, 5, 7, 9, 11 and 1, 3, 9, 15, 21, 23; Mini-Swin-S and -B give the latter on both sides. DeiT, one stage
    of 12, gives every second layer: the last of each pair that shares weights.

    Args:
        student_depths: Layers of each stage, see `stage_depths`.
        teacher_depths: Likewise, with the same number of stages.

    Returns:
        Layers of the student and the matching layers of the teacher, counted from 0, ascending.

    Raises:
        ValueError: If the numbers of stages differ, or a stage is empty.
    """
    if len(student_depths) != len(teacher_depths) or not student_depths:
        raise ValueError(
            f'Stages {tuple(student_depths)} of the student and {tuple(teacher_depths)} of the teacher do not match.'
        )
    common = [min(pair) for pair in zip(student_depths, teacher_depths, strict=True)]
    if min(common) < 1:
        raise ValueError('Every stage needs at least one layer.')
    deepest = max(range(len(common)), key=common.__getitem__)
    pairs = [1] * len(common)
    pairs[deepest] = max(1, min(MAX_PAIRS - (len(common) - 1), common[deepest] // 2))
    return _ends(student_depths, pairs), _ends(teacher_depths, pairs)


def _ends(depths: Sequence[int], parts: Sequence[int]) -> tuple[int, ...]:
    """Last layer of each part when every stage is cut into its number of equal parts."""
    layers: list[int] = []
    first = 0
    for depth, count in zip(depths, parts, strict=True):
        layers += [first + part * depth // count - 1 for part in range(1, count + 1)]
        first += depth
    return tuple(layers)
