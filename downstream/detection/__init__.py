"""Models of this package, and any timm model with features, as backbones of mmdet.

    custom_imports = dict(imports=['tinyvit_zoo.downstream.detection'])

in a config is all that mmdet's or mmengine's own tools need. Importing this package installs the stand-in for mmcv's
compiled ops (`ops.py`) if mmcv has none, and registers the classes that the configs name.
"""

from . import ops

ops.install()
ops.require('mmdet')

from .backbone import ZooBackbone  # noqa: E402  mmdet needs its operators first
from .distillation import DistilledCascadeRCNN  # noqa: E402
from .hooks import AtomicCheckpointHook, CurvesHook, RandomStateHook  # noqa: E402
from .layer_decay import ZooLayerDecayConstructor  # noqa: E402
from .norm import LayerNorm2d  # noqa: E402, F401  registers it
from .pyramid import SimpleFeaturePyramid  # noqa: E402

__all__ = [
    'AtomicCheckpointHook',
    'CurvesHook',
    'DistilledCascadeRCNN',
    'RandomStateHook',
    'SimpleFeaturePyramid',
    'ZooBackbone',
    'ZooLayerDecayConstructor',
]
