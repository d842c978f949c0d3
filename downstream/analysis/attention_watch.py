"""Sees the attention of a model while it runs, and has each map reduced at once.

While the attention of a block runs, a mode of `__torch_function__` sees its softmax, or its fused attention, and
reduces the map at once, a part at a time: no map of a layer is kept. Bias tables, rotations, norms of queries and keys,
masks and mixed heads come as the model computes them. A map is the softmax before any mixing of heads that follows it,
which leaves rows that do not sum to one.

Shape legend: `B` images or windows, `N` tokens that attend to each other, `h w` their grid, `H W` map of a layer.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from tinyvit_zoo.common.errors import EvaluationError

from .analysed_model import AnalysedModel, check_not_compiled
from .attention_maps import EPSILON, LayerAttention, Layout, Sums, add_map, at_least_float, real_cells
from .layers import find_blocks, next_name, token_grid, unwrapped

__all__ = ['AttentionWatch']

NAMES = ('attn', 'attention')
"""Of the attention of a block."""
WINDOW_BLOCKS = frozenset(('TinyVitBlock', 'MiniSwinBlock', 'SwinTransformerBlock', 'SwinTransformerV2Block'))
"""Blocks that take maps (B, H, W, C), pad them at the bottom and right, and cut them into windows row by row."""
CHANNELS = frozenset(('XCA', 'ChannelAttention', 'ChannelAttentionV2', 'CrossCovarianceAttn'))
"""Attention between channels, whose maps may be as large as those between tokens."""
SOFTMAX = frozenset((torch.softmax, torch.Tensor.softmax, F.softmax))
FUSED = F.scaled_dot_product_attention
OTHER = F.multi_head_attention_forward


@dataclass
class _Call:
    """A block that runs."""

    name: str
    block: nn.Module
    input: torch.Tensor
    maps: int = 0
    pools: bool = False
    """Whether one query attends, as class attention does."""


class AttentionWatch:
    """A model whose calls add up distance and entropy of each head. Its outputs are those it has without being watched.

    A context manager; hooks and mode exist only inside it. Hooks say which block runs, and the mode is on while the
    attention of a block runs.

        with AttentionWatch(model) as watch:
            watch.check(images[:1])
            logits = watch(images)
            layers = watch.layers()

    Prefix tokens are left out before the softmax, as rows and as columns, as in the released code. Distances in shifted
    windows are those between places within the window, and pairs that the model masks weigh nothing.

    Args:
        model: In evaluation mode.
        pixel_step: Pixels from a token to the next; None for the stride of the layer's stage. (MAE-Lite's released code
            takes 14 for patches of 16 pixels.)
        epsilon: See `EPSILON`.

    Raises:
        EvaluationError: If the model is compiled, or the step no positive number. Calls raise it if attention is laid
            out in a way that is not known.
    """

    def __init__(self, model: AnalysedModel, pixel_step: float | None = None, epsilon: float = EPSILON) -> None:
        check_not_compiled(model.model, model.name)
        if pixel_step is not None and not 0 < pixel_step < math.inf:
            raise EvaluationError(f'{pixel_step} pixels is not a step between tokens: give a positive number.')
        self.model, self.pixel_step, self.epsilon = model, pixel_step, epsilon
        self.checked = False
        self._blocks = {name: block for name, block in find_blocks(model.model).items() if _attention_of(block)}
        self._mode = _Mode(self)
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._open = self._dry = False
        self._calls: list[_Call] = []
        self._sums: dict[str, Sums] = {}
        self._seen: dict[str, None] = {}
        self.left_out: dict[str, None] = {}
        self._size = model.size

    def __enter__(self) -> 'AttentionWatch':
        for name, block in self._blocks.items():
            self._handles.append(block.register_forward_pre_hook(self._entered(name), with_kwargs=True))
            self._handles.append(block.register_forward_hook(self._left))
        for attention in {id(m): m for m in map(_attention_of, self._blocks.values()) if m is not None}.values():
            self._handles.append(attention.register_forward_pre_hook(self._begin))
            self._handles.append(attention.register_forward_hook(self._end))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._close()
        while self._handles:
            self._handles.pop().remove()

    def __call__(self, images: torch.Tensor) -> Any:
        """The output of the model for images (B, 3, H, W)."""
        self._size, self._calls, self._seen = (images.shape[-2], images.shape[-1]), [], {}
        try:
            return self.model(images)
        finally:
            self._close()

    def check(self, images: torch.Tensor) -> None:
        """Run images (B, 3, H, W) once to see whether all attention of the model is what hooks and mode will see.

        Raises:
            EvaluationError: If the model has no attention, or other attention.
        """
        self._dry, count = True, _Count()
        try:
            with count:
                self(images)
        finally:
            self._dry = False
        if not count.maps:
            raise EvaluationError(
                f'{self.model.name} computes no softmax between tokens: it has no attention, or a kind without a map, '
                'such as linear attention. Analyse its frequencies, or its layers by CKA.'
            )
        if count.maps != len(self._seen):
            raise self._unknown('also outside the attention of its blocks, or not as softmax or fused attention')
        self.checked = True

    def layers(self) -> tuple[LayerAttention, ...]:
        """Means of all that was called. Raises: EvaluationError: If one is not finite; the first such is named."""
        return tuple(s.mean(name) for name, s in self._sums.items())

    def _close(self) -> None:
        """Leave the mode, also where an error has left the attention of a block."""
        if self._open:
            self._open = False
            self._mode.__exit__(None, None, None)

    def _entered(self, name: str) -> Callable:
        def hook(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            x = next((x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)), None)
            if x is None:
                raise self._unknown(f'in {name}, which takes no tensor')
            self._calls.append(_Call(name, block, x))

        return hook

    def _left(self, block: nn.Module, args: tuple, output: Any) -> None:
        call = self._calls.pop()
        if call.maps != 1 and not (call.pools and not call.maps):
            how = 'not as softmax or fused attention' if not call.maps else f'{call.maps} times a call'
            raise self._unknown(f'in {call.name}, {how}')
        if not call.maps:
            self.left_out[call.name] = None

    def _begin(self, attention: nn.Module, args: tuple) -> None:
        if self._calls and not self._open:
            self._open = True
            self._mode.__enter__()

    def _end(self, attention: nn.Module, args: tuple, output: Any) -> None:
        self._close()

    def _unknown(self, where: str) -> EvaluationError:
        return EvaluationError(
            f'{self.model.name} computes attention {where}, a layout that is not known here, and distances would be '
            'wrong: analyse its frequencies, or its layers by CKA.'
        )

    def see_softmax(self, logits: torch.Tensor) -> None:
        """Reduce a map by its logits (B, ..., heads, N, N)."""
        if logits.shape[-2] == 1:
            self._calls[-1].pools = True
            return
        if logits.ndim < 4:
            raise self._unknown(f'of {tuple(logits.shape)} logits in {self._calls[-1].name}')
        x = logits.flatten(0, -4)
        self._see(x.shape, lambda images, rows, prefix: x[images, :, prefix:, prefix:][:, :, rows])

    def see_fused(self, q: torch.Tensor, k: torch.Tensor, bias: torch.Tensor | None, scale: float) -> None:
        """Reduce a map by queries and keys (B, heads, N, d), a bias or mask that broadcasts, and the scale."""
        if q.shape[-2] == 1:
            self._calls[-1].pools = True
            return
        if q.ndim != 4 or q.shape[:-1] != k.shape[:-1]:
            raise self._unknown(f'of {tuple(q.shape)} queries and {tuple(k.shape)} keys in {self._calls[-1].name}')
        B, heads, N, _ = q.shape
        if bias is not None:
            if bias.dtype == torch.bool:
                bias = torch.zeros_like(bias, dtype=q.dtype).masked_fill_(~bias, -torch.inf)
            bias = bias.expand(B, heads, N, N)

        def logits(images: slice, rows: slice, prefix: int) -> torch.Tensor:
            queries, keys = (at_least_float(x[images, :, prefix:]) for x in (q, k))
            found = (queries[:, :, rows] * scale) @ keys.transpose(-2, -1)
            return found if bias is None else found.add_(bias[images, :, prefix:, prefix:][:, :, rows])

        self._see((B, heads, N, N), logits)

    def _see(self, shape: Sequence[int], logits: Callable[[slice, slice, int], torch.Tensor]) -> None:
        call = self._calls[-1]
        call.maps += 1
        name = next_name(call.name, self._seen)
        self._seen[name] = None
        layout = self._layout(call, shape)
        if self._dry:
            return
        if name not in self._sums:
            self._sums[name] = Sums(layout, self._step(call.name, layout.of_map))
        add_map(self._sums[name], shape, layout, logits, call.input.device, self.epsilon)

    def _layout(self, call: _Call, shape: Sequence[int]) -> Layout:
        """How the tokens lie of a map (B, heads, N, N)."""
        attention, x, (B, _, N, keys) = _attention_of(call.block), call.input, shape
        if N != keys:
            raise self._unknown(f'from {N} queries to {keys} keys in {call.name}')
        if not _is_a(call.block, WINDOW_BLOCKS):
            if x.ndim != 3 or (B, N) != (x.shape[0], x.shape[1]) or _is_a(attention, CHANNELS):
                raise self._unknown(f'of shape {tuple(shape)} for an input {tuple(x.shape)} in {call.name}')
            grid = token_grid(self.model, N, self._size)
            return Layout(grid[:2], grid.prefix, grid[:2], None)
        window: Any = getattr(attention, 'window_size', None) or getattr(call.block, 'window_size', None)
        window = (window, window) if isinstance(window, int) else tuple(window or (0, 0))
        windows = [math.ceil(side / max(1, w)) for side, w in zip(x.shape[1:3], window, strict=True)]
        if x.ndim != 4 or math.prod(window) != N or x.shape[0] * math.prod(windows) != B:
            raise self._unknown(f'of shape {tuple(shape)} for an input {tuple(x.shape)} in {call.name}')
        H, W = x.shape[1:3]
        return Layout(window, 0, (H, W), real_cells((H, W), window, x.device))

    def _step(self, name: str, of_map: tuple[int, int]) -> tuple[float, float]:
        """Pixels between neighbors on a map (H, W): the stride of its stage, whether the map is padded or not."""
        if self.pixel_step is not None:
            return self.pixel_step, self.pixel_step
        fitting = [stride for stride in _strides(unwrapped(self.model.model)) if _fits(stride, of_map, self._size)]
        if not fitting:
            raise EvaluationError(
                f'{self.model.name} does not say the stride of {name}: give the pixels between tokens (--pixel-step).'
            )
        height = self._size[0] / of_map[0]
        return min(fitting, key=lambda stride: abs(stride[0] - height))


class _Mode(TorchFunctionMode):
    """Shows the softmax or fused attention of a block to a watch."""

    def __init__(self, watch: AttentionWatch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is FUSED:
            self.watch.see_fused(*_of_fused(*args, **kwargs))
        elif func in SOFTMAX and _over_keys(*args, **kwargs):
            self.watch.see_softmax(args[0] if args else kwargs['input'])
        return func(*args, **kwargs)


class _Count(TorchFunctionMode):
    """Counts all maps of attention that a model computes. One query is pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = 0

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is FUSED:
            self.maps += (args[0] if args else kwargs['query']).shape[-2] > 1
        elif func in SOFTMAX and _over_keys(*args, **kwargs):
            self.maps += (args[0] if args else kwargs['input']).shape[-2] > 1
        elif func is OTHER:
            self.maps += 1
        return func(*args, **kwargs)


def _of_fused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, float]:
    """Queries, keys, bias or mask, and scale of a call of fused attention."""
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    return query, key, attn_mask, query.shape[-1] ** -0.5 if scale is None else scale


def _over_keys(input: torch.Tensor, dim: int | None = None, *_: Any, **__: Any) -> bool:
    """Whether a softmax is one over the last dimension of maps."""
    return input.ndim > 2 and dim in (-1, input.ndim - 1)


def _attention_of(block: nn.Module) -> nn.Module | None:
    """The attention of a block."""
    for name in NAMES:
        module = getattr(block, name, None)
        if isinstance(module, nn.Module) and not isinstance(module, nn.Identity):
            return module
    return None


def _is_a(module: nn.Module | None, names: frozenset[str]) -> bool:
    """Whether a module is of a class with one of these names, or of one that is made from it."""
    return any(kind.__name__ in names for kind in type(module).__mro__)


def _strides(net: Any) -> list[tuple[int, int]]:
    """(vertical, horizontal) pixels between tokens in the stages of a model."""
    patches = [getattr(getattr(net, 'patch_embed', None), 'patch_size', None)]
    patches += [getattr(getattr(net, 'config', None), 'patch_size', None)]
    patches += [info.get('reduction') for info in getattr(net, 'feature_info', None) or ()]
    found: dict[tuple[int, int], None] = {}
    for patch in patches:
        if isinstance(patch, int):
            found[patch, patch] = None
        elif isinstance(patch, list | tuple) and len(patch) == 2:
            found[int(patch[0]), int(patch[1])] = None
    return list(found)


def _fits(stride: tuple[int, int], of_map: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether images of this size have such a map at such a stride, whole or padded."""
    return all(s // step <= side <= -(-s // step) for step, side, s in zip(stride, of_map, size, strict=True))
