"""UperNet, TinyMIM*-T with its neck and tables, at a size for a CPU, from random weights. No published result."""

_base_ = ['../_base_/ci_upernet.py', '../_base_/ci_shapes.py']

model = dict(
    backbone=dict(model_name='tinymim_star_tiny_seg', img_size=128),
    decode_head=dict(in_channels=[768] * 4),
    auxiliary_head=dict(in_channels=768),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.8))
