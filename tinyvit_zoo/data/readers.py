"""Readers of the registered data sets, one function each: (root, part) -> images.

Layouts are those of torchvision's downloads, of the official archives, or of the benchmark that uses the data.
"""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..common.errors import EvaluationError
from ..common.extras import needs_extra
from .folders import read_class_folders
from .image_dataset import Arrays, Files, ImageDataset

__all__ = [
    'CHESTX_CLASSES',
    'CROP_DISEASE',
    'EUROSAT',
    'aircraft',
    'chestx',
    'cifar',
    'class_folders_at',
    'find_folder',
    'flowers',
    'inaturalist',
    'isic',
    'pets',
    'present',
    'stanford_cars',
]

CHESTX_CLASSES = ('Atelectasis', 'Cardiomegaly', 'Effusion', 'Infiltration', 'Mass', 'Nodule', 'Pneumothorax')
"""Classes in datasets/Chest_few_shot.py of the CD-FSL benchmark, which leaves out Pneumonia."""

EUROSAT = ('eurosat/2750', '2750', 'EuroSAT_RGB', 'EuroSAT', '.')
CROP_DISEASE = ('dataset/train', 'CropDiseases/dataset/train', 'train')


def present(root: Path, names: Sequence[str]) -> list[Path]:
    """The first of the folders below the root that exists, if any; '.' is the root itself."""
    return [root / folder for folder in names if (root / folder).is_dir()][:1]


def find_folder(root: Path, names: Sequence[str], name: str) -> Path:
    """As `present`. Raises: EvaluationError: If none exists."""
    for folder in present(root, names):
        return folder
    raise EvaluationError(f'{name} is not in {root}: there is no folder {" or ".join(names)} in it.')


def class_folders_at(root: Path, name: str, names: Sequence[str], classes: Sequence[str] | None = None) -> ImageDataset:
    """A folder of class folders at the first of several places below the root."""
    return read_class_folders(find_folder(root, names, name), name, classes, root=root)


def cifar(root: Path, name: str, part: str) -> ImageDataset:
    """CIFAR-10 or CIFAR-100, Python version, read by torchvision, which checks MD5 sums before it unpickles."""
    from torchvision import datasets

    kinds: dict[str, type[datasets.CIFAR10]] = dict(cifar10=datasets.CIFAR10, cifar100=datasets.CIFAR100)
    kind = kinds[name]
    try:
        data = kind(root, train=part == 'train')
    except (RuntimeError, OSError) as e:
        raise EvaluationError(
            f'{name} is not in {root}, or its files are damaged: it needs the folder {kind.base_folder}.'
        ) from e
    return ImageDataset(name, part, data.classes, data.targets, Arrays(data.data, f'{name}/{part}'))


def flowers(root: Path, part: str) -> ImageDataset:
    """Oxford Flowers 102; `part` is 'train', 'val' or 'test'."""
    from torchvision.datasets import Flowers102

    folder = find_folder(root, ('flowers-102', '.'), 'flowers102')
    sets = _matlab(folder / 'setid.mat')
    labels = _matlab(folder / 'imagelabels.mat')['labels']
    numbers = sets[dict(train='trnid', val='valid', test='tstid')[part]].tolist()
    paths = [folder / 'jpg' / f'image_{number:05d}.jpg' for number in numbers]
    chosen = [int(labels[number - 1]) - 1 for number in numbers]
    return _listed('flowers102', part, Flowers102.classes, chosen, paths, root)


def stanford_cars(root: Path, part: str) -> ImageDataset:
    """Stanford Cars; `part` is 'train' or 'test'."""
    folder = find_folder(root, ('stanford_cars', '.'), 'stanford_cars')
    file = 'devkit/cars_train_annos.mat' if part == 'train' else 'cars_test_annos_withlabels.mat'
    rows = _matlab(folder / file)['annotations']
    classes = _matlab(folder / 'devkit' / 'cars_meta.mat')['class_names'].tolist()
    paths = [folder / f'cars_{part}' / str(row['fname']) for row in rows]
    return _listed('stanford_cars', part, classes, [int(row['class']) - 1 for row in rows], paths, root)


def pets(root: Path, part: str) -> ImageDataset:
    """Oxford-IIIT Pet; `part` is 'trainval' or 'test'."""
    folder = find_folder(root, ('oxford-iiit-pet', '.'), 'oxford_pets')
    rows = [line.split() for line in _lines(folder / 'annotations' / f'{part}.txt')]
    names = {int(label) - 1: image.rsplit('_', 1)[0] for image, label, *_ in rows}
    paths = [folder / 'images' / f'{image}.jpg' for image, *_ in rows]
    classes = [names[i] for i in sorted(names)]
    return _listed('oxford_pets', part, classes, [int(label) - 1 for _, label, *_ in rows], paths, root)


def aircraft(root: Path, part: str) -> ImageDataset:
    """FGVC Aircraft, variants; `part` is 'trainval' or 'test'."""
    folder = find_folder(root, ('fgvc-aircraft-2013b/data', 'data', '.'), 'fgvc_aircraft')
    classes = _lines(folder / 'variants.txt')
    index = {name: i for i, name in enumerate(classes)}
    rows = [line.split(' ', 1) for line in _lines(folder / f'images_variant_{part}.txt')]
    paths = [folder / 'images' / f'{image}.jpg' for image, _ in rows]
    return _listed('fgvc_aircraft', part, classes, [index[name] for _, name in rows], paths, root)


def inaturalist(root: Path, part: str) -> ImageDataset:
    """iNaturalist 2018 by the competition's lists; `part` is 'train' or 'val'.

    One archive holds the images of both parts, so only the lists separate them.
    """
    path = root / f'{part}2018.json'
    try:
        content = json.loads(path.read_text())
        category = {row['image_id']: row['category_id'] for row in content['annotations']}
        classes = [row['name'] for row in sorted(content['categories'], key=lambda row: row['id'])]
        labels = [category[row['id']] for row in content['images']]
        paths = [root / row['file_name'] for row in content['images']]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise EvaluationError(f'{path} cannot be read: this list of images is not part of the archive.') from e
    return _listed('inat2018', part, classes, labels, paths, root)


def isic(root: Path) -> ImageDataset:
    """ISIC 2018, task 3, training images; the label is the first column that is not 0."""
    folder = 'ISIC2018_Task3_Training_GroundTruth'
    header, *rows = _table(_first_file(root, (f'{folder}/{folder}.csv', f'{folder}.csv'), 'isic2018'))
    paths = [root / 'ISIC2018_Task3_Training_Input' / f'{row[0]}.jpg' for row in rows]
    labels = [next((i for i, value in enumerate(row[1:]) if float(value)), 0) for row in rows]
    return _listed('isic2018', 'train', header[1:], labels, paths, root)


def chestx(root: Path) -> ImageDataset:
    """Images of ChestX-ray14 whose only label is one of CHESTX_CLASSES, scaled to 256x256.

    The benchmark scales with Pillow's default, which is bicubic since Pillow 7.
    """
    _, *rows = _table(_first_file(root, ('Data_Entry_2017.csv', 'Data_Entry_2017_v2020.csv'), 'chestx'))
    chosen = [(row[0], CHESTX_CLASSES.index(row[1])) for row in rows if row[1] in CHESTX_CLASSES]
    places = {path.name: path for folder in root.glob('images*') for path in folder.rglob('*.png')}
    paths = [places.get(name, root / 'images' / name) for name, _ in chosen]
    labels = [label for _, label in chosen]
    return _listed('chestx', 'all', CHESTX_CLASSES, labels, paths, root, prepare=_to_256)


def _to_256(image: Image.Image) -> Image.Image:
    return image.resize((256, 256), Image.Resampling.BICUBIC)


def _listed(
    name: str,
    part: str,
    classes: Sequence[str],
    labels: Sequence[int],
    paths: Sequence[Path],
    root: Path,
    prepare: Any = None,
) -> ImageDataset:
    """Images named in a list. Only the first is checked at once, the others when they are read."""
    if paths and not paths[0].is_file():
        raise EvaluationError(f'{name}: {paths[0]} is in the list of images but not on disk.')
    return ImageDataset(name, part, classes, labels, Files(paths, root, prepare))


def _matlab(path: Path) -> dict[str, Any]:
    with needs_extra('eval'):
        from scipy.io import loadmat

    try:
        return loadmat(path, squeeze_me=True)
    except Exception as e:  # scipy raises many kinds on damaged files
        raise EvaluationError(f'{path} is missing or damaged.') from e


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as e:
        raise EvaluationError(f'{path} is missing or damaged.') from e


def _table(path: Path) -> list[list[str]]:
    try:
        with path.open(newline='', encoding='utf-8') as file:
            return [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise EvaluationError(f'{path} is missing or damaged.') from e


def _first_file(root: Path, names: Iterable[str], name: str) -> Path:
    names = tuple(names)
    for file in names:
        if (root / file).is_file():
            return root / file
    raise EvaluationError(f'{name} is not in {root}: there is no {" or ".join(names)} in it.')
