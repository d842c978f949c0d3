"""The heads of UperNet at a size for a CPU: 64 channels, three classes."""

_base_ = './upernet.py'

model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(init_cfg=None),
    decode_head=dict(channels=64, num_classes=3),
    auxiliary_head=dict(channels=32, num_classes=3),
)
