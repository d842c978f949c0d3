"""Tiny data sets laid out on disk as the real ones are, and the errors about wrong ones."""

import csv
import json
import pickle
from pathlib import Path

import numpy as np
from conftest import refused
from PIL import Image

from tinyvit_zoo.common.errors import EvaluationError, MissingSplitError
from tinyvit_zoo.data.datasets import load_dataset

WNIDS_A = ('n01498041', 'n01531178')  # the first two classes of ImageNet-A
WNIDS = ('n01440764', 'n01443537')  # the first two of ImageNet-1k


def image(path: Path, seed: int = 0, size: tuple[int, int] = (12, 10)) -> Path:
    """A small image of noise, in the format of its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def class_folders(root: Path, classes: tuple[str, ...], images: int = 2, extension: str = 'png') -> Path:
    """One folder a class."""
    for c, name in enumerate(classes):
        for i in range(images):
            image(root / name / f'{i}.{extension}', seed=100 * c + i)
    return root


def cifar10(root: Path) -> None:
    """Five training files and one for tests, three images each."""
    folder = root / 'cifar-10-batches-py'
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in (*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch'):
        content = dict(data=rng.integers(0, 256, (3, 3072), dtype=np.uint8), labels=[0, 9, 3])
        (folder / name).write_bytes(pickle.dumps(content))
    names = ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']
    (folder / 'batches.meta').write_bytes(pickle.dumps(dict(label_names=names)))


def flowers102(root: Path) -> None:
    """Six images: 3 and 1 to train on, 5 for validation, 2, 4 and 6 for tests."""
    from scipy.io import savemat

    folder = root / 'flowers-102'
    for number in range(1, 7):
        image(folder / 'jpg' / f'image_{number:05d}.jpg', seed=number)
    savemat(folder / 'imagelabels.mat', dict(labels=[[77, 2, 1, 4, 102, 6]]))
    savemat(folder / 'setid.mat', dict(trnid=[[3, 1]], valid=[[5, 5]], tstid=[[2, 4, 6]]))


def stanford_cars(root: Path) -> None:
    """Two images to train on, two for tests, two classes."""
    from scipy.io import savemat

    folder = root / 'stanford_cars'
    for part in ('train', 'test'):
        for i in (1, 2):
            image(folder / f'cars_{part}' / f'{i:05d}.jpg', seed=i)
    (folder / 'devkit').mkdir()
    kind = [('bbox_x1', float), ('class', float), ('fname', object)]
    rows = np.array([(1, 2, '00001.jpg'), (1, 1, '00002.jpg')], dtype=kind)
    savemat(folder / 'devkit' / 'cars_train_annos.mat', dict(annotations=rows))
    savemat(folder / 'cars_test_annos_withlabels.mat', dict(annotations=rows))
    names = np.array(['AM General Hummer SUV 2000', 'Acura RL Sedan 2012'], dtype=object)
    savemat(folder / 'devkit' / 'cars_meta.mat', dict(class_names=names))


def oxford_pets(root: Path) -> None:
    """Three images to train on, one for tests."""
    folder = root / 'oxford-iiit-pet'
    (folder / 'annotations').mkdir(parents=True)
    names = ('Abyssinian_100', 'american_bulldog_10', 'Abyssinian_7')
    for name in (*names, 'american_bulldog_11'):
        image(folder / 'images' / f'{name}.jpg')
    lines = ('Abyssinian_100 1 1 1', 'american_bulldog_10 2 2 1', 'Abyssinian_7 1 1 1')
    (folder / 'annotations' / 'trainval.txt').write_text('\n'.join(lines) + '\n')
    (folder / 'annotations' / 'test.txt').write_text('american_bulldog_11 2 2 1\n')


def fgvc_aircraft(root: Path) -> None:
    """Two images to train on, one for tests."""
    folder = root / 'fgvc-aircraft-2013b' / 'data'
    for name in ('1025794', '1340192', '0056978'):
        image(folder / 'images' / f'{name}.jpg')
    (folder / 'variants.txt').write_text('707-320\nBoeing 717\nDHC-1\n')
    (folder / 'images_variant_trainval.txt').write_text('1025794 707-320\n1340192 Boeing 717\n')
    (folder / 'images_variant_test.txt').write_text('0056978 DHC-1\n')


def inat2018(root: Path) -> None:
    """Two images to train on and one for validation, in one folder."""
    categories = [dict(id=i, name=f'Species {i}', supercategory='Aves') for i in (1, 0)]
    for part, numbers in (('train', (5, 3)), ('val', (9,))):
        rows = [dict(id=n, file_name=f'train_val2018/Aves/{n % 2}/{n}.jpg') for n in numbers]
        for row in rows:
            image(root / row['file_name'])
        labels = [dict(id=100 + n, image_id=n, category_id=n % 2) for n in numbers]
        content = dict(images=rows, annotations=labels, categories=categories)
        (root / f'{part}2018.json').write_text(json.dumps(content))


def isic2018(root: Path) -> None:
    """Three images."""
    columns = ('image', 'MEL', 'NV', 'BCC', 'AKIEC', 'BKL', 'DF', 'VASC')
    rows = [('ISIC_0024306', 0, 1), ('ISIC_0024307', 1, 0), ('ISIC_0024308', 0, 0)]
    folder = root / 'ISIC2018_Task3_Training_GroundTruth'
    folder.mkdir(parents=True)
    with (folder / 'ISIC2018_Task3_Training_GroundTruth.csv').open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for name, mel, nv in rows:
            image(root / 'ISIC2018_Task3_Training_Input' / f'{name}.jpg')
            writer.writerow([name, float(mel), float(nv), 0.0, 0.0, 0.0, 0.0, float(not mel and not nv)])


CHESTX_ROWS = (
    ('00000001_000.png', 'Cardiomegaly'),
    ('00000001_001.png', 'Cardiomegaly|Emphysema'),
    ('00000002_000.png', 'No Finding'),
    ('00000003_000.png', 'Hernia'),
    ('00000004_000.png', 'Pneumonia'),
    ('00000005_000.png', 'Pneumothorax'),
    ('00000006_000.png', 'Mass|Nodule'),
    ('00000007_000.png', 'Atelectasis'),
)


def chestx(root: Path) -> None:
    """Eight gray images in two of Kaggle's folders; three have exactly one label of the seven."""
    header = ['Image Index', 'Finding Labels', 'Follow-up #', 'Patient ID']
    for i, (name, _) in enumerate(CHESTX_ROWS):
        path = root / f'images_{1 + i % 2:03d}' / 'images' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('L', (64, 48), i).save(path)
    with (root / 'Data_Entry_2017.csv').open('w', newline='') as file:
        csv.writer(file).writerows([header, *([name, label, '0', '1'] for name, label in CHESTX_ROWS)])


def denied(*args, words: tuple[str, ...], **kwargs) -> str:
    """The message of the error that `load_dataset` raises."""
    missing = any('has no split' in word for word in words)
    kind = MissingSplitError if missing else EvaluationError
    return refused(lambda: load_dataset(*args, **kwargs), *words, kind=kind)
