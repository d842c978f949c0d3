"""RetinaNet + FPN, TinyViT-5M, at a size for a CPU, from random weights. No published result."""

_base_ = ['./_base_/retinanet.py', './_base_/shapes_boxes.py']

model = dict(
    backbone=dict(model_name='tinyvit_5m_224'),
    neck=dict(in_channels=[128, 160, 320]),  # strides 8, 16, 32
)
# From random weights the focal loss is unstable at the learning rate of the other configs.
optim_wrapper = dict(optimizer=dict(lr=5e-4), clip_grad=dict(max_norm=1.0))
