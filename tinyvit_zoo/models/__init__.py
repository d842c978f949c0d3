"""Model families, one file each. Importing this package registers them with timm."""

from . import multiplexed as multiplexed
from .mini_deit import MiniDeit
from .mini_swin import MiniSwin
from .tinyvit import TinyViT

__all__ = ['MiniDeit', 'MiniSwin', 'TinyViT']
