"""TinyViT: Fast Pretraining Distillation for Small Vision Transformers (ECCV 2022): its tables and models."""

from .record import Entry, Paper, StoredLabels, Subject, released, unreleased
from .tasks import (
    ACCURACY,
    ARCHITECTURE,
    COST,
    COUNTS,
    DATASETS,
    DETECTION,
    FEW_SHOT,
    PROBE,
    SPEED,
    STORAGE,
)

__all__ = ['PAPER']

CROP = '--protocol paper'  # 0.875, section 5.1; timm's default for these weights is 0.95
SAVE_LABELS = 'distill train tinyvit_21m_224 --random -d imagenet-22k --teacher {} --recipe tinyvit_22k_distill -o OUT'
VARIANT = 'tinyvit_21m_talking_heads_224'
CLIP_TEACHER = SAVE_LABELS.format('clip_vit_large_patch14_224')


def _cascade(size: str) -> str:
    return f'cascade_mask_rcnn_tinyvit_{size}_fpn_1x_coco'


def _of_size(size: str) -> dict[str, Subject]:
    """The released models of one size at 224 pixels."""
    title, name = f'TinyViT-{size.upper()}', f'tinyvit_{size}_224'
    return {
        title: unreleased(name),  # the architecture alone
        f'{title} (IN-1k scratch)': released(f'{name}.in1k', evaluate=CROP, config=_cascade(size)),
        f'{title} (IN-21k distill)': released(f'{name}.dist_in22k_ft_in1k', evaluate=CROP, config=_cascade(size)),
    }


SUBJECTS = {
    **_of_size('5m'),
    **_of_size('11m'),
    **_of_size('21m'),
    'TinyViT (all sizes)': unreleased('tinyvit_5m_224', also=('tinyvit_11m_224', 'tinyvit_21m_224')),
    'TinyViT-21M (IN-21k distill, 384px)': released('tinyvit_21m_384.dist_in22k_ft_in1k'),
    'TinyViT-21M (IN-21k distill, 512px)': released('tinyvit_21m_512.dist_in22k_ft_in1k'),
    'TinyViT-21M, 384px': unreleased('tinyvit_21m_384'),
    'TinyViT-21M, 512px': unreleased('tinyvit_21m_512'),
    # The same weights under the name of their teacher (Tab. 3 #3).
    'TinyViT-21M (IN-21k distill, teacher CLIP-ViT-L/14)': released(
        'tinyvit_21m_224.dist_in22k_ft_in1k', evaluate=CROP
    ),
    'TinyViT-21M (IN-1k distill)': unreleased(
        'tinyvit_21m_224', 'distill train tinyvit_21m_224 --random -d imagenet-1k --teacher TEACHER -o OUT'
    ),
    'TinyViT-21M (IN-21k pretrain, no distill)': unreleased(
        'tinyvit_21m_224', 'finetune tinyvit_21m_224 --random -d imagenet-22k --recipe tinyvit_scratch -o OUT'
    ),
    'TinyViT-21M (cleaned IN-21k pretrain, no distill)': unreleased(
        'tinyvit_21m_224',
        'finetune tinyvit_21m_224 --random -d imagenet-22k --subset kept.json --recipe tinyvit_scratch -o OUT',
    ),
    'TinyViT-21M (IN-21k distill, teacher BEiT-L)': unreleased(
        'tinyvit_21m_224', SAVE_LABELS.format('beit_large_patch16_224.in22k_ft_in22k')
    ),
    'TinyViT-21M (IN-21k distill, teacher Swin-L)': unreleased(
        'tinyvit_21m_224', SAVE_LABELS.format('swin_large_patch4_window7_224.ms_in22k')
    ),
    'TinyViT-21M (IN-21k distill, teacher Florence)': unreleased('tinyvit_21m_224'),  # Florence is not public
    'TinyViT-21M (fast pretraining distillation)': unreleased('tinyvit_21m_224', CLIP_TEACHER),
    'TinyViT-21M (conventional distillation, teacher Florence)': unreleased('tinyvit_21m_224'),
    # Teachers, with the classifier of 21841 classes that the printed sizes include.
    'BEiT-L (teacher, IN-21k)': released('beit_large_patch16_224.in22k_ft_in22k', classes=21841),
    'Swin-L (teacher, IN-21k)': released('swin_large_patch4_window7_224.ms_in22k', classes=21841),
    'CLIP-ViT-L/14 (teacher, IN-21k)': released('clip_vit_large_patch14_224.openai_ft_in22k', classes=21841),
    'CLIP-ViT-L/14-22k (teacher)': released('clip_vit_large_patch14_224.openai_ft_in22k', classes=21841),
    # timm's models.
    'CoaT-Lite Small': released('coat_lite_small.in1k'),
    'CrossViT-9': released('crossvit_9_240.in1k'),
    'CrossViT-15': released('crossvit_15_240.in1k'),
    'DeiT-S': released('deit_small_patch16_224.fb_in1k'),
    'DeiT-S (IN-1k scratch)': released('deit_small_patch16_224.fb_in1k'),
    'DeiT-Ti': released('deit_tiny_patch16_224.fb_in1k'),
    'DeiT-Ti (IN-1k scratch)': released('deit_tiny_patch16_224.fb_in1k'),
    'EffNet-B5': released('tf_efficientnet_b5.aa_in1k'),
    'LeViT-256': released('levit_256.fb_dist_in1k'),
    'MobileViT-S': released('mobilevit_s.cvnets_in1k'),
    'ResNet-18': released('resnet18.tv_in1k'),
    'Swin-B (IN-21k)': released('swin_base_patch4_window7_224.ms_in22k_ft_in1k'),
    'Swin-T': released('swin_tiny_patch4_window7_224.ms_in1k', config='cascade_mask_rcnn_swin_tiny_fpn_1x_coco'),
    'Swin-T (IN-1k scratch)': released('swin_tiny_patch4_window7_224.ms_in1k'),
    # Trained by TinyViT's authors and not published; the teacher is not stated, or is Florence.
    **{
        f'{title} ({training})': unreleased(name)
        for title, name in (
            ('DeiT-Ti', 'deit_tiny_patch16_224'),
            ('DeiT-S', 'deit_small_patch16_224'),
            ('Swin-T', 'swin_tiny_patch4_window7_224'),
        )
        for training in ('IN-21k distill', 'IN-21k pretrain, no distill')
    },
    'Swin-T (cleaned IN-21k pretrain, no distill)': unreleased('swin_tiny_patch4_window7_224'),
    'Swin-L (197M)': unreleased('swin_large_patch4_window7_224'),
    # The student of the supplement has talking heads and shares the blocks of its last stage. How much the labels weigh
    # is not said: half, as where MiniViT mixes them in. Florence is not public.
    **{
        f'TinyViT-21M variant (IN-21k distill {labels} GT labels, teacher {teacher})': unreleased(
            VARIANT, f'{SAVE_LABELS.format(name).replace("tinyvit_21m_224", VARIANT)}{mixed}'
        )
        for teacher, name in (('CLIP-ViT-L/14', 'clip_vit_large_patch14_224'), ('Florence', 'TEACHER'))
        for labels, mixed in (('w/', ' --hard-weight 0.5'), ('w/o', ''))
    },
}
"""The model by its name in the rows."""

QUOTED = frozenset(
    {
        'AutoFormer-S', 'Florence (teacher, IN-21k)', 'GLiT-Tiny', 'Mobile-Former-214M', 'PVT-Tiny', 'ResT-Small',
        'T2T-ViT-14', 'ViTAS-DeiT-A',
        # No models.
        'ImageNet', 'ImageNet-21K', 'ImageNet-21K cleaned', 'Saved teacher logits',
        'Saved teacher logits (IN-1k, K=10, 300 epochs)', 'Saved teacher logits (IN-21k, K=100, 90 epochs)',
        'Saved teacher logits (IN-21k, K=100, 90 epochs), key files',
        'Saved teacher logits (IN-21k, K=100, 90 epochs), keys + values',
        'TinyViT-21M (fast vs conventional distillation)', 'TinyViT-21M vs Swin-B', 'TinyViT-21M vs Swin-L',
    }
)  # fmt: skip

VERSUS = {
    'TinyViT-21M vs Swin-B': ('Swin-B (IN-21k)', 'TinyViT-21M'),
    'TinyViT-21M vs Swin-L': ('Swin-L (197M)', 'TinyViT-21M'),
}
STORED = {
    'Saved teacher logits': StoredLabels('imagenet-22k', k=100, epochs=90),
    'Saved teacher logits (IN-1k, K=10, 300 epochs)': StoredLabels('imagenet-1k', k=10, epochs=300),
    'Saved teacher logits (IN-21k, K=100, 90 epochs)': StoredLabels('imagenet-22k', k=100, epochs=90),
}

ENTRIES = (
    Entry('tinyvit/table1', 'Pre-training on ImageNet-22k, cleaned, and with distillation', ACCURACY),
    Entry('tinyvit/table2', 'Distillation of other students', ACCURACY | COUNTS),
    Entry('tinyvit/table3', 'Teachers, and the cost of their lessons', ACCURACY | COUNTS | PROBE | COST),
    Entry('tinyvit/table4', 'ImageNet-1k beside other models', ACCURACY | COUNTS | SPEED),
    Entry('tinyvit/table5', 'Linear probes and few-shot', PROBE | FEW_SHOT),
    Entry('tinyvit/table6', 'Detection on COCO', ACCURACY | COUNTS | DETECTION),
    Entry('tinyvit/supplement_table1', 'Architecture', ARCHITECTURE),
    Entry('tinyvit/supplement_table2', 'With and without the true labels', ACCURACY),
    Entry(
        'tinyvit/text', 'Numbers of the running text',
        ACCURACY | COUNTS | ARCHITECTURE | STORAGE | COST | DATASETS,
    ),
    Entry('tinyvit/readme', 'README, an issue, Papers With Code', ACCURACY | COUNTS | SPEED | STORAGE),
)  # fmt: skip

PAPER = Paper(
    'tinyvit',
    'TinyViT: Fast Pretraining Distillation for Small Vision Transformers (ECCV 2022)',
    ENTRIES,
    SUBJECTS,
    QUOTED,
    VERSUS,
    STORED,
)
