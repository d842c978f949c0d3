"""Model families, one file each. Importing this package registers them with timm."""

from .tinyvit import TinyViT

__all__ = ['TinyViT']
