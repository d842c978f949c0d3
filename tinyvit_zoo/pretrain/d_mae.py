"""D-MAE: MAE pre-training of a small ViT with distillation of the attention of a large MAE encoder.

Paper: A Closer Look at Self-Supervised Lightweight Vision Transformers, https://arxiv.org/abs/2205.14443, Sec. 5.
Released code: https://github.com/wangsr126/MAE-Lite, `projects/mae_lite/mae_lite_distill_exp.py`.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ..distill import attention_distillation_loss, hidden_mse_loss, relation_logits
from ..distill.precision import autocast_off
from ..layers import is_untouched
from .encoder import block_inputs, check_block, check_visible, head_qkv, visible_tokens
from .mae import MaskedAutoencoder

__all__ = ['DMae', 'DMaeOutput']

Inputs = dict[int, torch.Tensor]


class DMaeOutput(NamedTuple):
    """Result of a forward pass of `DMae`: scalars, except for the permutation. A part that is off is 0."""

    loss: torch.Tensor
    """MAE's loss plus the weighted others."""
    mae: torch.Tensor
    attention: torch.Tensor
    """Unweighted, summed over the chosen blocks."""
    hidden: torch.Tensor
    """Unweighted, summed over the chosen layers."""
    ids_shuffle: torch.Tensor
    """int64 (B, N), the permutation of the patches that student and teacher share."""


class DMae(nn.Module):
    """A student `MaskedAutoencoder` and a frozen teacher that sees the same visible patches.

    Distilled are the logits before the softmax, which the paper calls attention maps (Eq. 3; its Eq. 1 applies the
    softmax to them), of the last block only, through a 1x1 convolution over the heads even where student and teacher
    have equally many, as released.

    Names in the state dict are the released ones: `model.` for the student, `tch_model.` for the teacher's encoder,
    `attn_adapter.adapter11.weight` (counted from 0), `hidden_adapter.adapter12.weight`. Save `model.state_dict()`.
    """

    model: MaskedAutoencoder
    tch_model: VisionTransformer

    def __init__(
        self,
        model: MaskedAutoencoder,
        tch_model: VisionTransformer,
        attention_blocks: Iterable[int] = (12,),
        hidden_layers: Iterable[int] = (),
        attention_weight: float = 1.0,
        hidden_weight: float = 1.0,
        device=None,
        dtype=None,
    ) -> None:
        """
        Args:
            model: The student.
            tch_model: Encoder of the teacher, a plain ViT with the student's depth and number of patches. As released
                it is MAE-Base, whose weights are also those of timm's `vit_base_patch16_224.mae`. It is frozen here.
            attention_blocks: Blocks whose attention is distilled, counted from 1.
            hidden_layers: Layers whose tokens are distilled through a linear map: i < depth for the output of the first
                norm of block i, counted from 0; the depth for the output of the final norm. None as released.
            attention_weight: Of the attention loss.
            hidden_weight: Of the hidden-state loss.
            device: Of the adapters.
            dtype: Of the adapters.

        Raises:
            ValueError: If the two cannot be compared block by block and patch by patch, or a block does not exist.
        """
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.attention_blocks = tuple(sorted(set(attention_blocks)))
        self.hidden_layers = tuple(sorted(set(hidden_layers)))
        self.attention_weight = attention_weight
        self.hidden_weight = hidden_weight
        self._check(model, tch_model)
        self.model = model
        self.tch_model = tch_model.requires_grad_(False)
        self.attn_adapter = nn.ModuleDict(
            {
                f'adapter{i - 1}': nn.Conv2d(_heads(model, i), _heads(tch_model, i), 1, bias=False, **dd)
                for i in self.attention_blocks
            }
        )
        self.hidden_adapter = nn.ModuleDict(
            {
                f'adapter{i}': nn.Linear(model.embed_dim, tch_model.embed_dim, bias=False, **dd)
                for i in self.hidden_layers
            }
        )
        self.train(self.training)

    def _check(self, model: MaskedAutoencoder, tch_model: VisionTransformer) -> None:
        check_visible(tch_model)
        depth, teacher_depth = len(model.blocks), len(tch_model.blocks)
        if depth != teacher_depth:
            raise ValueError(f'Blocks are compared one by one: the student has {depth}, the teacher {teacher_depth}.')
        grid, teacher_grid = model.patch_embed.grid_size, tch_model.patch_embed.grid_size
        if grid != teacher_grid or model.num_prefix_tokens != tch_model.num_prefix_tokens:
            raise ValueError(
                f'The student has {grid} patches and {model.num_prefix_tokens} prefix tokens, the teacher '
                f'{teacher_grid} and {tch_model.num_prefix_tokens}; they must be the same.'
            )
        if not all(1 <= i <= depth for i in self.attention_blocks):
            raise ValueError(f'attention_blocks count from 1 to {depth}, got {self.attention_blocks}.')
        if not all(0 <= i <= depth for i in self.hidden_layers):
            raise ValueError(f'hidden_layers count from 0 to {depth}, got {self.hidden_layers}.')
        for vit in (model, tch_model):
            for i in self.attention_blocks:
                check_block(vit.blocks[i - 1])

    def train(self, mode: bool = True) -> 'DMae':
        super().train(mode)
        self.tch_model.eval()
        return self

    def forward(
        self,
        images: torch.Tensor,
        mask_ratio: float = 0.75,
        noise: torch.Tensor | None = None,
        ids_shuffle: torch.Tensor | None = None,
    ) -> DMaeOutput:
        """Arguments and errors as in `MaskedAutoencoder.forward`; the teacher gets the same images."""
        wanted = {*(i - 1 for i in self.attention_blocks), *self.hidden_layers}
        masking = self.model.draw_masking(images, mask_ratio, noise, ids_shuffle)
        latent, inputs = self.model.forward_encoder(images, masking.ids_keep, wanted)
        pred = self.model.forward_decoder(latent, masking.ids_keep)
        mae = self.model.forward_loss(images, pred, masking.mask)
        teacher_inputs = self._teacher_inputs(images, masking.ids_keep, wanted)
        attention = sum(
            (self._attention_loss(i, inputs, teacher_inputs) for i in self.attention_blocks), mae.new_zeros(())
        )
        hidden = sum((self._hidden_loss(i, inputs, teacher_inputs) for i in self.hidden_layers), mae.new_zeros(()))
        loss = mae + self.attention_weight * attention + self.hidden_weight * hidden
        return DMaeOutput(loss, mae, attention, hidden, masking.ids_shuffle)

    @torch.no_grad()
    def _teacher_inputs(self, images: torch.Tensor, ids_keep: torch.Tensor, wanted: set[int]) -> Inputs:
        if not wanted:
            return {}
        return block_inputs(self.tch_model, visible_tokens(self.tch_model, images, ids_keep), wanted)

    def _attention_loss(self, i: int, student: Inputs, teacher: Inputs) -> torch.Tensor:
        logits = _attention_logits(self.model.blocks[i - 1], student[i - 1])
        with torch.no_grad():
            teacher_logits = _attention_logits(self.tch_model.blocks[i - 1], teacher[i - 1])
        return attention_distillation_loss(_mapped(self.attn_adapter[f'adapter{i - 1}'], logits), teacher_logits)

    def _hidden_loss(self, i: int, student: Inputs, teacher: Inputs) -> torch.Tensor:
        hidden = self.hidden_adapter[f'adapter{i}'](_hidden(self.model, i, student[i]))
        with torch.no_grad():
            teacher_hidden = _hidden(self.tch_model, i, teacher[i])
        return hidden_mse_loss([hidden], [teacher_hidden])


def _heads(vit: VisionTransformer, block: int) -> int:
    chosen: Any = vit.blocks[block - 1]
    return chosen.attn.num_heads


def _mapped(adapter: nn.Module, logits: torch.Tensor) -> torch.Tensor:
    """The student's logits (B, Hs, N, N) mapped to the teacher's heads, in the wider precision of the two."""
    weight = next(adapter.parameters())
    with autocast_off(logits.device.type):
        if weight.dtype != logits.dtype and is_untouched(adapter, nn.Conv2d):
            return F.conv2d(logits, adapter.weight.to(logits.dtype))
        return adapter(logits.to(weight.dtype))


def _attention_logits(block: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    q, k, _ = head_qkv(block, tokens)
    return relation_logits(q, k)


def _hidden(vit: VisionTransformer, i: int, tokens: torch.Tensor) -> torch.Tensor:
    blocks: Any = vit.blocks
    return (vit.norm if i == len(blocks) else blocks[i].norm1)(tokens)
