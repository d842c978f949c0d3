"""Key maps: translation between the names of released checkpoints and ours, in both directions.

A map is a table of prefixes and leaf names, read left to right or right to left. `check_keys` then compares the result
with the model, so that no key is lost silently.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import nn

from ..common.errors import CheckpointError
from ..common.text import first_few
from .beit_buffers import beit_buffers, check_beit_buffers
from .counters import with_counters
from .swin_buffers import check_swin_buffers, swin_buffers

__all__ = [
    'CLIP_VIT_KEYS',
    'KEY_MAPS',
    'MINI_DEIT_KEYS',
    'MINI_SWIN_KEYS',
    'PLAIN_VIT_KEYS',
    'TINYVIT_KEYS',
    'KeyMap',
    'check_keys',
    'drop_head',
    'find_key_map',
    'fit_to_model',
]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeyMap:
    """Two-way key map of one family.

    Attributes:
        family: Name for messages.
        prefixes: Pairs (official, ours); the longest match applies.
        leaves: Pairs (official, ours) of a module name inside a key, e.g. ('.c.', '.conv.').
        ignored: Pairs (leaf, owner): leaves that some files store along with the leaf `owner`, and no model needs.
        head: Our name of the classifier.
        tail: Our prefixes of the modules between the last block and the classifier, which backbones of detectors lack.
        more_heads: Our names of the second classifiers that some models of the family have.
        leftovers: Patterns of official keys that belong to training (decoder, projector) and to no model of the
            family.
        first_conv: Our name of the first convolution.
        signature: Pair (official, ours) of a key that every file of this family has, and no file of another one.
        pointwise: Parts of our names of the matrices (out, in) that the released code keeps as 1x1 convolutions.
        unbatched: Our names of tensors with leading axes of 1 that the released code leaves out, and their number.
        transposed: Our names of the matrices (out, in) that the released code keeps as (in, out).
        buffers: Function from an official state dict and the image size (None: as released) to the buffers that the
            released code stores with the weights.
        check_buffers: Raises CheckpointError if those of an official state dict have other values.
    """

    family: str
    prefixes: tuple[tuple[str, str], ...]
    leaves: tuple[tuple[str, str], ...]
    ignored: tuple[tuple[str, str], ...]
    head: str
    first_conv: str
    signature: tuple[str, str]
    tail: tuple[str, ...]
    pointwise: tuple[str, ...] = ()
    unbatched: Mapping[str, int] = field(default_factory=dict)
    transposed: tuple[str, ...] = ()
    more_heads: tuple[str, ...] = ()
    leftovers: tuple[str, ...] = ()
    buffers: Callable[[Mapping[str, torch.Tensor], tuple[int, int] | None], dict[str, torch.Tensor]] | None = None
    check_buffers: Callable[[Mapping[str, torch.Tensor]], None] | None = None

    @property
    def same_names(self) -> bool:
        """Whether our names are the released ones."""
        return all(official == ours for official, ours in (*self.prefixes, *self.leaves))

    def is_head(self, key: str) -> bool:
        """Whether one of our keys belongs to a classifier."""
        return key.startswith(tuple(f'{head}.' for head in (self.head, *self.more_heads)))

    def layout(self, keys: Sequence[str]) -> str:
        """'official', 'ours' or 'unknown', by the prefixes of most keys, where the two differ.

        'ours' where our names are the released ones.
        """
        if self.same_names:
            known = sum(any(key.startswith(ours) for _, ours in self.prefixes) for key in keys)
            return 'ours' if known > len(keys) / 4 else 'unknown'
        n_official = n_ours = 0
        for key in keys:
            # The longer match is the better one: 'blocks.0.block.' is not just any 'blocks.0.'.
            official, ours = (
                max((len(p[i]) for p in self.prefixes if key.startswith(p[i])), default=0) for i in (0, 1)
            )
            n_official += official > ours
            n_ours += ours > official
        # The names of other families overlap here and there ('head.'); a few keys do not make a layout.
        if n_official == n_ours or max(n_official, n_ours) < len(keys) / 4:
            return 'unknown'
        return 'official' if n_official > n_ours else 'ours'

    def _rename(self, key: str, column: int) -> str | None:
        """Key of layout `column` (0 official, 1 ours) in the other layout; None if no prefix fits."""
        pairs = [p for p in self.prefixes if key.startswith(p[column])]
        if not pairs:
            return None
        old, new = max(pairs, key=lambda p: len(p[column]))[:: 1 if column == 0 else -1]
        key = new + key.removeprefix(old)
        for leaf in self.leaves:
            key = key.replace(leaf[column], leaf[1 - column])
        return key

    def _is_ignored(self, key: str, state_dict: Mapping[str, torch.Tensor]) -> bool:
        """Whether a key is a known leftover: the parameter that it belongs to is there too."""
        return any(key.endswith(old) and key.removesuffix(old) + owner in state_dict for old, owner in self.ignored)

    def official_name(self, key: str) -> str | None:
        """Official name of one of our keys, None if it has none."""
        return self._rename(key, 1)

    def head_keys(self) -> tuple[str, ...]:
        """Keys of the classifiers, under our and under the official name."""
        ours = tuple(f'{head}.{leaf}' for head in (self.head, *self.more_heads) for leaf in ('weight', 'bias'))
        return (*ours, *(self.official_name(key) or key for key in ours))

    def head_classes(self, state_dict: Mapping[str, torch.Tensor]) -> int | None:
        """Classes of a checkpoint's classifier, None without one.

        Raises:
            CheckpointError: If the parts of the classifier disagree.
        """
        parts = {key: state_dict[key] for key in self.head_keys() if key in state_dict}
        rows = {key: len(part) for key, part in parts.items() if part.ndim > 0}
        if len(set(rows.values())) > 1:
            raise CheckpointError(f'The classifier has parts that disagree in their number of rows: {rows}.')
        return next(iter(rows.values()), None)

    def to_ours(self, state_dict: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], str]:
        """State dict under our names, and its original layout.

        Keys that fit no rule keep their name, and `check_keys` reports them.

        Raises:
            CheckpointError: If the layout is of another model family, or two keys have the same meaning.
        """
        family = find_key_map(state_dict)
        if family not in (self, None):
            raise CheckpointError(f'These are {family.family} weights, not {self.family} weights.')
        kept = {k: v for k, v in state_dict.items() if not self._is_ignored(k, state_dict)}
        if leftovers := [k for k in kept if any(re.match(pattern, k) for pattern in self.leftovers)]:
            _logger.info('Left out %d tensors that only training needs: %s.', len(leftovers), first_few(leftovers))
            kept = {k: v for k, v in kept.items() if k not in leftovers}
        layout = self.layout(list(kept))
        if layout == 'unknown':
            raise CheckpointError(
                f'These are not {self.family} weights: the layout is unknown (first keys: {first_few(state_dict)}).'
            )
        if layout == 'ours':
            return kept, layout
        ours = {self._rename(k, 0) or k: v for k, v in kept.items()}
        if len(ours) < len(kept):
            twice = [k for k in kept if (self._rename(k, 0) or k) != k and self._rename(k, 0) in kept]
            raise CheckpointError(f'The checkpoint has {first_few(twice)} in the official and in our layout at once.')
        return {k: self.in_our_shape(k, v) for k, v in ours.items()}, layout

    def in_our_shape(self, key: str, value: torch.Tensor) -> torch.Tensor:
        """An official tensor in our shape, by our name; one of an odd shape stays as it is, for `check_keys`."""
        if self._is_pointwise(key, value, 4):
            return value.flatten(1)
        if key in self.transposed and value.ndim == 2:
            return value.mT
        leading = self.unbatched.get(key, 0)
        return value[(None,) * leading] if leading and value.ndim > 0 else value  # else the tensor itself

    def in_official_shape(self, key: str, value: torch.Tensor) -> torch.Tensor:
        """The inverse of `in_our_shape`."""
        if self._is_pointwise(key, value, 2):
            return value[..., None, None]
        if key in self.transposed and value.ndim == 2:
            return value.mT
        leading = self.unbatched.get(key, 0)
        return value[(0,) * leading] if leading and value.shape[:leading] == (1,) * leading else value

    def _is_pointwise(self, key: str, value: torch.Tensor, ndim: int) -> bool:
        return value.ndim == ndim and key.endswith('.weight') and any(part in key for part in self.pointwise)

    def to_official(
        self, state_dict: Mapping[str, torch.Tensor], img_size: tuple[int, int] | None = None
    ) -> dict[str, torch.Tensor]:
        """State dict under the names of the released code; the inverse of `to_ours`.

        Args:
            state_dict: Under our names.
            img_size: (H, W) of the images that the official model will take, where its buffers depend on it.

        Raises:
            CheckpointError: On a key that has no official name, or a geometry that the released code does not know.
        """
        if self.layout(list(state_dict)) == 'official':
            return dict(state_dict)
        renamed = {k: name for k in state_dict if (name := self.official_name(k)) is not None}
        if unknown := [k for k in state_dict if k not in renamed]:
            raise CheckpointError(f'No official {self.family} name for {first_few(unknown)}.')
        official = {renamed[k]: self.in_official_shape(k, v) for k, v in state_dict.items()}
        return official if self.buffers is None else official | self.buffers(official, img_size)


TINYVIT_KEYS = KeyMap(
    family='TinyViT',
    prefixes=(
        ('patch_embed.seq.0.', 'patch_embed.conv1.'),
        ('patch_embed.seq.2.', 'patch_embed.conv2.'),
        *((f'layers.{i}.blocks.', f'stages.{i}.blocks.') for i in range(4)),
        # The released code closes a stage with its downsample; ours (as timm's) opens the next one with it.
        *((f'layers.{i}.downsample.', f'stages.{i + 1}.downsample.') for i in range(3)),
        ('norm_head.', 'head.norm.'),
        ('head.', 'head.fc.'),
    ),
    leaves=(('.c.', '.conv.'),),
    # Index buffers of the bias tables, which old files still have.
    ignored=(('.attention_bias_idxs', '.attention_biases'),),
    head='head.fc',
    first_conv='patch_embed.conv1.conv',
    signature=('patch_embed.seq.0.c.weight', 'patch_embed.conv1.conv.weight'),
    tail=('head.norm.',),
)

MINI_DEIT_KEYS = KeyMap(
    family='Mini-DeiT',
    prefixes=(
        *((f'blocks.{i}.block.', f'blocks.{i}.') for i in range(24)),
        *((name, name) for name in ('pos_embed', 'patch_embed.', 'norm.', 'head.')),
    ),
    leaves=(
        ('.norm1.instances.', '.norm1.'),
        ('.norm2.instances.', '.norm2.'),
        ('.conv_l.instances.', '.proj_l.'),
        ('.conv_w.instances.', '.proj_w.'),
        ('.rpe_k.instances.', '.rpe_k.'),
        ('.lookup_table_weight', '.table'),
    ),
    ignored=(),
    head='head',
    first_conv='patch_embed.proj',
    signature=('blocks.0.block.norm1.instances.0.weight', 'blocks.0.norm1.0.weight'),
    tail=('norm.',),
    pointwise=('.proj_l.', '.proj_w.'),
)


MINI_SWIN_KEYS = KeyMap(
    family='Mini-Swin',
    prefixes=(
        *((f'layers.{i}.blocks.', f'stages.{i}.blocks.') for i in range(4)),
        *((f'layers.{i}.downsample.', f'stages.{i + 1}.downsample.') for i in range(3)),
        *((name, name) for name in ('patch_embed.', 'norm.')),
        ('head.', 'head.fc.'),
    ),
    leaves=(
        ('.norm1_list.', '.norm1.'),
        ('.norm2_list.', '.norm2.'),
        ('.proj_l.', '.attn.proj_l.'),
        ('.proj_w.', '.attn.proj_w.'),
        ('.local_norm_list.', '.local_norm.'),
        ('.local_conv_list.', '.local_conv.'),
    ),
    # Buffers that follow from window and image size.
    ignored=(('.relative_position_index', '.relative_position_bias_table'), ('.attn_mask', '.attn.qkv.weight')),
    head='head.fc',
    first_conv='patch_embed.proj',
    signature=('layers.0.blocks.0.norm1_list.0.weight', 'stages.0.blocks.0.norm1.0.weight'),
    tail=('norm.',),
    buffers=swin_buffers,
    check_buffers=check_swin_buffers,
)

PLAIN_VIT_KEYS = KeyMap(
    family='plain ViT (TinyMIM, MAE-Lite)',
    # Names as in timm's ViT and BEiT, so they are kept. They do not distinguish the two families, see `head_count`.
    prefixes=tuple(
        (name, name)
        for name in (
            *('cls_token', 'dist_token', 'pos_embed', 'patch_embed.', 'rel_pos_bias.', 'blocks.'),
            *('norm.', 'fc_norm.', 'dist_norm.', 'conv1x1.', 'head.', 'head_dist.'),
        )
    ),
    leaves=(),
    ignored=(('relative_position_index', 'relative_position_bias_table'),),
    head='head',
    more_heads=('head_dist',),
    first_conv='patch_embed.proj',
    signature=('blocks.0.norm1.weight', 'blocks.0.norm1.weight'),
    tail=('norm.', 'fc_norm.', 'dist_norm.', 'conv1x1.'),
    # The decoder of MAE; the projector of MoCo v3, which has numbered layers in place of the classifier.
    leftovers=(r'mask_token$', r'decoder_', r'head\.\d+\.'),
    buffers=beit_buffers,
    check_buffers=check_beit_buffers,
)

CLIP_VIT_KEYS = KeyMap(
    family='CLIP ViT',
    prefixes=(
        ('visual.class_embedding', 'cls_token'),
        ('visual.positional_embedding', 'pos_embed'),
        ('visual.conv1.', 'patch_embed.proj.'),
        ('visual.ln_pre.', 'norm_pre.'),
        ('visual.transformer.resblocks.', 'blocks.'),
        ('visual.ln_post.', 'norm.'),
        ('visual.proj', 'proj.weight'),
        ('head.', 'head.'),
    ),
    leaves=(
        ('.ln_1.', '.norm1.'),
        ('.ln_2.', '.norm2.'),
        ('.attn.in_proj_', '.attn.qkv.'),
        ('.attn.out_proj.', '.attn.proj.'),
        ('.mlp.c_fc.', '.mlp.fc1.'),
        ('.mlp.c_proj.', '.mlp.fc2.'),
    ),
    ignored=(),
    head='head',
    first_conv='patch_embed.proj',
    signature=('visual.class_embedding', 'norm_pre.weight'),
    tail=('norm.', 'proj.'),
    unbatched={'cls_token': 2, 'pos_embed': 1},
    transposed=('proj.weight',),
)

# The order matters: a CLIP ViT has the signature of every plain ViT, too.
KEY_MAPS = {
    'tinyvit': TINYVIT_KEYS,
    'mini_deit': MINI_DEIT_KEYS,
    'mini_swin': MINI_SWIN_KEYS,
    'clip_vit': CLIP_VIT_KEYS,
    'tinymim': PLAIN_VIT_KEYS,
    'mae_lite': PLAIN_VIT_KEYS,
}
"""The key map of every family, by the family's name in `releases.FAMILIES`."""


def find_key_map(state_dict: Mapping[str, torch.Tensor]) -> KeyMap | None:
    """The map of the family that a state dict of either layout belongs to; None if it belongs to none."""
    return next((m for m in KEY_MAPS.values() if any(key in state_dict for key in m.signature)), None)


def drop_head(state_dict: Mapping[str, torch.Tensor], head: str, width: int) -> dict[str, torch.Tensor]:
    """State dict without its classifier, for a model that keeps its own.

    Args:
        state_dict: Under our names.
        head: Name of the classifier.
        width: Input features of the classifier.

    Raises:
        CheckpointError: If there is half a classifier, or one of another width.
    """
    parts = {leaf: state_dict[f'{head}.{leaf}'] for leaf in ('weight', 'bias') if f'{head}.{leaf}' in state_dict}
    if len(parts) == 1:
        missing = 'bias' if 'weight' in parts else 'weight'
        raise CheckpointError(f'The checkpoint has half a classifier: {head}.{missing} is missing.')
    if parts and tuple(parts['weight'].shape[:2]) != (parts['bias'].numel(), width):
        shapes = ' and '.join(f'{leaf} {tuple(part.shape)}' for leaf, part in parts.items())
        raise CheckpointError(f'The classifier {head} has a wrong shape: {shapes}, for {width} features.')
    return {k: v for k, v in state_dict.items() if not k.startswith(head + '.')}


def check_keys(
    state_dict: Mapping[str, torch.Tensor],
    target: Mapping[str, torch.Tensor],
    key_map: KeyMap,
    layout: str,
    source_chans: int = 3,
    fresh_head: bool = False,
) -> None:
    """Compare a mapped checkpoint with the model that will load it.

    timm stops checking as soon as `num_classes` or `features_only` differ; this function does not.

    Args:
        state_dict: Mapped checkpoint.
        target: The model's state dict.
        key_map: The map that was used, for messages in the file's own names.
        layout: Original layout of the checkpoint.
        source_chans: Input channels of the checkpoint's first convolution, which timm adapts to the model's.
        fresh_head: The model keeps its own classifier, so that of the checkpoint may be absent.

    Raises:
        CheckpointError: If keys are unknown, missing or of a wrong shape; the message names the first few.
    """
    expected = {k: v for k, v in target.items() if not (fresh_head and key_map.is_head(k))}
    unknown = [k for k in state_dict if k not in expected]
    missing = [k for k in expected if k not in state_dict]
    wrong, mistyped = [], []
    for key in expected.keys() & state_dict.keys():
        if state_dict[key].is_floating_point() != target[key].is_floating_point():
            mistyped.append(key)
        have, want = tuple(state_dict[key].shape), tuple(target[key].shape)
        adaptable = key == key_map.first_conv + '.weight' and have == (want[0], source_chans, *want[2:])
        if have != want and not adaptable:
            wrong.append(key)

    def named(key: str) -> str:
        theirs = (layout == 'official' and key_map.official_name(key)) or key
        return theirs if theirs == key else f'{theirs} (ours: {key})'

    def shaped(key: str) -> str:
        have, want = (
            tuple((key_map.in_official_shape(key, v) if layout == 'official' else v).shape)
            for v in (state_dict[key], target[key])
        )
        return f'{named(key)} is {have}, not {want}'

    def typed(key: str) -> str:
        return f'{named(key)} is {state_dict[key].dtype}, not {target[key].dtype}'

    problems = [
        f'{len(keys)} {what}: {first_few(describe(k) for k in sorted(keys))}'
        for what, keys, describe in (
            ('unknown', unknown, named),
            ('missing', missing, named),
            ('of a wrong shape', wrong, shaped),
            ('of a wrong type', mistyped, typed),
        )
        if keys
    ]
    if problems:
        raise CheckpointError(
            f'The {key_map.family} checkpoint ({layout} layout, {len(state_dict)} keys) does not fit the model. Keys '
            + '; '.join(problems)
            + '. Is it the file of another model, or renamed?'
        )


def fit_to_model(
    state_dict: dict[str, torch.Tensor],
    model: nn.Module,
    key_map: KeyMap,
    layout: str,
    fresh_head: bool,
) -> dict[str, torch.Tensor]:
    """The last step of every `checkpoint_filter_fn`: account for each key, leave the classifier out if asked.

    A file that ends with the last block is the backbone of a detector. If the model needs no classifier from it, the
    norm after the last block keeps its initial values.

    Args:
        state_dict: Under our names, resized.
        model: The model that will load the result.
        key_map: Its family's.
        layout: Original layout of the checkpoint.
        fresh_head: The model keeps its own classifier.

    Raises:
        CheckpointError: See `check_keys` and `drop_head`.
    """
    if (fresh_head or model.num_classes == 0) and not any(
        key_map.is_head(k) or k.startswith(key_map.tail) for k in state_dict
    ):
        fresh = {k: v for k, v in model.state_dict().items() if k.startswith(key_map.tail)}
        if fresh:
            _logger.warning('The checkpoint ends with the last block: %s keep their initial values.', first_few(fresh))
        state_dict = state_dict | fresh
    state_dict = with_counters(state_dict, model.state_dict())
    check_keys(
        {k: v for k, v in state_dict.items() if not (fresh_head and key_map.is_head(k))},
        model.state_dict(),
        key_map,
        layout,
        source_chans=(getattr(model, 'pretrained_cfg', None) or {}).get('input_size', (3,))[0],
        fresh_head=fresh_head,
    )
    if fresh_head:
        for head in (key_map.head, *key_map.more_heads):
            state_dict = drop_head(state_dict, head, cast(int, model.num_features))
    return state_dict
