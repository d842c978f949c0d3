"""Runtime of every detection config: mmdet's, plus our modules and hooks, and TensorBoard."""

_base_ = 'mmdet::_base_/default_runtime.py'

custom_imports = dict(imports=['tinyvit_zoo.downstream.detection'], allow_failed_imports=False)
custom_hooks = [
    dict(type='RandomStateHook'),  # a killed run resumes with the same random numbers
    dict(type='CurvesHook'),  # losses and metrics as PNG
]
# A full-size checkpoint with its optimizer has about 1 GB.
default_hooks = dict(checkpoint=dict(type='AtomicCheckpointHook', max_keep_ckpts=3))
vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(vis_backends=vis_backends)
