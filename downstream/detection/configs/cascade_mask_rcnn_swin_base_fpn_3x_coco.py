"""Cascade Mask R-CNN + FPN, Swin-B, COCO, 36 epochs.

The teacher of Mini-Swin-T (see `distilled_cascade_mask_rcnn_mini_swin_tiny_fpn_1x_coco.py`).
Published: box AP 51.9, mask AP 45.0 (Swin-Transformer-Object-Detection, README). Not trained here.
"""

_base_ = ['./_base_/cascade_mask_rcnn_fpn.py', './_base_/coco_swin_3x.py']

model = dict(
    backbone=dict(
        model_name='swin_base_patch4_window7_224.ms_in1k',
        drop_path_rate=0.3,  # as in Swin's file of 36 epochs
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
