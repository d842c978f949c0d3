"""Cascade Mask R-CNN + FPN, Mini-Swin-T, at a size for a CPU, from random weights. No published result."""

_base_ = ['./_base_/cascade_mask_rcnn.py', './_base_/shapes.py']

model = dict(
    backbone=dict(model_name='mini_swin_tiny_patch4_window7_224'),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
