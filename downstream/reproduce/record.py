"""What the tables of the papers are made of here: subjects (their models), and entries (a table and its jobs)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

__all__ = ['DATA', 'Data', 'Entry', 'Need', 'Paper', 'StoredLabels', 'Subject', 'need_of', 'released', 'unreleased']


class Need(StrEnum):
    """What a number needs to be measured again."""

    NOTHING = 'nothing: counted from the model or by arithmetic'
    IMAGENET = 'ImageNet-1k or one of its relatives'
    TRANSFER = 'a data set of transfer, linear probes or few-shot'
    COCO = 'COCO'
    ADE20K = 'ADE20K'
    HARDWARE = "the authors' hardware"
    IMAGENET_22K = 'the images of ImageNet-22k'


NEEDS = {
    'model_size': Need.NOTHING,
    'compute': Need.NOTHING,
    'architecture': Need.NOTHING,
    'label_storage': Need.NOTHING,
    'throughput': Need.HARDWARE,
    'training_cost': Need.HARDWARE,
    'dataset_stats': Need.IMAGENET_22K,
    'transfer_finetune': Need.TRANSFER,
    'few_shot_5way_5shot': Need.TRANSFER,
    'few_shot_5way_20shot': Need.TRANSFER,
    'few_shot_5way_50shot': Need.TRANSFER,
    'object_detection': Need.COCO,
    'instance_segmentation': Need.COCO,
    'semantic_segmentation': Need.ADE20K,
}


def need_of(task: str, dataset: str) -> Need:
    """What a number of a task on a data set needs."""
    if task in NEEDS:
        return NEEDS[task]
    if dataset == 'imagenet-22k-train':
        return Need.IMAGENET_22K
    return Need.IMAGENET if dataset.startswith('imagenet') else Need.TRANSFER


@dataclass(frozen=True)
class Data:
    """A data set of the papers: its name for `--data` (empty: `detect` takes a folder) and where it is from."""

    name: str
    url: str


DATA = {
    'imagenet-1k': Data('imagenet-1k', 'https://image-net.org/download'),
    'imagenet-real': Data('imagenet-real', 'https://image-net.org/download'),
    'imagenet-v2': Data('imagenet-v2', 'https://huggingface.co/datasets/vaishaal/ImageNetV2'),
    'imagenet-a': Data('imagenet-a', 'https://github.com/hendrycks/natural-adv-examples'),
    'imagenet-r': Data('imagenet-r', 'https://github.com/hendrycks/imagenet-r'),
    'imagenet-c': Data('imagenet-c', 'https://zenodo.org/records/2235448'),
    'imagenet-22k': Data('imagenet-22k', 'https://image-net.org/download'),
    'imagenet-22k-train': Data('imagenet-22k', 'https://image-net.org/download'),
    'cifar-10': Data('cifar10', 'https://www.cs.toronto.edu/~kriz/cifar.html'),
    'cifar-100': Data('cifar100', 'https://www.cs.toronto.edu/~kriz/cifar.html'),
    'flowers-102': Data('flowers102', 'https://www.robots.ox.ac.uk/~vgg/data/flowers/102/'),
    'oxford-pets': Data('oxford_pets', 'https://www.robots.ox.ac.uk/~vgg/data/pets/'),
    'stanford-cars': Data('stanford_cars', 'https://github.com/pytorch/vision/issues/7545'),
    'fgvc-aircraft': Data('fgvc_aircraft', 'https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/'),
    'inat-2018': Data('inat2018', 'https://github.com/visipedia/inat_comp/tree/master/2018'),
    'isic-2018': Data('isic2018', 'https://challenge.isic-archive.com/data'),
    'eurosat': Data('eurosat', 'https://github.com/phelber/EuroSAT'),
    'cropdisease': Data('crop_disease', 'https://www.kaggle.com/datasets/saroz014/plant-disease'),
    'chestx': Data('chestx', 'https://www.kaggle.com/datasets/nih-chest-xrays/data'),
    'coco-2017': Data('', 'https://cocodataset.org/#download'),
    'ade20k': Data('', 'https://ade20k.csail.mit.edu'),
}


@dataclass(frozen=True)
class Subject:
    """A model of a paper's table, as timm knows it after `import tinyvit_zoo`.

    Attributes:
        name: 'architecture' or 'architecture.tag'; empty if nothing here builds it.
        weights: Whether the weights of that name are those that the row was measured with. Otherwise nobody has
            published them, and `trainer` makes some.
        classes: Of its classifier, which counts among the parameters.
        options: Further arguments of `timm.create_model`.
        also: Further architectures that a number of this one holds for.
        trainer: Arguments of the command that trains it, after `tinyvit-zoo`; empty if there is none.
        finetune: Model, start and recipe of `finetune` on a transfer set, as its arguments; empty if there is no recipe
            of that transfer.
        evaluate: Further arguments of `evaluate`: the evaluation crop as published.
        config: Of `detect train`, for its detector or segmenter; empty if none is packaged.
    """

    name: str
    weights: bool = True
    classes: int = 1000
    options: Mapping[str, Any] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    trainer: str = ''
    finetune: str = ''
    evaluate: str = ''
    config: str = ''


def released(name: str, **more: Any) -> Subject:
    """A released model of this package, or one of timm, with the weights of the row."""
    return Subject(name, **more)


def unreleased(name: str, trainer: str = '', **more: Any) -> Subject:
    """A model that can be built and whose weights nobody has published."""
    return Subject(name, weights=False, trainer=trainer, **more)


@dataclass(frozen=True)
class StoredLabels:
    """A teacher's soft labels on disk, in the layout of TinyViT's released code.

    Attributes:
        data: Name of the data set whose training images they are of.
        k: Classes kept of each view.
        epochs: Views of each image.
    """

    data: str
    k: int
    epochs: int


@dataclass(frozen=True)
class Entry:
    """A table, the numbers of the running text, or a page of the authors.

    Attributes:
        name: 'PAPER/ENTRY', the first two parts of the ids of its rows.
        title: What it shows, in a few words.
        jobs: By task: arguments of the evaluator or trainer that measures such a row, after `tinyvit-zoo`, with the
            places {name}, {data}, {finetune}, {evaluate} and {config}. 'count' is this command's own work: parameters,
            MACs and the like. Empty where nothing measures it.
    """

    name: str
    title: str
    jobs: Mapping[str, str]


@dataclass(frozen=True)
class Paper:
    """The tables of a paper.

    Attributes:
        name: First part of the ids.
        title: Of the paper.
        entries: In the paper's order.
        subjects: By the model's name in the rows, or by 'NAME @ DATASET' where those are other weights.
        quoted: Names in the rows of what is no model, or is one that neither this package nor timm has: their numbers
            are quoted.
        versus: By a name in the rows whose numbers compare two models: names of the larger and of the smaller one.
        stored: By a name in the rows: soft labels on disk.
    """

    name: str
    title: str
    entries: tuple[Entry, ...]
    subjects: Mapping[str, Subject]
    quoted: frozenset[str]
    versus: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    stored: Mapping[str, StoredLabels] = field(default_factory=dict)
