"""Cascade Mask R-CNN + FPN, Mini-Swin-T taught by another detector, at a size for a CPU. No published result."""

_base_ = './ci_cascade_mask_rcnn_mini_swin_tiny.py'

model = dict(
    type='DistilledCascadeRCNN',
    distill_weight=0.1,
    teacher_config='ci_cascade_mask_rcnn_swin_tiny',
    teacher_checkpoint='random',  # shows that it runs; give the file of a trained one to learn from it
)
