"""Models of this package, and any timm model with features, as backbones of mmseg.

    custom_imports = dict(imports=['tinyvit_zoo.downstream.segmentation'])

in a config is all that mmseg's or mmengine's own tools need. It registers the same classes as
`tinyvit_zoo.downstream.detection`, in mmengine's root registry, which mmseg searches too.
"""

from tinyvit_zoo.common.extras import needs_extra

from ..detection import ZooBackbone, ZooLayerDecayConstructor, ops

with needs_extra('segmentation'):
    ops.require('mmseg')

__all__ = ['ZooBackbone', 'ZooLayerDecayConstructor']
