"""UperNet, TinyMIM-B, ADE20K, 160k iterations.

Published: mIoU 52.47 (TinyMIM, Segmentation/README and log; 52.2 in the paper, Tab. 3). Not trained here.
"""

_base_ = ['./_base_/tinymim.py', './_base_/ade20k_160k.py']

model = dict(
    backbone=dict(
        model_name='tinymim_base_seg',
        drop_path_rate=0.1,
        as_init=True,  # pre-trained with 16 heads in the last block, segments with 12, as released
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/TinyMIM-PT-B.pth'),  # from TinyMIM's README
    )
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.75))
