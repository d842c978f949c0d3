"""Mask R-CNN, TinyMIM's ViT-T and ViTDet's pyramid, at a size for a CPU, from random weights. No published result."""

_base_ = ['./_base_/mask_rcnn.py', './_base_/shapes.py']

model = dict(
    backbone=dict(model_name='tinymim_vit_tiny_patch16_224'),
    neck=dict(_delete_=True, type='SimpleFeaturePyramid', in_channels=192, out_channels=64, num_outs=5),
)
