"""The eight checkpoints of MiniViT: four of Mini-DeiT, four of Mini-Swin.

Accuracies were measured by the authors. Those of the README of the released code are of the released files; the
paper's are given where they differ, and on the test sets that the README leaves out. Nobody else published any.
"""

from .record import Golden, License, Paper, Protocol, Release, Result, Transfer

__all__ = ['MINI_DEIT', 'MINI_SWIN']

ORIGIN = 'https://github.com/microsoft/Cream/tree/main/MiniViT'
FILES_AT = 'https://github.com/microsoft/Cream/blob/main/MiniViT'
URL = 'https://github.com/DominickZhang/MiniViT-model-zoo/releases/download/v1.0.0/'
PAPER = Paper(
    'MiniViT: Compressing Vision Transformers with Weight Multiplexing',
    '2204.07154',
    ('Jinnian Zhang', 'Houwen Peng', 'Kan Wu', 'Mengchen Liu', 'Bin Xiao', 'Jianlong Fu', 'Lu Yuan'),
    'CVPR 2022',
)

README = 'README of the released code'
TABLE_4 = 'Table 4 of the paper'
TABLE_5 = 'Table 5 of the paper'
TABLE_6 = 'Table 6 of the paper'
ADDRESSES = {README: f'{FILES_AT}/README.md', **dict.fromkeys((TABLE_4, TABLE_5, TABLE_6), PAPER.url)}

PICKLES = (
    'unknown whether the file holds its training configuration as pickled objects next to the weights; '
    'it is opened without running any'
)

# Name -> (file, README (top-1, top-5), the paper's ImageNet-1k top-1 with its source where it is another number,
# the paper's (ReaL, V2) top-1, None where the available copy of the table lacks the number).
DEIT_FILES = {
    'mini_deit_tiny_patch16_224.distill_in1k': (
        'mini_deit_tiny_patch16_224.pth', (73.0, 91.6), (72.8, TABLE_4), (83.5, 61.3),
    ),
    'mini_deit_small_patch16_224.distill_in1k': (
        'mini_deit_small_patch16_224.pth', (80.9, 95.6), (80.7, TABLE_4), (88.4, 69.5),
    ),
    'mini_deit_base_patch16_224.distill_in1k': (
        'mini_deit_base_patch16_224.pth', (83.2, 96.5), None, (89.6, 73.0),
    ),
    'mini_deit_base_patch16_384.distill_in1k': (
        'mini_deit_base_patch16_384.pth', (84.9, 97.2), (84.7, TABLE_5), (89.9, None),
    ),
}  # fmt: skip
SWIN_FILES = {
    'mini_swin_tiny_patch4_window7_224.distill_in1k': (
        'mini-swin-tiny-12m.pth', (81.3, 95.7), (81.4, TABLE_4), (87.1, 70.5),
    ),
    'mini_swin_small_patch4_window7_224.distill_in1k': (
        'mini-swin-small-26m.pth', (83.9, 97.0), (83.6, TABLE_4), (88.7, 73.8),
    ),
    'mini_swin_base_patch4_window7_224.distill_in1k': (
        'mini-swin-base-46m.pth', (84.5, 97.3), (84.3, TABLE_4), (89.0, 74.4),
    ),
    'mini_swin_base_patch4_window12_384.distill_in1k': (
        'mini-swin-base-224to384.pth', (85.5, 97.6), None, (89.5, 76.1),
    ),
}  # fmt: skip

# Name -> results after further training: (task, data, metric, value, setting, source).
TRANSFERS = {
    'mini_deit_base_patch16_384.distill_in1k': (
        ('fine-tuning', 'cifar-10', 'top-1, %', 99.3, '384 px, 1000 epochs', TABLE_5),
        ('fine-tuning', 'cifar-100', 'top-1, %', 91.5, '384 px, 1000 epochs', TABLE_5),
        ('fine-tuning', 'flowers-102', 'top-1, %', 98.3, '384 px, 300 epochs', TABLE_5),
        ('fine-tuning', 'stanford-cars', 'top-1, %', 93.8, '384 px, 300 epochs', TABLE_5),
        ('fine-tuning', 'oxford-pets', 'top-1, %', 95.5, '384 px, 1000 epochs', TABLE_5),
    ),
    'mini_swin_tiny_patch4_window7_224.distill_in1k': (
        ('detection', 'coco-2017', 'box AP', 47.8, 'Cascade Mask R-CNN, 12 epochs', TABLE_6),
    ),
}
PARENTS = {
    'mini_deit_base_patch16_384.distill_in1k': 'mini_deit_base_patch16_224.distill_in1k',
    'mini_swin_base_patch4_window12_384.distill_in1k': 'mini_swin_base_patch4_window7_224.distill_in1k',
}
# Architecture of Mini-Swin -> reference outputs; those of Mini-DeiT have the name of the architecture.
GOLDEN = {
    'mini_swin_tiny_patch4_window7_224': 'mini_swin_tiny',
    'mini_swin_small_patch4_window7_224': 'mini_swin_small',
    'mini_swin_base_patch4_window7_224': 'mini_swin_base',
    'mini_swin_base_patch4_window12_384': 'mini_swin_base_384',
}

# Teachers as the paper names them; the README of Mini-Swin names no file.
TRAINING = {
    'Mini-DeiT': 'ImageNet-1k, predictions distilled from a RegNetY-16GF',
    'Mini-Swin': (
        'ImageNet-1k; predictions, attention and hidden-state relations distilled from a Swin-B that was pretrained '
        'on ImageNet-22k'
    ),
}
FINE_TUNED = 'then fine-tuned at 384 without distillation'


def _results(
    published: tuple[float, float], paper: tuple[float, str] | None, others: tuple[float, float | None]
) -> tuple[Result, ...]:
    results = [_result('imagenet-1k', *published, README)]
    if paper is not None:
        results.append(_result('imagenet-1k', paper[0], None, paper[1]))
    for dataset, top1 in zip(('imagenet-real', 'imagenet-v2'), others, strict=True):
        if top1 is not None:
            results.append(_result(dataset, top1, None, TABLE_4))
    return tuple(results)


def _result(dataset: str, top1: float, top5: float | None, source: str) -> Result:
    return Result(dataset, top1, top5, 'authors', source, ADDRESSES[source])


def _release(family: str, license: str, name: str, file: str, *results) -> Release:
    architecture = name.partition('.')[0]
    size = int(architecture.rsplit('_', 1)[1])
    training = TRAINING[family]
    return Release(
        name=name,
        url=URL + file,
        hf_hub_id=None,
        num_classes=1000,
        labels='imagenet-1k',
        protocols=(
            Protocol(
                'paper',
                size,
                0.875,  # timm rounds the side to resize to, size / 0.875, as the released code does: 256 and 438
                'center',
                f'released code: resize to {size * 256 // 224}, center crop {size}',
                _results(*results),
            ),
        ),
        # From the folder of the released code that names the file; the release page itself states none.
        license=License(license, f'{FILES_AT}/{family}/LICENSE'),
        paper=PAPER,
        origin_url=f'{ORIGIN}/{family}',
        training=training if size == 224 else f'{training}, {FINE_TUNED}',
        notes=(PICKLES,),
        parent=PARENTS.get(name),
        golden=Golden(GOLDEN.get(architecture, architecture), 'logits and features', 1e-8),
        transfers=tuple(Transfer(*found, ADDRESSES[found[-1]]) for found in TRANSFERS.get(name, ())),
    )


MINI_DEIT = tuple(_release('Mini-DeiT', 'apache-2.0', name, *entry) for name, entry in DEIT_FILES.items())
MINI_SWIN = tuple(_release('Mini-Swin', 'mit', name, *entry) for name, entry in SWIN_FILES.items())
