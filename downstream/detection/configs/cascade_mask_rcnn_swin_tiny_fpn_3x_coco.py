"""Cascade Mask R-CNN + FPN, Swin-T, COCO, 36 epochs.

Published: box AP 50.4, mask AP 43.7 (Swin-Transformer-Object-Detection, README). Not trained here.
"""

_base_ = ['./_base_/cascade_mask_rcnn_fpn.py', './_base_/coco_swin_3x.py']

model = dict(
    backbone=dict(
        model_name='swin_tiny_patch4_window7_224.ms_in1k',
        drop_path_rate=0.2,  # as in Swin's file of 36 epochs
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
