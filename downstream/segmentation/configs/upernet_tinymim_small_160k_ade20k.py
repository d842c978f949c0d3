"""UperNet, TinyMIM-S, ADE20K, 160k iterations.

Published: mIoU 48.4, and 48.9 after fine-tuning on ImageNet-1k (TinyMIM, Tab. 3); no config, so that its numbers are
our choice: those of TinyMIM-B but for what a comment says. Not trained here.
"""

_base_ = ['./_base_/tinymim.py', './_base_/ade20k_160k.py']

model = dict(
    backbone=dict(
        model_name='tinymim_small_seg',
        num_heads=6,  # as it was fine-tuned; pre-training had 12 in the last block
        drop_path_rate=0.1,
        as_init=True,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/TinyMIM-PT-S.pth'),
    ),
    decode_head=dict(in_channels=[384] * 4, channels=384),  # of the backbone's width, as in TinyMIM-B
    auxiliary_head=dict(in_channels=384),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.75))
