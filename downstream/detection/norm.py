"""The LayerNorm over channels of NCHW maps used in ViTDet's heads, registered under a name for configs."""

from mmengine.registry import MODELS
from timm.layers import LayerNorm2d

__all__ = ['LayerNorm2d']

# mmdet's own 'LN2d' is part of its ViTDet project, which is in no wheel; our own name never collides with it.
MODELS.register_module('ZooLN2d', module=LayerNorm2d)
