"""ViTDet's Mask R-CNN, MAE-Lite's ViT-Small (12 heads), COCO, large-scale jitter at 640, 100 epochs.

Published: not published, MAE-Lite has detectors of ViT-Tiny only. Not trained here. Our choice: all as for ViT-Tiny.
"""

_base_ = ['./_base_/mask_rcnn_vitdet.py', './_base_/coco_lsj_100ep.py']

# Initial weights: MAE-Lite's MAE-Small, D-MAE-Small or fine-tuned ones (linked in its SMALL.md), as downloaded.
start = dict(type='Pretrained', checkpoint='checkpoints/mae_small_400e.pth.tar')
model = dict(backbone=dict(model_name='mae_lite_vitdet_small', init_cfg=start))
