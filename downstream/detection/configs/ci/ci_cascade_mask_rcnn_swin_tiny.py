"""Cascade Mask R-CNN + FPN, Swin-T, at a size for a CPU: the teacher of `ci_distilled_cascade_mini_swin_tiny`.

No published result.
"""

_base_ = './ci_cascade_mask_rcnn_mini_swin_tiny.py'

model = dict(backbone=dict(model_name='swin_tiny_patch4_window7_224'))
