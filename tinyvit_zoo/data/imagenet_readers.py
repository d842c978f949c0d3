"""ImageNet-1k and related sets: the names of their folders, and the classes among the 1000 that these stand for."""

import json
from functools import cache
from importlib import resources
from pathlib import Path

from timm.data import ImageNetInfo

from ..common.errors import EvaluationError
from .folders import SPLIT_FOLDERS, find_split, read_class_folders
from .image_dataset import ImageDataset
from .readers import find_folder

__all__ = [
    'CORRUPTIONS',
    'corruption_folder',
    'imagenet',
    'imagenet_c',
    'imagenet_real',
    'imagenet_subset',
    'imagenet_v2',
]

CORRUPTIONS = (
    'gaussian_noise', 'shot_noise', 'impulse_noise', 'defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur', 'snow',
    'frost', 'fog', 'brightness', 'contrast', 'elastic_transform', 'pixelate', 'jpeg_compression',
    'speckle_noise', 'gaussian_blur', 'spatter', 'saturate',
)  # fmt: skip
"""The fifteen corruptions of the benchmark, and the four that its authors added for validation."""


@cache
def _wnids() -> tuple[str, ...]:
    return tuple(ImageNetInfo('imagenet-1k').label_names())


def imagenet(root: Path, part: str) -> ImageDataset:
    """ImageNet-1k, one folder per WordNet id; `part` is 'train' or 'validation'."""
    folder = find_split(root, part) or find_folder(root, SPLIT_FOLDERS[part], 'imagenet-1k')
    return read_class_folders(folder, 'imagenet-1k', _wnids(), root=root)


def imagenet_real(root: Path) -> ImageDataset:
    """The validation images with all labels that count as right (Beyer et al. 2020), found by file name.

    Some images have no such label. `labels` are the original ones.
    """
    dataset = imagenet(root, 'validation')
    real = json.loads(_timm_info('imagenet_real_labels.json'))
    names = {f'ILSVRC2012_val_{i + 1:08d}': labels for i, labels in enumerate(real)}
    try:
        dataset.label_sets = tuple(tuple(names[Path(dataset.describe(i)).stem]) for i in range(len(dataset)))
    except KeyError as e:
        raise EvaluationError(
            f'{root} has an image named {e.args[0]}: the labels of ReaL belong to the original file names, such as '
            'ILSVRC2012_val_00000001.JPEG.'
        ) from e
    dataset.name = 'imagenet-real'
    return dataset


def imagenet_v2(root: Path) -> ImageDataset:
    """ImageNet-V2, matched frequency. Its folders 0 to 999 are sorted as numbers: '10' comes after '9'."""
    folder = find_folder(
        root, ('imagenetv2-matched-frequency-format-val', 'imagenetv2-matched-frequency', '.'), 'imagenet-v2'
    )
    dataset = read_class_folders(folder, 'imagenet-v2', [str(i) for i in range(1000)], root=root)
    dataset.classes = _wnids()
    return dataset


def imagenet_subset(root: Path, name: str) -> ImageDataset:
    """ImageNet-A or -R: 200 of the 1000 classes; labels are indices into these 200."""
    listed = _timm_info(f'{name.replace("-", "_")}_synsets.txt').split()
    return read_class_folders(find_folder(root, (name, '.'), name), name, listed, root=root)


def _timm_info(file: str) -> str:
    """Text of one of the lists about ImageNet that timm ships."""
    return resources.files('timm.data').joinpath('_info', file).read_text()


def imagenet_c(root: Path, name: str, corruption: str, severity: str) -> ImageDataset:
    """ImageNet-C, one corruption at one severity (1 to 5)."""
    if corruption not in CORRUPTIONS or severity not in ('1', '2', '3', '4', '5'):
        raise EvaluationError(
            f"'{name}' is not of the form imagenet-c/CORRUPTION/SEVERITY, with a severity of 1 to 5 and a corruption "
            f'of: {", ".join(CORRUPTIONS)}.'
        )
    folder = corruption_folder(root, corruption) / severity
    return read_class_folders(folder, name, _wnids(), root=root)


def corruption_folder(root: Path, corruption: str) -> Path:
    """The folder with the severities of a corruption; the first candidate if none exists.

    It is at the root, or one or two folders below it: the archives have folders noise, blur, weather, digital and
    extra, some copies one with the benchmark's name.
    """
    places = [root / corruption, *sorted(root.glob(f'*/{corruption}')), *sorted(root.glob(f'*/*/{corruption}'))]
    return next((place for place in places if place.is_dir()), places[0])
