"""Cascade Mask R-CNN + FPN, Swin-T, COCO, 12 epochs.

The baseline of both papers. Published: box AP 48.1, mask AP 41.7 (Swin-Transformer-Object-Detection, README).
Not trained here.
"""

_base_ = ['./_base_/cascade_mask_rcnn_fpn.py', './_base_/coco_swin_1x.py']

model = dict(
    backbone=dict(
        model_name='swin_tiny_patch4_window7_224.ms_in1k',
        drop_path_rate=0.0,  # as in Swin's file of 12 epochs
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
