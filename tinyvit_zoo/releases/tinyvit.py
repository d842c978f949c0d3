"""The eleven checkpoints of TinyViT.

Accuracies were measured by others: those published in the README of the released code (equal to the paper's Table 4),
and those of timm's `results/results-*.csv`, by timm's author on the same weights.
"""

from .record import Licence, Paper, Protocol, Release, Result

__all__ = ['TINYVIT']

ORIGIN = 'https://github.com/microsoft/Cream/tree/main/TinyViT'
URL = 'https://github.com/wkcn/TinyViT-model-zoo/releases/download/checkpoints/'
PAPER = Paper('TinyViT: Fast Pretraining Distillation for Small Vision Transformers', '2207.10666')
# timm's pages of the same weights carry apache-2.0 in their licence field; the authors' repository is MIT.
LICENCE = Licence('mit', 'https://github.com/microsoft/Cream/blob/main/LICENSE', hub_field='apache-2.0')

README = 'README of the released code'

# timm's results files, by the name that this project uses for the data set.
TIMM_FILES = {
    'imagenet-1k': 'results-imagenet.csv',
    'imagenet-real': 'results-imagenet-real.csv',
    'imagenet-v2': 'results-imagenetv2-matched-frequency.csv',
    'imagenet-a': 'results-imagenet-a.csv',
    'imagenet-r': 'results-imagenet-r.csv',
    'imagenet-sketch': 'results-sketch.csv',
}


# Measured with a centre crop of 0.95 at 224 and of 1.0 at 384, and squashed to the square at 512.
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


def _timm_results(name: str) -> tuple[Result, ...]:
    scores = TIMM_RESULTS.get(name)
    if scores is None:  # nobody measured the 22k heads
        return ()
    return tuple(
        Result(dataset, top1, top5, by='timm', source=f'timm results/{file}')
        for (dataset, file), (top1, top5) in zip(TIMM_FILES.items(), scores, strict=True)
    )


def _protocols(name: str, img_size: int, published: tuple[float, float] | None) -> tuple[Protocol, ...]:
    """The default first: the preprocessing with the best measured result; then the others on record."""
    by_authors = (Result('imagenet-1k', *published, by='authors', source=README),) if published else ()
    by_timm = _timm_results(name)
    if img_size == 224:
        return (
            Protocol('timm', 224, 0.95, 'center', "timm's default for these weights", by_timm),
            Protocol('paper', 224, 0.875, 'center', 'released code: resize to 256, centre crop 224', by_authors),
        )
    squash = 'released code, TEST.CROP False: resize to the square, no crop'
    if img_size == 384:
        return (
            Protocol('paper', 384, 1.0, 'squash', squash, by_authors),
            Protocol('timm', 384, 1.0, 'center', "timm's default for these weights", by_timm),
        )
    return (Protocol('paper', 512, 1.0, 'squash', f'{squash}; the same in timm', by_authors + by_timm),)


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
        licence=LICENCE,
        paper=PAPER,
        origin_url=ORIGIN,
        training={
            'dist_in22k_ft_in1k': f'{distilled}, fine-tuned on ImageNet-1k',
            'dist_in22k': distilled,
            'in1k': 'ImageNet-1k from scratch',
        }[tag],
    )


TINYVIT = tuple(_release(name, *entry) for name, entry in FILES.items())
