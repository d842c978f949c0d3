"""The seven checkpoints of TinyMIM: four fine-tuned classifiers and three pre-trained encoders.

Accuracies were measured by the authors, the same in the README of the released code and in the paper. All files are in
one Google Drive folder whose listing was not available: other pages confirm the names of only two of them.
"""

from .record import Golden, License, Paper, Protocol, Release, Result, Transfer

__all__ = ['TINYMIM']

ORIGIN = 'https://github.com/OliverRensu/TinyMIM'
FOLDER = 'https://drive.google.com/drive/folders/10L305AoXyBSjJK7WfhBlxi3PF2Ni31Yu'
PAPER = Paper(
    'TinyMIM: An Empirical Study of Distilling MIM Pre-trained Models',
    '2301.01296',
    ('Sucheng Ren', 'Fangyun Wei', 'Zheng Zhang', 'Han Hu'),
    'CVPR 2023',
)
LICENSE = License('none', ORIGIN)

TABLE_1 = 'README of the released code, Table 1 of the paper'
TABLE_3 = 'README of the released code, Table 3 of the paper'
TABLE_4 = 'README of the released code, Table 4 of the paper'
README_URL = f'{ORIGIN}/blob/master/README.md'

NO_LICENSE = (
    'the repository has no license file; its code derives from MAE (https://github.com/facebookresearch/mae), '
    'which is CC-BY-NC 4.0'
)
UNCONFIRMED = 'name by the pattern of the others, not confirmed'
STAR_ENCODER = 'TinyMIM-PT-Tstar.pth'
MISSING = (
    'name by the pattern of the others; apparently missing there, as issue 11 of the repository asks for it, and not '
    f'to be taken for {STAR_ENCODER}, which has the same keys and shapes'
)
TAIL = (
    "never trained: the last block's output projection, norm2 and MLP, and the final norm; features are those of "
    'the last trained block'
)
STAR = (
    '12 heads in every block, a cls token at index 0 and a dist token at index 1',
    'the released code holds no classification forward of it: this one follows the keys of the file, the '
    'segmentation backbone and the answers of the authors (issues 3 and 6), and no accuracy confirms it',
)

# Name -> (file, what is uncertain about it, top-1 on ImageNet-1k and on (-A, -R), notes).
FINE_TUNED = {
    'tinymim_vit_tiny_patch16_224.ft_in1k': (
        'TinyMIM-FT-T.pth', UNCONFIRMED, (75.8, TABLE_3), (11.0, 39.8),
        ('3 heads in every block, half of those of the pre-trained encoder',),
    ),
    'tinymim_vit_small_patch16_224.ft_in1k': (
        'TinyMIM-FT-S.pth', UNCONFIRMED, (83.0, TABLE_3), (27.5, 48.8), ('6 heads in every block',),
    ),
    'tinymim_vit_base_patch16_224.ft_in1k': (
        'TinyMIM-FT-B.pth', UNCONFIRMED, (85.0, TABLE_3), (43.0, 54.6), ('12 heads in every block',),
    ),
    'tinymim_vit_tiny_star_patch16_224.ft_in1k': ('TinyMIM-FT-Tstar.pth', None, (79.6, TABLE_1), None, STAR),
}  # fmt: skip
# Name -> (file, what is uncertain about it, heads).
PRE_TRAINED = {
    'tinymim_vit_tiny_student_patch16_224.mim_in1k': (
        'TinyMIM-PT-T.pth', MISSING, '6 heads, 12 in the last block; the fine-tuned model has 3',
    ),
    'tinymim_vit_small_student_patch16_224.mim_in1k': (
        'TinyMIM-PT-S.pth', UNCONFIRMED, '6 heads, 12 in the last block; the fine-tuned model has 6',
    ),
    'tinymim_vit_base_student_patch16_224.mim_in1k': (
        'TinyMIM-PT-B.pth', None, '12 heads, 16 in the last block; the fine-tuned model has 12',
    ),
}  # fmt: skip

PARENTS = {
    f'tinymim_vit_{size}_patch16_224.ft_in1k': f'tinymim_vit_{size}_student_patch16_224.mim_in1k'
    for size in ('tiny', 'small', 'base')
}
# Name -> mean IoU on ADE20K with UperNet as the paper has it, and as the log of the released code has it.
ADE20K = {
    'tinymim_vit_tiny_patch16_224.ft_in1k': (44.6, None),
    'tinymim_vit_small_patch16_224.ft_in1k': (48.9, None),
    'tinymim_vit_base_patch16_224.ft_in1k': (52.6, None),
    'tinymim_vit_tiny_star_patch16_224.ft_in1k': (45.0, 45.0),
    'tinymim_vit_tiny_student_patch16_224.mim_in1k': (44.0, None),
    'tinymim_vit_small_student_patch16_224.mim_in1k': (48.4, None),
    'tinymim_vit_base_student_patch16_224.mim_in1k': (52.2, 52.47),
}
# Name -> mean corruption error on ImageNet-C, Table 4 of the paper.
IMAGENET_C = {
    'tinymim_vit_tiny_patch16_224.ft_in1k': 50.1,
    'tinymim_vit_small_patch16_224.ft_in1k': 35.8,
    'tinymim_vit_base_patch16_224.ft_in1k': 32.7,
}

# The chain of teachers is the paper's, section 3; the released code runs the step to ViT-B as published.
DISTILLED = {
    'base': 'ImageNet-1k without labels: token relations distilled from block 18 of an MAE ViT-L',
    'small': 'ImageNet-1k without labels: token relations distilled from TinyMIM-B',
    'tiny': 'ImageNet-1k without labels: token relations distilled from TinyMIM-S',
}


def _protocol(results: tuple[Result, ...]) -> Protocol:
    return Protocol('paper', 224, 0.875, 'center', 'released code: resize to 256, center crop 224', results)


def _transfers(name: str) -> tuple[Transfer, ...]:
    in_paper, in_log = ADE20K[name]
    found = [Transfer('segmentation', 'ade20k', 'mean IoU, %', in_paper, 'UperNet', 'Table 3 of the paper', PAPER.url)]
    if in_log is not None:
        setting = 'UperNet, windows of 512 with stride 341, one scale'
        where = ('README of the segmentation code', f'{ORIGIN}/blob/master/Segmentation/README.md')
        found.append(Transfer('segmentation', 'ade20k', 'mean IoU, %', in_log, setting, *where))
    if name in IMAGENET_C:
        metric = 'mean corruption error, % (less is better)'
        setting = 'no further training'
        found.append(Transfer('robustness', 'imagenet-c', metric, IMAGENET_C[name], setting, TABLE_4, README_URL))
    return tuple(found)


def _golden(name: str) -> Golden | None:
    """TinyMIM*-T has none: the released code holds no classification forward of it."""
    _, _, size, kind, *_ = name.split('_')
    if kind == 'star':
        return None
    if kind == 'student':
        return Golden(f'tinymim_student_{size}', 'token relations that the last block is trained by', 5e-6)
    return Golden(f'tinymim_vit_{size}_patch16_ft', 'logits and features', 5e-6)


def _release(
    name: str, file: str, doubt: str | None, training: str, results: tuple[Result, ...], notes: tuple[str, ...]
) -> Release:
    classes = 1000 if name.endswith('.ft_in1k') else 0
    return Release(
        name=name,
        url=None,
        hf_hub_id=None,
        num_classes=classes,
        labels='imagenet-1k' if classes else None,
        protocols=(_protocol(results),),
        license=LICENSE,
        paper=PAPER,
        origin_url=ORIGIN,
        training=training,
        download_page=FOLDER,
        file_name=file,
        file_doubt=doubt,
        other_files=(STAR_ENCODER,) if '_tiny_student_' in name else (),
        notes=(*notes, NO_LICENSE),
        parent=PARENTS.get(name),
        golden=_golden(name),
        transfers=_transfers(name),
    )


def _fine_tuned(
    name: str,
    file: str,
    doubt: str | None,
    published: tuple[float, str],
    others: tuple[float, float] | None,
    notes: tuple[str, ...],
) -> Release:
    results = [Result('imagenet-1k', published[0], None, 'authors', published[1], README_URL)]
    if others is not None:
        for dataset, top1 in zip(('imagenet-a', 'imagenet-r'), others, strict=True):
            results.append(Result(dataset, top1, None, 'authors', TABLE_4, README_URL))
    training = f'{DISTILLED[name.split("_")[2]]}; then fine-tuned on ImageNet-1k'
    if '_star_' in name:
        training += ' for 1000 epochs with distilled predictions'
    return _release(name, file, doubt, training, tuple(results), notes)


def _pre_trained(name: str, file: str, doubt: str | None, heads: str) -> Release:
    return _release(name, file, doubt, DISTILLED[name.split('_')[2]], (), (heads, TAIL))


TINYMIM = (
    *(_fine_tuned(name, *entry) for name, entry in FINE_TUNED.items()),
    *(_pre_trained(name, *entry) for name, entry in PRE_TRAINED.items()),
)
