"""COCO for 36 epochs by Swin's recipe: steps at epochs 27 and 33.

Source: Swin-Transformer-Object-Detection, configs/swin/*_mstrain_480-800_*adamw_3x_coco.py.
"""

_base_ = './coco_swin_1x.py'

train_cfg = dict(max_epochs=36)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=36, by_epoch=True, milestones=[27, 33], gamma=0.1),
]
