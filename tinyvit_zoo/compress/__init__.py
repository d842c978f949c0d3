"""Compression of any timm ViT or Swin by weight multiplexing (MiniViT, https://arxiv.org/abs/2204.07154)."""

from .multiplex import describe_weights, multiplex, restructure

__all__ = ['describe_weights', 'multiplex', 'restructure']
