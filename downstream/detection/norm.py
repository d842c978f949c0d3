"""The LayerNorm over channels of NCHW maps that ViTDet's heads have, under a name that configs can give."""

from mmengine.registry import MODELS
from timm.layers import LayerNorm2d

__all__ = ['LayerNorm2d']

# mmdet's own 'LN2d' is part of its ViTDet project, which is in no wheel; a name of ours never meets it.
MODELS.register_module('ZooLN2d', module=LayerNorm2d)
