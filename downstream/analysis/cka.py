"""Centered kernel alignment (CKA) of layers, minibatch by minibatch (MAE-Lite Fig. 1 and 6, MiniViT Fig. 5).

Linear kernels and the unbiased estimate of HSIC (Song et al. 2012), summed over batches (Nguyen et al. 2021): a ratio
of means, which may be negative or above 1 and is never clamped. Only the n x n Gram matrices of a batch are kept.

Shape legend: `n` images of a batch, `D` features of an image, `a b` layers of the two models.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import torch

from tinyvit_zoo.common.determinism import exact_cudnn
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data.image_dataset import ImageDataset

from ..features.extraction import untouched
from ..statistics import half_width
from .analysed_model import AnalysedModel, check_same_size
from .images import batches_of
from .layers import BLOCKS, LayerOutputs

__all__ = ['BATCH_SIZE', 'CKA', 'CKAResult', 'compare', 'gram', 'hsic', 'hsic_self']

BATCH_SIZE = 128  # of MAE-Lite's released code
FEWEST = 4
"""Images of a batch that the unbiased estimate needs."""
IN_CACHE = 1 << 19  # features that are centered at a time on a CPU
ON_CARD = 1 << 26
ROUNDING = 4  # units in the last place by which equal features may miss their mean


@dataclass(frozen=True)
class CKAResult:
    """Similarity of all pairs of layers.

    Attributes:
        rows: Names of the a layers of the first model.
        columns: Names of the b layers of the second.
        value: float64 (a, b). NaN where a layer's own estimate is not positive, see `undefined`.
        low: float64 (a, b), lower ends of the 95 % intervals; NaN from a single batch.
        high: The same, upper ends.
        batches: Their number.
        batch_size: n.
        left_out: Images that did not fill a batch.
        undefined: Names of the layers whose HSIC with themselves is not positive, the second model's after a '/'.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    batches: int
    batch_size: int
    left_out: int = 0
    undefined: tuple[str, ...] = ()


def compare(
    a: AnalysedModel,
    b: AnalysedModel | None,
    dataset: ImageDataset,
    layers: Sequence[str] = (BLOCKS,),
    *,
    batch_size: int = BATCH_SIZE,
    device: torch.device | str = 'cpu',
    workers: int = 0,
    progress: bool = True,
) -> CKAResult:
    """Similarity of the layers of two models on the same images, each in the preprocessing of its model.

    Args:
        a: The first model.
        b: The second; None to compare the layers of the first with each other, in one pass.
        dataset: N images, see `images.draw_images`. Those that fill no batch are left out.
        layers: See `layers.LayerOutputs`; of both models.
        batch_size: n, from 4 to N.
        device: Of the computation; the models are moved to it.
        workers: Processes that read images.
        progress: Whether to show a bar on a terminal.

    Raises:
        EvaluationError: If batches are too small or too large, the models take images of different sizes or have no
            such layers, an image cannot be read, or a layer's output is not finite.
    """
    _check_batches(batch_size, len(dataset))
    models = (a,) if b is None else (a, b)
    if b is not None:
        check_same_size(a, b)
    state = CKA()
    with exact_cudnn(), torch.inference_mode(), ExitStack() as stack:
        for model in models:
            stack.enter_context(untouched(model.model.to(device)))
        outputs = [stack.enter_context(LayerOutputs(model, layers, _named_gram)) for model in models]
        batches = batches_of(models, dataset, batch_size, device=device, workers=workers, whole=True, progress=progress)
        for images in batches:
            grams = [output(x) for output, x in zip(outputs, images, strict=True)]
            state.add(grams[0], grams[-1])
    return state.result(len(dataset) - state.batches * batch_size)


def _check_batches(batch_size: int, images: int) -> None:
    if images < FEWEST:
        raise EvaluationError(f'CKA needs at least {FEWEST} images, not {images}: take more (--images).')
    if batch_size < FEWEST:
        raise EvaluationError(
            f'CKA needs batches of at least {FEWEST} images: give --batch-size more than {batch_size}.'
        )
    if images < batch_size:
        raise EvaluationError(
            f'There are {images} images, too few for a batch of {batch_size}: take more (--images), or smaller batches '
            '(--batch-size).'
        )


def _named_gram(name: str, x: torch.Tensor, size: tuple[int, int], module: torch.nn.Module) -> torch.Tensor:
    found = gram(x)
    if not found.isfinite().all():
        raise EvaluationError(f'The output of {name} is not finite: check the weights of the model, or use float32.')
    return found


def gram(x: torch.Tensor) -> torch.Tensor:
    """Gram matrix (n, n) of a layer's output (n, ...), float64, its diagonal 0 as the unbiased estimate needs it.

    The batch is centered first, in the type of the features (half precision in float32). HSIC ignores a shift of the
    features, but the rounding of products in float32 does not: an offset of 10 would leave nothing of a CKA of 0.8.
    What is left of equal features is rounding, whose matrix is 0.
    """
    x = x.flatten(1)
    kernel = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)
    most = IN_CACHE if x.device.type == 'cpu' else ON_CARD
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    shift = torch.zeros((), dtype=dtype, device=x.device)
    for part in x.split(max(1, most // len(x)), dim=1):
        part = part.to(dtype)
        mean = part.mean(dim=0)
        part = part - mean
        kernel += part @ part.T
        shift += mean.dot(mean)
    rounding = ROUNDING * torch.finfo(dtype).eps
    kernel *= kernel.trace() > len(x) * rounding**2 * shift
    return kernel.fill_diagonal_(0)


def hsic(K: torch.Tensor, L: torch.Tensor) -> torch.Tensor:
    """Unbiased HSIC of all pairs of layers.

    Args:
        K: (a, n, n) of `gram`, n >= 4.
        L: (b, n, n), of the same images.

    Returns:
        (a, b).
    """
    n = K.shape[-1]
    rows_k, rows_l = K.sum(dim=-1), L.sum(dim=-1)
    trace = K.flatten(1) @ L.flatten(1).T
    sums = rows_k.sum(dim=1)[:, None] * rows_l.sum(dim=1) / ((n - 1) * (n - 2))
    return (trace + sums - 2 / (n - 2) * rows_k @ rows_l.T) / (n * (n - 3))


def hsic_self(K: torch.Tensor) -> torch.Tensor:
    """The diagonal of `hsic(K, K)`: (a,)."""
    n = K.shape[-1]
    rows = K.sum(dim=-1)
    sums = rows.sum(dim=1).square() / ((n - 1) * (n - 2))
    return (K.flatten(1).square().sum(dim=1) + sums - 2 / (n - 2) * rows.square().sum(dim=1)) / (n * (n - 3))


@dataclass
class CKA:
    """Sums over batches of one size, and the similarities that follow from them."""

    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    batch_size: int = 0
    estimates: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)
    """Of each batch: HSIC of all pairs (a, b), of the first model's layers with themselves (a,), and the second's."""

    @property
    def batches(self) -> int:
        return len(self.estimates)

    def add(self, first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
        """Add a batch.

        Args:
            first: Gram matrices (n, n) of the first model's layers, by name.
            second: Of the second's; the same object to compare layers of one model.

        Raises:
            EvaluationError: If the model calls other layers than for the batches before.
        """
        if self.estimates and (tuple(first), tuple(second)) != (self.rows, self.columns):
            raise EvaluationError('The model skips layers for some images: choose layers that all images pass through.')
        K = torch.stack(list(first.values()))
        L = K if first is second else torch.stack(list(second.values()))
        self.rows, self.columns, self.batch_size = tuple(first), tuple(second), K.shape[-1]
        kk = hsic_self(K)
        kl, ll = hsic(K, L.to(K.device)), kk if first is second else hsic_self(L)
        self.estimates.append((kl.cpu().numpy(), kk.cpu().numpy(), ll.cpu().numpy()))

    def result(self, left_out: int = 0) -> CKAResult:
        """The similarities, and their intervals by the jackknife over batches.

        Args:
            left_out: Images that filled no batch.
        """
        kl, kk, ll = (np.stack(x) for x in zip(*self.estimates, strict=True))
        value, half = _ratio(kl.mean(0), kk.mean(0), ll.mean(0)), np.full(kl.shape[1:], np.nan)
        b = self.batches
        if b > 1:
            without = _ratio(*((x.sum(0) - x) / (b - 1) for x in (kl, kk, ll)))
            half = half_width(np.sqrt((b - 1) / b * np.square(without - without.mean(0)).sum(0)), b)
        undefined = [name for name, x in zip(self.rows, kk.mean(0), strict=True) if not x > 0]
        if self.columns != self.rows or not np.array_equal(kk, ll):
            undefined += [f'/{name}' for name, x in zip(self.columns, ll.mean(0), strict=True) if not x > 0]
        return CKAResult(
            self.rows, self.columns, value, value - half, value + half, b, self.batch_size, left_out, tuple(undefined)
        )


def _ratio(kl: np.ndarray, kk: np.ndarray, ll: np.ndarray) -> np.ndarray:
    """CKA (..., a, b) of mean estimates (..., a, b), (..., a) and (..., b); NaN where one of the latter is negative."""
    with np.errstate(divide='ignore', invalid='ignore'):
        value = kl / (np.sqrt(kk)[..., :, None] * np.sqrt(ll)[..., None, :])
    return np.where(np.isfinite(value), value, np.nan)
