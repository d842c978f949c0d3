"""UperNet, TinyMIM*-T, ADE20K, 160k iterations.

Published: mIoU 45.0 (TinyMIM, Tab. 1 and 3, Segmentation/README and log). Not trained here.
"""

_base_ = ['./_base_/tinymim.py', './_base_/ade20k_160k.py']

model = dict(
    backbone=dict(
        model_name='tinymim_star_tiny_seg',
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/TinyMIM-FT-Tstar.pth'),  # from TinyMIM's README
    )
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.8))
