"""Cascade Mask R-CNN + FPN, TinyViT-11M, COCO, 36 epochs.

Published: not published. Not trained here.
"""

_base_ = ['./_base_/cascade_mask_rcnn_fpn.py', './_base_/coco_swin_3x.py']

model = dict(
    backbone=dict(
        model_name='tinyvit_11m_224.dist_in22k_ft_in1k',
        drop_path_rate=0.1,  # as TinyViT on ImageNet-1k; Swin-T has 0.2 here
        norm_eval=True,  # our choice: as mmdet's ResNets, and as TinyViT's own fine-tuning
    ),
    neck=dict(in_channels=[64, 128, 256, 448]),
)
