"""COCO for 12 epochs by Swin's recipe.

Source: Swin-Transformer-Object-Detection, configs/swin/*_mstrain_480-800_*adamw_1x_coco.py; its warm-up (500
iterations from 0.001) and steps (epochs 8 and 11) are those of mmdet's `schedule_1x.py`. Its mixed precision was
Apex O1: add `--amp` (mmengine's AmpOptimWrapper needs a GPU).

8 GPUs x 2 images. With another batch the rate must follow: `--auto-scale-lr` of mmdet's `tools/train.py` does it.
"""

_base_ = ['./runtime.py', 'mmdet::_base_/datasets/coco_instance.py', 'mmdet::_base_/schedules/schedule_1x.py']

scales = [(short, 1333) for short in range(480, 801, 32)]
train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomChoice',  # DETR's and Sparse R-CNN's: half of the images are also cropped
        transforms=[
            [dict(type='RandomChoiceResize', scales=scales, keep_ratio=True)],
            [
                dict(type='RandomChoiceResize', scales=[(400, 1333), (500, 1333), (600, 1333)], keep_ratio=True),
                dict(type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600), allow_negative_crop=True),
                dict(type='RandomChoiceResize', scales=scales, keep_ratio=True),
            ],
        ],
    ),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,  # Swin goes by the name 'norm', which would miss BatchNorms that are called 'bn'
        custom_keys={
            'relative_position_bias_table': dict(decay_mult=0.0),
            'attention_biases': dict(decay_mult=0.0),  # the tables of TinyViT, and its own rule
            'pos_embed': dict(decay_mult=0.0),  # 'absolute_pos_embed' in Swin's code
        },
    ),
)
