"""RetinaNet + FPN, TinyViT-5M, COCO, 12 epochs, for small devices: boxes, no masks.

Published: not published. Not trained here. Our choice: Swin's recipe for its other detectors.
"""

_base_ = ['./_base_/retinanet_fpn.py', './_base_/coco_swin_1x_boxes.py']

model = dict(
    backbone=dict(
        model_name='tinyvit_5m_224.dist_in22k_ft_in1k',
        drop_path_rate=0.0,  # as TinyViT on ImageNet-1k
        norm_eval=True,  # our choice: as mmdet's ResNets, and as TinyViT's own fine-tuning
    ),
    neck=dict(in_channels=[128, 160, 320]),  # strides 8, 16, 32
)
