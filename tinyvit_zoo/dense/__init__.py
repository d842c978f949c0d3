"""Plain ViTs as backbones of detectors and segmentors: maps of strides 4, 8, 16 and 32 from maps of one stride.

`DenseBackbone` puts a pyramid on any plain ViT (ours, timm's); `mae_lite_vitdet_tiny`, `tinymim_base_seg` and
`tinymim_star_tiny_seg` are the backbones as released for COCO and ADE20K; `mae_lite_vitdet_small`, `tinymim_small_seg`
and `tinymim_tiny_seg` are the same of other widths, which were not released. `load_dense` fills those from a
classification, pre-training or dense checkpoint, `official_state_dict` returns their weights under the released names.
`sam` has the image encoder of Segment Anything on a TinyViT.
Not imported by `import tinyvit_zoo`.
"""

from .backbone import (
    DenseBackbone,
    mae_lite_vitdet_small,
    mae_lite_vitdet_tiny,
    tinymim_base_seg,
    tinymim_small_seg,
    tinymim_star_tiny_seg,
    tinymim_tiny_seg,
)
from .loading import load_dense, official_state_dict
from .sam import SamImageEncoder, load_sam_encoder, sam_encoder
from .tinymim_seg import TinyMimTrunk
from .vitdet import VitDetTrunk

__all__ = [
    'DenseBackbone',
    'SamImageEncoder',
    'TinyMimTrunk',
    'VitDetTrunk',
    'load_dense',
    'load_sam_encoder',
    'mae_lite_vitdet_small',
    'mae_lite_vitdet_tiny',
    'official_state_dict',
    'sam_encoder',
    'tinymim_base_seg',
    'tinymim_small_seg',
    'tinymim_star_tiny_seg',
    'tinymim_tiny_seg',
]
