"""Cascade Mask R-CNN + FPN, TinyViT-5M, COCO, 12 epochs.

Published: not published. Not trained here.
"""

_base_ = ['./_base_/cascade_mask_rcnn_fpn.py', './_base_/coco_swin_1x.py']

model = dict(
    backbone=dict(
        model_name='tinyvit_5m_224.dist_in22k_ft_in1k',
        drop_path_rate=0.0,  # as in Swin's file of 12 epochs, which is for Swin-T
        norm_eval=True,  # our choice: as mmdet's ResNets, and as TinyViT's own fine-tuning
    ),
    neck=dict(in_channels=[64, 128, 160, 320]),
)
