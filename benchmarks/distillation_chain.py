"""TinyViT's fast pretraining distillation from end to end, in miniature, on scikit-learn's handwritten digits.

A teacher, TinyViT-5M at 32 pixels, learns all 1347 training images. Its soft labels of 20 epochs of views of 400 of
them are stored by two processes that are killed in the middle and resumed. From those 400 images students of the same
architecture learn, from the same initial weights and the same views in the same order:

    labels               the true labels alone
    store                the stored soft labels alone
    live                 those that the teacher gives while the student learns
    wrong labels         labels, a fifth of them wrong
    wrong store          the soft labels of a teacher that learned from a fifth of wrong labels itself

The teacher is better because it saw more images, as the paper's did. Accuracy is measured on the 450 test digits; the
number of epochs is fixed beforehand.

    python benchmarks/distillation_chain.py                       # 3 seeds
    python benchmarks/distillation_chain.py --seeds 5             # adds the missing ones to the 3

Every finished seed is kept: started again after a kill, the benchmark resumes with the next.
"""

import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from kills import Group, files_of
from matplotlib.figure import Figure
from seeds import interval, results_of, seeds_parser, sign_of, versions, write_json
from torch import nn
from tqdm import tqdm

from tinyvit_zoo.common.counter_rng import child_key, permutations, uniform
from tinyvit_zoo.common.determinism import one_thread
from tinyvit_zoo.common.files import new_file
from tinyvit_zoo.data import load_dataset
from tinyvit_zoo.data.image_dataset import ImageDataset
from tinyvit_zoo.data.replay import ModelInput, ViewSpec
from tinyvit_zoo.data.transforms import data_config
from tinyvit_zoo.downstream.finetune import finetune
from tinyvit_zoo.soft_labels import Store, Teacher, check_teacher, save
from tinyvit_zoo.training.distillation import distil_from_store, distil_live
from tinyvit_zoo.training.ingredients import create_transforms
from tinyvit_zoo.training.loop import RunSettings
from tinyvit_zoo.training.recipes import DISTILLATION, Recipe
from tinyvit_zoo.training.soft_label_views import SoftLabelViews, ViewSampler
from tinyvit_zoo.training.tasks.tinyvit import SparseDistillation
from tinyvit_zoo.training.train_task import train_task

SIZE = 32  # pixels per side
TEACHER, LABELS, STORE, LIVE = 'teacher', 'labels', 'store', 'live'
WRONG_TEACHER, WRONG_LABELS, WRONG_STORE = 'wrong teacher', 'wrong labels', 'wrong store'
ORDER = (TEACHER, LABELS, STORE, LIVE, WRONG_TEACHER, WRONG_LABELS, WRONG_STORE)
PAIRS = [  # (better, worse), as the method has it; the first one is its premise
    (TEACHER, LABELS),
    (STORE, LABELS),
    (STORE, WRONG_LABELS),
    (WRONG_STORE, WRONG_LABELS),
]
PAPER = (
    'The paper: TinyViT-21M on ImageNet-1k, pre-trained on ImageNet-21k with its labels 83.8, with cleaned labels '
    '84.2, with soft labels 84.8 (arXiv:2207.10666, Table 1).'
)
IMAGES, WRONG, VIEWS = 1, 2, 3  # what is drawn has counters of its own


@dataclass(frozen=True)
class Settings:
    """Everything that a seed's result depends on.

    Attributes:
        teacher_images: Training images of the teacher; None for all 1347.
        student_images: Those of the students, which are among them.
        test_images: None for all 450.
        teacher_epochs: Passes of the teacher.
        student_epochs: Passes of the students, and epochs that are stored.
        batch: Images of an update.
        lr: Learning rate.
        smallest_crop: Share of the image; there is no other augmentation, as digits have an upright side.
        k: Probabilities stored.
        wrong: Share of wrong labels in the arms that have them.
        architecture: Of teacher and students.
    """

    teacher_images: int | None = None
    student_images: int = 400
    test_images: int | None = None
    teacher_epochs: int = 15
    student_epochs: int = 20
    batch: int = 40
    lr: float = 1e-3
    smallest_crop: float = 0.6
    k: int = 5
    wrong: float = 0.2
    architecture: str = 'tinyvit_5m_224'

    @property
    def steps(self) -> int:
        """Trainings of one seed."""
        return len(ORDER)

    def recipe(self, epochs: int) -> Recipe:
        """TinyViT's distillation from soft labels, in miniature."""
        return DISTILLATION['tinyvit_22k_distill'].changed(
            epochs=epochs, batch_size=self.batch, lr=self.lr, lr_batch=self.batch, auto_augment=None, random_erase=0.0,
            crop_area=(self.smallest_crop, 1.0), flip=0.0, crop_pct=1.0,
        )  # fmt: skip

    @property
    def views(self) -> ViewSpec:
        """Those of teacher and students."""
        return ViewSpec((SIZE, SIZE), scale=(self.smallest_crop, 1.0), hflip=0.0)


def run_seed(seed: int, settings: Settings, done: Callable[[], object] = lambda: None) -> dict:
    """Train both teachers, store what they say, and train the students.

    Args:
        seed: Of the split, the choice of images, the wrong labels, the initial weights, the order and the views.
        settings: The rest.
        done: Called after every training.

    Returns:
        'accuracy' in % by name; 'losses' of each student by epoch; 'saving', what was killed and whether the bytes are
        those of a saving by one process that was not; 'agreement' of store and teacher.
    """
    known = load_dataset('digits', 'train', seed=seed)
    known = known.subset(permutations(child_key(seed, IMAGES), len(known))[: settings.teacher_images])
    own, test = known.subset(range(settings.student_images)), load_dataset('digits', 'test', seed=seed)
    test = test.subset(range(len(test))[: settings.test_images])
    models, losses, found = {}, {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        chain = Chain(settings, own, folder, seed)

        def keep(name: str, trained: tuple[nn.Module, list[float]]) -> None:
            models[name], losses[name] = trained
            done()

        keep(TEACHER, chain.taught_by_labels(known))
        teacher = Teacher.of_timm(models[TEACHER], TEACHER)
        store, found['saving'] = chain.stored(teacher, 'saved')
        found['agreement'] = asdict(check_teacher(store, own, teacher, store.epochs(), share=0.05))
        keep(LABELS, chain.from_labels(own, store, LABELS))
        keep(STORE, chain.from_store(store, STORE))
        keep(LIVE, chain.live(teacher))

        wrong = with_wrong_labels(known, settings.wrong, seed)
        keep(WRONG_TEACHER, chain.taught_by_labels(wrong, WRONG_TEACHER))
        wrong_teacher = Teacher.of_timm(models[WRONG_TEACHER], WRONG_TEACHER)
        wrong_store, found['wrong saving'] = chain.stored(wrong_teacher, 'wrong-saved')
        keep(WRONG_LABELS, chain.from_labels(wrong.subset(range(len(own))), store, WRONG_LABELS))
        keep(WRONG_STORE, chain.from_store(wrong_store, WRONG_STORE))
        recipe = settings.recipe(1)
        accuracy = {name: accuracy_of(model, test, recipe) for name, model in models.items()}
    return dict(accuracy=accuracy, losses=losses, **found, test_images=len(test))


@dataclass(frozen=True)
class Chain:
    """The links of one seed: 400 images, or however many, and a folder for what is on disk."""

    settings: Settings
    images: ImageDataset
    folder: Path
    seed: int

    def taught_by_labels(self, images: ImageDataset, name: str = TEACHER) -> tuple[nn.Module, list[float]]:
        """A teacher, by fine-tuning from random weights."""
        model, recipe = self._new(), self.settings.recipe(self.settings.teacher_epochs)
        trained = finetune(model, images, recipe, self.folder / name, held_out=0.0, **self._run)
        return model, [epoch.loss for epoch in trained.history]

    def stored(self, teacher: Teacher, name: str) -> tuple[Store, dict[str, Any]]:
        """Soft labels saved by two processes, killed and resumed; and what is to be said of it."""
        work = partial(
            save, teacher, self.images, self.settings.views, epochs=range(self.settings.student_epochs),
            seed=self.seed, k=self.settings.k, progress=False,
        )  # fmt: skip
        place, before = self.folder / name, children_seconds()
        share = uniform(child_key(self.seed, VIEWS), 1).item()
        group = Group(2, work, place)
        while group.alive() and shards_in(place) <= share * (self.settings.student_epochs - 2):
            time.sleep(0.005)
        group.kill()
        killed_at = shards_in(place)
        Group(2, work, place).finish()
        seconds = children_seconds() - before
        alone = self.folder / f'{name}-alone'
        work(alone)
        return Store.open(place), dict(
            killed_at=killed_at, shards=self.settings.student_epochs, same_bytes=files_of(place) == files_of(alone),
            cpu_seconds=round(seconds, 1),
        )  # fmt: skip

    def from_store(self, store: Store, name: str) -> tuple[nn.Module, list[float]]:
        """A student from soft labels alone."""
        student = self._new()
        trained = distil_from_store(student, self.images, store, self._recipe, self.folder / name, **self._run)
        return student, [epoch['loss'] for epoch in trained.history]

    def from_labels(self, images: ImageDataset, store: Store, name: str) -> tuple[nn.Module, list[float]]:
        """A student from labels alone, on the views of a store in the same order."""
        student, recipe = self._new(), self._recipe
        config = data_config(student)
        views = SoftLabelViews(images, store, ModelInput((SIZE, SIZE), config['mean'], config['std']))
        sampler = ViewSampler(len(images), recipe.batch_size, self.seed, range(recipe.epochs))
        task = SparseDistillation(student, hard_weight=1.0)
        trained = train_task(task, views, sampler, recipe, self.folder / name, {}, **self._run)
        return student, [epoch['loss'] for epoch in trained.history]

    def live(self, teacher: Teacher) -> tuple[nn.Module, list[float]]:
        """A student from the same K probabilities, which the teacher gives while it learns."""
        student = self._new()
        trained = distil_live(
            student, self.images, teacher, self.settings.views, self._recipe, self.folder / LIVE, k=self.settings.k,
            **self._run,
        )  # fmt: skip
        return student, [epoch['loss'] for epoch in trained.history]

    @property
    def _recipe(self) -> Recipe:
        return self.settings.recipe(self.settings.student_epochs)

    @property
    def _run(self) -> RunSettings:
        return dict(seed=self.seed, device=torch.device('cpu'), say=lambda text: None)

    def _new(self) -> nn.Module:
        torch.manual_seed(self.seed)
        classes = len(self.images.classes)
        return timm.create_model(self.settings.architecture, img_size=SIZE, num_classes=classes)


def with_wrong_labels(images: ImageDataset, share: float, seed: int) -> ImageDataset:
    """The same images; so large a share, drawn one by one, has another label than its own."""
    chosen, shift = uniform(child_key(seed, WRONG, np.arange(2)), len(images))
    classes = len(images.classes)
    other = images.subset(range(len(images)))
    other.labels = np.where(
        chosen < share, (images.labels + 1 + (shift * (classes - 1)).astype(int)) % classes, images.labels
    )
    return other


@torch.no_grad()
def accuracy_of(model: nn.Module, images: ImageDataset, recipe: Recipe) -> float:
    """Share of right answers in %."""
    transform = create_transforms(model, recipe)[1]
    pixels = torch.stack([transform(images.image(i)) for i in range(len(images))])
    answers = torch.cat([model.eval()(batch).argmax(dim=1) for batch in pixels.split(256)])
    return 100 * float((answers.numpy() == images.labels).mean())


def shards_in(folder: Path) -> int:
    return len(list(folder.rglob('0*.safetensors')))


def children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


# what they say


def summarise(results: dict[int, dict]) -> dict:
    """Means with their intervals, paired differences, and how far store and live teacher are apart.

    Args:
        results: By seed, as `results_of` gives them.

    Returns:
        'rows' by name; 'pairs', each with 'better' and 'worse' (as the method has it), the interval of the difference
        and a 'verdict'; 'premise', whether the teacher was better than the student of labels in every seed;
        'same_bytes', whether every resumed store had the bytes of one that was not killed; 'live', the largest
        difference of the losses of an epoch and the accuracies' differences.
    """
    values = {name: [r['accuracy'][name] for r in results.values()] for name in ORDER}
    pairs = []
    for better, worse in PAIRS:
        difference = interval([b - w for b, w in zip(values[better], values[worse], strict=True)])
        pairs.append(dict(better=better, worse=worse, **difference, verdict=verdict(**difference)))
    each = list(results.values())
    return dict(
        rows={name: interval(column) for name, column in values.items()},
        pairs=pairs,
        premise=all(r['accuracy'][TEACHER] > r['accuracy'][LABELS] for r in each),
        same_bytes=all(r[saving]['same_bytes'] for r in each for saving in ('saving', 'wrong saving')),
        live=dict(
            loss=max(abs(a - b) for r in each for a, b in zip(r['losses'][STORE], r['losses'][LIVE], strict=True)),
            accuracy=[r['accuracy'][LIVE] - r['accuracy'][STORE] for r in each],
            probability=max(r['agreement']['largest'] for r in each),
        ),
    )


def verdict(mean: float, half_width: float) -> str:
    """Of a difference that the method has above 0."""
    return {0: 'undecided', 1: 'it helps', -1: 'IT HARMS'}[sign_of(mean, half_width)]


def table(summary: dict, results: dict[int, dict]) -> str:
    """All of it as text."""
    first = next(iter(results.values()))
    lines = [
        f'Accuracy in per cent on {first["test_images"]} test digits, mean and 95 % interval over {len(results)} seeds',
        *(f'  {name:14s}{row["mean"]:8.2f} ± {row["half_width"]:5.2f}' for name, row in summary['rows'].items()),
        'Paired differences (each interval 95 % by itself)',
    ]
    for pair in summary['pairs']:
        what = f'{pair["better"]} - {pair["worse"]}'
        lines.append(f'  {what:28s}{pair["mean"]:+8.2f} ± {pair["half_width"]:5.2f}   {pair["verdict"]}')
    live, saving = summary['live'], [r['saving'] for r in results.values()]
    lines += [
        f'The premise, a teacher better than the student of labels, {"holds" if summary["premise"] else "FAILS"}.',
        f'Stores: killed at {", ".join(str(s["killed_at"]) for s in saving)} of {saving[0]["shards"]} shards and '
        f'resumed; {"the bytes" if summary["same_bytes"] else "NOT the bytes"} of one process that was not killed.',
        f'Live teacher: losses within {live["loss"]:.1g} of those of the store, stored '
        f'probabilities within {live["probability"]:.1g}; accuracy '
        + ', '.join(f'{value:+.2f}' for value in live['accuracy']) + ' by seed.',
        PAPER,
    ]  # fmt: skip
    return '\n'.join(lines)


def plot(summary: dict, results: dict[int, dict], path: Path) -> None:
    """Every seed as a dot, with mean and interval."""
    figure = Figure(figsize=(7.5, 3.4), dpi=110, facecolor='white', layout='constrained')
    axis = figure.subplots()
    for place, (name, row) in enumerate(summary['rows'].items()):
        values = [r['accuracy'][name] for r in results.values()]
        axis.plot(values, [place + 0.18] * len(values), '.', color='#59636e', alpha=0.6)
        axis.errorbar(row['mean'], place, xerr=row['half_width'], fmt='o', color='#0969da', capsize=4)
    axis.set_yticks(range(len(summary['rows'])), list(summary['rows']))
    axis.invert_yaxis()
    axis.set(title=f'Digits: mean and 95 % interval of {len(results)} seeds (dots)', xlabel='test accuracy, per cent')
    axis.spines[['top', 'right']].set_visible(False)
    axis.grid(axis='x', alpha=0.25)
    with new_file(path) as new:
        figure.savefig(new, format='png')


def run(seeds: int, settings: Settings, output: Path, say: Callable[[str], None] = print) -> dict:
    """Make what is missing, and write results.json and results.png. Returns what results.json holds."""
    with torch.random.fork_rng(devices=[]), one_thread():
        results = results_of(seeds, settings, output, run_seed, say)
    summary = summarise(results)
    say('\n' + table(summary, results))
    seconds = statistics.mean(r['cpu_seconds'] for r in results.values())
    report = dict(**summary, settings=asdict(settings), versions=versions(), seeds=list(results.values()))
    write_json(output / 'results.json', report)
    plot(summary, results, output / 'results.png')
    say(
        f'{seconds:.0f} s of CPU a seed. Written to {output}: results.json, results.png, seeds/ ({len(results)} files).'
    )
    return report


def main() -> None:
    args = seeds_parser(__doc__, 'distillation_chain').parse_args()
    run(args.seeds, Settings(), args.output, tqdm.write)


if __name__ == '__main__':
    main()
