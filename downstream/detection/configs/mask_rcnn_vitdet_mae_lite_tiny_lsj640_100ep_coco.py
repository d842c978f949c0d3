"""ViTDet's Mask R-CNN, MAE-Lite's ViT-Tiny (12 heads), COCO, large-scale jitter at 640, 100 epochs.

Published: box / mask AP 40.4 / 35.5 from DeiT-Tiny, 39.9 / 35.4 from MAE-Tiny, 42.3 / 37.4 from D-MAE-Tiny, 39.7 /
35.1 from MoCov3-Tiny (MAE-Lite, DETECTION.md). Not trained here.
"""

_base_ = ['./_base_/mask_rcnn_vitdet.py', './_base_/coco_lsj_100ep.py']

# Initial weights: any of these files of MAE-Lite (linked in its README), as downloaded.
start = dict(type='Pretrained', checkpoint='checkpoints/mae_tiny_distill_400e.pth.tar')
model = dict(backbone=dict(init_cfg=start))
