"""Models of this package, and any timm model with features, as backbones of mmseg.

    custom_imports = dict(imports=['tinyvit_zoo.downstream.segmentation'])

in a config is all that mmseg's or mmengine's own tools need. It registers what `tinyvit_zoo.downstream.detection` does,
in mmengine's registry, where mmseg looks too.
"""

from ..detection import ZooBackbone, ZooLayerDecayConstructor, ops

ops.require('mmseg')

__all__ = ['ZooBackbone', 'ZooLayerDecayConstructor']
