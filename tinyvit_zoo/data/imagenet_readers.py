"""ImageNet-1k and its relatives: what their folders are called, and which of the 1000 classes they stand for."""

import json
import pkgutil
from functools import cache
from pathlib import Path

from timm.data import ImageNetInfo

from ..common.errors import EvaluationError
from .folders import SPLIT_FOLDERS, read_class_folders
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
"""The fifteen of the benchmark, and the four that its authors added for validation."""


@cache
def _wnids() -> tuple[str, ...]:
    return tuple(ImageNetInfo('imagenet-1k').label_names())


def imagenet(root: Path, part: str) -> ImageDataset:
    """ImageNet-1k, one folder a WordNet id; `part` is 'train' or 'validation'."""
    folder = find_folder(root, SPLIT_FOLDERS[part], 'imagenet-1k')
    return read_class_folders(folder, 'imagenet-1k', _wnids(), root=root)


def imagenet_real(root: Path) -> ImageDataset:
    """The validation images with all labels that count as right (Beyer et al. 2020), found by the files' names; some
    images have none. `labels` are the original ones.
    """
    dataset = imagenet(root, 'validation')
    real = json.loads(pkgutil.get_data('timm.data', '_info/imagenet_real_labels.json'))
    names = {f'ILSVRC2012_val_{i + 1:08d}': labels for i, labels in enumerate(real)}
    try:
        dataset.label_sets = tuple(tuple(names[Path(dataset.describe(i)).stem]) for i in range(len(dataset)))
    except KeyError as e:
        raise EvaluationError(
            f'{root} has an image called {e.args[0]}: the labels of ReaL go by the original file names, such as '
            'ILSVRC2012_val_00000001.JPEG.'
        ) from e
    dataset.name = 'imagenet-real'
    return dataset


def imagenet_v2(root: Path) -> ImageDataset:
    """ImageNet-V2, matched frequency. Its folders are called 0 to 999: these are numbers, so '10' comes after '9'."""
    folder = find_folder(
        root, ('imagenetv2-matched-frequency-format-val', 'imagenetv2-matched-frequency', '.'), 'imagenet-v2'
    )
    dataset = read_class_folders(folder, 'imagenet-v2', [str(i) for i in range(1000)], root=root)
    dataset.classes = _wnids()
    return dataset


def imagenet_subset(root: Path, name: str) -> ImageDataset:
    """ImageNet-A or -R: 200 of the 1000 classes; labels count these 200."""
    listed = pkgutil.get_data('timm.data', f'_info/{name.replace("-", "_")}_synsets.txt')
    return read_class_folders(find_folder(root, (name, '.'), name), name, listed.decode().split(), root=root)


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
    """Where the severities of a corruption lie: at the root, or in a folder in between (noise, blur, weather, digital
    and extra of the archives, or one of the benchmark's name). The first of these if there is none.
    """
    places = [root / corruption, *sorted(root.glob(f'*/{corruption}')), *sorted(root.glob(f'*/*/{corruption}'))]
    return next((place for place in places if place.is_dir()), places[0])
