"""TinyMIM's student and teacher: plain ViTs that end at the queries, keys and values of one block.

Paper: TinyMIM: An Empirical Study of Distilling MIM Pre-trained Models, https://arxiv.org/abs/2301.01296, Sec. 3.
Released code: https://github.com/OliverRensu/TinyMIM.

    student, teacher = tinymim_student('tiny'), tinymim_teacher('small', last_heads=12)
    loss = relation_distillation_loss(student(jittered), teacher(images)).total

Shape legend: `B` images, `N` tokens (class token included), `H` heads, `d` head width.
"""

from collections.abc import Collection
from functools import partial
from typing import Any, Literal

import timm
import torch
from timm.layers import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ..distill import HeadQKV
from ..models import PlainVit
from .encoder import block_inputs, check_block, embed, head_qkv, init_as_mae, refuse_arguments, visible_tokens

__all__ = ['RelationEncoder', 'tinymim_student', 'tinymim_teacher']


class RelationEncoder(nn.Module):
    """A plain ViT up to one block, of which only norm and projection are run: (B, 3, H, W) -> `HeadQKV`.

    The parts after that projection are in the state dict but get no gradient from the loss: for a student the rest of
    its last block and the final norm, which in released files are as initialized. `unreached_parameters` names them:
    they are to be frozen before DistributedDataParallel sees them.

    The ViT is `vit`: load and save its state dict, whose names are timm's and those of the released files.
    """

    def __init__(
        self,
        vit: VisionTransformer,
        block: int,
        heads: int | None = None,
        frozen: bool = False,
        drop_path: bool = False,
    ) -> None:
        """
        Args:
            vit: timm's VisionTransformer or ours.
            block: The target block, counted from 1 as in the paper.
            heads: Number of heads to split that block into; None for its own number. No weight depends on it, and the
                earlier blocks keep theirs.
            frozen: For a teacher: no gradient, and always in evaluation mode.
            drop_path: Drop paths of a frozen one in training mode all the same.

        Raises:
            ValueError: If there is no such block, the heads do not divide the width, or the block normalizes queries
                and keys head by head.
        """
        super().__init__()
        if not 1 <= block <= len(vit.blocks):
            raise ValueError(f'block counts from 1 to the depth {len(vit.blocks)}, got {block}.')
        target: Any = vit.blocks[block - 1]
        check_block(target, heads)
        self.vit = vit
        self.block = block
        self.heads: int = target.attn.num_heads if heads is None else heads
        self.frozen = frozen
        self.drop_path = drop_path
        if frozen:
            vit.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> 'RelationEncoder':
        super().train(mode and not self.frozen)
        if self.frozen and self.drop_path:
            for module in self.modules():
                if isinstance(module, DropPath):
                    module.train(mode)
        return self

    def unreached_parameters(self) -> list[str]:
        """Names of the parameters that its output does not depend on."""
        return [name for name, _ in self.named_parameters() if not self._reaches(name)]

    def _reaches(self, name: str) -> bool:
        _, part, *rest = name.split('.')
        if part != 'blocks':
            return part in ('cls_token', 'reg_token', 'pos_embed', 'patch_embed', 'norm_pre')
        number, inside = int(rest[0]) + 1, '.'.join(rest[1:])
        return number < self.block or (number == self.block and inside.startswith(('norm1.', 'attn.qkv.')))

    def forward(self, images: torch.Tensor, ids_keep: torch.Tensor | None = None) -> HeadQKV:
        """
        Args:
            images: (B, 3, H, W).
            ids_keep: int64 (B, K), the only patches that are seen; None for all.

        Returns:
            Queries, keys and values of the target block, each (B, H, N, d), N counting what is seen.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            last = self.block - 1
            return self.heads_of(self.tokens(images, (last,), ids_keep)[last])

    def heads_of(self, tokens: torch.Tensor) -> HeadQKV:
        """Queries, keys and values of the target block, from its input (B, N, C)."""
        return head_qkv(self.vit.blocks[self.block - 1], tokens, self.heads)

    def tokens(
        self, images: torch.Tensor, blocks: Collection[int], ids_keep: torch.Tensor | None = None
    ) -> dict[int, torch.Tensor]:
        """Inputs of some blocks, see `encoder.block_inputs`."""
        seen = embed(self.vit, images) if ids_keep is None else visible_tokens(self.vit, images, ids_keep)
        return block_inputs(self.vit, seen, blocks)


def tinymim_student(
    size: Literal['tiny', 'small', 'base'], drop_path_rate: float = 0.1, device=None, dtype=None, **kwargs
) -> RelationEncoder:
    """A student as TinyMIM initializes it: fixed sine-cosine positions, adaptive last block.

    Heads by size: 6, 6, 12; in the adaptive block, whose relations it returns, 12, 12, 16. The tiny student's 6 are
    those of the released code; the model fine-tuned from it has 3.

    Args:
        size: Width 192, 384 or 768.
        drop_path_rate: Of blocks 1 to 11, the same in all; the adaptive block has none.
        device: Of the parameters.
        dtype: Of the parameters.
        **kwargs: To the ViT, e.g. `img_size`; `last_heads` for another teacher.

    Raises:
        TypeError: On an argument that would have no effect on the relations, or on their initial values.
    """
    refuse_arguments('tinymim_student', kwargs, (*UNUSED, 'forward_depth', 'weight_init'))
    vit = timm.create_model(
        f'tinymim_vit_{size}_student_patch16_224', drop_path_rate=drop_path_rate, device=device, dtype=dtype, **kwargs
    )
    assert isinstance(vit, VisionTransformer)
    init_as_mae(vit, needs_reset=False)
    return RelationEncoder(vit, len(vit.blocks))


# What follows the target block, or hides tokens that student and teacher compare.
UNUSED = ('num_classes', 'global_pool', 'fc_norm', 'final_norm', 'drop_rate', 'patch_drop_rate')
# A frozen teacher is in evaluation mode.
OF_TRAINING = ('pos_drop_rate', 'proj_drop_rate', 'attn_drop_rate')


TEACHERS: dict[str, tuple[dict[str, Any], int]] = {
    'small': (dict(embed_dim=384, depth=12, num_heads=6), 12),
    'base': (dict(embed_dim=768, depth=12, num_heads=12), 12),
    'large': (dict(embed_dim=1024, depth=24, num_heads=16), 18),
}
"""By size: the ViT, and its target block."""


def tinymim_teacher(
    size: Literal['small', 'base', 'large'],
    block: int | None = None,
    last_heads: int | None = None,
    drop_path_rate: float = 0.0,
    device=None,
    dtype=None,
    **kwargs,
) -> RelationEncoder:
    """A frozen teacher: MAE-L for the base student, then TinyMIM-B for small, TinyMIM-S for tiny (paper Sec. 3.3).

    Its weights are those of an encoder: Meta's MAE (timm's `vit_base_patch16_224.mae`, `vit_large_patch16_224.mae`) or
    a TinyMIM student's; load them into `.vit`, see `load_pretraining`.

    Heads by size: 6, 12, 16 in all blocks. The released code loads a TinyMIM student as a teacher with those, although
    its last block was trained with 12 or 16, and fails where student and teacher then differ, as they do for the
    paper's own pair of a tiny student and a small teacher. `tinymim_teacher('small', last_heads=12)` makes that pair
    work, with the heads that TinyMIM-S was trained with. The pair of a small student and a base teacher is released
    with 12 heads on both sides.

    Args:
        size: Width 384, 768 or 1024.
        block: Target block, from 1; None for the released 12, 12 or 18.
        last_heads: Heads of the target block, if different from those of the others.
        drop_path_rate: Of the last block, rising linearly from 0, while in training mode (`train()`). None as released;
            the paper's Table 13 tries others, without saying how they are spread over the blocks.
        device: Of the parameters.
        dtype: Of the parameters.
        **kwargs: To the ViT, e.g. `img_size`.

    Raises:
        TypeError: On an argument that would have no effect on the relations of a frozen model.
    """
    refuse_arguments('tinymim_teacher', kwargs, (*UNUSED, *OF_TRAINING))
    arguments, released_block = TEACHERS[size]
    norm = partial(nn.LayerNorm, eps=1e-6)
    args = {**arguments, 'num_classes': 0, 'norm_layer': norm, 'drop_path_rate': drop_path_rate, **kwargs}
    vit = PlainVit(**args, device=device, dtype=dtype)
    target = released_block if block is None else block
    return RelationEncoder(vit, target, last_heads, frozen=True, drop_path=drop_path_rate > 0.0)
