"""The demo's two figures: pictures with what the model made of them, and the course of the training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from .digits import CLASSES, Pictures

__all__ = ['Epoch', 'contact_sheet', 'training_curves']

COLUMNS = 12
CELL_WIDTH, CELL_HEIGHT, TITLE_HEIGHT = 1.0, 1.42, 0.6  # inches
RIGHT, WRONG, QUIET = '#1a7f37', '#d1242f', '#59636e'


@dataclass(frozen=True)
class Epoch:
    """Mean training loss of an epoch, and the accuracies on held-out pictures (0..1) after it."""

    loss: float
    digits: float
    crops: float


def contact_sheet(pictures: Pictures, probabilities: torch.Tensor, path: Path, seed: int = 0) -> None:
    """Draw a random choice of held-out digits and crops, and then all mistakes, as far as there is room.

    Args:
        pictures: Held-out pictures.
        probabilities: (N, K).
        path: PNG file.
        seed: Of the choice.
    """
    answers = probabilities.argmax(dim=1)
    sections = _sections(pictures, answers, np.random.default_rng(seed))
    heights = [_rows(chosen) * CELL_HEIGHT + TITLE_HEIGHT for _, chosen in sections]
    figure = Figure(figsize=(COLUMNS * CELL_WIDTH, sum(heights)), dpi=110, facecolor='white')
    parts = figure.subfigures(len(sections), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, height, (title, chosen) in zip(parts, heights, sections, strict=True):
        part.suptitle(title, x=0.012, y=1 - 0.2 / height, va='top', ha='left', fontsize=11, fontweight='bold')
        axes = part.subplots(_rows(chosen), COLUMNS, squeeze=False)
        part.subplots_adjust(
            left=0.012, right=0.988, top=1 - TITLE_HEIGHT / height, bottom=0.42 / height, wspace=0.1, hspace=0.48
        )
        for axis in axes.flat:
            axis.axis('off')
        for axis, i in zip(axes.flat, chosen, strict=False):
            _cell(axis, pictures.images[i], int(pictures.targets[i]), int(answers[i]), float(probabilities[i].max()))
    figure.savefig(path)


def _sections(pictures: Pictures, answers: torch.Tensor, rng: np.random.Generator) -> list[tuple[str, list[int]]]:
    """Title and picture indices of each part of the sheet."""
    digits = pictures.is_digit.nonzero()[:, 0].numpy()
    crops = (~pictures.is_digit).nonzero()[:, 0].numpy()
    sections = [
        ('Held-out digits, chosen at random', _choose(rng, digits, 3 * COLUMNS)),
        ('Held-out photo crops, chosen at random', _choose(rng, crops, 2 * COLUMNS)),
    ]
    wrong = (answers != pictures.targets).nonzero()[:, 0].tolist()
    if wrong:
        shown = wrong[: 3 * COLUMNS]
        which = f'All {len(wrong)}' if len(shown) == len(wrong) else f'The first {len(shown)} of {len(wrong)}'
        sections.append((f'{which} wrong answers among {len(pictures)} held-out pictures', shown))
    return sections


def _rows(chosen: list[int]) -> int:
    return -(-len(chosen) // COLUMNS)


def _choose(rng: np.random.Generator, indices: np.ndarray, most: int) -> list[int]:
    return sorted(rng.choice(indices, size=min(most, len(indices)), replace=False).tolist())


def _cell(axis, image: Image.Image, target: int, answer: int, probability: float) -> None:
    axis.imshow(image.resize((128, 128), Image.Resampling.BICUBIC))
    right = target == answer
    axis.text(
        0.5, -0.05, f'{CLASSES[answer]}  {probability:.0%}', transform=axis.transAxes, ha='center', va='top',
        fontsize=8.5, color=RIGHT if right else WRONG, fontweight='bold',
    )  # fmt: skip
    axis.text(
        0.5, -0.23, f'true: {CLASSES[target]}', transform=axis.transAxes, ha='center', va='top',
        fontsize=7.5, color=QUIET if right else WRONG,
    )  # fmt: skip


def training_curves(history: Sequence[Epoch], path: Path) -> None:
    """Draw training loss and held-out accuracies over the epochs."""
    figure = Figure(figsize=(9, 3.6), dpi=110, facecolor='white', layout='constrained')
    left, right = figure.subplots(1, 2)
    epochs = range(1, len(history) + 1)
    left.plot(epochs, [e.loss for e in history], color='#0969da', marker='.')
    left.set(title='Training loss', xlabel='epoch', ylabel='cross-entropy', ylim=(0, None))
    for label, values, color in (
        ('digits', [e.digits for e in history], '#1a7f37'),
        ('photo crops', [e.crops for e in history], '#bc4c00'),
    ):
        right.plot(epochs, [100 * v for v in values], color=color, marker='.', label=f'{label}: {values[-1]:.1%}')
    right.set(title='Held-out accuracy', xlabel='epoch', ylabel='%', ylim=(0, 103))
    right.legend(loc='lower right', frameon=False)
    for axis in (left, right):
        axis.spines[['top', 'right']].set_visible(False)
        axis.grid(alpha=0.25)
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path)
