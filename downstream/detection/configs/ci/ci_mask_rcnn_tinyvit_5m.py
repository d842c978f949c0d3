"""Mask R-CNN + FPN, TinyViT-5M, at a size for a CPU, from random weights. No published result."""

_base_ = ['./_base_/mask_rcnn.py', './_base_/shapes.py']

model = dict(
    backbone=dict(model_name='tinyvit_5m_224'),
    neck=dict(in_channels=[64, 128, 160, 320]),
)
