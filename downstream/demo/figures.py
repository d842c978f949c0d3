"""The demo's own figures: images with the model's predictions, and training curves."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from .digits import CLASSES, DemoImages

__all__ = ['Epoch', 'contact_sheet', 'training_curves']

COLUMNS = 12
CELL_WIDTH, CELL_HEIGHT, TITLE_HEIGHT = 1.0, 1.42, 0.6  # inches
RIGHT, WRONG, QUIET = '#1a7f37', '#d1242f', '#59636e'


@dataclass(frozen=True)
class Epoch:
    """Mean training loss of an epoch, and the accuracies (0..1) on held-out images after it."""

    loss: float
    digits: float
    crops: float


def contact_sheet(held_out: DemoImages, probabilities: torch.Tensor, path: Path, seed: int = 0) -> None:
    """Draw random held-out digits and crops with their predictions, then as many mistakes as there is room for.

    Args:
        held_out: N held-out images.
        probabilities: (N, K).
        path: PNG file.
        seed: Of the choice.
    """
    predictions = probabilities.argmax(dim=1)
    sections = _sections(held_out, predictions, np.random.default_rng(seed))
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
            label, predicted = int(held_out.targets[i]), int(predictions[i])
            _cell(axis, held_out.images[i], label, predicted, float(probabilities[i].max()))
    figure.savefig(path)


def _sections(held_out: DemoImages, predictions: torch.Tensor, rng: np.random.Generator) -> list[tuple[str, list[int]]]:
    """Title and image indices of each part of the sheet."""
    digits = held_out.is_digit.nonzero()[:, 0].numpy()
    crops = (~held_out.is_digit).nonzero()[:, 0].numpy()
    sections = [
        ('Random held-out digits', _choose(rng, digits, 3 * COLUMNS)),
        ('Random held-out photo crops', _choose(rng, crops, 2 * COLUMNS)),
    ]
    wrong = (predictions != held_out.targets).nonzero()[:, 0].tolist()
    if wrong:
        shown = wrong[: 3 * COLUMNS]
        which = f'All {len(wrong)}' if len(shown) == len(wrong) else f'The first {len(shown)} of {len(wrong)}'
        sections.append((f'{which} mistakes among {len(held_out)} held-out images', shown))
    return sections


def _rows(chosen: list[int]) -> int:
    return -(-len(chosen) // COLUMNS)


def _choose(rng: np.random.Generator, indices: np.ndarray, most: int) -> list[int]:
    return sorted(rng.choice(indices, size=min(most, len(indices)), replace=False).tolist())


def _cell(axis: Axes, image: Image.Image, target: int, predicted: int, probability: float) -> None:
    """One image with its predicted and true class."""
    axis.imshow(image.resize((128, 128), Image.Resampling.BICUBIC))
    right = target == predicted
    axis.text(
        0.5, -0.05, f'{CLASSES[predicted]}  {probability:.0%}', transform=axis.transAxes, ha='center', va='top',
        fontsize=8.5, color=RIGHT if right else WRONG, fontweight='bold',
    )  # fmt: skip
    axis.text(
        0.5, -0.23, f'true: {CLASSES[target]}', transform=axis.transAxes, ha='center', va='top',
        fontsize=7.5, color=QUIET if right else WRONG,
    )  # fmt: skip


def training_curves(history: Sequence[Epoch], path: Path) -> None:
    """Draw the training loss and the held-out accuracies by epoch."""
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
        axis.xaxis.set_major_locator(MaxNLocator('auto', steps=[1, 2, 5, 10], integer=True))
    figure.savefig(path)
