"""What TinyMIM's study varies: the distillation target, its block, masked input, and MAE's reconstruction beside it.

Paper: TinyMIM: An Empirical Study of Distilling MIM Pre-trained Models, https://arxiv.org/abs/2301.01296, Sec. 3.1 and
3.2, Tables 5 to 13. Only the default, relations of whole images, is in the released code.

    pair = TinyMim(tinymim_student('tiny'), tinymim_teacher('small', last_heads=12))
    losses = pair(jittered, images)   # losses['loss'] is to be minimised

Shape legend: `B` images, `N` tokens that are seen (class token included), `P` patches, `K` visible ones, `C` width of
the student, `D` that of the teacher.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import nn

from ..distill import HeadQKV, class_token_loss, relation_losses, smooth_l1_loss, whitened
from ..distill.relation import RELATIONS, Relation, check_names
from .encoder import check_visible
from .mae import MaskedAutoencoder, Masking, random_masking
from .tinymim import RelationEncoder

__all__ = ['TARGETS', 'Seen', 'Target', 'TinyMim', 'TinyMimStudent', 'TinyMimTeacher']

Target = Literal['relation', 'qkv', 'output', 'ffn', 'ffn_residual', 'attention', 'attention_residual', 'cls']
"""What the student learns from the teacher's target block.

- relation: query-key and value-value relations (Eq. 4).
- qkv: queries, keys and values (Eq. 3), each whitened for itself.
- attention, ffn: what attention and MLP add (Eq. 2); with `_residual` the sum with what they are added to.
- output: what the block returns, as `ffn_residual`; the paper means that of the teacher's last block.
- cls: the class token after the final norm, meant of the last block, too.
"""
TARGETS: tuple[Target, ...] = get_args(Target)


class Seen(NamedTuple):
    """What the student makes of a batch."""

    features: HeadQKV | torch.Tensor
    """Relations' heads; or (B, N, D), 3D for 'qkv'; or (B, D) for 'cls'."""
    reconstruction: torch.Tensor | None
    """MAE's loss, scalar."""


class TinyMimStudent(nn.Module):
    """The part that is trained: the student, and what is thrown away afterwards.

    For features, its output goes through the final norm and a linear map to the teacher's width, as the paper has it
    ("on the output of the student network"), whichever the target is. So does its class token.
    """

    def __init__(self, encoder: RelationEncoder, target: Target, width: int, reconstruct: bool = False) -> None:
        """
        Args:
            encoder: The student; its block is its last one.
            target: See `Target`.
            width: D.
            reconstruct: Also MAE's loss; `encoder.vit` is a `MaskedAutoencoder` then.

        Raises:
            ValueError: If there is no decoder to reconstruct with.
        """
        super().__init__()
        if reconstruct and not isinstance(encoder.vit, MaskedAutoencoder):
            raise ValueError('reconstruct needs a MaskedAutoencoder as the student: nothing else has a decoder.')
        self.encoder = encoder
        self.target = target
        self.reconstruct = reconstruct
        like: Any = encoder.vit.patch_embed.proj.weight
        outputs = 3 * width if target == 'qkv' else width
        self.map = (
            nn.Identity()
            if target == 'relation'
            else nn.Linear(encoder.vit.embed_dim, outputs, device=like.device, dtype=like.dtype)
        )

    def unreached_parameters(self) -> list[str]:
        """Names of the parameters that no loss depends on: freeze them before DistributedDataParallel sees them."""
        if self.reconstruct:
            return []
        if self.target == 'relation':
            return [f'encoder.{name}' for name in self.encoder.unreached_parameters()]
        decoder = ('encoder.vit.decoder', 'encoder.vit.mask_token')
        return [name for name, _ in self.named_parameters() if name.startswith(decoder)]

    def forward(self, images: torch.Tensor, masking: Masking | None = None) -> Seen:
        """
        Args:
            images: (B, 3, H, W).
            masking: The only patches that are seen; None for all.
        """
        ids_keep = None if masking is None else masking.ids_keep
        if self.target == 'relation' and not self.reconstruct:
            return Seen(self.encoder(images, ids_keep), None)
        vit: Any = self.encoder.vit
        depth = len(vit.blocks)
        tokens = self.encoder.tokens(images, (depth - 1, depth), ids_keep)
        output = vit.norm(tokens[depth])
        reconstruction = None
        if self.reconstruct:
            assert masking is not None
            pred = vit.forward_decoder(output, masking.ids_keep)
            reconstruction = vit.forward_loss(images, pred, masking.mask)
        if self.target == 'relation':
            return Seen(self.encoder.heads_of(tokens[depth - 1]), reconstruction)
        return Seen(self.map(output[:, 0] if self.target == 'cls' else output), reconstruction)


class TinyMimTeacher(nn.Module):
    """The frozen part: the teacher up to its target block, and no further."""

    def __init__(self, encoder: RelationEncoder, target: Target) -> None:
        super().__init__()
        self.encoder = encoder
        self.target = target

    @torch.no_grad()
    def forward(self, images: torch.Tensor, masking: Masking | None = None) -> HeadQKV | torch.Tensor:
        """
        Args:
            images: (B, 3, H, W).
            masking: The only patches that are seen; None for all.

        Returns:
            Relations' heads; or the target, whitened, (B, N, D), 3D for 'qkv'; or the class token (B, D).
        """
        ids_keep = None if masking is None else masking.ids_keep
        if self.target == 'relation':
            return self.encoder(images, ids_keep)
        last = self.encoder.block - 1
        vit: Any = self.encoder.vit
        tokens = self.encoder.tokens(images, (last,), ids_keep)[last]
        if self.target == 'qkv':
            heads = self.encoder.heads_of(tokens)
            return torch.cat([whitened(part.transpose(1, 2).flatten(2)) for part in heads], dim=-1)
        feature = _feature(vit.blocks[last], tokens, self.target)
        return vit.norm(feature)[:, 0] if self.target == 'cls' else whitened(feature)


class TinyMim(nn.Module):
    """A student and its teacher under one of the paper's objectives.

    Where patches are masked, both see the same visible ones, as teacher and student of D-MAE do: the paper says only
    that the student's visible patches enter the network.
    """

    def __init__(
        self,
        student: RelationEncoder,
        teacher: RelationEncoder,
        *,
        target: Target = 'relation',
        relations: Sequence[Relation] = RELATIONS,
        softmax: bool = True,
        mask_ratio: float = 0.0,
        reconstruct: bool = False,
    ) -> None:
        """
        Args:
            student: See `tinymim_student`; its drop path is its own.
            teacher: See `tinymim_teacher`, which sets its block and its drop path.
            target: See `Target`.
            relations: Those of the target 'relation'.
            softmax: Of the relations, see `relation_losses`.
            mask_ratio: Fraction of the patches that is hidden; 0 for whole images, as released.
            reconstruct: Add MAE's loss, weight 1, to the target's ("integrated model", Table 12; Table 5).

        Raises:
            ValueError: On an unknown target or relation, heads or patches that do not match, and a reconstruction
                without a mask or a decoder.
        """
        super().__init__()
        if target not in TARGETS:
            raise ValueError(f'target must be one of {", ".join(TARGETS)}, not {target!r}.')
        if target == 'relation':
            check_names(relations)
        if not 0 <= mask_ratio < 1:
            raise ValueError(f'mask_ratio must be from 0 to below 1, not {mask_ratio}.')
        if reconstruct and not mask_ratio:
            raise ValueError('reconstruct needs hidden patches to reconstruct: give a mask_ratio such as 0.75.')
        if mask_ratio:
            check_visible(teacher.vit)
        _check_pair(student, teacher, target)
        self.student = TinyMimStudent(student, target, teacher.vit.embed_dim, reconstruct)
        self.teacher = TinyMimTeacher(teacher, target)
        self.target: Target = target
        self.relations, self.softmax, self.mask_ratio = tuple(relations), softmax, mask_ratio

    def masking(self, noise: torch.Tensor | None) -> Masking | None:
        """The patches that are seen, from noise (B, P) whose smallest values stay visible; None for all of them."""
        if not self.mask_ratio:
            return None
        assert noise is not None, 'a masked pair needs noise'
        return random_masking(noise.argsort(dim=1), self.mask_ratio)

    def losses(self, seen: Seen, target: HeadQKV | torch.Tensor) -> dict[str, torch.Tensor]:
        """'loss', to be minimised, and its parts where there are several."""
        parts: dict[str, torch.Tensor] = {}
        if isinstance(target, tuple):
            assert isinstance(seen.features, tuple)
            parts = relation_losses(HeadQKV(*seen.features), HeadQKV(*target), self.relations, self.softmax)
        else:
            assert isinstance(seen.features, torch.Tensor)
            compare = class_token_loss if self.target == 'cls' else smooth_l1_loss
            parts[self.target] = compare(seen.features, target)
        if seen.reconstruction is not None:
            parts['reconstruction'] = seen.reconstruction
        loss = torch.stack(list(parts.values())).sum()
        return dict(loss=loss, **parts) if len(parts) > 1 else dict(loss=loss)

    def forward(
        self, student_images: torch.Tensor, teacher_images: torch.Tensor, noise: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """The losses of a batch.

        Args:
            student_images: (B, 3, H, W), with jittered colors as released.
            teacher_images: (B, 3, H, W), the same crops.
            noise: (B, P) for `masking`; drawn where it is None.
        """
        if self.mask_ratio and noise is None:
            noise = torch.rand(len(student_images), _patches(self.student.encoder), device=student_images.device)
        masking = self.masking(noise)
        return self.losses(self.student(student_images, masking), self.teacher(teacher_images, masking))


def _feature(block: Any, tokens: torch.Tensor, target: Target) -> torch.Tensor:
    """A feature of Eq. 2, from the input of its block; nothing after it is computed."""
    attention = block.drop_path1(block.ls1(block.attn(block.norm1(tokens))))
    if target == 'attention':
        return attention
    tokens = tokens + attention
    if target == 'attention_residual':
        return tokens
    ffn = block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))
    return ffn if target == 'ffn' else tokens + ffn


def _patches(encoder: RelationEncoder) -> int:
    return encoder.vit.patch_embed.num_patches


def _check_pair(student: RelationEncoder, teacher: RelationEncoder, target: Target) -> None:
    if target == 'relation' and student.heads != teacher.heads:
        raise ValueError(
            f'The student has {student.heads} heads in its last block, the teacher {teacher.heads} in its target '
            "block, and relations are compared head by head: build one of them with the other's as last_heads."
        )
    if target == 'cls' and not (student.vit.has_class_token and teacher.vit.has_class_token):
        raise ValueError("The target 'cls' needs a class token in student and teacher.")
    grids = [encoder.vit.patch_embed.grid_size for encoder in (student, teacher)]
    prefixes = [encoder.vit.num_prefix_tokens for encoder in (student, teacher)]
    if target != 'cls' and (grids[0] != grids[1] or prefixes[0] != prefixes[1]):
        raise ValueError(
            f'The student has {grids[0]} patches and {prefixes[0]} prefix tokens, the teacher {grids[1]} and '
            f'{prefixes[1]}: build both for one image size and one patch size.'
        )
