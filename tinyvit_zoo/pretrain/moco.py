"""MoCo-v3 as MAE-Lite uses it to pre-train ViT-Tiny: two encoders, their projectors, a predictor.

Papers: An Empirical Study of Training Self-Supervised Vision Transformers, https://arxiv.org/abs/2104.02057;
A Closer Look at Self-Supervised Lightweight Vision Transformers, https://arxiv.org/abs/2205.14443.
Released code: https://github.com/wangsr126/MAE-Lite, `projects/mocov3`.
"""

import math
from copy import deepcopy
from functools import partial
from itertools import pairwise

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ..distill import info_nce_loss
from ..layers import sincos_position
from ..models import PlainVit
from .encoder import refuse_arguments

__all__ = ['MocoV3', 'cosine_momentum', 'init_as_moco', 'moco_position', 'mocov3_tiny']


def moco_position(
    width: int,
    grid: tuple[int, int],
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """MoCo-v3's sine-cosine table: MAE's with the halves of the channels swapped, row first and column second.

    As released for square grids. For others the released code numbers the patches column by column while the
    projection gives them row by row; here every patch keeps its own position.

    Args:
        width: C, a multiple of 4.
        grid: (h, w).
        device: Of the result.
        dtype: Of the result.

    Returns:
        (1, 1 + N, C); the class token's row is 0.
    """
    return sincos_position(width, grid, device=device, dtype=dtype).roll(width // 2, dims=-1)


@torch.no_grad()
def init_as_moco(vit: VisionTransformer) -> None:
    """Initialize a ViT in place as MoCo-v3 does; its position embedding becomes the fixed table `moco_position`.

    Linear layers are Xavier-uniform (queries, keys and values each as a separate matrix) with bias 0, and so is the
    patch projection; its fan-in is the number of pixels of a patch times channels, its fan-out the width. Class token:
    normal with standard deviation 1e-6.
    """
    assert vit.cls_token is not None
    assert vit.pos_embed is not None
    for name, m in vit.named_modules():
        if isinstance(m, nn.Linear):
            for weight in m.weight.chunk(3) if name.endswith('attn.qkv') else (m.weight,):
                nn.init.xavier_uniform_(weight)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
    nn.init.xavier_uniform_(vit.patch_embed.proj.weight.flatten(1))
    nn.init.zeros_(vit.patch_embed.proj.bias)
    nn.init.normal_(vit.cls_token, std=1e-6)
    position = vit.pos_embed
    position.copy_(moco_position(vit.embed_dim, vit.patch_embed.grid_size, position.device, position.dtype))
    position.requires_grad_(False)


def cosine_momentum(step: int, steps: int, start: float = 0.99) -> float:
    """Momentum of the momentum encoder, which rises from `start` at step 0 to 1 at step `steps` along a cosine."""
    return 1.0 - 0.5 * (1.0 + math.cos(math.pi * step / steps)) * (1.0 - start)


class MocoV3(nn.Module):
    """An encoder, its momentum encoder, and the contrastive loss between them: two views (B, 3, H, W) -> scalar.

    Names in the state dict are the released ones: `base_encoder.` for a plain ViT whose `head` is the projector,
    `momentum_encoder.` likewise, `predictor.`. The projectors have BatchNorm: for several processes convert them with
    `torch.nn.SyncBatchNorm.convert_sync_batchnorm`, as released.
    """

    def __init__(
        self,
        vit: VisionTransformer,
        dim: int = 256,
        mlp_dim: int = 4096,
        temperature: float = 0.2,
        device=None,
        dtype=None,
    ) -> None:
        """
        Args:
            vit: The encoder, whose `head` is replaced; it pools by its class token as released.
            dim: Width of queries and keys.
            mlp_dim: Hidden width of projectors and predictor.
            temperature: T.
            device: Of projectors and predictor.
            dtype: Of projectors and predictor.
        """
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        vit.head = _mlp((vit.embed_dim, mlp_dim, mlp_dim, dim), **dd)  # type: ignore[assignment]  # timm calls any module
        self.base_encoder = vit
        self.momentum_encoder = deepcopy(vit).requires_grad_(False)
        self.predictor = _mlp((dim, mlp_dim, dim), **dd)
        self.temperature = temperature

    @torch.no_grad()
    def update_momentum_encoder(self, momentum: float) -> None:
        """Move every parameter of the momentum encoder towards the encoder's: m * slow + (1 - m) * fast.

        BatchNorm statistics are the momentum encoder's own, from the images that it has seen.
        """
        pairs = zip(self.momentum_encoder.parameters(), self.base_encoder.parameters(), strict=True)
        for slow, fast in pairs:
            slow.lerp_(fast, 1.0 - momentum)

    def forward(self, first: torch.Tensor, second: torch.Tensor, momentum: float) -> torch.Tensor:
        """Update the momentum encoder, then compare each view's queries with the other view's keys.

        Args:
            first: (B, 3, H, W), one view of the images.
            second: (B, 3, H, W), another view of the same images.
            momentum: m, see `cosine_momentum`.

        Returns:
            Scalar: the sum of both directions, see `info_nce_loss`.
        """
        queries = [self.predictor(self.base_encoder(view)) for view in (first, second)]
        with torch.no_grad():
            self.update_momentum_encoder(momentum)
            keys = [self.momentum_encoder(view) for view in (first, second)]
        return info_nce_loss(queries[0], keys[1], self.temperature) + info_nce_loss(
            queries[1], keys[0], self.temperature
        )


def _mlp(widths: tuple[int, ...], device=None, dtype=None) -> nn.Sequential:
    """Linear layers without bias, BatchNorm and ReLU between them, and a BatchNorm without parameters at the end."""
    layers: list[nn.Module] = []
    for i, (width, out) in enumerate(pairwise(widths), start=1):
        last = i == len(widths) - 1
        layers += [
            nn.Linear(width, out, bias=False, device=device, dtype=dtype),
            nn.BatchNorm1d(out, affine=not last, device=device, dtype=dtype),
        ]
        if not last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def mocov3_tiny(dim: int = 256, mlp_dim: int = 4096, device=None, dtype=None, **kwargs) -> MocoV3:
    """MoCo-v3 on ViT-Tiny with 12 heads (not DeiT's 3), as MAE-Lite pre-trains it. 50.4M parameters, both encoders.

    Args:
        dim: See `MocoV3`.
        mlp_dim: See `MocoV3`.
        device: Of the parameters.
        dtype: Of the parameters.
        **kwargs: To the ViT, e.g. `img_size`.

    Raises:
        TypeError: On an argument that would have no effect: the projector takes the place of the classifier.
    """
    refuse_arguments('mocov3_tiny', kwargs, ('num_classes', 'weight_init'))
    dd = {'device': device, 'dtype': dtype}
    args = dict(embed_dim=192, depth=12, num_heads=12, num_classes=0, norm_layer=partial(nn.LayerNorm, eps=1e-6))
    vit = PlainVit(**{**args, **kwargs}, **dd)
    init_as_moco(vit)
    return MocoV3(vit, dim, mlp_dim, **dd)
