"""Published numbers that contradict each other: the paper and its README, two tables, the text and a table."""

from collections.abc import Sequence
from dataclasses import dataclass

from .numbers import Number

__all__ = ['NOTES', 'Note', 'notes_of']


@dataclass(frozen=True)
class Note:
    """A contradiction.

    Attributes:
        ids: Of the numbers, which do not all have one value; that of the paper or of the earlier table first.
        text: What contradicts what, in one sentence.
    """

    ids: tuple[str, ...]
    text: str


def _released(row: str, table: str, paper: str, readme: str, cell: str = 'top1/imagenet-1k') -> Note:
    """A Mini model whose released weights have another accuracy than the paper's."""
    name = 'Table ' + table.removeprefix('table')
    return Note(
        (f'minivit/{table}/{row}/{cell}', f'minivit/readme/{row.removesuffix("-ws-wd-wt")}/{cell}'),
        f'{name} has {paper}, the README {readme} for the released weights, which --scale full evaluates.',
    )


def _run_again(row: str, table: str, paper: str, readme: str, metric: str = 'box') -> Note:
    """A detector of MAE-Lite that its authors trained once more."""
    name = 'Table ' + table.removeprefix('table')
    return Note(
        (
            f'mae_lite/{table}/{row}/{metric}_ap/coco-2017',
            f'mae_lite/readme/{row.removesuffix("-12h")}/{metric}_ap/coco-2017',
        ),
        f'{name} has {paper}, the README {readme} after training at 640 pixels, the setting of the config here.',
    )


MINI_SWIN = 'minivit/table3/mini-swin-t-losses-'

NOTES = (
    # TinyViT
    Note(
        ('tinyvit/table1/tinyvit-21m-in-21k-distill/top1/imagenet-v2',
         'tinyvit/table3/tinyvit-21m-in-21k-distill-teacher-florence/top1/imagenet-v2'),
        'The text names Florence as the teacher of Table 1, whose three numbers are those of CLIP in Table 3 '
        '(84.8, 88.9, 75.1), not those of Florence (84.8, 89.0, 74.8).',
    ),
    Note(
        ('tinyvit/table4/tinyvit-21m-in-21k-distill/macs_g', 'tinyvit/text/tinyvit-21m/macs_g'),
        'Table 4 has 4.3 G MACs, the supplement 4.4 GFLOPs; the model has 4.25 G MACs.',
    ),
    Note(
        ('tinyvit/table3/swin-l-teacher-in-21k/params_m', 'tinyvit/text/tinyvit-21m-vs-swin-l/params_share_pct'),
        'Table 3 gives Swin-L 229 M parameters, which include its 21841 classes; the abstract compares with 197 M, of '
        'which TinyViT-21M has 11 %.',
    ),
    Note(
        ('tinyvit/table5/tinyvit-21m-in-1k-scratch/top1/cifar-100',
         'tinyvit/table5/tinyvit-21m-in-1k-distill/top1/cifar-100'),
        'The text says that distillation improves linear probes from the first row to the second; on CIFAR-100 the '
        'table has a lower number.',
    ),
    Note(
        ('tinyvit/table5/tinyvit-21m-in-1k-scratch/top1/oxford-pets',
         'tinyvit/table5/tinyvit-21m-in-1k-distill/top1/oxford-pets'),
        'The text says that distillation improves linear probes from the first row to the second; on Pets the table '
        'has a lower number.',
    ),
    Note(
        ('tinyvit/table1/swin-t-in-1k-scratch/top1/imagenet-real', 'minivit/table4/swin-t/top1/imagenet-real'),
        'Swin-T has 86.7 on ReaL in the paper of TinyViT, 86.6 in that of MiniViT.',
    ),
    Note(
        ('tinyvit/table1/swin-t-in-1k-scratch/top1/imagenet-v2', 'minivit/table4/swin-t/top1/imagenet-v2'),
        'Swin-T has 69.7 on ImageNet-V2 in the paper of TinyViT, 69.6 in that of MiniViT.',
    ),
    Note(
        ('tinyvit/table3/clip-vit-l-14-teacher-in-21k/top1/imagenet-1k',
         'tinyvit/readme/clip-vit-l-14-22k-teacher/top1/imagenet-1k'),
        'The teacher has 85.2 in Table 3, by a linear probe, and 85.894 in the README, by its classes of ImageNet-22k.',
    ),
    # MiniViT
    _released('mini-deit-ti', 'table4', '72.8', '73.0'),
    _released('mini-deit-s', 'table4', '80.7', '80.9'),
    _released('mini-deit-s-ws-wd-wt', 'table1', '80.7', '80.9'),
    _released('mini-deit-s-ws-wd-wt', 'table1', '95.4', '95.6', 'top5/imagenet-1k'),
    _released('mini-deit-b-384', 'table5', '84.7', '84.9'),
    _released('mini-swin-t', 'table4', '81.4', '81.3'),
    _released('mini-swin-t-ws-wd-wt', 'table1', '81.4', '81.3'),
    _released('mini-swin-t-ws-wd-wt', 'table1', '95.8', '95.7', 'top5/imagenet-1k'),
    _released('mini-swin-s', 'table4', '83.6', '83.9'),
    _released('mini-swin-b', 'table4', '84.3', '84.5'),
    Note(
        ('minivit/table4/deit-b-384/top1/imagenet-1k', 'minivit/table5/deit-b-384/top1/imagenet-1k'),
        'DeiT-B at 384 pixels has 82.9 in Table 4, 83.1 in Table 5.',
    ),
    Note(
        ('minivit/table4/deit-b-distilled-384/top1/imagenet-1k',
         'minivit/table5/deit-b-distilled-384/top1/imagenet-1k'),
        'The distilled DeiT-B at 384 pixels has 84.5 in Table 4, 84.4 in Table 5.',
    ),
    Note(
        ('minivit/table4/mini-deit-b/top1/imagenet-1k', 'minivit/table4/deit-b/top1/imagenet-1k',
         'minivit/text/mini-deit-b-vs-deit-b/top1_delta/imagenet-1k'),
        'The text says that Mini-DeiT-B gains 1.8 points, as the pair at 384 pixels does; at 224 Table 4 has 1.4.',
    ),
    Note(
        ('minivit/table4/mini-swin-b/top1/imagenet-1k', 'minivit/table4/swin-b/top1/imagenet-1k',
         'minivit/text/mini-swin-b-vs-swin-b/top1_delta/imagenet-1k'),
        'The abstract joins 48 % fewer parameters, those of Mini-Swin-B at 224 pixels, to a gain of 1.0, that at 384; '
        'at 224 Table 4 has 0.8.',
    ),
    Note(
        ('minivit/table4/resnet-50/top1/imagenet-1k', 'tinyvit/table4/resnet-18/top1/imagenet-1k'),
        'Table 4 gives ResNet-50 69.8, which looks like ResNet-18: that has 70.3 in the paper of TinyViT.',
    ),
    Note(
        (f'{MINI_SWIN}pred-attn-hddn/top1/imagenet-1k', f'{MINI_SWIN}pred-hddn/top1/imagenet-1k'),
        'The loss that the paper adopts has 81.4; without attention it has 81.5.',
    ),
    Note(
        ('minivit/table2/mini-deit-b-sharing-all-layers/params_ratio_x',
         'minivit/table2/mini-deit-b-sharing-all-layers/params_m'),
        'The table says 9.7 times smaller; its sizes, 86 and 9, give 9.56, and the models 9.98.',
    ),
    # TinyMIM
    Note(
        ('tinymim/table2/mae-vit-t/top1/imagenet-1k', 'tinymim/table3/mae-vit-t-1600e/top1/imagenet-1k',
         'tinymim/table4/mae-vit-t/top1/imagenet-1k'),
        "MAE's ViT-T has 71.6 in Tables 2 and 3, 71.8 in Table 4.",
    ),
    Note(
        ('tinymim/table3/tinymim-vit-b/miou/ade20k', 'tinymim/readme/tinymim-vit-b/miou/ade20k'),
        'Table 3 has 52.2, the log of the released segmentation 52.47.',
    ),
    Note(
        ('tinymim/table4/tinymim-vit-b/top1/imagenet-a', 'tinymim/table4/mae-vit-b/top1/imagenet-a'),
        'The text says that ViT-B gains 6.4 points over MAE on ImageNet-A; the table has 43.0 and 33.6, a gain of 9.4.',
    ),
    Note(
        ('tinymim/table10/tinymim-vit-b-target-block-18/top1/imagenet-1k',
         'tinymim/table10/tinymim-vit-b-target-block-21/top1/imagenet-1k'),
        'The text calls block 18 the best target; on ImageNet-1k the table has 84.6 for it and 84.8 for block 21.',
    ),
    Note(
        ('minivit/table4/deit-b/top1/imagenet-1k', 'minivit/table2/deit-b/top1/imagenet-1k',
         'minivit/table5/deit-b/top1/imagenet-1k', 'tinymim/table2/scratch-deit-vit-b/top1/imagenet-1k',
         'tinymim/table3/scratch-deit-vit-b/top1/imagenet-1k', 'tinymim/table4/deit-vit-b/top1/imagenet-1k'),
        'DeiT-B has 81.8 in the paper of MiniViT, 81.2 in that of TinyMIM.',
    ),
    # MAE-Lite
    Note(
        ('mae_lite/table1/mocov3-tiny-ft/top1/imagenet-1k',
         'mae_lite/table3/mocov3-tiny-pre-trained-on-in1k/top1/imagenet-1k',
         'mae_lite/readme/mocov3-tiny-ft-impr.-300e-layer-decay-0.75/top1/imagenet-1k'),
        'The paper has 73.7, the README 76.8 by another layer decay, which are the released weights.',
    ),
    Note(
        ('mae_lite/readme/deit-tiny-12h-improved-300e/top1/imagenet-1k',
         'mae_lite/readme/deit-tiny-12h-improved-300e-2022/top1/imagenet-1k'),
        'The README of today has 75.8, as the paper; that of 2022 had 76.1.',
    ),
    _run_again('deit-tiny-12h', 'table4', '40.7', '40.4'),
    _run_again('deit-tiny-12h', 'table4', '36.5', '35.5', 'mask'),
    _run_again('mae-tiny', 'table4', '38.9', '39.9'),
    _run_again('mae-tiny', 'table4', '35.1', '35.4', 'mask'),
    _run_again('mocov3-tiny', 'table4', '40.0', '39.7'),
    _run_again('mocov3-tiny', 'table4', '36.0', '35.1', 'mask'),
    _run_again('d-mae-tiny', 'table5', '42.7', '42.3'),
    _run_again('d-mae-tiny', 'table5', '38.2', '37.4', 'mask'),
)  # fmt: skip
"""All known ones. Differences within the rounding of the printed digits are none."""


def notes_of(numbers: Sequence[Number]) -> list[Note]:
    """Notes on some numbers, in the order of `NOTES`."""
    ids = {number.id for number in numbers}
    return [note for note in NOTES if ids.intersection(note.ids)]
