"""Cascade Mask R-CNN + FPN, Mini-Swin-T distilled from another detector, at a size for a CPU. No published result."""

_base_ = './ci_cascade_mask_rcnn_mini_swin_tiny.py'

model = dict(
    type='DistilledCascadeRCNN',
    distill_weight=0.1,
    teacher_config='ci_cascade_mask_rcnn_swin_tiny',
    teacher_checkpoint='random',  # for a test run; give the file of a trained one to distil from it
)
