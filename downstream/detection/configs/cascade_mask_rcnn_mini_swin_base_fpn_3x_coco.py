"""Cascade Mask R-CNN + FPN, Mini-Swin-B, COCO, 36 epochs.

Published: not published. Not trained here.
"""

_base_ = ['./_base_/cascade_mask_rcnn_fpn.py', './_base_/coco_swin_3x.py']

model = dict(
    backbone=dict(
        model_name='mini_swin_base_patch4_window7_224',
        img_size=448,  # windows of 7 in stages of several: all shift, as in Swin's detection code
        window_sizes=7,
        drop_path_rate=0.3,  # as in Swin's file of 36 epochs
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
