"""Shared by the tests of weight multiplexing: small models of both kinds, and helpers to inspect them."""

import pytest
import timm
import torch
from torch import nn

SMALL = {
    'vit': ('deit_small_patch16_224', dict(img_size=32, patch_size=8, embed_dim=48, depth=4, num_heads=3)),
    'swin': (
        'swin_tiny_patch4_window7_224',
        dict(img_size=32, patch_size=2, window_size=4, embed_dim=16, depths=(2, 2, 4, 2), num_heads=(1, 2, 2, 4)),
    ),
}
KINDS = list(SMALL)
each_kind = pytest.mark.parametrize('kind', KINDS)
each_transform = pytest.mark.parametrize('transform', [True, False])


def teacher(kind: str, **kwargs) -> nn.Module:
    """A small model far from its initial values, in eval mode."""
    name, small = SMALL[kind]
    return stirred(timm.create_model(name, num_classes=11, **{**small, **kwargs})).eval()


def stirred(model: nn.Module, scale: float = 0.1) -> nn.Module:
    """The model with noise on every parameter."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return model


def images(count: int = 2, size: int = 32, **kwargs) -> torch.Tensor:
    return torch.randn(count, 3, size, size, **kwargs)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def blocks(model: nn.Module) -> list[nn.Module]:
    stages = [model] if hasattr(model, 'blocks') else model.layers
    return [block for stage in stages for block in stage.blocks]
