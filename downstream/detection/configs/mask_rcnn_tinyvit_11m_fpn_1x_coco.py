"""Mask R-CNN + FPN, TinyViT-11M, COCO, 12 epochs, for small devices.

Published: not published. Not trained here. The recipe is that of Swin's Mask R-CNN.
"""

_base_ = ['./_base_/mask_rcnn_fpn.py', './_base_/coco_swin_1x.py']

model = dict(
    backbone=dict(
        model_name='tinyvit_11m_224.dist_in22k_ft_in1k',
        drop_path_rate=0.1,  # as TinyViT on ImageNet-1k; Swin-T has 0.1 here
        norm_eval=True,  # our choice: as mmdet's ResNets, and as TinyViT's own fine-tuning
    ),
    neck=dict(in_channels=[64, 128, 256, 448]),
)
