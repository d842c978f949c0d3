"""ViTDet's Mask R-CNN over MAE-Lite's ViT-Tiny, in mmdet's parts.

Source: MAE-Lite, projects/eval_tools/det/mask_rcnn_vitdet_t_100ep.py, on detectron2's
configs/common/models/mask_rcnn_vitdet.py: two convolutions in the RPN, LayerNorms in the heads, a box head of four
convolutions and one layer. The backbone makes its own pyramid of five maps, so there is no neck.

`pad_size_divisor` is the image size: every image is padded to that square after normalization, as detectron2's
`square_pad` does, in training and in testing.
"""

_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

norm_cfg = dict(type='ZooLN2d', eps=1e-6)
model = dict(
    data_preprocessor=dict(pad_size_divisor=640),
    backbone=dict(
        _delete_=True,
        type='ZooBackbone',
        model_name='mae_lite_vitdet_tiny',
        img_size=640,
        with_cp=True,
    ),
    neck=None,
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=dict(
            _delete_=True,
            type='ConvFCBBoxHead',
            num_shared_convs=4,
            num_shared_fcs=1,
            in_channels=256,
            conv_out_channels=256,
            fc_out_channels=1024,
            roi_feat_size=7,
            num_classes=80,
            bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]),
            reg_class_agnostic=False,
            norm_cfg=norm_cfg,
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type='L1Loss', loss_weight=1.0),  # detectron2's smooth L1 with beta 0
        ),
        mask_head=dict(norm_cfg=norm_cfg),
    ),
)
