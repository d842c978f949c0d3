"""A small COCO-format set of rectangles and circles, 60 iterations on a CPU: for tests and first steps.

The folder holds `train.json`, `val.json` and the images in `train/` and `val/`. `--cfg-options` replaces a value only
where it stands, so another folder than `data/shapes/` is named in `data_root` of the `dataset` of the three loaders and
in `ann_file` of the two evaluators. The images may have any size.

Nothing here is from a paper: rates and sizes are chosen so that a random model learns within five minutes.
"""

_base_ = [
    '../../_base_/runtime.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/schedules/schedule_1x.py',
]

data_root = 'data/shapes/'
size = (224, 224)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=size, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=size, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
dataset = dict(data_root=data_root, metainfo=dict(classes=('rectangle', 'circle')))
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True),
    batch_sampler=None,
    dataset=dict(ann_file='train.json', data_prefix=dict(img='train/'), pipeline=train_pipeline, **dataset),
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(ann_file='val.json', data_prefix=dict(img='val/'), pipeline=test_pipeline, **dataset),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'val.json')
test_evaluator = val_evaluator

max_iters = 60
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=5),
    dict(type='MultiStepLR', begin=0, end=max_iters, by_epoch=False, milestones=[45], gamma=0.2),
]
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=10.0),
)
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(by_epoch=False, interval=30))
log_processor = dict(by_epoch=False, window_size=5)
