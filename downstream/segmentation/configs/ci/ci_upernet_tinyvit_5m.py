"""UperNet, TinyViT-5M, at a size for a CPU, from random weights. No published result."""

_base_ = ['../_base_/ci_upernet.py', '../_base_/ci_shapes.py']

model = dict(
    backbone=dict(model_name='tinyvit_5m_224'),
    decode_head=dict(in_channels=[64, 128, 160, 320]),
    auxiliary_head=dict(in_channels=160),
)
