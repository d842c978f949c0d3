"""What a quantized file computes beside what it computed in float32, on images that calibration did not see."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from tqdm import tqdm

from ..common.errors import EvaluationError
from ..data.class_map import ClassMap

__all__ = ['Agreement', 'Check', 'Comparison', 'Run', 'same_class']

KEPT = 1 << 28  # bytes of outputs in memory: logits of any folder, maps of Segment Anything of 64 images

Run = Callable[[np.ndarray], np.ndarray]
"""Input (1, C, H, W) to output, both float32."""
Agreement = Callable[[np.ndarray, np.ndarray], float]
"""Outputs of float32 and int8 for one image to how far they agree, 0 to 1."""


@dataclass(frozen=True)
class Comparison:
    """int8 beside float32.

    Attributes:
        images: How many.
        agreement: Mean over them of how far both agree; of classifiers the share whose most probable class is the same.
        largest: Difference of outputs, the largest.
        mean: The mean absolute one.
        scale: Largest absolute output of float32.
        accuracy: Shares of right classes, float32 and int8; None without labels that the classifier knows.
    """

    images: int
    agreement: float
    largest: float
    mean: float
    scale: float
    accuracy: tuple[float, float] | None


def same_class(expected: np.ndarray, actual: np.ndarray) -> float:
    """1 if the most probable class of both logits (1, classes) is the same, else 0; of a single logit, its sign."""
    if expected.shape[-1] == 1:
        return float((expected > 0).all() == (actual > 0).all())
    return float(expected.argmax() == actual.argmax())


class Check:
    """Compares runs with that of float32, whose outputs it keeps as far as `KEPT` goes.

    Args:
        images: Position and input of each; read anew for each comparison.
        run: Of the float32 model; called again for outputs that were not kept.
        agreement: For one image.
        labels: Of the images, by position; None compares no accuracy.
        class_map: Outputs of the classes that the labels stand for.

    Raises:
        EvaluationError: If there is no image to compare on.
    """

    def __init__(
        self,
        images: Iterable[tuple[int, np.ndarray]],
        run: Run,
        agreement: Agreement = same_class,
        labels: np.ndarray | None = None,
        class_map: ClassMap | None = None,
    ) -> None:
        self.agreement = agreement
        self._images = images
        self._run = run
        self._labels = labels
        self._class_map = class_map
        self._kept: dict[int, np.ndarray] = {}
        self._bytes = 0
        if next(iter(images), None) is None:
            raise EvaluationError(
                'There is no image for the check that can be read and that calibration did not see: name a folder of '
                'others with --check.'
            )

    def compare(self, run: Run) -> Comparison:
        """Compare another run."""
        agreements, largest, means, scales, right = [], [], [], [], []
        for i, x in tqdm(self._images, unit='image', desc='comparison', leave=False, disable=None):
            expected, actual = self._expected(i, x), run(x)
            difference = np.abs(expected - actual)
            agreements.append(self.agreement(expected, actual))
            largest.append(difference.max())
            means.append(difference.mean())
            scales.append(np.abs(expected).max())
            right.append((self._is_right(i, expected), self._is_right(i, actual)))
        accuracy = None if self._class_map is None else tuple(map(float, np.mean(right, axis=0)))
        return Comparison(
            images=len(agreements),
            agreement=float(np.mean(agreements)),
            largest=float(max(largest)),
            mean=float(np.mean(means)),
            scale=float(max(scales)),
            accuracy=cast(tuple[float, float] | None, accuracy),
        )

    def _expected(self, i: int, x: np.ndarray) -> np.ndarray:
        found = self._kept.get(i)
        if found is None:
            found = self._run(x)
            if self._bytes + found.nbytes <= KEPT:
                self._kept[i] = found
                self._bytes += found.nbytes
        return found

    def _is_right(self, i: int, logits: np.ndarray) -> bool:
        if self._class_map is None or self._labels is None:
            return False
        return int(self._class_map(torch.from_numpy(logits)).argmax()) == int(self._labels[i])
