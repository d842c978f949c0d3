"""Mask R-CNN + FPN: mmdet's, as Swin-Transformer-Object-Detection has it (`_base_/models/mask_rcnn_swin_fpn.py`)."""

_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

model = dict(backbone=dict(_delete_=True, type='ZooBackbone', init_cfg=dict(type='Pretrained', checkpoint=True)))
