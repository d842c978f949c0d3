"""UperNet, TinyViT-21M, ADE20K, 160k iterations.

Published: not published. Not trained here. Our choice: mmseg's recipe for Swin-T,
swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py.
"""

_base_ = ['./_base_/upernet.py', './_base_/ade20k_160k.py']

model = dict(
    backbone=dict(
        model_name='tinyvit_21m_224.dist_in22k_ft_in1k',
        drop_path_rate=0.2,  # as TinyViT on ImageNet-1k; mmseg's Swin-T has 0.3
        norm_eval=True,  # our choice: as TinyViT's own fine-tuning
    ),
    decode_head=dict(in_channels=[96, 192, 384, 576]),
    auxiliary_head=dict(in_channels=384),
)
optim_wrapper = dict(optimizer=dict(lr=6e-5, weight_decay=0.01))
