"""Model families, one file each. Importing this package registers them with timm."""

from . import multiplexed as multiplexed
from .clip_vit import ClipVit
from .mae_lite import MaeLite, MaeLiteDistilled, MaeLiteRpe
from .mini_deit import MiniDeit
from .mini_swin import MiniSwin
from .plain_vit import PlainVit
from .tinymim import TinyMim, TinyMimStar, TinyMimStudent
from .tinyvit import TinyViT

__all__ = [
    'ClipVit',
    'MaeLite',
    'MaeLiteDistilled',
    'MaeLiteRpe',
    'MiniDeit',
    'MiniSwin',
    'PlainVit',
    'TinyMim',
    'TinyMimStar',
    'TinyMimStudent',
    'TinyViT',
]
