"""UperNet, TinyMIM-T, ADE20K, 160k iterations.

Published: mIoU 44.0, and 44.6 after fine-tuning on ImageNet-1k (TinyMIM, Tab. 3); no config, so that its numbers are
our choice: those of TinyMIM-B but for what a comment says. Not trained here.
"""

_base_ = ['./_base_/tinymim.py', './_base_/ade20k_160k.py']

model = dict(
    backbone=dict(
        model_name='tinymim_tiny_seg',
        num_heads=3,  # as it was fine-tuned; pre-training had 6, and 12 in the last block
        drop_path_rate=0.1,
        as_init=True,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/TinyMIM-PT-T.pth'),
    ),
    decode_head=dict(in_channels=[192] * 4, channels=192),  # as TinyMIM*-T's light config
    auxiliary_head=dict(in_channels=192),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.8))  # as TinyMIM*-T
