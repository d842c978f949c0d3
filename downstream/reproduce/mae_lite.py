"""A Closer Look at Self-Supervised Lightweight Vision Transformers (MAE-Lite, ICML 2023): its tables and models.

The rows are of the anonymous text submitted to ICLR 2023, which is older than the version of ICML.
"""

from .record import Entry, Paper, Subject, released, unreleased
from .tasks import ACCURACY, DETECTION, PROBE, SPEED, TRANSFER

__all__ = ['PAPER']

TINY, SMALL = 'mae_lite_vit_tiny_patch16_224', 'mae_lite_vit_small_patch16_224'
ENCODER = 'mae_lite_vit_tiny_encoder_patch16_224'
VITDET = 'mask_rcnn_vitdet_mae_lite_tiny_lsj640_100ep_coco'
# The recipe has 100 epochs; --epochs lengthens its warm-up of 5, too, which the authors may not have done.
DEFAULT_300 = '--recipe mae_lite_default --epochs 300'

MAE_TUNED = released(f'{TINY}.mae_in1k_ft_in1k')
D_MAE_TUNED = released(f'{TINY}.dmae_in1k_ft_in1k')


def _encoder(kind: str, recipe: str = 'mae_lite_transfer') -> Subject:
    """An encoder, which linear probes, transfer and detection start from; its file stands for FILE."""
    start = f'{TINY} --weights FILE --as-init --recipe {recipe}'
    return released(f'{ENCODER}.{kind}_in1k', finetune=start, config=VITDET)


def _improved(recipe: str = 'mae_lite_transfer') -> Subject:
    """ViT-Tiny trained with labels by the improved recipe."""
    name = f'{TINY}.deit_impr_in1k'
    return released(name, finetune=f'{name} --recipe {recipe}', config=VITDET)


def _tuned(options: str) -> Subject:
    """An encoder fine-tuned on ImageNet-1k; its file stands for FILE."""
    return unreleased(TINY, f'finetune {TINY} --weights FILE --as-init -d imagenet-1k {options} -o OUT')


def _on_subset(kind: str, size: str) -> Subject:
    more = f' --subset {size}' if size else ''
    size_option = ' --size tiny' if kind == 'mae' else ''
    return unreleased(TINY, f'pretrain {kind}{size_option} -d imagenet-1k{more} -o OUT')


SUBJECTS = {
    'DeiT-Tiny 12h improved 300e': _improved(),
    'DeiT-Tiny 12h scratch (improved recipe)': _improved(),
    'DeiT-Tiny 12h': _improved(),
    'DeiT-Tiny': _improved(),
    'ViT-Small 12h scratch impr. 300e': released(f'{SMALL}.deit_impr_in1k'),
    'DeiT-Tiny 12h @ cifar-100': _improved('mae_lite_cifar100'),
    'MAE-Tiny': _encoder('mae'),
    'MAE-Tiny @ cifar-100': _encoder('mae', 'mae_lite_cifar100'),
    'MoCov3-Tiny': _encoder('mocov3'),
    'MoCov3-Tiny @ cifar-100': _encoder('mocov3', 'mae_lite_cifar100'),
    'D-MAE-Tiny': _encoder('dmae'),
    'D-MAE-Tiny @ cifar-100': _encoder('dmae', 'mae_lite_cifar100'),
    'MAE-Tiny FT': MAE_TUNED,
    'MAE-Tiny-FT 300e': MAE_TUNED,
    'MAE-Tiny-FT impr. 300e': MAE_TUNED,
    'MAE-Tiny pre-trained on IN1K': MAE_TUNED,
    'MAE-Tiny-FT-RPE impr. 1000e': released('mae_lite_vit_tiny_rpe_patch16_224.mae_in1k_ft_in1k_1000e'),
    'D-MAE-Tiny @ imagenet-1k': D_MAE_TUNED,
    'D-MAE-Tiny-FT impr. 300e': D_MAE_TUNED,
    'MoCov3-Tiny-FT impr. 300e (layer decay 0.75)': released(f'{TINY}.mocov3_in1k_ft_in1k'),
    'MAE-Small-FT impr. 300e': released(f'{SMALL}.mae_in1k_ft_in1k'),
    'D-MAE-Small-FT impr. 300e': released(f'{SMALL}.dmae_in1k_ft_in1k'),
    # Not published.
    **dict.fromkeys(
        ('DeiT-Tiny 12h scratch (orig. recipe)', 'DeiT-Tiny 12h default 300e'),
        unreleased(TINY, f'finetune {TINY} --random -d imagenet-1k {DEFAULT_300} -o OUT'),
    ),
    'DeiT-Tiny 12h + DeiT distillation 300e': unreleased(TINY),
    'DeiT-Tiny 12h + DeiT distillation 1000e': unreleased(TINY),
    'ViT-Tiny sup. IN21K 30e -> impr. FT': unreleased(TINY),
    'ViT-Tiny sup. IN21K 300e -> impr. FT': unreleased(TINY),
    'MoCov3-Tiny FT': unreleased(TINY),  # 73.7: the released weights have 76.8, by another layer decay
    'MoCov3-Tiny pre-trained on IN1K': unreleased(TINY),
    'MAE-Tiny-FT 1000e': _tuned('--recipe mae_lite_1000'),
    'MAE-Tiny improved FT 300e': _tuned('--recipe mae_lite_improved'),
    'MAE-Tiny improved FT 1000e': _tuned('--recipe mae_lite_1000'),
    'MAE-Tiny default FT 300e': _tuned(DEFAULT_300),
    'MAE-Tiny FT 100e': _tuned('--recipe mae_lite_100'),
    'MAE-Tiny + DeiT distillation FT 300e': unreleased(TINY),
    'MAE-Tiny + DeiT distillation FT 1000e': unreleased(TINY),
    'D-MAE-Tiny default FT 300e': _tuned(DEFAULT_300),
    **{
        f'{title} pre-trained on {data}': _on_subset(kind, size)
        for title, kind in (('MAE-Tiny', 'mae'), ('MoCov3-Tiny', 'mocov3'))
        for data, size in (('1% IN1K', '1%'), ('10% IN1K', '10%'), ('IN1K-LT', 'long-tailed'))
    },
    'MAE-Tiny pre-trained on IN21K': unreleased(TINY, 'pretrain mae --size tiny -d imagenet-22k -o OUT'),
    'MoCov3-Tiny pre-trained on IN21K': unreleased(TINY, 'pretrain mocov3 -d imagenet-22k -o OUT'),
    # timm's models.
    'DeiT-Tiny 3h': released('deit_tiny_patch16_224.fb_in1k'),
    'DeiT-Tiny 3h (original)': released('deit_tiny_patch16_224.fb_in1k'),
    'EfficientNet-B0 scratch': released('efficientnet_b0.ra_in1k'),
}
"""The model by its name in the rows."""

QUOTED = frozenset({'DeiT-Tiny 3h distilled 1000e', 'EfficientNet-B0 SEED pre-trained'})

ENTRIES = (
    Entry('mae_lite/table1', 'Pre-training of ViT-Tiny', ACCURACY),
    Entry('mae_lite/table2', 'ImageNet-1k, ReaL and V2 beside other models', ACCURACY | SPEED),
    Entry('mae_lite/table3', 'Data of the pre-training', ACCURACY),
    Entry('mae_lite/table4', 'Transfer and detection', TRANSFER | DETECTION),
    Entry('mae_lite/table5', 'Distillation in the pre-training', ACCURACY | TRANSFER | DETECTION),
    Entry('mae_lite/text', 'Numbers of the running text', ACCURACY | PROBE),
    Entry('mae_lite/readme', 'READMEs of both versions, an issue', ACCURACY | DETECTION),
)

PAPER = Paper(
    'mae_lite',
    'A Closer Look at Self-Supervised Lightweight Vision Transformers (ICML 2023)',
    ENTRIES,
    SUBJECTS,
    QUOTED,
)
