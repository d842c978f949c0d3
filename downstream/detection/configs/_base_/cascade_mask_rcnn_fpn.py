"""Cascade Mask R-CNN + FPN as Swin trained it: mmdet's, with heads of 4 convolutions and 1 layer and a GIoU loss.

Source of every number that is not mmdet's: Swin-Transformer-Object-Detection,
configs/swin/cascade_mask_rcnn_swin_tiny_patch4_window7_mstrain_480-800_giou_4conv1f_adamw_1x_coco.py. TinyViT (Sec. 5,
"the same training settings used in Swin") and MiniViT (Sec. 4.4) name it as their recipe.

The heads' SyncBN becomes a BatchNorm where there is one process (mmengine's Runner and mmdet's `init_detector` do it):
its statistics are then over the 512 regions of each image of one GPU's batch, not over those of eight.
"""

_base_ = 'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py'

model = dict(
    backbone=dict(_delete_=True, type='ZooBackbone', init_cfg=dict(type='Pretrained', checkpoint=True)),
    roi_head=dict(
        bbox_head=[
            dict(
                type='ConvFCBBoxHead',
                num_shared_convs=4,
                num_shared_fcs=1,
                in_channels=256,
                conv_out_channels=256,
                fc_out_channels=1024,
                roi_feat_size=7,
                num_classes=80,
                bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=stds),
                reg_class_agnostic=False,
                reg_decoded_bbox=True,  # GIoU compares boxes, not deltas
                norm_cfg=dict(type='SyncBN', requires_grad=True),
                loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
                loss_bbox=dict(type='GIoULoss', loss_weight=10.0),
            )
            for stds in ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067])
        ]
    ),
)
