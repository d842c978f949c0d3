"""The CPU time of an update: our trainers beside a plain loop, and beside lightly-train 0.18's distillation.

Both sides of a comparison train in one process, in turn, on one thread. Trainers take turns with their plain loop after
every update, see `plain_loops.py`. lightly-train cannot: there an update is timed from one call of the teacher to the
next, images included, and the median is taken over all updates but the first of each epoch, which may save a state; the
order of the sides is reversed every other round.

    python benchmarks/pretrain.py                              # all comparisons
    python benchmarks/pretrain.py features --rounds 3          # those whose name begins so
    python benchmarks/pretrain.py teacher                      # what the teacher of each method takes of an update

Where lightly-train is not installed, what needs it is skipped with a sentence.
"""

import argparse
import contextlib
import importlib.util
import io
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import plain_loops
import torch
import torch.nn.functional as F
from timing import print_machine, write_figures
from torch import nn

import tinyvit_zoo  # noqa: F401  registers the models
from tinyvit_zoo.cli.evaluator_options import load_backbone
from tinyvit_zoo.common.determinism import one_thread
from tinyvit_zoo.data import load_dataset
from tinyvit_zoo.data.replay import ModelInput, ViewSpec
from tinyvit_zoo.data.transforms import data_config
from tinyvit_zoo.downstream import knn
from tinyvit_zoo.downstream.features import extract
from tinyvit_zoo.training import distil_features
from tinyvit_zoo.training.feature_views import FeatureViews
from tinyvit_zoo.training.recipes.features import FEATURES
from tinyvit_zoo.training.soft_label_views import ViewSampler

SIDE, BATCH, IMAGES, EPOCHS, K = 96, 32, 192, 2, 10
RECIPE = FEATURES.changed(epochs=EPOCHS, warmup_epochs=0, batch_size=BATCH)
TIMMS, OURS = 'tiny_vit_5m_224', 'tinyvit_5m_224'
PER_EPOCH = IMAGES // BATCH


def seeded(name: str) -> nn.Module:
    """A model with random weights for images of that size, which timm's TinyViT takes by its transform alone."""
    return load_backbone(name, None, False, (SIDE, SIDE), 0, num_classes=0)


class Clock:
    """CPU seconds at each call of a teacher with a whole batch."""

    def __init__(self, teacher: nn.Module) -> None:
        self.calls: list[float] = []
        first = next(module for module in teacher.modules() if isinstance(module, nn.Conv2d))
        first.register_forward_pre_hook(self._called)

    def _called(self, module: nn.Module, args: tuple) -> None:
        if len(args[0]) == BATCH:
            self.calls.append(time.process_time())

    def updates(self) -> list[float]:
        """CPU seconds of each update but the last, and the first, of an epoch."""
        gaps = np.diff(self.calls).tolist()
        return [gap for i, gap in enumerate(gaps) if i % PER_EPOCH not in (0, PER_EPOCH - 1)]


def photographs(folder: Path) -> Path:
    """IMAGES textures as PNG files directly in a folder."""
    data = load_dataset('textures', 'train')
    for i in np.linspace(0, len(data) - 1, IMAGES).astype(int):
        data.image(int(i)).save(folder / f'{i:04d}.png')
    return folder


# the sides: each trains a student under a teacher and returns the student


def train_ours(student: nn.Module, teacher: nn.Module, folder: Path) -> nn.Module:
    with tempfile.TemporaryDirectory() as output:
        return distil_features(
            student, teacher, folder, output, recipe=RECIPE, device=torch.device('cpu'), say=lambda text: None
        ).student


def train_plainly(student: nn.Module, teacher: nn.Module, folder: Path) -> nn.Module:
    """The same work in a plain loop, on the same views, at a constant rate; no state is saved and no loss recorded."""
    from tinyvit_zoo.data.unlabelled import load_unlabelled

    teacher.eval().requires_grad_(False)
    torch.manual_seed(0)
    maps = nn.ModuleList([nn.Linear(student.num_features, teacher.num_features) for _ in range(2)])
    named = [*student.named_parameters(), *maps.named_parameters()]
    spared = {name for name, p in named if p.ndim <= 1} | set(student.no_weight_decay())
    groups = [
        dict(params=[p for name, p in named if (name in spared) == spare], weight_decay=0.0 if spare else 0.05)
        for spare in (True, False)
    ]
    adamw = torch.optim.AdamW(groups, lr=1e-3)
    takes = [ModelInput((SIDE, SIDE), c['mean'], c['std']) for c in map(data_config, (student, teacher))]
    spec = ViewSpec((SIDE, SIDE), scale=RECIPE.crop_area, color_jitter=None)
    views = FeatureViews(load_unlabelled(str(folder)), spec, 0, *takes)
    sampler = ViewSampler(IMAGES, BATCH, 0, range(EPOCHS))
    student.train()
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        for images, theirs in torch.utils.data.DataLoader(views, BATCH, sampler=sampler):
            with torch.no_grad():
                targets = teacher.forward_features(theirs)
                whitened = F.layer_norm(teacher.forward_head(targets, pre_logits=True), targets.shape[-1:])
                grid = F.layer_norm(targets[:, 1:], targets.shape[-1:])
            last = student.forward_features(images)
            pooled = maps[0](student.forward_head(last, pre_logits=True))
            dense = maps[1](last.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            dense = F.interpolate(dense, (SIDE // 16, SIDE // 16), mode='bilinear').flatten(2).transpose(1, 2)
            loss = F.smooth_l1_loss(pooled, whitened, beta=2.0) + F.smooth_l1_loss(dense, grid, beta=2.0)
            adamw.zero_grad()
            (0.5 * loss).backward()
            nn.utils.clip_grad_norm_([p for _, p in named], 5.0)
            adamw.step()
    return student.eval()


def train_lightly(student: nn.Module, teacher: nn.Module, folder: Path) -> nn.Module:
    """lightly-train's `distillation` (its version 3) with crops and flips alone, as ours; the optimizer is its own."""
    import lightly_train

    views = dict(image_size=(SIDE, SIDE), color_jitter=None, random_gray_scale=None, gaussian_blur=None)
    quiet = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as output, contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet),
        warnings.catch_warnings(),
    ):  # fmt: skip
        warnings.simplefilter('ignore')
        lightly_train.pretrain(
            out=output, data=folder, model=student, method='distillation', method_args=dict(teacher=teacher),
            epochs=EPOCHS, batch_size=BATCH, num_workers=0, accelerator='cpu', devices=1, precision='32-true',
            overwrite=True, transform_args=views, loggers=dict(tensorboard=None),
        )  # fmt: skip
        exported = torch.load(Path(output) / 'exported_models' / 'exported_last.pt', weights_only=True)
    student.load_state_dict(exported)
    return student.eval()


SIDES: dict[str, tuple[Callable[..., nn.Module], str]] = {
    'ours': (train_ours, TIMMS),
    'ours, our TinyViT': (train_ours, OURS),
    'plain loop': (train_plainly, TIMMS),
    'lightly-train': (train_lightly, TIMMS),
}
COMPARISONS = {  # (ours, other side, largest ratio of the times)
    'features/plain loop': ('ours', 'plain loop', 1.03),
    'features/lightly-train': ('ours', 'lightly-train', 1.0),
    'features/lightly-train, our TinyViT': ('ours, our TinyViT', 'lightly-train', 0.95),
}

UPDATE, TEACHER = '/plain loop', 'teacher'  # ends, and is, the name of a row


def time_side(name: str, folder: Path) -> tuple[list[float], nn.Module]:
    """CPU seconds of updates of one training, and the student."""
    train, architecture = SIDES[name]
    teacher, student = seeded('test_vit'), seeded(architecture).train()
    clock = Clock(teacher)
    student = train(student, teacher, folder)
    assert len(clock.calls) == EPOCHS * PER_EPOCH, f'{name}: {len(clock.calls)} updates'
    return clock.updates(), student


def nearest(student: nn.Module) -> float:
    """kNN accuracy on the test textures in %, with features of the train ones."""
    train, test = (load_dataset('textures', part) for part in ('train', 'test'))
    bank, queries = (extract(student, part, progress=False).values for part in (train, test))
    return knn.run(bank, train.labels, queries, test.labels, (K,)).accuracy[K]


def teachers_share() -> float:
    """CPU time of the teacher's pass over that of the teacher's and the student's passes together."""
    student, teacher, images = seeded(TIMMS).train(), seeded('test_vit').eval(), torch.randn(BATCH, 3, SIDE, SIDE)

    def measured(call: Callable[[], object]) -> float:
        start = time.process_time()
        call()
        return time.process_time() - start

    alone = statistics.median(measured(lambda: student(images).sum().backward()) for _ in range(5))
    with torch.no_grad():
        taught = statistics.median(measured(lambda: teacher.forward_features(images)) for _ in range(5))
    return taught / (alone + taught)


def run(chosen: list[str], rounds: int, figures: Path | None) -> None:
    sides = list(dict.fromkeys(side for name in chosen for side in COMPARISONS[name][:2]))
    if 'lightly-train' in sides and importlib.util.find_spec('lightly_train') is None:
        print('lightly-train is not installed: what is compared with it is skipped (pip install lightly-train==0.18).')
        chosen = [name for name in chosen if 'lightly-train' not in COMPARISONS[name]]
        sides = list(dict.fromkeys(side for name in chosen for side in COMPARISONS[name][:2]))
    where, _ = print_machine(rounds)
    times: dict[str, list[list[float]]] = {side: [] for side in sides}
    students: dict[str, nn.Module] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = photographs(Path(place))
        for number in range(rounds):
            for side in sides[:: 1 if number % 2 == 0 else -1]:
                updates, students[side] = time_side(side, folder)
                times[side].append(updates)
    medians = {side: [statistics.median(updates) for updates in of] for side, of in times.items()}
    print(f'\n{IMAGES} textures at {SIDE} pixels, batch {BATCH}, {EPOCHS} epochs, teacher test_vit (random weights)')
    near = {side: nearest(student) for side, student in students.items()}
    for side, of in medians.items():
        ms = 1000 * statistics.median(of) / BATCH
        print(
            f'  {side:20s} {ms:6.1f} ms an image; kNN (k = {K}) after {EPOCHS * PER_EPOCH} updates {near[side]:.1f} %'
        )
    ratios = {}
    for name in chosen:
        ours, theirs, limit = COMPARISONS[name]
        ratios[name] = statistics.median(a / b for a, b in zip(medians[ours], medians[theirs], strict=True))
        print(f'  {name:36s} {ratios[name]:5.3f}   limit {limit:.2f} {"met" if ratios[name] <= limit else "MISSED"}')
    share = teachers_share()
    print(f"  teacher's share of both passes: {share:.1%}")
    write_figures(figures, where=where, seconds=times, ratios=ratios, knn=near, teachers_share=share)


def run_updates(names: list[str], figures: Path | None) -> None:
    """Trainers and plain loops, an update in turn."""
    where, _ = print_machine(1)
    count = plain_loops.EPOCHS * (plain_loops.PER_EPOCH - 2)
    print(
        f'\nCPU time of an update, {count} updates in turn: digits at {plain_loops.SIDE} pixels, batch '
        f'{plain_loops.BATCH}; 95 % interval of the median'
    )
    found = {}
    for name in names:
        found[name] = timed = plain_loops.compare(name)
        ours, plain = (1000 * statistics.median(times) / plain_loops.BATCH for times in (timed.ours, timed.plain))
        verdict = 'met' if timed.ratio <= plain_loops.LIMIT else 'MISSED'
        print(
            f'  {name + UPDATE:20s} {timed.ratio:5.3f} ({timed.interval[0]:5.3f} to {timed.interval[1]:5.3f})   limit '
            f'{plain_loops.LIMIT:.2f} {verdict}; {ours:.1f} and {plain:.1f} ms an image; weights apart by at most '
            f'{timed.apart:.0e}'
        )
    write_figures(figures, where=where, updates={name: vars(timed) for name, timed in found.items()})


def run_teachers(rounds: int, figures: Path | None) -> None:
    """What the teacher of each method takes of an update."""
    where, _ = print_machine(rounds)
    print(f'\nCPU time of both passes on {plain_loops.BATCH} digits, ms an image; in parentheses', end=' ')
    print('a 95 % interval of the median' if rounds > 5 else 'the lowest and the highest')
    found = {}
    for name in plain_loops.with_teacher():
        found[name] = share = plain_loops.share_of_teacher(name, rounds)
        alone, both = (1000 * statistics.median(times) / plain_loops.BATCH for times in (share.alone, share.both))
        low, high = share.interval
        blocks = '{} of {} blocks of the teacher run'.format(*share.blocks)
        print(
            f'  {name:20s} student {alone:5.1f}, with its teacher {both:5.1f}: share {share.share:.1%} ({low:.1%} to '
            f'{high:.1%}); {blocks}'
        )
    write_figures(figures, where=where, teachers={name: vars(share) for name, share in found.items()})


def main() -> None:
    rows = [*COMPARISONS, *(name + UPDATE for name in plain_loops.TRAINERS), TEACHER]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('rows', nargs='?', default='', help='how the names of the comparisons begin (default: all)')
    parser.add_argument('--rounds', type=int, default=3, help='of features and of the teachers (default 3)')
    parser.add_argument('--figures', type=Path, help='folder for JSON files of all measurements')
    args = parser.parse_args()
    chosen = [name for name in rows if name.startswith(args.rows)]
    if not chosen:
        parser.error(f'no comparison begins with {args.rows}: take one of {", ".join(rows)}')
    for name in ('lightly_train', 'lightning.fabric', 'lightning_fabric', 'pytorch_lightning'):
        logging.getLogger(name).setLevel(logging.ERROR)
    features = [name for name in chosen if name in COMPARISONS]
    updates = [name.removesuffix(UPDATE) for name in chosen if name.removesuffix(UPDATE) in plain_loops.TRAINERS]
    with one_thread():
        if updates:
            run_updates(updates, _file(args.figures, 'updates'))
        if TEACHER in chosen:
            run_teachers(args.rounds, _file(args.figures, 'teachers'))
        if features:
            run(features, args.rounds, _file(args.figures, 'features'))


def _file(folder: Path | None, name: str) -> Path | None:
    if folder is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f'{name}.json'


if __name__ == '__main__':
    main()
