"""Relations of classes: Pearson correlations of a classifier's outputs over images (TinyViT Fig. 3).

The paper takes 8 images of each class of ImageNet-21k. Images are seen once and no output of more than some of them is
kept; 21,841 classes need 1.8 GiB.

Shape legend: `B` images of a batch, `N` images, `M` outputs.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import infer_imagenet_subset
from torch import nn

from tinyvit_zoo.common.determinism import exact_cudnn
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.extras import needs_extra
from tinyvit_zoo.common.text import first_few, reason
from tinyvit_zoo.data.class_map import synsets
from tinyvit_zoo.data.image_dataset import ImageDataset

from ..features.extraction import untouched
from .analysed_model import AnalysedModel
from .images import batches_of

__all__ = ['BATCH_SIZE', 'ClassRelations', 'Correlations', 'cluster_order', 'file_order', 'measure', 'output_names']

BATCH_SIZE = 64
FEWEST = 3  # images: of two, every correlation is 1 or -1
EXACT = 8192
"""Outputs up to which sums are in float64; above, the matrix alone would take 3.6 GiB at 21,841."""
ROWS = 1024  # images whose outputs are multiplied at once: each sum rounds
BLOCK = 1024  # rows of the matrix that are worked on at once
ALIKE = 1e-7
"""An output whose standard deviation is below so much of its mean is constant: float32 has no more digits."""
OPTIMAL = 2000  # classes up to which neighbors in the order of the clustering are brought as close as can be


@dataclass(frozen=True)
class ClassRelations:
    """Correlations of all pairs of outputs.

    Attributes:
        correlation: (M, M), float64, or float32 above 8192 outputs; 1 on the diagonal. NaN in the row and column of
            an output that is the same for all images.
        names: Of the M outputs, as their classifier or the data set has them.
        order: (M,) int64, outputs such that related ones are neighbors.
        ordered_by: In words.
        images: N.
    """

    correlation: np.ndarray
    names: tuple[str, ...]
    order: np.ndarray
    ordered_by: str
    images: int

    @property
    def constant(self) -> list[int]:
        """Outputs that are the same for all images."""
        return np.flatnonzero(np.isnan(np.diagonal(self.correlation))).tolist()

    def ordered(self) -> np.ndarray:
        """The correlations, rows and columns in order."""
        return self.correlation[np.ix_(self.order, self.order)]

    def neighbors(self) -> float:
        """Mean correlation of two that follow each other in the order: near the mean of all without structure."""
        values = self.correlation[self.order[:-1], self.order[1:]]
        return float(np.nanmean(values))

    def extremes(self, number: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """The pairs of outputs with the highest correlations, and those with the lowest, the most extreme first."""
        highest, lowest = (list(_extreme(self.correlation, number, sign)) for sign in (1, -1))
        return highest, lowest

    def summary(self) -> dict[str, Any]:
        """Numbers for results.json, over the pairs of different outputs."""
        count, total, negative = 0, 0.0, 0
        for start in range(0, len(self.correlation), BLOCK):
            block = self.correlation[start : start + BLOCK].astype(np.float64)
            block[np.arange(len(block)), np.arange(start, start + len(block))] = np.nan
            count += int(np.isfinite(block).sum())
            total += float(np.nansum(block))
            negative += int((block < 0).sum())
        mean, share = (total / count, negative / count) if count else (None, None)
        return dict(
            images=self.images, outputs=len(self.names), mean=mean, negative_share=share,
            mean_of_neighbors=self.neighbors() if count else None, ordered_by=self.ordered_by,
            constant=[self.names[i] for i in self.constant],
        )  # fmt: skip


def measure(
    model: AnalysedModel,
    dataset: ImageDataset,
    order: Path | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    device: torch.device | str = 'cpu',
    workers: int = 0,
    progress: bool = True,
) -> ClassRelations:
    """Correlations of a classifier's logits over images, which need no labels.

    Args:
        model: Gives logits; moved to `device`.
        dataset: N images, at least 3.
        order: File that orders the classes, see `file_order`; None to cluster them by their correlations.
        batch_size: Images of a forward pass.
        device: Of the computation.
        workers: Processes that read images.
        progress: Whether to show a bar on a terminal.

    Raises:
        EvaluationError: If the model is not a classifier, an output is not finite, there are too few images, an image
            cannot be read, or the file fits no class.
    """
    if len(dataset) < FEWEST:
        raise EvaluationError(f'Correlations need at least {FEWEST} images, not {len(dataset)}: take more (--images).')
    outputs = getattr(model.model, 'num_classes', 0)
    if not isinstance(outputs, int) or outputs < 2:
        raise EvaluationError(f'{model.name} is not a timm classifier, which this analysis needs: choose another.')
    names = output_names(model.model, dataset, outputs)
    known = None if order is None else file_order(order, names)  # before hours of work
    sums = Correlations(outputs, device)
    with exact_cudnn(), torch.inference_mode(), untouched(model.model.to(device)):
        for (images,) in batches_of([model], dataset, batch_size, device=device, workers=workers, progress=progress):
            logits = model(images)
            if not isinstance(logits, torch.Tensor) or logits.shape != (len(images), outputs):
                raise EvaluationError(f'{model.name} gives no logits of {outputs} classes: take a plain classifier.')
            if not logits.isfinite().all():
                raise EvaluationError(f'An output of {model.name} is not finite: check its weights, or use float32.')
            sums.add(logits)
    correlation = sums.result()
    if known is None:
        return ClassRelations(correlation, names, cluster_order(correlation), 'clustering', len(dataset))
    return ClassRelations(correlation, names, *known, len(dataset))


class Correlations:
    """Pearson correlations of M columns, of rows that come in parts.

    Rows are taken relative to the mean of the first 1024, which is near the mean of all: without it the sums of squares
    of large values would leave no digits for their differences.

    Args:
        columns: M.
        device: Of the sums.
    """

    def __init__(self, columns: int, device: torch.device | str = 'cpu') -> None:
        dtype = torch.float64 if columns <= EXACT else torch.float32
        self.rows = 0
        self._shift: torch.Tensor | None = None
        self._sums = torch.zeros(columns, dtype=torch.float64, device=device)
        self._products = torch.zeros(columns, columns, dtype=dtype, device=device)  # above the diagonal, in blocks
        self._waiting: list[torch.Tensor] = []

    def add(self, values: torch.Tensor) -> None:
        """Add rows (B, M)."""
        self._waiting.append(values)
        if sum(map(len, self._waiting)) >= ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        values = torch.cat(self._waiting).to(self._sums)
        self._waiting.clear()
        if self._shift is None:
            self._shift = values.mean(dim=0)
        values -= self._shift
        self.rows += len(values)
        self._sums += values.sum(dim=0)
        values = values.to(self._products.dtype)
        for start in range(0, values.shape[1], BLOCK):
            self._products[start : start + BLOCK, start:].addmm_(values[:, start : start + BLOCK].T, values[:, start:])

    def result(self) -> np.ndarray:
        """(M, M); NaN for a column that is constant. Nothing can be added afterwards: it takes the place of the sums.

        Raises:
            EvaluationError: If there are no rows.
        """
        self._flush()
        if self._shift is None:
            raise EvaluationError('There are no outputs to correlate: take more images.')
        products, n = self._products, self.rows
        means = self._sums / n
        variances = (products.diagonal().double() / n - means.square()).clamp_(min=0)
        constant = variances.sqrt() <= ALIKE * (means + self._shift).abs()
        scale = variances.sqrt().masked_fill_(constant, torch.nan)
        for start in range(0, len(means), BLOCK):
            part = slice(start, start + BLOCK)
            block = products[part, start:].double().div_(n)
            block -= means[part, None] * means[start:]
            block /= scale[part, None] * scale[start:]
            products[part, start:] = block.clamp_(-1, 1)
            products[start:, part] = products[part, start:].T.clone()
            products[part, part] = products[part, part].triu() + products[part, part].triu(1).T
        products.diagonal().copy_(torch.where(constant, torch.nan, 1.0))
        return products.cpu().numpy()


def cluster_order(correlation: np.ndarray) -> np.ndarray:
    """Outputs such that related ones are neighbors: int64 (M,).

    Leaves of an average-linkage clustering by 1 - correlation, so that blocks on the diagonal are groups of classes. Up
    to 2000 outputs, neighbors are brought as close as the tree allows. A constant output is unrelated to all others.
    """
    with needs_extra('eval'):
        from scipy.cluster.hierarchy import leaves_list, linkage
    M = len(correlation)
    distances = np.empty(M * (M - 1) // 2)
    place = 0
    for i in range(M - 1):  # row by row: indices of all pairs would take more than the distances
        distances[place : place + M - 1 - i] = 1 - correlation[i, i + 1 :]
        place += M - 1 - i
    np.nan_to_num(distances, copy=False, nan=1.0)
    np.clip(distances, 0, 2, out=distances)
    return leaves_list(linkage(distances, 'average', optimal_ordering=M <= OPTIMAL)).astype(np.int64)


def output_names(model: nn.Module, dataset: ImageDataset, outputs: int) -> tuple[str, ...]:
    """Names of a classifier's outputs: those saved with it, the data set's if they are as many, ImageNet's WordNet ids,
    or numbers.
    """
    cfg: dict[str, Any] = getattr(model, 'pretrained_cfg', None) or {}
    saved = tuple(map(str, cfg.get('label_names') or ()))
    if len(saved) == outputs:
        return saved
    if len(dataset.classes) == outputs:
        return dataset.classes
    subset = infer_imagenet_subset(model)
    known = synsets(subset) if subset else ()
    return known if len(known) == outputs else tuple(map(str, range(outputs)))


def file_order(path: Path, names: Sequence[str]) -> tuple[np.ndarray, str]:
    """The order of a file, and that in words.

    Args:
        path: `order.csv` of another run of the same classes, to compare two models; or a tree, a line 'PARENT CHILD'
            for each branch, such as WordNet's of ImageNet: the order of a walk in which each parent comes before its
            children, in the order of their lines; classes that the tree lacks come last.
        names: Of the outputs.

    Returns:
        int64 (M,), and words.

    Raises:
        EvaluationError: If the file cannot be read, is neither, or is of other classes.
    """
    try:
        text = path.read_text(encoding='utf-8-sig')
    except (OSError, UnicodeError) as e:
        raise EvaluationError(f'{path} cannot be read ({reason(e)}): give a tree, or order.csv of another run.') from e
    index = {name: i for i, name in enumerate(names)}
    if text.startswith('place,'):
        listed = [row.get('class') or '' for row in csv.DictReader(text.splitlines())]
        if sorted(listed) != sorted(names):
            raise EvaluationError(f'{path} orders other classes than these {len(names)} ({first_few(names)}).')
        return np.array([index[name] for name in listed], np.int64), f'the order of {path}'
    walked = [index[name] for name in _walk(_branches(path, text)) if name in index]
    if not walked:
        raise EvaluationError(
            f'{path} has none of the {len(names)} classes ({first_few(names)}): give a tree of their names.'
        )
    rest = sorted(set(range(len(names))) - set(walked))
    words = f'the tree of {path}' + (f', which lacks {len(rest)} of {len(names)} classes' if rest else '')
    return np.array([*walked, *rest], np.int64), words


def _branches(path: Path, text: str) -> dict[str, list[str]]:
    """Children of each parent."""
    children: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if words and len(words) != 2:
            raise EvaluationError(f"{path}, line {number}: a tree has lines 'PARENT CHILD', and no spaces in names.")
        if words:
            children.setdefault(words[0], []).append(words[1])
    return children


def _walk(children: dict[str, list[str]]) -> Iterator[str]:
    """Every name once, parents before their children; with several parents, below the first that is met."""
    below = {child for some in children.values() for child in some}
    waiting = [name for name in reversed(children) if name not in below]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            yield name
            waiting.extend(reversed(children.get(name, ())))


def _extreme(correlation: np.ndarray, number: int, sign: int) -> Iterator[tuple[int, int]]:
    """Pairs i < j with the highest values, or for a sign of -1 the lowest, block of rows by block of rows."""
    M = len(correlation)
    found: list[tuple[float, int, int]] = []
    for start in range(0, M, BLOCK):
        block = sign * correlation[start : start + BLOCK].astype(np.float64)
        i, j = np.ogrid[start : start + len(block), :M]
        block[(j <= i) | np.isnan(block)] = -np.inf
        flat = block.ravel()
        best = np.argpartition(flat, -min(number, flat.size))[-number:]
        found += [(-flat[k], start + k // M, k % M) for k in best.tolist() if flat[k] > -np.inf]
        found = sorted(found)[:number]
    return ((i, j) for _, i, j in found)
