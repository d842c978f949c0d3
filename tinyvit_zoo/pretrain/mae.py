"""MAE as MAE-Lite pre-trains small ViTs: an encoder of the visible patches and a very small decoder.

Papers: Masked Autoencoders Are Scalable Vision Learners, https://arxiv.org/abs/2111.06377;
A Closer Look at Self-Supervised Lightweight Vision Transformers, https://arxiv.org/abs/2205.14443.
Released code: https://github.com/wangsr126/MAE-Lite, `projects/mae_lite/models_mae.py`.

Shape legend: `B` images, `N` patches, `K` visible patches, `C` width, `D` decoder width, `p` pixels of a patch times
channels.
"""

from collections.abc import Collection
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.layers import to_2tuple
from timm.models.vision_transformer import Block
from torch import nn

from ..models import PlainVit
from .encoder import block_inputs, fix_position, init_as_mae, visible_tokens

__all__ = [
    'MaeOutput',
    'MaskedAutoencoder',
    'Masking',
    'mae_lite_base',
    'mae_lite_small',
    'mae_lite_tiny',
    'random_masking',
]


class Masking(NamedTuple):
    """The visible patches of each image."""

    ids_shuffle: torch.Tensor
    """int64 (B, N): a permutation of the patches; the first K are visible, and enter the encoder in this order."""
    ids_keep: torch.Tensor
    """int64 (B, K): those first K."""
    mask: torch.Tensor
    """float32 (B, N), in the order of the image: 0 visible, 1 hidden."""


class MaeOutput(NamedTuple):
    """Result of a forward pass of `MaskedAutoencoder`."""

    loss: torch.Tensor
    """Scalar."""
    pred: torch.Tensor
    """(B, N, p), in the order of the image; of visible patches too, which the loss ignores."""
    mask: torch.Tensor
    """float32 (B, N): 0 visible, 1 hidden."""
    ids_shuffle: torch.Tensor
    """int64 (B, N): passed to another model, it hides the same patches there."""


def random_masking(ids_shuffle: torch.Tensor, mask_ratio: float) -> Masking:
    """Hide all but the first K = int(N * (1 - mask_ratio)) patches of a permutation, rounded down as released.

    Args:
        ids_shuffle: int64 (B, N).
        mask_ratio: Fraction that is hidden.

    Raises:
        ValueError: If no patch would be visible, or none hidden.
    """
    num_patches = ids_shuffle.shape[1]
    keep = int(num_patches * (1 - mask_ratio))
    if not 0 < keep < num_patches:
        raise ValueError(f'Of {num_patches} patches, a mask ratio of {mask_ratio} leaves none visible or none hidden.')
    ids_keep = ids_shuffle[:, :keep]
    mask = torch.ones(ids_shuffle.shape, device=ids_shuffle.device).scatter_(1, ids_keep, 0.0)
    return Masking(ids_shuffle, ids_keep, mask)


class MaskedAutoencoder(PlainVit):
    """MAE's encoder and decoder, under the released names: the encoder's are those of a plain ViT without classifier.

    Calling it on images gives the pre-training loss. The other methods of a ViT (`forward_features`,
    `forward_intermediates`) run the encoder on all patches.
    """

    pos_embed: nn.Parameter  # timm's may be None

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        decoder_embed_dim: int = 96,
        decoder_depth: int = 1,
        decoder_num_heads: int = 3,
        norm_pix_loss: bool = True,
        device=None,
        dtype=None,
    ) -> None:
        """
        Args:
            img_size: Image size, int or (H, W); other images are refused.
            patch_size: Patch size, int or (h, w).
            in_chans: Image channels.
            embed_dim: Width C.
            depth: Blocks of the encoder.
            num_heads: Heads of the encoder.
            mlp_ratio: Hidden width of the MLPs relative to their own, in encoder and decoder.
            decoder_embed_dim: Width D.
            decoder_depth: Blocks of the decoder.
            decoder_num_heads: Heads of the decoder.
            norm_pix_loss: Predict the pixels of a patch normalized by its own mean and standard deviation.
            device: Of the parameters.
            dtype: Of the parameters.
        """
        dd = {'device': device, 'dtype': dtype}
        norm_layer: Any = partial(nn.LayerNorm, eps=1e-6)  # timm asks for a class, and takes any factory
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            num_classes=0,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            norm_layer=norm_layer,
            weight_init='skip',
            **dd,
        )
        self.norm_pix_loss = norm_pix_loss
        height, width = self.patch_embed.patch_size
        self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim, **dd)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_embed_dim, **dd))
        self.decoder_pos_embed = nn.Parameter(torch.empty(1, self.pos_embed.shape[1], decoder_embed_dim, **dd))
        self.decoder_blocks = nn.Sequential(
            *[
                Block(decoder_embed_dim, decoder_num_heads, mlp_ratio, qkv_bias=True, norm_layer=norm_layer, **dd)
                for _ in range(decoder_depth)
            ]
        )
        self.decoder_norm = norm_layer(decoder_embed_dim, **dd)
        self.decoder_pred = nn.Linear(decoder_embed_dim, height * width * in_chans, **dd)
        self.init_weights(needs_reset=False)

    def init_weights(self, mode: str = '', needs_reset: bool = True) -> None:
        """(Re-)initialize as released, positions included; there is only one way, so `mode` has no effect."""
        init_as_mae(self, needs_reset)
        nn.init.normal_(self.mask_token, std=0.02)
        fix_position(self.decoder_pos_embed, self.patch_embed.grid_size)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """No names: the released recipe decays class and mask token, and positions are not trained."""
        return set()

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Adapt the model to another image size: both position embeddings become the tables of the new grid.

        Raises:
            ValueError: On another patch size, which would need a different decoder.
        """
        if patch_size is not None and tuple(to_2tuple(patch_size)) != self.patch_embed.patch_size:
            raise ValueError(f'The decoder predicts patches of {self.patch_embed.patch_size}, not {patch_size}.')
        old_grid = self.patch_embed.grid_size
        super().set_input_size(img_size)
        if self.patch_embed.grid_size == old_grid:
            return
        self.decoder_pos_embed = nn.Parameter(
            self.decoder_pos_embed.new_empty(1, self.pos_embed.shape[1], self.decoder_pos_embed.shape[2])
        )
        for pos_embed in (self.pos_embed, self.decoder_pos_embed):
            fix_position(pos_embed, self.patch_embed.grid_size)

    def patchify(self, images: torch.Tensor) -> torch.Tensor:
        """(B, chans, H, W) -> (B, N, p): rows, then columns, then channels within each patch."""
        (h, w), (ph, pw) = self.patch_embed.grid_size, self.patch_embed.patch_size
        if images.shape[-2:] != (h * ph, w * pw):
            raise ValueError(f'Images {tuple(images.shape)} are not of the size {(h * ph, w * pw)} of the model.')
        x = images.unflatten(3, (w, pw)).unflatten(2, (h, ph))  # (B, chans, h, ph, w, pw)
        return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    def unpatchify(self, patches: torch.Tensor) -> torch.Tensor:
        """(B, N, p) -> (B, chans, H, W), the inverse of `patchify`."""
        (h, w), (ph, pw) = self.patch_embed.grid_size, self.patch_embed.patch_size
        x = patches.unflatten(2, (ph, pw, self.in_chans)).unflatten(1, (h, w))  # (B, h, w, ph, pw, chans)
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)

    def draw_masking(
        self,
        images: torch.Tensor,
        mask_ratio: float = 0.75,
        noise: torch.Tensor | None = None,
        ids_shuffle: torch.Tensor | None = None,
    ) -> Masking:
        """Choose the patches to hide; see `forward` for the arguments."""
        if noise is not None and ids_shuffle is not None:
            raise ValueError('Give noise or ids_shuffle, not both: each alone determines which patches are hidden.')
        shape = (images.shape[0], self.patch_embed.num_patches)
        if ids_shuffle is None:
            noise = torch.rand(shape, device=images.device) if noise is None else noise
            ids_shuffle = noise.argsort(dim=1)
        if ids_shuffle.shape != shape:
            raise ValueError(
                f'noise and ids_shuffle must be {shape}, images by patches, not {tuple(ids_shuffle.shape)}.'
            )
        return random_masking(ids_shuffle, mask_ratio)

    def forward_encoder(
        self, images: torch.Tensor, ids_keep: torch.Tensor, inputs_of: Collection[int] = ()
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Encode the visible patches.

        Args:
            images: (B, chans, H, W).
            ids_keep: int64 (B, K).
            inputs_of: Blocks whose inputs are wanted too, from 0; the depth stands for the output of the last.

        Returns:
            Normalized tokens (B, 1 + K, C), class token first; and the wanted inputs, each (B, 1 + K, C).
        """
        depth = len(self.blocks)
        inputs = block_inputs(self, visible_tokens(self, images, ids_keep), {*inputs_of, depth})
        return self.norm(inputs[depth]), inputs

    def forward_decoder(self, latent: torch.Tensor, ids_keep: torch.Tensor) -> torch.Tensor:
        """Predict every patch.

        Args:
            latent: (B, 1 + K, C), from `forward_encoder`.
            ids_keep: int64 (B, K), where its patches belong.

        Returns:
            (B, N, p).
        """
        x = self.decoder_embed(latent)
        B, _, D = x.shape
        everywhere = self.mask_token.to(x.dtype).expand(B, self.patch_embed.num_patches, D)
        patches = everywhere.scatter(1, ids_keep[..., None].expand(-1, -1, D), x[:, 1:])
        x = torch.cat([x[:, :1], patches], dim=1) + self.decoder_pos_embed
        return self.decoder_pred(self.decoder_norm(self.decoder_blocks(x)))[:, 1:]

    def forward_loss(self, images: torch.Tensor, pred: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Mean squared error of each patch, averaged over the hidden patches, in at least float32.

        Args:
            images: (B, chans, H, W).
            pred: (B, N, p).
            mask: (B, N), 1 where the loss counts.

        Returns:
            Scalar.
        """
        dtype = torch.promote_types(pred.dtype, torch.float32)
        target = self.patchify(images).to(dtype)
        if self.norm_pix_loss:
            variance, mean = torch.var_mean(target, dim=-1, keepdim=True)  # unbiased, as released
            target = (target - mean) / (variance + 1e-6).sqrt()
        loss = (pred.to(dtype) - target).square().mean(dim=-1)
        return (loss * mask).sum() / mask.sum()

    def forward(  # type: ignore[override]  # a ViT for its other methods; called on images it gives a loss
        self,
        images: torch.Tensor,
        mask_ratio: float = 0.75,
        noise: torch.Tensor | None = None,
        ids_shuffle: torch.Tensor | None = None,
    ) -> MaeOutput:
        """Hide patches, predict them, and compute the loss.

        Args:
            images: (B, chans, H, W).
            mask_ratio: Fraction of the patches that is hidden.
            noise: (B, N): the patches with the least noise are visible. Drawn if None.
            ids_shuffle: int64 (B, N): the permutation itself instead, e.g. another model's.

        Raises:
            ValueError: If no patch would be visible, or none hidden; if both noise and permutation are given; if a
                shape does not match.
        """
        masking = self.draw_masking(images, mask_ratio, noise, ids_shuffle)
        latent, _ = self.forward_encoder(images, masking.ids_keep)
        pred = self.forward_decoder(latent, masking.ids_keep)
        loss = self.forward_loss(images, pred, masking.mask)
        return MaeOutput(loss, pred, masking.mask, masking.ids_shuffle)


def mae_lite_tiny(**kwargs) -> MaskedAutoencoder:
    """MAE-Tiny of MAE-Lite: width 192, 12 heads (not DeiT's 3); one decoder block of width 96. 5.75M parameters."""
    return MaskedAutoencoder(**kwargs)


def mae_lite_small(**kwargs) -> MaskedAutoencoder:
    """MAE-Small of MAE-Lite: width 384, 12 heads; one decoder block of width 192. 22.4M parameters."""
    args = dict(embed_dim=384, decoder_embed_dim=192, decoder_num_heads=6)
    return MaskedAutoencoder(**{**args, **kwargs})


def mae_lite_base(**kwargs) -> MaskedAutoencoder:
    """MAE-Base with MAE's own decoder: 8 blocks of width 512. 112M parameters."""
    args = dict(embed_dim=768, decoder_embed_dim=512, decoder_depth=8, decoder_num_heads=16)
    return MaskedAutoencoder(**{**args, **kwargs})
