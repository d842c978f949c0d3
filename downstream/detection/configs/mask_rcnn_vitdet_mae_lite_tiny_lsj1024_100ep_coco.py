"""ViTDet's Mask R-CNN, MAE-Lite's ViT-Tiny (12 heads), COCO, large-scale jitter at 1024, 100 epochs.

Published: not published at this size, which is ViTDet's own. The paper's text has 38.9 / 35.1 (box / mask AP) from
MAE-Tiny and 42.7 / 38.2 from D-MAE-Tiny (Tab. 4, 5) at a size it does not name. Not trained here.
"""

_base_ = './mask_rcnn_vitdet_mae_lite_tiny_lsj640_100ep_coco.py'

image_size = (1024, 1024)
model = dict(data_preprocessor=dict(pad_size_divisor=1024), backbone=dict(img_size=1024))
train_pipeline = _base_.train_pipeline
train_pipeline[3].update(scale=image_size)
train_pipeline[4].update(crop_size=image_size)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=image_size)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
