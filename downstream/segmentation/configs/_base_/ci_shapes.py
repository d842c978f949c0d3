"""A small set in ADE20K's layout with three classes, 60 iterations on a CPU: for tests and first steps.

`--cfg-options` replaces a value only where it stands: another folder is named in `train_dataloader.dataset.data_root`,
`val_dataloader.dataset.data_root` and `test_dataloader.dataset.data_root`.

Nothing here is from a paper: rates and sizes are chosen so that a random model learns within five minutes.
"""

_base_ = './ade20k_160k.py'

data_root = 'data/shapes_ade/'
size = (128, 128)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='Resize', scale=size, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=size, keep_ratio=True),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
dataset = dict(
    _delete_=True,
    type='BaseSegDataset',
    data_root=data_root,
    metainfo=dict(classes=('background', 'rectangle', 'ellipse'), palette=[[90, 90, 90], [220, 40, 40], [40, 90, 230]]),
    reduce_zero_label=True,
)
train_prefix = dict(img_path='images/training', seg_map_path='annotations/training')
val_prefix = dict(img_path='images/validation', seg_map_path='annotations/validation')
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_prefix=train_prefix, pipeline=train_pipeline, **dataset),
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_prefix=val_prefix, pipeline=test_pipeline, **dataset),
)
test_dataloader = val_dataloader

max_iters = 60
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=5),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=5, end=max_iters, by_epoch=False),
]
optim_wrapper = dict(optimizer=dict(lr=1e-3))
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(interval=30))
log_processor = dict(window_size=5)
env_cfg = dict(cudnn_benchmark=False)
