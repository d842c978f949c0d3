"""Cascade Mask R-CNN + FPN, Mini-Swin-T that learned from labels alone, without a teacher, COCO, 12 epochs.

Published: box AP 47.5 (MiniViT, Tab. 6, row 3); mask AP not published. Not trained here. Nor were the weights that it
starts from: make them by `tinyvit-zoo pretrain minivit`, see docs/minivit.md.
"""

_base_ = './cascade_mask_rcnn_mini_swin_tiny_fpn_1x_coco.py'

start = dict(type='Pretrained', checkpoint='checkpoints/mini_swin_tiny_ws_wt')  # the folder that it writes
model = dict(backbone=dict(init_cfg=start))
