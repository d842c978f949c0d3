"""The eleven checkpoints of TinyViT.

Accuracies were measured by others: those published in the README of the released code (equal to the paper's Table 4),
those of the paper's Table 1 on other test sets of ImageNet, and those of timm's `results/results-*.csv`, by timm's
author on the same weights.
"""

from .record import Golden, License, Paper, Protocol, Release, Result, Speed, Transfer

__all__ = ['TINYVIT']

ORIGIN = 'https://github.com/microsoft/Cream/tree/main/TinyViT'
URL = 'https://github.com/wkcn/TinyViT-model-zoo/releases/download/checkpoints/'
PAPER = Paper(
    'TinyViT: Fast Pretraining Distillation for Small Vision Transformers',
    '2207.10666',
    ('Kan Wu', 'Jinnian Zhang', 'Houwen Peng', 'Mengchen Liu', 'Bin Xiao', 'Jianlong Fu', 'Lu Yuan'),
    'ECCV 2022',
)
# timm's pages of the same weights carry apache-2.0 in their license field; the authors' repository is MIT.
LICENSE = License('mit', 'https://github.com/microsoft/Cream/blob/main/LICENSE', hub_field='apache-2.0')

README, README_URL = 'README of the released code', 'https://github.com/microsoft/Cream/blob/main/TinyViT/README.md'
TIMM_URL = 'https://github.com/huggingface/pytorch-image-models/blob/main/results/'

# timm's results files, by the name that this project uses for the data set.
TIMM_FILES = {
    'imagenet-1k': 'results-imagenet.csv',
    'imagenet-real': 'results-imagenet-real.csv',
    'imagenet-v2': 'results-imagenetv2-matched-frequency.csv',
    'imagenet-a': 'results-imagenet-a.csv',
    'imagenet-r': 'results-imagenet-r.csv',
    'imagenet-sketch': 'results-sketch.csv',
}


# Measured with a center crop of 0.95 at 224 and of 1.0 at 384, and squashed to the square at 512.
# One (top-1, top-5) per entry of TIMM_FILES.
TIMM_RESULTS = {
    'tinyvit_5m_224.dist_in22k_ft_in1k': (
        (80.874, 95.668),
        (86.743, 97.318),
        (69.66, 89.38),
        (22.76, 55.907),
        (44.47, 60.903),
        (33.343, 55.057),
    ),
    'tinyvit_5m_224.in1k': (
        (79.196, 94.792),
        (85.614, 96.947),
        (68.06, 87.66),
        (17.533, 49.973),
        (40.783, 57.267),
        (27.485, 45.864),
    ),
    'tinyvit_11m_224.dist_in22k_ft_in1k': (
        (83.232, 96.628),
        (88.118, 97.801),
        (72.14, 91.38),
        (33.32, 65.707),
        (50.693, 66.897),
        (39.12, 61.033),
    ),
    'tinyvit_11m_224.in1k': (
        (81.538, 95.87),
        (87.286, 97.5),
        (70.96, 89.84),
        (23.507, 58.64),
        (44.747, 60.18),
        (32.093, 51.306),
    ),
    'tinyvit_21m_224.dist_in22k_ft_in1k': (
        (85.088, 97.354),
        (89.098, 98.239),
        (75.01, 92.56),
        (44.307, 74.947),
        (57.16, 72.553),
        (44.823, 67.555),
    ),
    'tinyvit_21m_224.in1k': (
        (83.268, 96.602),
        (88.163, 97.841),
        (73.25, 91.41),
        (32.88, 66.933),
        (49.247, 64.283),
        (37.12, 57.435),
    ),
    'tinyvit_21m_384.dist_in22k_ft_in1k': (
        (86.088, 97.716),
        (89.848, 98.497),
        (76.29, 93.02),
        (57.48, 83.107),
        (58.933, 73.963),
        (46.287, 69.204),
    ),
    'tinyvit_21m_512.dist_in22k_ft_in1k': (
        (86.444, 97.884),
        (90.031, 98.482),
        (76.56, 93.46),
        (57.787, 83.147),
        (59.56, 74.657),
        (47.238, 70.041),
    ),
}

# Name -> (file, published ImageNet-1k (top-1, top-5) or None). The first tag of an architecture is its default.
FILES = {
    'tinyvit_5m_224.dist_in22k_ft_in1k': ('tiny_vit_5m_22kto1k_distill.pth', (80.7, 95.6)),
    'tinyvit_5m_224.dist_in22k': ('tiny_vit_5m_22k_distill.pth', None),
    'tinyvit_5m_224.in1k': ('tiny_vit_5m_1k.pth', (79.1, 94.8)),
    'tinyvit_11m_224.dist_in22k_ft_in1k': ('tiny_vit_11m_22kto1k_distill.pth', (83.2, 96.5)),
    'tinyvit_11m_224.dist_in22k': ('tiny_vit_11m_22k_distill.pth', None),
    'tinyvit_11m_224.in1k': ('tiny_vit_11m_1k.pth', (81.5, 95.8)),
    'tinyvit_21m_224.dist_in22k_ft_in1k': ('tiny_vit_21m_22kto1k_distill.pth', (84.8, 97.3)),
    'tinyvit_21m_224.dist_in22k': ('tiny_vit_21m_22k_distill.pth', None),
    'tinyvit_21m_224.in1k': ('tiny_vit_21m_1k.pth', (83.1, 96.5)),
    'tinyvit_21m_384.dist_in22k_ft_in1k': ('tiny_vit_21m_22kto1k_384_distill.pth', (86.2, 97.8)),
    'tinyvit_21m_512.dist_in22k_ft_in1k': ('tiny_vit_21m_22kto1k_512_distill.pth', (86.5, 97.9)),
}

# Name -> top-1 on ImageNet ReaL and V2 of Table 1. The paper's text names another teacher for the distilled model there
# (Florence); the numbers are those that Table 3 gives for CLIP ViT-L/14, the teacher of the released weights.
TABLE_1 = {
    'tinyvit_21m_224.dist_in22k_ft_in1k': (('imagenet-real', 88.9), ('imagenet-v2', 75.1)),
    'tinyvit_21m_224.in1k': (('imagenet-real', 88.1), ('imagenet-v2', 73.1)),
}

# Images per second by architecture, of all of its tags.
SPEEDS = {
    'tinyvit_5m_224': 3060,
    'tinyvit_11m_224': 2468,
    'tinyvit_21m_224': 1571,
    'tinyvit_21m_384': 394,
    'tinyvit_21m_512': 167,
}

# Tag of tinyvit_21m_224 -> Table 5 (linear probe; 5-way few-shot with 5, 20 and 50 images a class), in the order of
# PROBED and FEW_SHOT.
PROBED = ('cifar-10', 'cifar-100', 'flowers-102', 'stanford-cars', 'oxford-pets')
FEW_SHOT = ('isic-2018', 'eurosat', 'cropdisease', 'chestx')
TABLE_5 = {
    'in1k': (
        (91.7, 75.2, 80.9, 56.3, 86.5),
        {5: (42.9, 82.4, 92.2, 24.8), 20: (56.7, 91.0, 97.4, 29.0), 50: (63.7, 94.2, 98.6, 31.8)},
    ),
    'dist_in22k': (
        (96.9, 86.6, 99.7, 75.1, 93.8),
        {5: (53.5, 88.1, 98.0, 24.7), 20: (67.3, 93.9, 99.3, 29.5), 50: (74.2, 96.0, 99.5, 33.2)},
    ),
}
# Tag of tinyvit_21m_224 -> box AP of Table 6, which names a backbone by its accuracy on ImageNet-1k.
TABLE_6 = {'in1k': 49.6, 'dist_in22k_ft_in1k': 50.2}

# The training guide of the released code; where an author says otherwise, the notes do.
PARENTS = {
    'tinyvit_21m_384.dist_in22k_ft_in1k': 'tinyvit_21m_224.dist_in22k_ft_in1k',
    'tinyvit_21m_512.dist_in22k_ft_in1k': 'tinyvit_21m_384.dist_in22k_ft_in1k',
    **{f'tinyvit_{m}m_224.dist_in22k_ft_in1k': f'tinyvit_{m}m_224.dist_in22k' for m in (5, 11, 21)},
}
NOTES = {
    'tinyvit_21m_384.dist_in22k_ft_in1k': (
        'fine-tuned from the 224 model with 1000 classes by the training guide of the released code, from the one '
        'with 21841 classes by a comment of an author (issue 113 of the repository)',
    ),
    **dict.fromkeys(
        (f'tinyvit_{m}m_224.dist_in22k' for m in (5, 11, 21)),
        (
            "the 21841 classes are in the order of timm's label set; of those of ImageNet-1k, n04399382 (teddy) is not "
            'among them',
        ),
    ),
}


def _timm_results(name: str) -> tuple[Result, ...]:
    scores = TIMM_RESULTS.get(name)
    if scores is None:  # nobody measured the 22k heads
        return ()
    return tuple(
        Result(dataset, top1, top5, by='timm', source=f'timm results/{file}', source_url=TIMM_URL + file)
        for (dataset, file), (top1, top5) in zip(TIMM_FILES.items(), scores, strict=True)
    )


def _protocols(name: str, img_size: int, published: tuple[float, float] | None) -> tuple[Protocol, ...]:
    """The default first: the preprocessing with the best measured result; then the others on record."""
    by_authors: tuple[Result, ...] = ()
    if published:
        by_authors = (Result('imagenet-1k', *published, 'authors', README, README_URL),)
    by_authors += tuple(
        Result(dataset, top1, None, 'authors', 'Table 1 of the paper', PAPER.url)
        for dataset, top1 in TABLE_1.get(name, ())
    )
    by_timm = _timm_results(name)
    if img_size == 224:
        return (
            Protocol('timm', 224, 0.95, 'center', "timm's default for these weights", by_timm),
            Protocol('paper', 224, 0.875, 'center', 'released code: resize to 256, center crop 224', by_authors),
        )
    squash = 'released code, TEST.CROP False: resize to the square, no crop'
    if img_size == 384:
        return (
            Protocol('paper', 384, 1.0, 'squash', squash, by_authors),
            Protocol('timm', 384, 1.0, 'center', "timm's default for these weights", by_timm),
        )
    return (Protocol('paper', 512, 1.0, 'squash', f'{squash}; the same in timm', by_authors + by_timm),)


def _transfers(name: str) -> tuple[Transfer, ...]:
    architecture, tag = name.split('.')
    if architecture != 'tinyvit_21m_224':
        return ()
    found = []
    if tag in TABLE_5:
        probed, few_shot = TABLE_5[tag]
        where = ('Table 5 of the paper', PAPER.url)
        for dataset, value in zip(PROBED, probed, strict=True):
            found.append(Transfer('linear probe', dataset, 'top-1, %', value, '', *where))
        for shots, values in few_shot.items():
            for dataset, value in zip(FEW_SHOT, values, strict=True):
                setting = 'mean of 600 episodes, linear head'
                found.append(Transfer(f'5-way {shots}-shot', dataset, 'accuracy, %', value, setting, *where))
    if tag in TABLE_6:
        where = ('Table 6 of the paper', PAPER.url)
        found.append(
            Transfer('detection', 'coco-2017', 'box AP', TABLE_6[tag], 'Cascade Mask R-CNN, 12 epochs', *where)
        )
    return tuple(found)


def _release(name: str, file: str, published: tuple[float, float] | None) -> Release:
    architecture, tag = name.split('.')
    distilled = 'distilled on ImageNet-22k from a CLIP ViT-L/14 teacher'
    return Release(
        name=name,
        url=URL + file,
        hf_hub_id='timm/' + name.replace('tinyvit', 'tiny_vit'),
        num_classes=21841 if tag == 'dist_in22k' else 1000,
        labels='imagenet-22k' if tag == 'dist_in22k' else 'imagenet-1k',
        protocols=_protocols(name, int(architecture.rsplit('_', 1)[1]), published),
        license=LICENSE,
        paper=PAPER,
        origin_url=ORIGIN,
        training={
            'dist_in22k_ft_in1k': f'{distilled}, fine-tuned on ImageNet-1k',
            'dist_in22k': distilled,
            'in1k': 'ImageNet-1k from scratch',
        }[tag],
        notes=NOTES.get(name, ()),
        parent=PARENTS.get(name),
        golden=_golden(architecture, tag),
        transfers=_transfers(name),
        speed=Speed(SPEEDS[architecture], 'V100', README, README_URL),
    )


def _golden(architecture: str, tag: str) -> Golden:
    reference = architecture.replace('tinyvit', 'tiny_vit')
    if tag != 'dist_in22k':
        return Golden(reference, 'logits and features', 1e-8)
    if architecture == 'tinyvit_5m_224':
        return Golden(f'{reference}_22khead', 'logits and features', 1e-8)
    return Golden(reference, 'logits and features of the same model with 1000 classes', 1e-8)


TINYVIT = tuple(_release(name, *entry) for name, entry in FILES.items())
