"""What a student of a teacher's features is worth on images without labels, in miniature and with intervals.

A small ViT, the teacher, learns scikit-learn's handwritten digits with their labels. A smaller one, the student, sees
the same images without labels and learns the teacher's features, by each of our losses and, in as many steps on the
same views and with the same optimizer, by timm's `FeatureDistillationTask` (mean squared error of the pooled features,
its classification loss at weight 0); and without a teacher by MAE. Every encoder is then
frozen: kNN and a ridge classifier on the training digits, tested on digits that neither saw, once on the class token,
which is the input of the classifier, and once on class token and mean of the patches. MAE teaches its class token
nothing. Settings were fixed beforehand, but for the number of epochs, which was doubled after a look at the first seed.

    python benchmarks/feature_distillation.py                      # 3 seeds
    python benchmarks/feature_distillation.py --seeds 6            # adds the missing ones to the 3

Every finished seed is kept, and every training resumes: started again after a kill, the benchmark goes on.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from seeds import interval, seed_file, seeds_parser, sign_of, versions, write_json
from timm.task import FeatureDistillationTask
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from tinyvit_zoo.common.determinism import one_thread
from tinyvit_zoo.common.paired_timing import timed
from tinyvit_zoo.data import load_dataset
from tinyvit_zoo.data.image_dataset import ImageDataset
from tinyvit_zoo.data.replay import ModelInput, ViewSpec
from tinyvit_zoo.data.split import stratified_split
from tinyvit_zoo.downstream import knn
from tinyvit_zoo.downstream.classifiers import ridge
from tinyvit_zoo.downstream.features import extract
from tinyvit_zoo.pretrain import MaskedAutoencoder
from tinyvit_zoo.training import distil_features
from tinyvit_zoo.training.feature_teacher import FeatureTeacher
from tinyvit_zoo.training.feature_views import FeatureViews
from tinyvit_zoo.training.pretraining import mae
from tinyvit_zoo.training.recipes import Recipe
from tinyvit_zoo.training.recipes.features import FEATURES
from tinyvit_zoo.training.soft_label_views import ViewSampler
from tinyvit_zoo.training.train_task import train_task

SIDE, K = 32, 10
RANDOM, TIMM, MAE, TEACHER = 'random weights', "timm's FeatureDistillationTask", 'MAE', 'teacher'
OURS = {  # name -> settings of distil_features
    'smooth L1, pooled and dense': dict(loss='smooth_l1'),
    'smooth L1, pooled': dict(loss='smooth_l1', dense_weight=0.0),
    'cosine, pooled and dense': dict(loss='cosine'),
}
DEFAULT = next(iter(OURS))
LAYERS = ('pooled', 'last:1')
MEASURES = ('kNN', 'ridge', 'kNN, patches too', 'ridge, patches too')  # kNN and ridge by layers
PAIRS = [
    *[(name, RANDOM) for name in (*OURS, TIMM, MAE)],
    *[(name, TIMM) for name in OURS],
    (DEFAULT, MAE),
    (DEFAULT, TEACHER),
]


@dataclass(frozen=True)
class Settings:
    """Everything that the result of a seed depends on."""

    teacher_epochs: int = 30
    student_epochs: int = 30
    batch: int = 64
    teacher_width: int = 96
    teacher_depth: int = 4
    student_width: int = 64
    student_depth: int = 2
    images: int | None = None
    """To learn from; None for all."""

    @property
    def recipe(self) -> Recipe:
        """The default but for epochs and batch; digits must not be flipped."""
        return FEATURES.changed(epochs=self.student_epochs, batch_size=self.batch, flip=0.0)


def vit(seed: int, width: int, depth: int) -> nn.Module:
    """A ViT of patches of 8 pixels; its classifier is the teacher's alone to use."""
    torch.manual_seed(seed)
    return timm.create_model(
        'vit_tiny_patch16_224', img_size=SIDE, patch_size=8, embed_dim=width, depth=depth, num_heads=width // 32,
        num_classes=10,
    )  # fmt: skip


def train_teacher(model: nn.Module, data: ImageDataset, seed: int, settings: Settings) -> nn.Module:
    """Cross entropy with the labels, AdamW and a one-cycle learning rate, on whole digits."""
    images = torch.stack([torch.from_numpy(np.array(data.image(i))) for i in range(len(data))])
    images, labels = (images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5, torch.from_numpy(data.labels)
    steps = len(images) // settings.batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=settings.teacher_epochs * steps)
    torch.manual_seed(seed)
    model.train()
    for _ in range(settings.teacher_epochs):
        for chosen in torch.randperm(len(images))[: steps * settings.batch].view(steps, -1):
            optimizer.zero_grad()
            F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


class WithoutLabels(Dataset):
    """Views with a label of 0, which timm's task asks for and which has no weight in its loss."""

    def __init__(self, views: FeatureViews) -> None:
        self.views = views

    def __len__(self) -> int:
        return len(self.views)

    def __getitems__(self, places: list) -> list:
        return [(view[0], 0) for view in self.views.__getitems__(places)]


def train_timms(
    student: nn.Module, teacher: nn.Module, data: ImageDataset, recipe: Recipe, output: Path, seed: int
) -> nn.Module:
    """timm's task in our loop, on the views that our students see."""
    torch.manual_seed(seed)
    task = FeatureDistillationTask(
        student, teacher, criterion=nn.CrossEntropyLoss(), distill_loss_weight=1.0, task_loss_weight=0.0, verbose=False
    )
    takes = ModelInput((SIDE, SIDE), (0.5,) * 3, (0.5,) * 3)
    spec = ViewSpec((SIDE, SIDE), scale=recipe.crop_area, hflip=recipe.flip, color_jitter=None)
    views = WithoutLabels(FeatureViews(data, spec, seed, takes, takes))
    sampler = ViewSampler(len(data), recipe.batch_size, seed, range(recipe.epochs))
    train_task(
        task,
        views,
        sampler,
        recipe,
        output,
        dict(method=TIMM),
        seed=seed,
        device=torch.device('cpu'),
        say=lambda t: None,
    )
    return student


def train_mae(data: ImageDataset, output: Path, seed: int, settings: Settings) -> nn.Module:
    """MAE with an encoder of the student's size, in as many steps by the same recipe."""
    torch.manual_seed(seed)
    form = MaskedAutoencoder(
        SIDE, 8, embed_dim=settings.student_width, depth=settings.student_depth, num_heads=settings.student_width // 32,
        decoder_embed_dim=settings.student_width // 2, decoder_num_heads=2,
    )  # fmt: skip
    form.pretrained_cfg = dict(input_size=(3, SIDE, SIDE), mean=(0.5,) * 3, std=(0.5,) * 3)
    recipe = settings.recipe.fitted(len(data))
    mae(form, data, recipe, seed=seed, device=torch.device('cpu'), say=lambda text: None).train(output)
    return form


def worth(model: nn.Module, train: ImageDataset, test: ImageDataset, seed: int) -> dict[str, float]:
    """Accuracies of the frozen encoder in %, by measure."""
    rest, held = stratified_split(train.labels, 0.1, seed)
    accuracies = []
    for layers in LAYERS:
        bank, queries = (extract(model, data, layers=layers, progress=False).values for data in (train, test))
        accuracies.append(knn.run(bank, train.labels, queries, test.labels, (K,)).accuracy[K])
        bank, queries = bank.numpy(), queries.numpy()
        fitted = ridge.probe(
            bank[rest], train.labels[rest], bank[held], train.labels[held], queries, test.labels, num_classes=10
        )
        accuracies.append(fitted.test)
    return dict(zip(MEASURES, accuracies, strict=True))


def run_seed(seed: int, settings: Settings, folder: Path) -> dict:
    """Train a teacher and its students. Returns accuracies by name and measure."""
    train, test = (load_dataset('digits', part, seed=seed) for part in ('train', 'test'))
    train = train if settings.images is None else train.subset(range(settings.images))
    teacher = vit(1000 + seed, settings.teacher_width, settings.teacher_depth)
    train_teacher(teacher, train, seed, settings)
    random = vit(seed, settings.student_width, settings.student_depth)
    found = {RANDOM: worth(random, train, test, seed), TEACHER: worth(teacher, train, test, seed)}
    for number, (name, arguments) in enumerate(OURS.items()):
        student = vit(seed, settings.student_width, settings.student_depth)
        distil_features(
            student, FeatureTeacher.of_timm(teacher, TEACHER), train, folder / f'{number}', recipe=settings.recipe,
            seed=seed, device=torch.device('cpu'), say=lambda text: None, **arguments,
        )  # fmt: skip
        found[name] = worth(student, train, test, seed)
    student = vit(seed, settings.student_width, settings.student_depth)
    recipe = settings.recipe.fitted(len(train))
    found[TIMM] = worth(train_timms(student, teacher, train, recipe, folder / 'timm', seed), train, test, seed)
    found[MAE] = worth(train_mae(train, folder / 'mae', seed, settings), train, test, seed)
    return found


def results_of(seeds: int, settings: Settings, output: Path, say: Callable[[str], None]) -> dict[int, dict]:
    """Accuracies by seed: those in the folder, and the missing ones, each written when it is done."""
    results = {}
    for seed in range(seeds):
        path = seed_file(output, seed)
        if path.exists():
            kept = json.loads(path.read_text())
            if kept['settings'] != asdict(settings):
                raise SystemExit(f'{path} was made with other settings: choose another --output, or delete it.')
        else:
            seconds, found = timed(lambda seed=seed: run_seed(seed, settings, output / 'runs' / f'{seed}'))
            kept = dict(settings=asdict(settings), seed=seed, cpu_seconds=round(seconds, 1), accuracy=found)
            write_json(path, kept)
            say(f'seed {seed}: {seconds:.0f} s of CPU')
        results[seed] = kept
    return results


def summarise(results: dict[int, dict]) -> dict:
    """Means by name and measure, and paired differences, each with its 95 % interval."""

    def values(name: str, measure: str) -> list[float]:
        return [result['accuracy'][name][measure] for result in results.values()]

    names = (RANDOM, MAE, TIMM, *OURS, TEACHER)
    rows = {name: {measure: interval(values(name, measure)) for measure in MEASURES} for name in names}
    pairs = []
    for one, other in PAIRS:
        for measure in MEASURES:
            apart = [a - b for a, b in zip(values(one, measure), values(other, measure), strict=True)]
            pairs.append(dict(one=one, other=other, measure=measure, **interval(apart)))
    return dict(rows=rows, pairs=pairs)


def table(summary: dict, seeds: int) -> str:
    """All of it as text."""
    lines = [f'Test accuracy of frozen encoders in per cent, mean and 95 % interval over {seeds} seeds']
    lines.append(f'  {"":34s}' + ''.join(f'{measure:>20s}' for measure in MEASURES))
    for name, row in summary['rows'].items():
        cells = (f'{row[measure]["mean"]:9.2f} ± {row[measure]["half_width"]:5.2f}' for measure in MEASURES)
        lines.append(f'  {name:34s}' + ''.join(f'{cell:>20s}' for cell in cells))
    lines.append('Paired differences')
    for pair in summary['pairs']:
        sure = {0: '', 1: 'above 0', -1: 'below 0'}[sign_of(pair['mean'], pair['half_width'])]
        what = f'{pair["one"]} - {pair["other"]}, {pair["measure"]}'
        lines.append(f'  {what:76s}{pair["mean"]:+7.2f} ± {pair["half_width"]:5.2f}  {sure}')
    return '\n'.join(lines)


def run(seeds: int, settings: Settings, output: Path, say: Callable[[str], None] = print) -> dict:
    """Make what is missing, and write results.json. Returns what it holds."""
    with torch.random.fork_rng(devices=[]), one_thread():
        results = results_of(seeds, settings, output, say)
    summary = summarise(results)
    say('\n' + table(summary, len(results)))
    report = dict(**summary, settings=asdict(settings), versions=versions(), seeds=list(results.values()))
    write_json(output / 'results.json', report)
    return report


def main() -> None:
    args = seeds_parser(__doc__, 'feature_distillation').parse_args()
    run(args.seeds, Settings(), args.output, tqdm.write)


if __name__ == '__main__':
    main()
