"""Cascade Mask R-CNN + FPN, Swin-T whose stages share their weights and transform nothing, COCO, 12 epochs.

Published: box AP 46.5 (MiniViT, Tab. 6, row 2); mask AP not published. Not trained here. Nor were the weights that it
starts from: make them by `tinyvit-zoo compress` and `pretrain minivit`, see docs/minivit.md.
"""

_base_ = ['./_base_/cascade_mask_rcnn_fpn.py', './_base_/coco_swin_1x.py']

# Norms, too: whether the paper's model shares them it does not say.
sharing = dict(base='swin_tiny_patch4_window7_224', share_every='stage', transform=False, share_norms=True)
model = dict(
    backbone=dict(
        model_name='multiplexed',
        **sharing,
        drop_path_rate=0.0,  # as in Swin's file of 12 epochs
        init_cfg=dict(checkpoint='checkpoints/mini_swin_tiny_ws'),  # the folder that `pretrain minivit` writes
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(paramwise_cfg=dict(bypass_duplicate=True))  # a shared layer is in several blocks
