"""The parts of RetinaNet + FPN at a size for a CPU: 64 channels, two convolutions before the predictions."""

_base_ = '../../_base_/retinanet_fpn.py'

model = dict(
    backbone=dict(init_cfg=None),
    neck=dict(out_channels=64),
    bbox_head=dict(num_classes=2, in_channels=64, feat_channels=64, stacked_convs=2),
)
