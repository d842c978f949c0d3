"""ADE20K for 160,000 iterations: 512 x 512 crops, AdamW, 1,500 iterations of warm-up, then linear decay to 0.

Source: TinyMIM's released configs (Segmentation/*/configs), whose schedule is that of Swin and BEiT in mmseg. 8 GPUs x
2 images. Their Apex O1: add `--amp` (mmengine's AmpOptimWrapper needs a GPU). The data set is mmseg's as it is.
"""

_base_ = [
    'mmseg::_base_/default_runtime.py',
    'mmseg::_base_/datasets/ade20k.py',
    'mmseg::_base_/schedules/schedule_160k.py',
]

custom_imports = dict(imports=['tinyvit_zoo.downstream.segmentation'], allow_failed_imports=False)
custom_hooks = [
    dict(type='RandomStateHook'),  # a killed run resumes with the same random numbers
    dict(type='CurvesHook'),  # losses and metrics as PNG
]
default_hooks = dict(checkpoint=dict(type='AtomicCheckpointHook', max_keep_ckpts=3))
vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(vis_backends=vis_backends)

train_dataloader = dict(batch_size=2)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='ZooLayerDecayConstructor',
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=1500, end=160000, by_epoch=False),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)
