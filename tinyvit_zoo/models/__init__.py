"""Model families, one file each. Importing this package registers them with timm."""

from .mini_deit import MiniDeit
from .tinyvit import TinyViT

__all__ = ['MiniDeit', 'TinyViT']
