"""Models of this package, and any timm model with features, as backbones of mmdet.

    custom_imports = dict(imports=['tinyvit_zoo.downstream.detection'])

in a config is all that mmdet's or mmengine's own tools need. Importing this package installs the stand-in for mmcv's
compiled ops (`ops.py`) if mmcv has none, and registers the classes that the configs name.
"""

from tinyvit_zoo.common.extras import needs_extra

from . import ops

with needs_extra('detection-lite'):
    ops.install()
    ops.require('mmdet')

    from .backbone import ZooBackbone  # mmdet needs its operators first
    from .coco_dataset import ZooCocoDataset, ZooCocoMetric
    from .distillation import DistilledCascadeRCNN
    from .hooks import AtomicCheckpointHook, CurvesHook, RandomStateHook
    from .layer_decay import ZooLayerDecayConstructor
    from .load_image import ZooLoadImage
    from .norm import LayerNorm2d  # noqa: F401  registers it
    from .pyramid import SimpleFeaturePyramid

__all__ = [
    'AtomicCheckpointHook',
    'CurvesHook',
    'DistilledCascadeRCNN',
    'RandomStateHook',
    'SimpleFeaturePyramid',
    'ZooBackbone',
    'ZooCocoDataset',
    'ZooCocoMetric',
    'ZooLayerDecayConstructor',
    'ZooLoadImage',
]
