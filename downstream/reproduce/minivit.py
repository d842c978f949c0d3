"""MiniViT: Compressing Vision Transformers with Weight Multiplexing (CVPR 2022): its tables and models."""

from .record import Entry, Paper, Subject, released, unreleased
from .tasks import ACCURACY, COUNTS, DETECTION, TRANSFER

__all__ = ['PAPER']

SWIN_TEACHER = 'swin_base_patch4_window7_224.ms_in22k_ft_in1k'
CASCADE = 'cascade_mask_rcnn_mini_swin_tiny_fpn_1x_coco'
TINY = 'mini_swin_tiny_patch4_window7_224'
TRAIN_SWIN = f'pretrain minivit --student {{}} --teacher {SWIN_TEACHER} -d imagenet-1k -o OUT'
TRAIN_DEIT = 'pretrain minivit --student {} --teacher regnety_160.deit_in1k -d imagenet-1k -o OUT'
PREDICTIONS = '--relation-weight 0 --hidden-weight 0'
LABELS = '--hard-weight 1'  # and none for the teacher's predictions


def _shared(base: str, share_every: int | str, train: str, config: str = '') -> Subject:
    """A model of timm whose blocks are shared whole, and the commands that make it and train it from random weights."""
    start = f'compress {base} --random --init first --share-every {share_every} --no-transform --share-norms'
    built = dict(base=base, share_every=share_every, transform=False, share_norms=True)
    trainer = f'{start} -o START && tinyvit-zoo {train.format("START")}'
    return unreleased('multiplexed', trainer, options=built, config=config)


def _at_384(recipe: str) -> Subject:
    """Mini-DeiT-B at 384 pixels, which alone is transferred; the recipe depends on the data set."""
    name = 'mini_deit_base_patch16_384.distill_in1k'
    return released(name, finetune=f'{name} --recipe {recipe}')


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
    'Mini-Swin-T (WS+WT)': unreleased(
        TINY,
        f'{TRAIN_SWIN.format(TINY)} {PREDICTIONS} {LABELS}',
        config='cascade_mask_rcnn_mini_swin_tiny_ws_wt_fpn_1x_coco',
    ),
    'Mini-DeiT-S (WS+WT)': unreleased(
        'mini_deit_small_patch16_224', f'{TRAIN_DEIT.format("mini_deit_small_patch16_224")} {LABELS}'
    ),
    'Mini-Swin-T (sharing every-2)': unreleased(TINY, f'{TRAIN_SWIN.format(TINY)} --repeats 2', options={'repeats': 2}),
    'Mini-DeiT-B (sharing all layers)': unreleased(
        'mini_deit_base_patch16_224',
        f'{TRAIN_DEIT.format("mini_deit_base_patch16_224")} --repeats 12',
        options={'repeats': 12},
    ),
    'Mini-Swin-T (losses pred)': unreleased(TINY, f'{TRAIN_SWIN.format(TINY)} {PREDICTIONS}'),
    'Mini-Swin-T (losses GT+pred)': unreleased(TINY, f'{TRAIN_SWIN.format(TINY)} {PREDICTIONS} --hard-weight 0.5'),
    'Mini-Swin-T (losses pred+attn)': unreleased(TINY, f'{TRAIN_SWIN.format(TINY)} --hidden-weight 0'),
    'Mini-Swin-T (losses pred+hddn)': unreleased(
        TINY, f'{TRAIN_SWIN.format(TINY)} --relation-weight 0 --hidden-weight 1'
    ),
    'Mini-Swin-T (no distillation, GT only)': unreleased(TINY, f'{TRAIN_SWIN.format(TINY)} {PREDICTIONS} {LABELS}'),
    # Weight sharing as in Eq. 4 and Fig. 2a: all of a block, its norms too. Whether these rows share the norms is not
    # said; the printed sizes are the same. They are of DeiT and Swin as they are, as #1 and #6 of Table 1.
    'Mini-DeiT-S (WS)': _shared('deit_small_patch16_224', 2, f'{TRAIN_DEIT} {LABELS}'),
    'Mini-DeiT-S (WS+WD)': _shared('deit_small_patch16_224', 2, TRAIN_DEIT),
    'Mini-Swin-T (WS)': _shared(
        'swin_tiny_patch4_window7_224',
        'stage',
        f'{TRAIN_SWIN} {PREDICTIONS} {LABELS}',
        config='cascade_mask_rcnn_mini_swin_tiny_ws_fpn_1x_coco',
    ),
    'Mini-Swin-T (WS+WD)': _shared('swin_tiny_patch4_window7_224', 'stage', TRAIN_SWIN),
    'Swin-S (WS only) vs Swin-S': _shared(
        'swin_small_patch4_window7_224', 'stage', f'{TRAIN_SWIN} {PREDICTIONS} {LABELS}'
    ),
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
    'Swin-S (WS only) vs Swin-S': ('Swin-S', 'Swin-S (WS only) vs Swin-S'),
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
