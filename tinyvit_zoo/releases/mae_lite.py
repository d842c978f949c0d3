"""The thirteen checkpoints of MAE-Lite: eight fine-tuned classifiers and five pre-trained encoders, all with 12 heads.

Accuracies were measured by the authors. Those of the pages of the released code are of the released files; the paper's
are given where they differ, and on the test sets that those pages leave out. The paper is the text submitted in 2022,
older than the files. Each file is on a Google Drive page of its own, without its name.
"""

from .record import Golden, License, Paper, Protocol, Release, Result, Speed, Transfer

__all__ = ['MAE_LITE']

ORIGIN = 'https://github.com/wangsr126/MAE-Lite'
PAGE = 'https://drive.google.com/file/d/{}/view'
PAPER = Paper(
    'A Closer Look at Self-Supervised Lightweight Vision Transformers',
    '2205.14443',
    ('Shaoru Wang', 'Jin Gao', 'Zeming Li', 'Xiaoqin Zhang', 'Weiming Hu'),
    'ICML 2023',
)
LICENSE = License('apache-2.0', 'https://github.com/wangsr126/MAE-Lite/blob/main/LICENSE')

README = 'README of the released code'
SMALL = 'SMALL.md of the released code'
MOCO = 'MOCOV3.md of the released code'
TABLE_1 = 'Table 1 of the paper as submitted in 2022'
TABLE_2 = 'Table 2 of the paper as submitted in 2022'
TABLE_4 = 'Table 4 of the paper as submitted in 2022'
SECTION_4_1 = 'section 4.1 of the paper as submitted in 2022'
TABLE_5 = 'Table 5 of the paper as submitted in 2022'
DETECTION = 'DETECTION.md of the released code'
ADDRESSES = {
    README: f'{ORIGIN}/blob/main/README.md',
    SMALL: f'{ORIGIN}/blob/main/projects/mae_lite/SMALL.md',
    MOCO: f'{ORIGIN}/blob/main/projects/mocov3/MOCOV3.md',
    DETECTION: f'{ORIGIN}/blob/main/projects/eval_tools/det/DETECTION.md',
    **dict.fromkeys((TABLE_1, TABLE_2, TABLE_4, TABLE_5, SECTION_4_1), PAPER.url),
}

DERIVED = (
    'several files of the repository are modified from MAE (https://github.com/facebookresearch/mae), which is '
    'CC-BY-NC 4.0; its LICENSE does not mention that'
)
HEADS = '12 heads in every block, in ViT-Tiny too'
RPE = 'BEiT-style relative position tables in every block in addition to the absolute ones, and LayerScale'

# Name -> (id on Google Drive, name that the authors' commands give the file or None, results (data, top-1, source)).
FILES = {
    'mae_lite_vit_tiny_patch16_224.mae_in1k_ft_in1k': (
        '1VEpG2c5A62PefeecjQ3yaKfRlfph3LxO', 'mae_tiny_400e_ft_300e.pth.tar', (
            ('imagenet-1k', 77.978, README),
            ('imagenet-real', 84.3, TABLE_2),
            ('imagenet-v2', 66.2, TABLE_2),
        ),
    ),
    'mae_lite_vit_tiny_patch16_224.dmae_in1k_ft_in1k': (
        '1bcxwRUx6fq38M9eoBQbP2thwtU0j_9u6', None, (('imagenet-1k', 78.4, README),),
    ),
    'mae_lite_vit_tiny_patch16_224.mocov3_in1k_ft_in1k': (
        '1WxEQxFhnt6vMZ08ZArof41fAIKRefziE', None, (('imagenet-1k', 76.8, MOCO), ('imagenet-1k', 73.7, TABLE_1)),
    ),
    'mae_lite_vit_tiny_patch16_224.deit_impr_in1k': (
        '1RvhE2HucdWYHhKmPfHQW2A4EPpCHSYN_', 'deit_tiny_300e.pth.tar', (('imagenet-1k', 75.8, README),),
    ),
    'mae_lite_vit_tiny_encoder_patch16_224.mae_in1k': (
        '1ZQYlvCPLZrJDqn2lp4GCIVL246WPqgEf', 'mae_tiny_400e.pth.tar', (),
    ),
    'mae_lite_vit_tiny_encoder_patch16_224.dmae_in1k': (
        '1OCDMUEdcPhwoCPWGN0kahsHST7tbQmFe', 'mae_tiny_distill_400e.pth.tar', (),
    ),
    'mae_lite_vit_tiny_encoder_patch16_224.mocov3_in1k': (
        '1RI0mU-PweAVIXs_hNOx-Xw3VRhN7w6un', 'mocov3_tiny_400e.pth.tar', (),
    ),
    'mae_lite_vit_tiny_rpe_patch16_224.mae_in1k_ft_in1k_1000e': (
        '1zKDnMKs6tBTnC4liTYG2AMtotKcbKr4J', 'mae_tiny_400e_ft_rpe_1000e.pth.tar', (('imagenet-1k', 79.002, README),),
    ),
    'mae_lite_vit_small_patch16_224.mae_in1k_ft_in1k': (
        '10UTc8eaPpudJhIDxKc23U97rEngHvH3J', None, (('imagenet-1k', 82.1, SMALL),),
    ),
    'mae_lite_vit_small_patch16_224.dmae_in1k_ft_in1k': (
        '1ICgWu0V19TkDvpUutce3k8ahUAbJnEZP', None, (('imagenet-1k', 82.5, SMALL),),
    ),
    'mae_lite_vit_small_patch16_224.deit_impr_in1k': (
        '1VhiwQFfnB4WvRXH3GJcqEbM0GzVEikn3', None, (('imagenet-1k', 80.2, SMALL),),
    ),
    'mae_lite_vit_small_encoder_patch16_224.mae_in1k': (
        '16polFU68dOe4YrmpgL9I1ekStzFG8XV5', 'mae_small_400e.pth.tar', (),
    ),
    'mae_lite_vit_small_encoder_patch16_224.dmae_in1k': ('1-O7uuEnRrgKobETv54Z5T4isdS_WXOmK', None, ()),
}  # fmt: skip

# Name -> (table of the paper, top-1 after fine-tuning on each of FINE_TUNED_ON, None where the available copy of
# the table lacks the number; box and mask AP on COCO of that table, and of DETECTION.md).
FINE_TUNED_ON = ('flowers-102', 'oxford-pets', 'fgvc-aircraft', 'stanford-cars', 'cifar-100', 'inat-2018')
TRANSFERS = {
    'mae_lite_vit_tiny_encoder_patch16_224.mae_in1k': (
        TABLE_4,
        (85.8, 76.5, 64.6, 78.8, 78.9, 60.6),
        (38.9, 35.1),
        (39.9, 35.4),
    ),
    'mae_lite_vit_tiny_encoder_patch16_224.dmae_in1k': (
        TABLE_5,
        (95.2, None, 79.2, 87.5, 85.0, 63.6),
        (42.7, 38.2),
        (42.3, 37.4),
    ),
    'mae_lite_vit_tiny_encoder_patch16_224.mocov3_in1k': (
        TABLE_4,
        (94.8, 87.8, 73.7, 83.9, 83.9, 54.5),
        (40.0, 36.0),
        (39.7, 35.1),
    ),
    'mae_lite_vit_tiny_patch16_224.deit_impr_in1k': (
        TABLE_4,
        (96.4, 93.1, 73.5, 85.6, 85.8, 63.6),
        (40.7, 36.5),
        (40.4, 35.5),
    ),
}
LINEAR_PROBE = {'mae_lite_vit_tiny_encoder_patch16_224.mae_in1k': 23.4}
SPEEDS = {
    'mae_lite_vit_tiny_patch16_224.mae_in1k_ft_in1k': Speed(
        4020, 'RTX 3090, batches of 1024, mixed precision', TABLE_2, ADDRESSES[TABLE_2]
    ),
}

# By the first part of a tag; the encoders were trained for 400 epochs, without labels.
PRE_TRAINING = {
    'mae': 'ImageNet-1k without labels: 400 epochs of MAE',
    'dmae': 'ImageNet-1k without labels: 400 epochs of MAE, attention of the last block distilled from an MAE ViT-B',
    'mocov3': 'ImageNet-1k without labels: 400 epochs of MoCo v3',
    'deit': "ImageNet-1k from scratch, 300 epochs of the paper's improved recipe",
}
NOTES = {
    'mae_lite_vit_tiny_rpe_patch16_224.mae_in1k_ft_in1k_1000e': (HEADS, RPE, DERIVED),
}


def _training(tag: str) -> str:
    training = PRE_TRAINING[tag.partition('_')[0]]
    if '_ft_in1k' not in tag:
        return training
    epochs = 1000 if tag.endswith('_1000e') else 300
    return f'{training}; then fine-tuned on ImageNet-1k for {epochs} epochs'


def _transfers(name: str) -> tuple[Transfer, ...]:
    if name not in TRANSFERS:
        return ()
    table, top1, coco, coco_640 = TRANSFERS[name]
    found = []
    if name in LINEAR_PROBE:
        where = (SECTION_4_1, ADDRESSES[SECTION_4_1])
        found.append(Transfer('linear probe', 'imagenet-1k', 'top-1, %', LINEAR_PROBE[name], '', *where))
    found += [
        Transfer('fine-tuning', dataset, 'top-1, %', value, '', table, ADDRESSES[table])
        for dataset, value in zip(FINE_TUNED_ON, top1, strict=True)
        if value is not None
    ]
    for values, setting, source in (
        (coco, 'Mask R-CNN of ViTDet', table),
        (coco_640, 'Mask R-CNN of ViTDet, 640 px, 100 epochs', DETECTION),
    ):
        for metric, value in zip(('box AP', 'mask AP'), values, strict=True):
            found.append(Transfer('detection', 'coco-2017', metric, value, setting, source, ADDRESSES[source]))
    return tuple(found)


def _parent(name: str) -> str | None:
    architecture, tag = name.split('.')
    pre_training, fine_tuned, _ = tag.partition('_in1k_ft_in1k')
    size = architecture.split('_')[3]
    return f'mae_lite_vit_{size}_encoder_patch16_224.{pre_training}_in1k' if fine_tuned else None


def _golden(name: str) -> Golden:
    architecture, tag = name.split('.')
    size = architecture.split('_')[3]
    if '_encoder_' in architecture and tag == 'mocov3_in1k':
        what = 'the fixed position table alone (the layers are those of the encoder of MAE)'
        return Golden('maelite_mocov3_pos_embed', what, 5e-6)
    if '_encoder_' in architecture:
        return Golden(f'maelite_mae_{size}', 'tokens of masked images, loss and gradients of the MAE around it', 5e-6)
    kind = '_rpe' if '_rpe_' in architecture else '_ft'
    return Golden(f'maelite_vit_{size}_patch16{kind}', 'logits and features', 5e-6)


def _release(name: str, drive_id: str, file: str | None, results: tuple[tuple[str, float, str], ...]) -> Release:
    classes = 0 if '_encoder_' in name else 1000
    return Release(
        name=name,
        url=None,
        hf_hub_id=None,
        num_classes=classes,
        labels='imagenet-1k' if classes else None,
        protocols=(
            Protocol(
                'paper',
                224,
                0.875,
                'center',
                'released code: resize to 256, center crop 224',
                tuple(Result(data, top1, None, 'authors', source, ADDRESSES[source]) for data, top1, source in results),
            ),
        ),
        license=LICENSE,
        paper=PAPER,
        origin_url=ORIGIN,
        training=_training(name.partition('.')[2]),
        download_page=PAGE.format(drive_id),
        file_name=file,
        notes=NOTES.get(name, (HEADS, DERIVED)),
        parent=_parent(name),
        golden=_golden(name),
        transfers=_transfers(name),
        speed=SPEEDS.get(name),
    )


MAE_LITE = tuple(_release(name, *entry) for name, entry in FILES.items())
