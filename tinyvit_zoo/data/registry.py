"""The known facts of every data set, one entry each, checked when the data is loaded."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import imagenet_readers, readers
from . import offline as offline_datasets
from .image_dataset import ImageDataset

__all__ = ['REGISTRY', 'Entry', 'find_entry']

TRAIN_TEST = dict(train=('train',), test=('test',), all=('train', 'test'))
TEST = dict(test=('test',))
UNVERIFIED = 'descriptions of it (not verified here)'


@dataclass(frozen=True)
class Entry:
    """A data set.

    Attributes:
        name: The name for `load_dataset`.
        read: (root, part, seed) -> one part; imports its own dependencies. The root is not used if `layout` is empty.
        splits: The parts that make up each split, as the protocols define it.
        counts: Images of each part.
        classes: Number of classes.
        source: Where to get it.
        license: As far as known; the source decides.
        layout: Required content of the root; empty if no root is needed.
        if_dead: What to do if the source does not respond.
        figures: Source of counts and classes.
        hub_id: Page on the Hub with the same images, for an entry of a model card; empty if none is known.
        class_folders: root -> the folders below it in which each folder is a class, and whatever is added would be one;
            none where lists name the images.
        copies_differ: Copies differ by some images, so another number of them is a warning, and none but all classes is
            right. Otherwise another number of images is an error, and a class without any shows in it.
    """

    name: str
    read: Callable[[Path, str, int], ImageDataset]
    splits: Mapping[str, tuple[str, ...]]
    counts: Mapping[str, int]
    classes: int
    source: str
    license: str
    layout: str = ''
    if_dead: str = ''
    figures: str = "its authors' page"
    hub_id: str = ''
    class_folders: Callable[[Path], Iterable[Path]] = lambda root: ()
    copies_differ: bool = False

    @property
    def how_to_get(self) -> str:
        """Layout and sources, for the end of a message."""
        return f'it has to hold {self.layout}, from {self.source}; if that does not respond: {self.if_dead}'

    def lies_among_images(self, place: Path, root: Path) -> bool:
        """Whether files in `place` would count as images or classes of the data set in `root`.

        Raises:
            EvaluationError: If `root` has two folders that may be the same split.
        """
        return any(place.resolve().is_relative_to(folder.resolve()) for folder in self.class_folders(root))


OFFLINE = (
    Entry(
        'digits',
        lambda root, part, seed: offline_datasets.digits(part, seed),
        splits=TRAIN_TEST,
        counts=dict(train=1347, test=450),
        classes=10,
        source='scikit-learn (load_digits: UCI, Optical Recognition of Handwritten Digits)',
        license='CC BY 4.0',
        figures='scikit-learn',
    ),
    Entry(
        'textures',
        lambda root, part, seed: offline_datasets.textures(part, seed),
        splits=TRAIN_TEST,
        counts=dict(train=21 * 80, test=21 * 40),
        classes=21,
        source='crops of the photographs that scikit-image and scikit-learn ship',
        license='a separate one for each photograph, all free to use: README.txt in the data folder of scikit-image',
        figures='this package',
    ),
)

TRANSFER = (
    Entry(
        'cifar10',
        lambda root, part, seed: readers.cifar(root, 'cifar10', part),
        splits=TRAIN_TEST,
        counts=dict(train=50_000, test=10_000),
        classes=10,
        source='torchvision.datasets.CIFAR10(ROOT, download=True)',
        license='none stated',
        layout='cifar-10-batches-py/',
        if_dead='hfds/uoft-cs/cifar10 has the same images.',
        hub_id='uoft-cs/cifar10',
    ),
    Entry(
        'cifar100',
        lambda root, part, seed: readers.cifar(root, 'cifar100', part),
        splits=TRAIN_TEST,
        counts=dict(train=50_000, test=10_000),
        classes=100,
        source='torchvision.datasets.CIFAR100(ROOT, download=True)',
        license='none stated',
        layout='cifar-100-python/',
        if_dead='hfds/uoft-cs/cifar100 has the same images.',
        hub_id='uoft-cs/cifar100',
    ),
    Entry(
        'flowers102',
        lambda root, part, seed: readers.flowers(root, part),
        # MoCo v3 and later papers train on both for transfer: 2040 images.
        splits=dict(train=('train', 'val'), test=('test',), all=('train', 'val', 'test')),
        counts=dict(train=1020, val=1020, test=6149),
        classes=102,
        source='torchvision.datasets.Flowers102(ROOT, download=True)',
        license='none stated',
        layout='flowers-102/ with jpg/, setid.mat and imagelabels.mat',
        if_dead='robots.ox.ac.uk often responds again after some hours; mirrors on the Hub have other splits, so take '
        'images from them, but setid.mat from Oxford.',
    ),
    Entry(
        'stanford_cars',
        lambda root, part, seed: readers.stanford_cars(root, part),
        splits=TRAIN_TEST,
        counts=dict(train=8144, test=8041),
        classes=196,
        source='a mirror named in issue 7545 of github.com/pytorch/vision, as the original page is gone',
        license='research only',
        layout='stanford_cars/ with cars_train/, cars_test/, devkit/ and cars_test_annos_withlabels.mat',
        if_dead='hfds/tanganke/stanford_cars has the images of both splits.',
        hub_id='tanganke/stanford_cars',
    ),
    Entry(
        'oxford_pets',
        lambda root, part, seed: readers.pets(root, part),
        splits=dict(train=('trainval',), test=('test',), all=('trainval', 'test')),
        counts=dict(trainval=3680, test=3669),
        classes=37,
        source='torchvision.datasets.OxfordIIITPet(ROOT, download=True)',
        license='CC BY-SA 4.0',
        layout='oxford-iiit-pet/ with images/ and annotations/',
        if_dead='hfds/timm/oxford-iiit-pet has the same splits.',
        hub_id='timm/oxford-iiit-pet',
    ),
    Entry(
        'fgvc_aircraft',
        lambda root, part, seed: readers.aircraft(root, part),
        splits=dict(train=('trainval',), test=('test',), all=('trainval', 'test')),
        counts=dict(trainval=6667, test=3333),
        classes=100,
        source='torchvision.datasets.FGVCAircraft(ROOT, download=True)',
        license='research only',
        layout='fgvc-aircraft-2013b/data/',
        if_dead='robots.ox.ac.uk often responds again after some hours.',
    ),
    Entry(
        'inat2018',
        lambda root, part, seed: readers.inaturalist(root, part),
        # The labels of the competition's test images were never published: papers report on val.
        splits=dict(train=('train',), validation=('val',), test=('val',), all=('train', 'val')),
        counts=dict(train=437_513, val=24_426),
        classes=8142,
        source='github.com/visipedia/inat_comp, folder 2018 (120 GB)',
        license='research and education only',
        layout='train_val2018/, train2018.json and val2018.json',
        if_dead='the archive is mirrored by torchvision.datasets.INaturalist(ROOT, "2018", download=True), the lists '
        'are not.',
    ),
)

FEW_SHOT = (
    Entry(
        'eurosat',
        lambda root, part, seed: readers.class_folders_at(root, 'eurosat', readers.EUROSAT),
        class_folders=lambda root: readers.present(root, readers.EUROSAT),
        splits=dict(all=('all',)),
        counts=dict(all=27_000),
        classes=10,
        source='torchvision.datasets.EuroSAT(ROOT, download=True)',
        license='MIT',
        layout='eurosat/2750/ with ten class folders',
        if_dead='hfds/blanchon/EuroSAT_RGB is split in three, and its split "all" is the whole again.',
        hub_id='blanchon/EuroSAT_RGB',
    ),
    Entry(
        'crop_disease',
        lambda root, part, seed: readers.class_folders_at(root, 'crop_disease', readers.CROP_DISEASE),
        class_folders=lambda root: readers.present(root, readers.CROP_DISEASE),
        splits=dict(all=('train',), train=('train',)),  # the benchmark uses the folder train alone
        counts=dict(train=43_456),
        classes=38,
        source='kaggle.com/saroz014/plant-disease',
        license='see its page; the images are those of PlantVillage',
        layout='dataset/train/ with 38 class folders',
        if_dead='other copies of PlantVillage differ in number and split, and so do results.',
        figures=UNVERIFIED,
    ),
    Entry(
        'isic2018',
        lambda root, part, seed: readers.isic(root),
        splits=dict(all=('train',), train=('train',)),
        counts=dict(train=10_015),
        classes=7,
        source='challenge.isic-archive.com/data, 2018, task 3, training',
        license='CC BY-NC 4.0',
        layout='ISIC2018_Task3_Training_Input/ and ISIC2018_Task3_Training_GroundTruth/',
        if_dead='HAM10000 (doi 10.7910/DVN/DBW86T) has the same 10,015 images under the same names.',
    ),
    Entry(
        'chestx',
        lambda root, part, seed: readers.chestx(root),
        splits=dict(all=('all',)),
        counts=dict(all=25_848),
        classes=7,
        source='kaggle.com/nih-chest-xrays/data (ChestX-ray14, 42 GB)',
        license='free to use with a citation',
        layout='Data_Entry_2017.csv, and images/ or images_001/images/ to images_012/images/',
        if_dead='nihcc.app.box.com/v/ChestXray-NIHCC is the original.',
        figures=UNVERIFIED,
    ),
)

TERMS = 'research and education only (image-net.org/download)'

IMAGENET = (
    Entry(
        'imagenet-1k',
        lambda root, part, seed: imagenet_readers.imagenet(root, part),
        # The labels of the test images were never published: papers report on validation.
        class_folders=lambda root: imagenet_readers.split_folders_of(root),
        splits=dict(train=('train',), validation=('validation',), test=('validation',), all=('train', 'validation')),
        counts=dict(train=1_281_167, validation=50_000),
        classes=1000,
        source='image-net.org/download',
        license=TERMS,
        layout='train/ and val/ with 1000 folders each, named by WordNet id',
        if_dead='hfds/ILSVRC/imagenet-1k, after the terms are accepted there.',
    ),
    Entry(
        'imagenet-22k',
        lambda root, part, seed: imagenet_readers.imagenet_22k(root),
        class_folders=lambda root: readers.present(root, imagenet_readers.FOLDERS_22K),
        splits=dict(train=('train',), all=('train',)),  # it has no other: papers evaluate on ImageNet-1k
        counts=dict(train=14_197_122),
        classes=21_841,
        source='image-net.org/download (the whole of fall 2011, also called ImageNet-21k)',
        license=TERMS,
        layout='one folder for each of the 21841 WordNet ids with its images, unpacked',
        if_dead='winter 2021, which image-net.org has now, lacks 2674 of the classes and is another data set.',
        figures='the release of fall 2011, whose classes the released heads have',
        copies_differ=True,
    ),
    Entry(
        'imagenet-real',
        lambda root, part, seed: imagenet_readers.imagenet_real(root),
        class_folders=lambda root: imagenet_readers.split_folders_of(root),
        splits=dict(validation=('validation',), test=('validation',)),
        counts=dict(validation=50_000),
        classes=1000,
        source="image-net.org/download; timm ships the labels of 'Are we done with ImageNet?'",
        license=f'{TERMS}; labels Apache-2.0',
        layout='val/ with 1000 folders, and files under their original names',
        if_dead='nothing else has the original file names.',
    ),
    Entry(
        'imagenet-v2',
        lambda root, part, seed: imagenet_readers.imagenet_v2(root),
        class_folders=lambda root: readers.present(root, imagenet_readers.FOLDERS_V2),
        splits=TEST,
        counts=dict(test=10_000),
        classes=1000,
        source='the dataset vaishaal/ImageNetV2 of the Hub (imagenetv2-matched-frequency.tar.gz)',
        license='MIT',
        layout='imagenetv2-matched-frequency-format-val/ with folders 0 to 999',
        if_dead='github.com/modestyachts/ImageNetV2 lists mirrors.',
    ),
    Entry(
        'imagenet-a',
        lambda root, part, seed: imagenet_readers.imagenet_subset(root, 'imagenet-a'),
        class_folders=lambda root: readers.present(root, ('imagenet-a', '.')),
        splits=TEST,
        counts=dict(test=7_500),
        classes=200,
        source='github.com/hendrycks/natural-adv-examples',
        license='MIT',
        layout='imagenet-a/ with 200 folders named by WordNet id',
        if_dead='hfds/barkermrl/imagenet-a has the same images, as its split train.',
    ),
    Entry(
        'imagenet-r',
        lambda root, part, seed: imagenet_readers.imagenet_subset(root, 'imagenet-r'),
        class_folders=lambda root: readers.present(root, ('imagenet-r', '.')),
        splits=TEST,
        counts=dict(test=30_000),
        classes=200,
        source='github.com/hendrycks/imagenet-r',
        license='MIT',
        layout='imagenet-r/ with 200 folders named by WordNet id',
        if_dead='the dataset axiong/imagenet-r of the Hub holds the same archive.',
    ),
)

REGISTRY = {entry.name: entry for entry in (*OFFLINE, *TRANSFER, *FEW_SHOT, *IMAGENET)}


def find_entry(name: str) -> Entry | None:
    """The entry of a name, including 'imagenet-c/CORRUPTION/SEVERITY'; None if it is unknown."""
    family, _, rest = name.partition('/')
    if family != 'imagenet-c':
        return REGISTRY.get(name)
    corruption, _, severity = rest.partition('/')
    return Entry(
        name,
        lambda root, part, seed: imagenet_readers.imagenet_c(root, name, corruption, severity),
        class_folders=lambda root: imagenet_readers.corruption_folders(root, corruption),
        splits=TEST,
        counts=dict(test=50_000),
        classes=1000,
        source='zenodo.org/records/2235448',
        license='CC BY 4.0',
        layout=f'{corruption}/{severity}/ with 1000 folders named by WordNet id',
        if_dead='github.com/hendrycks/robustness generates the images from those of ImageNet, though not with the same '
        'bytes.',
    )
