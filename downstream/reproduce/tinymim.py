"""TinyMIM: An Empirical Study of Distilling MIM Pre-trained Models (CVPR 2023): its tables and models."""

from .record import Entry, Paper, Subject, released, unreleased
from .tasks import ACCURACY, SEGMENTATION

__all__ = ['PAPER']

BASE, SMALL, TINY = (f'tinymim_vit_{size}_patch16_224' for size in ('base', 'small', 'tiny'))
MAE_LARGE, MAE_BASE = 'vit_large_patch16_224.mae', 'vit_base_patch16_224.mae'
STAR_CONFIG = 'upernet_tinymim_star_tiny_160k_ade20k'
CONFIG = 'upernet_tinymim_{}_160k_ade20k'  # of tiny and small nobody has published one: see there what was chosen


def _study(options: str) -> Subject:
    """A student of the study: ViT-B, 100 epochs, taught by MAE's ViT-L."""
    return unreleased(
        BASE, f'pretrain tinymim --student base --teacher {MAE_LARGE} --epochs 100 {options} -d imagenet-1k -o OUT'
    )


def _taught(size: str, teacher: str) -> Subject:
    return unreleased(
        f'tinymim_vit_{size}_patch16_224',
        f'pretrain tinymim --student {size} --teacher {teacher} --epochs 100 -d imagenet-1k -o OUT',
    )


SUBJECTS = {
    'TinyMIM ViT-T': released(f'{TINY}.ft_in1k', config=CONFIG.format('tiny')),
    'TinyMIM ViT-S': released(f'{SMALL}.ft_in1k', config=CONFIG.format('small')),
    'TinyMIM ViT-B': released(f'{BASE}.ft_in1k', config=CONFIG.format('base')),
    'TinyMIM*-T': released('tinymim_vit_tiny_star_patch16_224.ft_in1k', config=STAR_CONFIG),
    'TinyMIM*-T (C=768 decoder)': released('tinymim_vit_tiny_star_patch16_224.ft_in1k', config=STAR_CONFIG),
    # The released weights under the name of their target.
    'TinyMIM ViT-T relation distillation': released(f'{TINY}.ft_in1k', config=CONFIG.format('tiny')),
    'TinyMIM ViT-S relation distillation': released(f'{SMALL}.ft_in1k', config=CONFIG.format('small')),
    'TinyMIM ViT-B relation distillation': released(f'{BASE}.ft_in1k', config=CONFIG.format('base')),
    # The study: pre-trained by `trainer`, then fine-tuned with the recipe `tinymim`; weights were not published.
    **{f'TinyMIM ViT-B target block {n}': _study(f'--block {n}') for n in (12, 15, 18, 21, 24)},
    'TinyMIM ViT-B relation QK,VV softmax (default)': _study('--relations qk,vv'),
    'TinyMIM ViT-B relation QK,VV no softmax': _study('--relations qk,vv --no-softmax'),
    'TinyMIM ViT-B relation QQ,KK,VV softmax': _study('--relations qq,kk,vv'),
    'TinyMIM ViT-B relation QQ,KK,VV no softmax': _study('--relations qq,kk,vv --no-softmax'),
    'TinyMIM ViT-B feature output feature': _study('--target output'),
    'TinyMIM ViT-B feature FFN feature': _study('--target ffn'),
    'TinyMIM ViT-B feature FFN feature + residual': _study('--target ffn_residual'),
    'TinyMIM ViT-B feature attention feature': _study('--target attention'),
    'TinyMIM ViT-B feature attention feature + residual': _study('--target attention_residual'),
    'TinyMIM ViT-B feature Q/K/V features': _study('--target qkv'),
    'TinyMIM ViT-B w/ Cls': _study('--target cls'),
    'TinyMIM ViT-B w/ Cls + reconstruction': _study('--target cls --reconstruct'),
    'TinyMIM ViT-B input raw image': _study(''),
    'TinyMIM ViT-B input masked image': _study('--mask-ratio 0.75'),
    'TinyMIM ViT-B input masked + reconstruction loss': _study('--mask-ratio 0.75 --reconstruct'),
    **{
        f'TinyMIM ViT-B DPR teacher {teacher} student {student}': _study(
            f'--teacher-drop-path {teacher} --drop-path {student}'
        )
        for teacher, student in (('0', '0'), ('0', '0.1'), ('0', '0.2'), ('0', '0.3'), ('0.1', '0.1'))
    },
    **{
        f'TinyMIM {title} {kind} distillation': unreleased(name)
        for title, name in (('ViT-T', TINY), ('ViT-S', SMALL), ('ViT-B', BASE))
        for kind in ('class-token', 'feature')
    },
    'TinyMIM ViT-S <- MAE-B': _taught('small', MAE_BASE),
    'TinyMIM ViT-S <- MAE-L': _taught('small', MAE_LARGE),
    'TinyMIM ViT-S <- TinyMIM-B(<-MAE-L)': unreleased(
        SMALL, 'pretrain tinymim --chain large,base,small --teacher-weights FILE -d imagenet-1k -o OUT'
    ),
    'TinyMIM ViT-T <- MAE-S': _taught('tiny', 'TEACHER'),  # nobody has published MAE's ViT-S of this paper
    'TinyMIM ViT-T <- MAE-B': _taught('tiny', MAE_BASE),
    'TinyMIM ViT-T <- TinyMIM-S(<-MAE-B)': unreleased(
        TINY, 'pretrain tinymim --chain base,small,tiny --teacher-weights FILE -d imagenet-1k -o OUT'
    ),
    # timm's models.
    **dict.fromkeys(('DeiT ViT-T', 'DeiT-T', 'Scratch(DeiT) ViT-T'), released('deit_tiny_patch16_224.fb_in1k')),
    **dict.fromkeys(('DeiT ViT-S', 'Scratch(DeiT) ViT-S'), released('deit_small_patch16_224.fb_in1k')),
    'MobileViTv1-S': released('mobilevit_s.cvnets_in1k'),
}
"""The model by its name in the rows. DeiT's ViT-B has 81.2 here and 81.8 with timm's weights, which are others."""

QUOTED = frozenset(
    {
        'BEiT ViT-B 800e', 'CAE ViT-B 1600e', 'CIM ViT-S 1600e', 'CiT-T', 'DINO ViT-S 1600e', 'DeiT ViT-B',
        'EdgeViT-XS', 'MAE ViT-B', 'MAE ViT-B 1600e', 'MAE ViT-L', 'MAE ViT-S', 'MAE ViT-S 1600e', 'MAE ViT-T',
        'MAE ViT-T 1600e', 'MaskFeat ViT-B 1600e', 'MoCo(v3) ViT-S 1600e', 'MoCo(v3) ViT-T 1600e', 'MobileViTv3-S',
        'PVT-T', 'PeCo ViT-B 300e', 'PeCo ViT-B 800e', 'SIM ViT-B 1600e', 'Scratch(DeiT) ViT-B', 'Scratch(DeiT) ViT-L',
        'SdAE ViT-B 300e', 'Swin(8.8M)', 'data2vec ViT-B 800e',
    }
)  # fmt: skip

ENTRIES = (
    Entry('tinymim/table1', 'TinyMIM*-T beside small models', ACCURACY | SEGMENTATION),
    Entry('tinymim/table2', 'MAE at four sizes', ACCURACY),
    Entry('tinymim/table3', 'ImageNet-1k and ADE20K beside other pre-training', ACCURACY | SEGMENTATION),
    Entry('tinymim/table4', 'Robustness', ACCURACY),
    Entry('tinymim/table5', 'Class token', ACCURACY),
    Entry('tinymim/table6', 'Features as targets', ACCURACY),
    Entry('tinymim/table7', 'Relations as targets', ACCURACY),
    Entry('tinymim/table8', 'Targets at three sizes', ACCURACY),
    Entry('tinymim/table9', 'Targets on ADE20K', SEGMENTATION),
    Entry('tinymim/table10', 'Block of the teacher', ACCURACY | SEGMENTATION),
    Entry('tinymim/table11', 'Teachers and chains', ACCURACY),
    Entry('tinymim/table12', 'Input', ACCURACY),
    Entry('tinymim/table13', 'Drop path', ACCURACY),
    Entry('tinymim/readme', 'README and log of the segmentation', SEGMENTATION),
)

PAPER = Paper(
    'tinymim',
    'TinyMIM: An Empirical Study of Distilling MIM Pre-trained Models (CVPR 2023)',
    ENTRIES,
    SUBJECTS,
    QUOTED,
)
