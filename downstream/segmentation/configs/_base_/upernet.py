"""UperNet for the 150 classes of ADE20K: mmseg's, over a ZooBackbone.

Pool scales 1, 2, 3, 6, dropout 0.1, an FCN head on the map of stride 16 with weight 0.4: mmseg's numbers, which
TinyMIM's released configs share. The SyncBN of the heads becomes a BatchNorm where there is one process (mmengine).
"""

_base_ = 'mmseg::_base_/models/upernet_r50.py'

model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(_delete_=True, type='ZooBackbone', init_cfg=dict(type='Pretrained', checkpoint=True)),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
)
