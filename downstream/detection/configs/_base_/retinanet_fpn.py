"""RetinaNet + FPN: mmdet's, the FPN fed as in its `swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py`.

The map of stride 4 is not taken, so no parameter of the backbone goes without a gradient.
"""

_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'

model = dict(
    backbone=dict(
        _delete_=True, type='ZooBackbone', init_cfg=dict(type='Pretrained', checkpoint=True), out_indices=(1, 2, 3)
    ),
    neck=dict(start_level=0),
)
