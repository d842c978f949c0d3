"""UperNet for TinyMIM's released segmentation backbones: four maps of 768 channels, tested with a sliding window.

Source: TinyMIM, Segmentation/TinyMIM and Segmentation/TinyMIMstar-T, configs. The backbones bring their necks and
relative-position tables. As released no table is trained for another size than 512, so testing slides a window.
"""

_base_ = './upernet.py'

model = dict(
    decode_head=dict(in_channels=[768] * 4, channels=768),
    auxiliary_head=dict(in_channels=768),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)),
)
sync_bn = 'torch'  # the neck's one BatchNorm is a SyncBN in the released code; several processes only
