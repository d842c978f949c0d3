"""Figures of the papers that the analyses and trainers here can draw: entries without rows."""

from dataclasses import dataclass

from .record import DATA

__all__ = ['FIGURES', 'Figure', 'figures_of', 'find_figure']

DEIT, ENCODER = 'mae_lite_vit_tiny_patch16_224.deit_impr_in1k', 'mae_lite_vit_tiny_encoder_patch16_224'
MAE, MOCOV3, D_MAE = (f'{ENCODER}.{kind}_in1k' for kind in ('mae', 'mocov3', 'dmae'))
MAE_TUNED = 'mae_lite_vit_tiny_patch16_224.mae_in1k_ft_in1k'
MAE_BASE = 'vit_base_patch16_224.mae'
CLIP, TINYVIT = 'clip_vit_large_patch14_224.openai_ft_in22k', 'tinyvit_21m_224.dist_in22k'
DEIT_SMALL, SWIN_BASE = 'deit_small_patch16_224.fb_in1k', 'swin_base_patch4_window7_224.ms_in1k'
KEPT = (0, 3, 6, 9, 12)  # blocks; the paper's own steps can only be seen in its figures


@dataclass(frozen=True)
class Figure:
    """A figure of a paper that commands here draw.

    Attributes:
        name: 'PAPER/figureN'.
        title: What it shows, in a few words.
        commands: That draw it, in order; results go below OUT. FILE stands for an encoder's file.
        data: Names of its data sets in the published numbers.
        models: 'architecture.tag' of the released weights that it needs.
        lacks: What nobody has published of it, or what the commands do differently; empty if nothing.
    """

    name: str
    title: str
    commands: tuple[str, ...]
    data: tuple[str, ...] = ('imagenet-1k',)
    models: tuple[str, ...] = ()
    lacks: str = ''

    @property
    def paper(self) -> str:
        return self.name.partition('/')[0]

    @property
    def sources(self) -> list[str]:
        """Each data set and where it is from."""
        return [f'{name} ({DATA[name].url})' for name in self.data]


def _cka(a: str, b: str, output: str) -> str:
    return f'tinyvit-zoo analyze cka {a} {b} -d imagenet-1k --layers mae-lite -o OUT/{output}'


def _of_each(what: str, **models: str) -> tuple[str, ...]:
    return tuple(f'tinyvit-zoo analyze {what} {model} -d imagenet-1k -o OUT/{name}' for name, model in models.items())


def _kept(kind: str, data: str, recipe: str) -> tuple[str, ...]:
    """Fine-tuning with the first blocks of an encoder, whose file stands for FILE."""
    return tuple(
        'tinyvit-zoo finetune mae_lite_vit_tiny_patch16_224 --weights FILE --as-init '
        f'--keep-blocks {n} --recipe {recipe} -d {data} -o OUT/{kind}_{data}_{n}'
        for n in KEPT
    )


def _compressed(name: str, group: str, short: str) -> tuple[str, ...]:
    """The model with shared weights alone, and with transformations of each layer."""
    return tuple(
        f'tinyvit-zoo compress {name} --share-every {group} {option} -o OUT/{short}_{kind}'
        for kind, option in (('ws', '--no-transform'), ('mux', '--transform'))
    )


TRANSFERRED = {'cifar-100': 'mae_lite_cifar100', 'flowers-102': 'mae_lite_transfer', 'oxford-pets': 'mae_lite_transfer'}

TINYVIT_FIGURES = (
    Figure(
        'tinyvit/figure3',
        'Correlations of the classes of ImageNet-22k: teacher, student with distillation',
        (
            f'tinyvit-zoo analyze class-relations {CLIP} -d imagenet-22k --per-class 8 -o OUT/teacher',
            f'tinyvit-zoo analyze class-relations {TINYVIT} -d imagenet-22k --per-class 8 '
            '--order OUT/teacher/order.csv -o OUT/student',
        ),
        ('imagenet-22k',),
        (CLIP, TINYVIT),
        lacks="The paper's teacher, Florence, and its student without distillation are not public.",
    ),
    Figure(
        'tinyvit/figure4',
        'Accuracy by the number of images that the pre-training sees',
        (
            f'tinyvit-zoo distill save {CLIP} -d imagenet-22k --store OUT/labels --epochs 0:90 -k 100',
            *(
                command
                for n in (10, 30, 90)
                for command in (
                    'tinyvit-zoo distill train tinyvit_21m_224 --random -d imagenet-22k --store OUT/labels '
                    f'--epochs {n} -o OUT/epochs_{n}',
                    f'tinyvit-zoo finetune tinyvit_21m_224 --weights OUT/epochs_{n}/model --as-init '
                    f'--recipe tinyvit_22kto1k -d imagenet-1k -o OUT/epochs_{n}_tuned',
                )
            ),
        ),
        ('imagenet-22k', 'imagenet-1k'),
        (CLIP,),
        lacks='TinyViT-21M with distillation: the 5M model and those without it are the same with other arguments.',
    ),
    Figure(
        'tinyvit/figure5',
        'Accuracy and storage by the number of saved logits',
        tuple(
            command
            for k in (1, 10, 100)
            for command in (
                'tinyvit-zoo distill save swin_large_patch4_window7_224.ms_in22k_ft_in1k -d imagenet-1k '
                f'--store OUT/labels_{k} --epochs 0:300 -k {k}',
                f'tinyvit-zoo distill train tinyvit_21m_224 --random -d imagenet-1k --store OUT/labels_{k} '
                f'--epochs 300 -o OUT/student_{k}',
            )
        ),
        models=('swin_large_patch4_window7_224.ms_in22k_ft_in1k',),
        lacks='The left half, with three numbers of logits: the paper has more of them, which can only be seen in it.',
    ),
)

MINIVIT_FIGURES = (
    Figure(
        'minivit/figure4',
        'Gradient norms of each layer: original, shared, shared with transformations',
        (
            'tinyvit-zoo finetune deit_small_patch16_224 --random --gradient-norms --recipe tinyvit_scratch '
            '-d imagenet-1k -o OUT/deit_small',
            'tinyvit-zoo compress deit_small_patch16_224 --random --share-every 2 --no-transform -o OUT/deit_small_ws',
            'tinyvit-zoo finetune local-dir:OUT/deit_small_ws --gradient-norms --recipe tinyvit_scratch '
            '-d imagenet-1k -o OUT/deit_small_ws_run',
            'tinyvit-zoo pretrain minivit --student mini_deit_small_patch16_224 --teacher regnety_160.deit_in1k '
            '--gradient-norms -d imagenet-1k -o OUT/mini_deit_small',
        ),
        models=('regnety_160.deit_in1k',),
        lacks="DeiT-S alone; the recipe of the model without sharing is TinyViT's, for DeiT's is not packaged.",
    ),
    Figure(
        'minivit/figure5',
        'Similarity of layers to the original: shared, shared with transformations',
        (
            *_compressed(DEIT_SMALL, '2', 'deit_small'),
            f'tinyvit-zoo analyze cka local-dir:OUT/deit_small_ws {DEIT_SMALL} -d imagenet-1k -o OUT/deit_small_ws_cka',
            f'tinyvit-zoo analyze cka mini_deit_small_patch16_224.distill_in1k {DEIT_SMALL} -d imagenet-1k '
            '-o OUT/mini_deit_small_cka',
            f'tinyvit-zoo analyze cka mini_swin_base_patch4_window7_224.distill_in1k {SWIN_BASE} -d imagenet-1k '
            '-o OUT/mini_swin_base_cka',
        ),
        models=(
            DEIT_SMALL, SWIN_BASE, 'mini_deit_small_patch16_224.distill_in1k',
            'mini_swin_base_patch4_window7_224.distill_in1k',
        ),
        lacks="The paper's models that only share weights are not public: what `compress` makes has to be trained.",
    ),
)  # fmt: skip

MAE_LITE_FIGURES = (
    Figure(
        'mae_lite/figure1',
        'Similarity of layers to those of DeiT-Tiny',
        (
            f'tinyvit-zoo analyze cka {DEIT} -d imagenet-1k --layers mae-lite -o OUT/deit',
            _cka(MAE, DEIT, 'mae'),
            _cka(MOCOV3, DEIT, 'mocov3'),
        ),
        models=(DEIT, MAE, MOCOV3),
    ),
    Figure(
        'mae_lite/figure2',
        'Accuracy by the number of pre-trained blocks that are kept',
        tuple(command for kind in ('mae', 'mocov3') for command in _kept(kind, 'imagenet-1k', 'mae_lite_100')),
        models=(MAE, MOCOV3),
    ),
    Figure(
        'mae_lite/figure3',
        'Frequencies that each layer keeps',
        _of_each('fourier', deit=DEIT, mae=MAE, mocov3=MOCOV3),
        models=(DEIT, MAE, MOCOV3),
    ),
    Figure(
        'mae_lite/figure4',
        'The same as Figure 2 on smaller data sets',
        tuple(
            command
            for kind in ('mae', 'mocov3')
            for data, recipe in TRANSFERRED.items()
            for command in _kept(kind, DATA[data].name, recipe)
        ),
        tuple(TRANSFERRED),
        (MAE, MOCOV3),
        lacks='Three of the data sets of Table 4: which ones the figure has can only be seen in it.',
    ),
    Figure(
        'mae_lite/figure5',
        'Distance and entropy of attention',
        _of_each('attention --pixel-step 14', deit=DEIT, mae=MAE, mae_tuned=MAE_TUNED, mocov3=MOCOV3),
        models=(DEIT, MAE, MAE_TUNED, MOCOV3),
    ),
    Figure(
        'mae_lite/figure6',
        'Similarity of layers to those of DeiT-Tiny, with the teacher and after distillation',
        (_cka(MAE_BASE, DEIT, 'teacher'), _cka(MAE, DEIT, 'mae'), _cka(D_MAE, DEIT, 'd_mae')),
        models=(DEIT, MAE, D_MAE, MAE_BASE),
    ),
    Figure(
        'mae_lite/figure7',
        'Which blocks to distill in the pre-training',
        tuple(
            command
            for block in (3, 6, 9, 12)
            for command in (
                f'tinyvit-zoo pretrain d_mae --attention-blocks {block} -d imagenet-1k -o OUT/block_{block}',
                f'tinyvit-zoo finetune mae_lite_vit_tiny_patch16_224 --weights OUT/block_{block}/model --as-init '
                f'--recipe mae_lite_100 -d imagenet-1k -o OUT/block_{block}_tuned',
            )
        ),
        models=(MAE_BASE,),
        lacks='Four single blocks; `--attention-blocks` takes several, too.',
    ),
)

FIGURES = {figure.name: figure for figure in (*TINYVIT_FIGURES, *MINIVIT_FIGURES, *MAE_LITE_FIGURES)}


def find_figure(name: str) -> Figure | None:
    """The figure of that name; None if there is none."""
    return FIGURES.get(name)


def figures_of(name: str | None) -> list[Figure]:
    """Those of a paper, or all; none of a table."""
    return [figure for figure in FIGURES.values() if name in (None, figure.paper, figure.name)]
