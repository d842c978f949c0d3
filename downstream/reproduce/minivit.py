"""MiniViT: Compressing Vision Transformers with Weight Multiplexing (CVPR 2022): its tables and models."""

from .record import Entry, Paper, Subject, released, unreleased
from .tasks import ACCURACY, COUNTS, DETECTION, TRANSFER

__all__ = ['PAPER']

SWIN_TEACHER = 'swin_base_patch4_window7_224.ms_in22k_ft_in1k'
CASCADE = 'cascade_mask_rcnn_mini_swin_tiny_fpn_1x_coco'
TINY = 'mini_swin_tiny_patch4_window7_224'
DISTILLED = f'pretrain minivit --student {TINY} --teacher {SWIN_TEACHER} -d imagenet-1k -o OUT'
LABELS = '--losses mini_deit --hard-weight 1'  # nothing but the labels: what the teacher says is not used
# The student is the folder of `compress swin_tiny_patch4_window7_224 --random --share-every stage --no-transform`.
SHARED = f'pretrain minivit --student FOLDER --teacher {SWIN_TEACHER} -d imagenet-1k -o OUT'


def _at_384(recipe: str) -> Subject:
    """Mini-DeiT-B at 384 pixels, which alone is transferred; the recipe depends on the data set."""
    name = 'mini_deit_base_patch16_384.distill_in1k'
    return released(name, finetune=f'{name} --recipe {recipe}')


def _shared_swin(size: str, trainer: str = '', config: str = '') -> Subject:
    """A Swin whose stages share their weights and transform nothing."""
    options = dict(base=f'swin_{size}_patch4_window7_224', share_every='stage', transform=False)
    return unreleased('multiplexed', trainer, options=options, config=config)


SUBJECTS = {
    'Mini-DeiT-Ti': released('mini_deit_tiny_patch16_224.distill_in1k'),
    'Mini-DeiT-S': released('mini_deit_small_patch16_224.distill_in1k'),
    'Mini-DeiT-B': released('mini_deit_base_patch16_224.distill_in1k'),
    'Mini-DeiT-B 384': _at_384('minivit_transfer'),
    'Mini-DeiT-B 384 @ flowers-102': _at_384('minivit_transfer_flowers'),
    'Mini-DeiT-B 384 @ stanford-cars': _at_384('minivit_transfer_cars'),
    'Mini-Swin-T': released(f'{TINY}.distill_in1k', config=CASCADE),
    'Mini-Swin-S': released('mini_swin_small_patch4_window7_224.distill_in1k'),
    'Mini-Swin-B': released('mini_swin_base_patch4_window7_224.distill_in1k'),
    'Mini-Swin-B 384': released('mini_swin_base_patch4_window12_384.distill_in1k'),
    # The same models under the names of the ablations.
    'Mini-Swin-T (WS+WD+WT)': released(f'{TINY}.distill_in1k', config=CASCADE),
    'Mini-Swin-T (losses pred+attn+hddn)': released(f'{TINY}.distill_in1k'),
    'Mini-Swin-T (sharing all layers)': released(f'{TINY}.distill_in1k'),
    'Mini-DeiT-S (WS+WD+WT)': released('mini_deit_small_patch16_224.distill_in1k'),
    'Mini-DeiT-B (sharing every-2)': released('mini_deit_base_patch16_224.distill_in1k'),
    'Mini-Swin-T (WS+WD+WT, detection KD)': released(
        f'{TINY}.distill_in1k', config='distilled_cascade_mask_rcnn_mini_swin_tiny_fpn_1x_coco'
    ),
    # Not published.
    'Mini-Swin-T (WS)': _shared_swin(
        'tiny', f'{SHARED} {LABELS}', config='cascade_mask_rcnn_mini_swin_tiny_ws_fpn_1x_coco'
    ),
    'Mini-Swin-T (WS+WD)': _shared_swin('tiny', SHARED),
    'Mini-Swin-T (WS+WT)': unreleased(
        TINY, f'{DISTILLED} {LABELS}', config='cascade_mask_rcnn_mini_swin_tiny_ws_wt_fpn_1x_coco'
    ),
    'Swin-S (WS only) vs Swin-S': _shared_swin('small'),
    'Mini-DeiT-S (WS+WT)': unreleased('mini_deit_small_patch16_224'),
    'Mini-Swin-T (sharing every-2)': unreleased(TINY, options={'repeats': 2}),
    'Mini-DeiT-B (sharing all layers)': unreleased('mini_deit_base_patch16_224', options={'repeats': 12}),
    'Mini-Swin-T (losses pred)': unreleased(TINY, f'{DISTILLED} --losses mini_deit'),
    'Mini-Swin-T (losses GT+pred)': unreleased(TINY, f'{DISTILLED} --losses mini_deit --hard-weight 0.5'),
    'Mini-Swin-T (losses pred+attn)': unreleased(TINY),
    'Mini-Swin-T (losses pred+hddn)': unreleased(TINY),
    'Mini-Swin-T (no distillation, GT only)': unreleased(TINY, f'{DISTILLED} {LABELS}'),
    # DeiT without the class token and with relative positions: no name builds it without the transformations.
    **dict.fromkeys(('Mini-DeiT-S (WS)', 'Mini-DeiT-S (WS+WD)'), unreleased('')),
    # timm's models.
    'DeiT-Ti': released('deit_tiny_patch16_224.fb_in1k'),
    'DeiT-S': released('deit_small_patch16_224.fb_in1k'),
    'DeiT-B': released('deit_base_patch16_224.fb_in1k'),
    'DeiT-B 384': released('deit_base_patch16_384.fb_in1k'),
    'DeiT-B distilled': released('deit_base_distilled_patch16_224.fb_in1k'),
    'DeiT-B distilled 384': released('deit_base_distilled_patch16_384.fb_in1k'),
    'EfficientNet-B1': released('tf_efficientnet_b1.aa_in1k'),
    'EfficientNet-B5': released('tf_efficientnet_b5.aa_in1k'),
    'EfficientNet-B7': released('tf_efficientnet_b7.aa_in1k'),
    'RegNet-16GF (teacher of Mini-DeiT)': released('regnety_160.deit_in1k'),
    'RegNetY-16GF': released('regnety_160.deit_in1k'),
    'ResNet-50': released('resnet50.tv_in1k'),
    'Swin-T': released('swin_tiny_patch4_window7_224.ms_in1k', config='cascade_mask_rcnn_swin_tiny_fpn_1x_coco'),
    'Swin-S': released('swin_small_patch4_window7_224.ms_in1k'),
    'Swin-B': released('swin_base_patch4_window7_224.ms_in1k'),
    'Swin-B 384': released('swin_base_patch4_window12_384.ms_in1k'),
    'Swin-B (22k)': released(SWIN_TEACHER),
    'Swin-B 384 (22k)': released('swin_base_patch4_window12_384.ms_in22k_ft_in1k'),
    # timm's weights of these come from ImageNet-21k, or from another training on ImageNet-1k: only the size is theirs.
    'ViT-B/16': unreleased('vit_base_patch16_384'),
    'ViT-B/32': unreleased('vit_base_patch32_384'),
    'ViT-L/16': unreleased('vit_large_patch16_384'),
}
"""The model by its name in the rows."""

VERSUS = {
    'Mini-Swin-B vs Swin-B': ('Swin-B', 'Mini-Swin-B'),
    'Swin-S (WS only) vs Swin-S': ('Swin-S', 'Swin-S (WS only) vs Swin-S'),
    'Mini-DeiT-Ti': ('DeiT-Ti', 'Mini-DeiT-Ti'),
    'Mini-DeiT-S': ('DeiT-S', 'Mini-DeiT-S'),
    'Mini-DeiT-B': ('DeiT-B', 'Mini-DeiT-B'),
    'Mini-DeiT-B 384': ('DeiT-B 384', 'Mini-DeiT-B 384'),
    'Mini-DeiT-B (sharing every-2)': ('DeiT-B', 'Mini-DeiT-B (sharing every-2)'),
    'Mini-DeiT-B (sharing all layers)': ('DeiT-B', 'Mini-DeiT-B (sharing all layers)'),
    'Mini-Swin-T': ('Swin-T', 'Mini-Swin-T'),
    'Mini-Swin-S': ('Swin-S', 'Mini-Swin-S'),
    'Mini-Swin-B': ('Swin-B', 'Mini-Swin-B'),
    'Mini-Swin-B 384': ('Swin-B 384', 'Mini-Swin-B 384'),
    'Mini-Swin-T (sharing every-2)': ('Swin-T', 'Mini-Swin-T (sharing every-2)'),
    'Mini-Swin-T (sharing all layers)': ('Swin-T', 'Mini-Swin-T (sharing all layers)'),
}
"""The original and the compressed model of a ratio, by name in the rows."""

QUOTED = frozenset(
    {
        'AutoFormer-B', 'AutoFormer-S', 'AutoFormer-T', 'Grafit ResNet-50', 'NVP-T', 'NViT-T', 'S2ViTE-B', 'S2ViTE-S',
        'S2ViTE-T', 'VTP (20%)', 'VTP (40%)',
        'Mini-DeiT-B vs DeiT-B', 'Mini-Swin-B vs Swin-B',  # no models: differences of others
    }
)  # fmt: skip

ENTRIES = (
    Entry('minivit/table1', 'Sharing, transformation, distillation', ACCURACY | COUNTS),
    Entry('minivit/table2', 'How many layers share', ACCURACY | COUNTS),
    Entry('minivit/table3', 'Losses of the distillation', ACCURACY),
    Entry('minivit/table4', 'ImageNet-1k, ReaL and V2 beside other models', ACCURACY | COUNTS),
    Entry('minivit/table5', 'Transfer', ACCURACY | COUNTS | TRANSFER),
    Entry('minivit/table6', 'Detection on COCO', ACCURACY | COUNTS | DETECTION),
    Entry('minivit/text', 'Numbers of the running text', ACCURACY | COUNTS),
    Entry('minivit/readme', 'README: the released weights', ACCURACY | COUNTS),
)

PAPER = Paper(
    'minivit',
    'MiniViT: Compressing Vision Transformers with Weight Multiplexing (CVPR 2022)',
    ENTRIES,
    SUBJECTS,
    QUOTED,
    VERSUS,
)
