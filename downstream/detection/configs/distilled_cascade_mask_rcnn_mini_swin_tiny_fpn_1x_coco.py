"""Cascade Mask R-CNN + FPN, Mini-Swin-T, distilled from the backbone of a Swin-B detector, COCO, 12 epochs.

Published: box AP 48.6 (MiniViT, Tab. 6, row 5; without the teacher 47.8); mask AP not published. Not trained here.
"""

_base_ = './cascade_mask_rcnn_mini_swin_tiny_fpn_1x_coco.py'

model = dict(
    type='DistilledCascadeRCNN',
    distill_weight=0.1,  # MiniViT, Sec. 4.4
    teacher_config='cascade_mask_rcnn_swin_base_fpn_3x_coco',
    # Swin's own, box AP 51.9 (MiniViT does not say which it took), or a file that you trained with that config.
    teacher_checkpoint='https://github.com/SwinTransformer/storage/releases/download/v1.0.2/'
    'cascade_mask_rcnn_swin_base_patch4_window7.pth',
)
