"""What a table costs: bytes of its data and weights, and GPU-hours of its trainings, each number with its source.

Nothing here was measured. Sizes of archives are those that TensorFlow Datasets records with their checksums, or what
the pages of the data sets say. GPU-hours are published ones; those of other trainings of the same kind are estimated
from them by the images that a training sees: epochs of its recipe times images, which `--dry-run` counts as updates.
What nobody has published, and has no published neighbor, stays empty.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from tinyvit_zoo.data.registry import REGISTRY
from tinyvit_zoo.releases.profile import stored_profiles
from tinyvit_zoo.training.recipes import PRETRAINING, RECIPES

from .jobs import Line, State
from .numbers import Number, read_numbers

__all__ = ['ARCHIVES', 'Archive', 'Costs', 'Hours', 'costs_of', 'published_hours']

TFDS = 'tensorflow/datasets, url_checksums'
TABLE_1 = 'paper, Table 1: hours of 8 V100, times 8; without fine-tuning'


@dataclass(frozen=True)
class Archive:
    """What has to be fetched of a data set: bytes, None where they are not known, and who says so."""

    bytes: int | None
    source: str


ARCHIVES = {
    'imagenet-1k train': Archive(147_897_477_120, f'{TFDS}/imagenet2012_corrupted.txt'),
    'imagenet-1k validation': Archive(6_744_924_160, f'{TFDS}/imagenet2012_corrupted.txt'),
    'imagenet-22k': Archive(
        1_310_000_000_000, 'Alibaba-MIIL/ImageNet21K, processing_instructions.md: fall11_whole.tar, 1.31 TB'
    ),
    'imagenet-v2': Archive(1_253_959_680, f'{TFDS}/imagenet_v2.txt, matched-frequency'),
    'imagenet-a': Archive(687_552_512, f'{TFDS}/imagenet_a.txt'),
    'imagenet-r': Archive(2_191_079_936, f'{TFDS}/imagenet_r.txt'),
    'imagenet-c': Archive(None, ''),
    'cifar-10': Archive(170_052_171, f'{TFDS}/cifar10.txt'),
    'cifar-100': Archive(168_513_733, f'{TFDS}/cifar100.txt'),
    'flowers-102': Archive(344_862_509 + 502 + 14_989, f'{TFDS}/oxford_flowers102.txt'),
    'oxford-pets': Archive(791_918_971 + 19_173_078, f'{TFDS}/oxford_iiit_pet.txt'),
    'stanford-cars': Archive(979_269_282 + 977_350_468 + 330_960 + 185_758, f'{TFDS}/cars196.txt'),
    'fgvc-aircraft': Archive(2_770_575_360, f'{TFDS}/fgvc.txt'),
    'inat-2018': Archive(
        127_945_569_561 + 20_951_917 + 1_276_686,
        'tensorflow/datasets, image_classification/i_naturalist2018/checksums.tsv',
    ),
    'eurosat': Archive(94_280_567, f'{TFDS}/eurosat.txt, RGB'),
    'isic-2018': Archive(None, ''),
    'cropdisease': Archive(None, ''),
    'chestx': Archive(42_000_000_000, 'the page of the data set: 42 GB'),
    'coco-2017': Archive(19_336_861_798 + 815_585_330 + 252_907_541, f'{TFDS}/coco.txt, train and val'),
    'ade20k': Archive(967_382_037, f'{TFDS}/ade20k.txt'),
}
"""By name; of ImageNet-1k an evaluation needs the second alone."""

EVALUATED = {
    'imagenet-1k': 'imagenet-1k validation',
    'imagenet-real': 'imagenet-1k validation',
    'imagenet-22k-train': 'imagenet-22k',
}
TRAINED = {'imagenet-1k': ('imagenet-1k train', 'imagenet-1k validation'), 'imagenet-22k': ('imagenet-22k',)}


@dataclass(frozen=True)
class Hours:
    """GPU-hours of one training.

    Attributes:
        training: Name of the model in the rows, or the command.
        hours: On one V100.
        source: Id of the published number, or where the paper has it; of an estimate, how it was made.
        estimated: Whether nobody has published it.
    """

    training: str
    hours: float
    source: str
    estimated: bool = False


@dataclass(frozen=True)
class Costs:
    """What a table needs, of what is known.

    Attributes:
        archives: Names in `ARCHIVES`.
        weights: 'architecture.tag' of this package's releases; those of timm are not counted.
        hours: Of its trainings.
    """

    archives: tuple[str, ...]
    weights: tuple[str, ...]
    hours: tuple[Hours, ...]

    @property
    def data_bytes(self) -> int:
        """Of the archives whose size is known."""
        return sum(ARCHIVES[name].bytes or 0 for name in self.archives)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Archives whose size is not known."""
        return tuple(name for name in self.archives if ARCHIVES[name].bytes is None)

    @property
    def weight_bytes(self) -> int:
        return sum(stored_profiles()[name].bytes for name in self.weights)

    def gpu_hours(self, estimated: bool) -> float | None:
        """Sum of the published hours, or of the estimated ones; None if there are none."""
        hours = [x.hours for x in self.hours if x.estimated == estimated]
        return sum(hours) if hours else None


def costs_of(lines: Sequence[Line], weights: Sequence[str]) -> Costs:
    """What a table needs, without building a model.

    Args:
        lines: Its rows, see `run_rows(..., dry=True)`.
        weights: Names of its models with published weights, 'architecture.tag'.
    """
    needed = [line for line in lines if line.state in (State.NO_DATA, State.NO_WEIGHTS)]
    archives = dict.fromkeys(name for line in needed for name in _archives(line))
    own = [name for name in dict.fromkeys(weights) if name in stored_profiles()]
    published = [hours for hours in (published_hours(line.number) for line in lines) if hours is not None]
    known = {(line.number.paper, line.number.model) for line in lines if published_hours(line.number) is not None}
    # Rows share a command where a file stands for FILE: each of them is a training.
    commands = dict.fromkeys(
        (line.number.row, line.command)
        for line in needed
        if line.command and (line.number.paper, line.number.model) not in known
    )
    estimates = [hours for hours in (_estimate(command) for _, command in commands) if hours is not None]
    return Costs(tuple(archives), tuple(own), (*dict.fromkeys(published), *estimates))


def _archives(line: Line) -> list[str]:
    """Archives that one row needs: those it is evaluated on, and those that its command trains on."""
    name = line.number.dataset
    found = [] if name == '-' else [EVALUATED.get(name, name)]
    return [*found, *TRAINED.get(_trained_on(line.command), ())]


def _trained_on(command: str) -> str:
    """The data set of a command that trains; empty for an evaluator."""
    words = shlex.split(command)
    trains = words[1:2] and words[1] in ('finetune', 'pretrain', 'distill')
    return words[words.index('-d') + 1] if trains and '-d' in words else ''


# --- GPU-hours

V100_MACHINE = 8  # GPUs; MAE-Lite's hours are of the machine
IMAGENET_22K_EPOCH = REGISTRY['imagenet-22k'].counts['train']
IMAGENET_1K_EPOCH = REGISTRY['imagenet-1k'].counts['train']

MACHINE_HOURS = {
    ('mae_lite', 'MAE-Tiny FT'): Hours('MAE-Tiny', V100_MACHINE * 23, TABLE_1),
    ('mae_lite', 'MoCov3-Tiny FT'): Hours('MoCov3-Tiny', V100_MACHINE * 52, TABLE_1),
    ('mae_lite', 'ViT-Tiny sup. IN21K 30e -> impr. FT'): Hours('ViT-Tiny, 30 epochs', V100_MACHINE * 20, TABLE_1),
    ('mae_lite', 'ViT-Tiny sup. IN21K 300e -> impr. FT'): Hours('ViT-Tiny, 300 epochs', V100_MACHINE * 200, TABLE_1),
}
"""Hours of pre-training that the published numbers have no rows for, by paper and model."""


def published_hours(number: Number) -> Hours | None:
    """GPU-hours that the paper gives for the training of a number's model; None if it gives none."""
    key = number.paper, number.model
    if key in MACHINE_HOURS:
        return MACHINE_HOURS[key]
    return _rows_with_hours().get(key)


@cache
def _rows_with_hours() -> dict[tuple[str, str], Hours]:
    scales = {'gpu_hours': 1, 'gpu_days': 24}
    return {
        (n.paper, n.model): Hours(n.model, float(n.value) * scales[n.metric], n.id)
        for n in read_numbers()
        if n.metric in scales
    }


@dataclass(frozen=True)
class _Anchor:
    """A published training that others of its kind are estimated from."""

    start: tuple[str, ...]  # of the command
    hours: float
    images: int  # that it saw
    source: str


ANCHORS = (
    _Anchor(('finetune', 'mae_lite_vit_tiny_patch16_224'), V100_MACHINE * 20, 30 * IMAGENET_22K_EPOCH,
            "from ViT-Tiny's 160 hours for 30 epochs of ImageNet-22k"),
    _Anchor(('pretrain', 'mae', '--size', 'tiny'), V100_MACHINE * 23, 400 * IMAGENET_1K_EPOCH,
            "from MAE-Tiny's 184 hours for 400 epochs of ImageNet-1k"),
    _Anchor(('pretrain', 'mocov3'), V100_MACHINE * 52, 400 * IMAGENET_1K_EPOCH,
            "from MoCov3-Tiny's 416 hours for 400 epochs of ImageNet-1k"),
)  # fmt: skip
"""Students that learn from a teacher at work have none: its share of the time is not published apart."""


def _estimate(command: str) -> Hours | None:
    """GPU-hours of a command that trains, or None: the images it sees, at the pace of a published one of its kind."""
    words = shlex.split(command)[1:]
    anchor = next((a for a in ANCHORS if tuple(words[: len(a.start)]) == a.start), None)
    images = 0 if anchor is None else _images(words)
    if anchor is None or not images:
        return None
    return Hours(command, anchor.hours * images / anchor.images, anchor.source, estimated=True)


def _images(words: Sequence[str]) -> int:
    """Images that a training sees; 0 where the command does not tell."""
    options = dict(zip(words, [*words[1:], ''], strict=True))
    data = REGISTRY.get(options.get('-d', ''))
    recipe = PRETRAINING.get(words[1]) if words[0] == 'pretrain' else RECIPES.get(options.get('--recipe', ''))
    if data is None or recipe is None:
        return 0
    images = sum(data.counts[part] for part in data.splits['train'])
    subset = options.get('--subset', '100%')
    if not subset.endswith('%'):
        return 0
    return round(recipe.epochs * images * float(subset.removesuffix('%')) / 100)
