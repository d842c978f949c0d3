"""Table 1 of the MiniViT paper in miniature: what sharing costs, and what transformation and distillation give back.

A small timm VisionTransformer, the teacher, learns scikit-learn's handwritten digits. From it come four students with
a quarter of its layers' weights: WS (weights shared), WS+WT (and transformed: head mixing of its own for every layer),
WS+WD (and distilled: the released Mini-Swin losses, no ground truth), WS+WT+WD. All four start from the teacher's
first layer of each group and see the same images, shifts and number of steps in the same order; WS and WS+WT learn
from the labels. The teacher knows more than the students' images show: it was trained on three times as many.
Accuracy is measured on images that no model was trained on; the number of steps is fixed beforehand.

    python benchmarks/weight_multiplexing.py                       # 5 seeds
    python benchmarks/weight_multiplexing.py --seeds 10            # adds the missing ones to the 5

Every finished seed is kept: started again after a kill, the benchmark resumes with the next.
"""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from seeds import interval, results_of, seeds_parser, sign_of, versions, write_json
from sklearn import datasets
from sklearn.model_selection import train_test_split
from timm.models import VisionTransformer
from timm.optim import param_groups_weight_decay
from torch import nn
from tqdm import tqdm

from tinyvit_zoo.common.determinism import one_thread
from tinyvit_zoo.common.files import new_file
from tinyvit_zoo.compress import multiplex
from tinyvit_zoo.distill import MINI_SWIN, FeatureTap, match_layers
from tinyvit_zoo.downstream.demo.digits import SIZE
from tinyvit_zoo.downstream.demo.run import shift

TEACHER = 'unshared (teacher)'
STUDENTS = {  # name -> (transformation, distillation), in the order of the paper's accuracies
    'WS': (False, False),
    'WS+WT': (True, False),
    'WS+WD': (False, True),
    'WS+WT+WD': (True, True),
}
ORDER = tuple(STUDENTS)
PAPER = {  # Table 1, ImageNet-1K top-1 in per cent; the columns as the text of Sec. 4.2 assigns the rows
    'DeiT-S': {TEACHER: 79.9, 'WS': 78.3, 'WS+WT': 79.3, 'WS+WD': 80.1, 'WS+WT+WD': 80.7},
    'Swin-T': {TEACHER: 81.2, 'WS': 79.0, 'WS+WT': 79.2, 'WS+WD': 79.8, 'WS+WT+WD': 81.4},
}
PAIRS = [  # (better, worse) according to the paper: neighbors in its order, then everything against plain sharing
    *zip(ORDER[1:], ORDER[:-1], strict=True),
    *[(name, 'WS') for name in ORDER[2:]],
]


@dataclass(frozen=True)
class Settings:
    """Everything that a seed's result depends on. `images` are numbers of training images; those of the students are
    among those of the teacher, and all others of the 1797 are held out."""

    teacher_images: int = 900
    student_images: int = 300
    teacher_epochs: int = 60
    student_epochs: int = 60
    teacher_lr: float = 3e-3
    student_lr: float = 2e-3
    batch: int = 50
    embed_dim: int = 48
    depth: int = 8
    num_heads: int = 4
    share_every: int = 4

    @property
    def steps(self) -> int:
        """Optimizer steps of one seed."""
        teacher = self.teacher_images // self.batch * self.teacher_epochs
        return teacher + len(STUDENTS) * (self.student_images // self.batch * self.student_epochs)


def load_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """All digits (1797, 1, SIZE, SIZE) with mean about 0 and standard deviation about 1, and their labels."""
    bunch = datasets.load_digits()
    # The order in which the published figures were measured.
    parts = train_test_split(bunch.images, bunch.target, test_size=0.25, random_state=0, stratify=bunch.target)
    scans, targets = np.concatenate(parts[:2]), np.concatenate(parts[2:])
    images = [Image.fromarray((scan * (255 / 16)).round().astype(np.uint8)) for scan in scans]
    pixels = np.stack([np.array(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for image in images])
    pixels = torch.from_numpy(pixels)[:, None] / 255
    return (pixels - pixels.mean()) / pixels.std(), torch.from_numpy(targets)


def train(
    model: nn.Module,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    targets: torch.Tensor,
    epochs: int,
    lr: float,
    batch: int,
    done: Callable[[], object],
) -> None:
    """AdamW with a one-cycle learning rate on images shifted at random; `loss` takes images and their labels."""
    model.train()
    steps = len(images) // batch
    groups = param_groups_weight_decay(model, 0.05, model.no_weight_decay())
    optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps, pct_start=0.2)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images))[: steps * batch].view(steps, batch):
            optimizer.zero_grad()
            loss(shift(images[chosen]), targets[chosen]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            done()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> float:
    """Share of right answers in per cent."""
    answers = torch.cat([model(batch).argmax(dim=1) for batch in images.split(256)])
    return 100 * (answers == targets).float().mean().item()


@contextmanager
def objective(student: nn.Module, teacher: nn.Module | None) -> Iterator[Callable[..., torch.Tensor]]:
    """Loss of the student: the labels' cross-entropy, or with a teacher the released Mini-Swin recipe."""
    if teacher is None:
        yield lambda images, targets: F.cross_entropy(student(images), targets)
        return
    depth = len(student.blocks)
    layers, teacher_layers = match_layers((depth,), (depth,))
    with FeatureTap(student, layers) as ours, FeatureTap(teacher, teacher_layers, grad=False) as theirs:

        def distillation(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            logits, features = ours(images)
            teacher_logits, teacher_features = theirs(images)
            return MINI_SWIN(
                logits,
                teacher_logits,
                student_qkv=features.qkv,
                teacher_qkv=teacher_features.qkv,
                student_hidden=features.hidden,
                teacher_hidden=teacher_features.hidden,
            )['total']

        yield distillation


def run_seed(seed: int, settings: Settings, done: Callable[[], object] = lambda: None) -> dict:
    """Train a teacher and its four students.

    Args:
        seed: Of the split, the initial weights, the order and the shifts.
        settings: The rest.
        done: Called after every step.

    Returns:
        'accuracy' and 'before' (training) by name in per cent, 'parameters' by name.
    """
    images, targets = load_digits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    images, targets = images[order], targets[order]
    known, own = slice(settings.teacher_images), slice(settings.student_images)
    held_out = images[settings.teacher_images :], targets[settings.teacher_images :]

    torch.manual_seed(seed)
    teacher = VisionTransformer(
        img_size=SIZE, patch_size=SIZE // 4, in_chans=1, num_classes=10, embed_dim=settings.embed_dim,
        depth=settings.depth, num_heads=settings.num_heads, mlp_ratio=2,
    )  # fmt: skip
    train(
        teacher, lambda x, y: F.cross_entropy(teacher(x), y), images[known], targets[known],
        settings.teacher_epochs, settings.teacher_lr, settings.batch, done,
    )  # fmt: skip
    models, before = {TEACHER: teacher}, {}
    for name, (transform, distil) in STUDENTS.items():
        # Not fitted to the teacher, as `multiplex` can do: that would be distillation for all four.
        student = multiplex(teacher, settings.share_every, transform, init='first')
        before[name] = accuracy(student, *held_out)
        torch.manual_seed(seed)  # the same order and shifts for every student
        with objective(student, teacher if distil else None) as loss:
            train(
                student, loss, images[own], targets[own],
                settings.student_epochs, settings.student_lr, settings.batch, done,
            )  # fmt: skip
        models[name] = student
    return dict(
        accuracy={name: accuracy(model, *held_out) for name, model in models.items()},
        before=before,
        parameters={name: sum(p.numel() for p in model.parameters()) for name, model in models.items()},
        held_out=len(held_out[1]),
    )


# what they say


def summarise(results: dict[int, dict]) -> dict:
    """Means and paired differences with their intervals, and what they say about the paper's order.

    Args:
        results: By seed, as `results_of` gives them.

    Returns:
        'rows' by name; 'pairs', each with 'better' and 'worse' (as in the paper), the interval of the difference and
        a 'verdict'; 'order', the students from worst to best mean; 'order_holds', whether that is the paper's.
    """
    values = {name: [r['accuracy'][name] for r in results.values()] for name in (TEACHER, *ORDER)}
    rows = {name: interval(column) for name, column in values.items()}
    for name in ORDER:
        rows[name]['before'] = statistics.mean(r['before'][name] for r in results.values())
    pairs = []
    for better, worse in PAIRS:
        difference = interval([b - w for b, w in zip(values[better], values[worse], strict=True)])
        pairs.append(dict(better=better, worse=worse, **difference, verdict=verdict(**difference)))
    order = sorted(ORDER, key=lambda name: rows[name]['mean'])  # stable: a tie counts for the paper
    return dict(rows=rows, pairs=pairs, order=order, order_holds=tuple(order) == ORDER)


def verdict(mean: float, half_width: float) -> str:
    """Of a difference that the paper has above 0."""
    return {0: 'undecided', 1: 'as in the paper', -1: 'REVERSED'}[sign_of(mean, half_width)]


def table(summary: dict, results: dict[int, dict]) -> str:
    """All of it as text."""
    first = next(iter(results.values()))
    lines = [
        f'Held-out accuracy in per cent ({first["held_out"]} images), mean and 95 % interval over {len(results)} '
        'seeds; the paper: ImageNet-1K top-1, Table 1',
        f'  {"":20s}{"digits":>16s}{"before":>9s}{"parameters":>12s}' + ''.join(f'{name:>9s}' for name in PAPER),
    ]
    for name, row in summary['rows'].items():
        before = f'{row["before"]:9.2f}' if 'before' in row else f'{"":9s}'
        lines.append(
            f'  {name:20s}{row["mean"]:8.2f} ± {row["half_width"]:5.2f}{before}{first["parameters"][name]:12,d}'
            + ''.join(f'{column[name]:9.1f}' for column in PAPER.values())
        )
    lines.append('Paired differences (the paper has all of them above 0; each interval 95 % by itself)')
    for pair in summary['pairs']:
        what = f'{pair["better"]} - {pair["worse"]}'
        lines.append(f'  {what:20s}{pair["mean"]:+8.2f} ± {pair["half_width"]:5.2f}   {pair["verdict"]}')
    lines.append(conclusion(summary))
    return '\n'.join(lines)


def conclusion(summary: dict) -> str:
    """One sentence."""
    order = ' < '.join(summary['order'])
    neighbours = summary['pairs'][: len(ORDER) - 1]
    sure = sum(pair['verdict'] == 'as in the paper' for pair in neighbours)
    if summary['order_holds']:
        return (
            f"The paper's order holds here in the means, {order}; {sure} of its {len(neighbours)} steps are larger "
            'than their intervals.'
        )
    return f"The paper's order, {' < '.join(ORDER)}, does NOT hold here in the means: {order}."


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
    axis.set(
        title=f'Digits: mean and 95 % interval of {len(results)} seeds (dots)', xlabel='held-out accuracy, per cent'
    )
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
    report = dict(**summary, paper=PAPER, settings=asdict(settings), versions=versions(), seeds=list(results.values()))
    write_json(output / 'results.json', report)
    plot(summary, results, output / 'results.png')
    say(f'Written to {output}: results.json, results.png, seeds/ ({len(results)} files).')
    return report


def main() -> None:
    args = seeds_parser(__doc__, 'weight_multiplexing', 5).parse_args()
    run(args.seeds, Settings(), args.output, tqdm.write)


if __name__ == '__main__':
    main()
