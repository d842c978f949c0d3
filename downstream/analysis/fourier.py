"""Amplitudes of the frequencies in each layer's output (MAE-Lite Fig. 3, after Park & Kim 2022).

Of each channel the logarithm of the amplitude, averaged over images and channels, along the diagonal of the spectrum
from frequency 0 outward, less that of frequency 0. The last value is the paper's Δ log amplitude.

Shape legend: `B` images, `C` channels, `h w` map, `F` frequencies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from tinyvit_zoo.common.determinism import exact_cudnn
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data.image_dataset import ImageDataset

from ..features.extraction import untouched
from .analysed_model import AnalysedModel
from .images import batches_of
from .layers import BLOCKS, LayerOutputs, as_map

__all__ = ['BATCH_SIZE', 'FourierResult', 'LayerSpectrum', 'log_amplitudes', 'measure']

BATCH_SIZE = 32
EPSILON = 1e-6  # added to amplitudes, as in the code of Park & Kim
IN_CACHE = 1 << 19  # numbers that are converted at a time on a CPU
ON_CARD = 1 << 26


@dataclass(frozen=True)
class LayerSpectrum:
    """One layer.

    Attributes:
        layer: Its name.
        grid: (h, w).
        frequency: float64 (F,) from 0 to 1, the highest frequency of a map as the papers' figures count it; an even
            side has it at 1 - 2 / side of the Nyquist frequency, an odd one at 1 - 1 / side.
        curve: float64 (F,), log amplitudes relative to that of frequency 0; natural logarithm.
    """

    layer: str
    grid: tuple[int, int]
    frequency: np.ndarray
    curve: np.ndarray

    @property
    def delta(self) -> float:
        """Δ log amplitude: that of the highest frequency."""
        return float(self.curve[-1])


@dataclass(frozen=True)
class FourierResult:
    """All layers.

    Attributes:
        layers: In the order of the calls.
        images: N.
        left_out: Names of layers whose maps are too small to have frequencies.
    """

    layers: tuple[LayerSpectrum, ...]
    images: int
    left_out: tuple[str, ...] = ()


def measure(
    model: AnalysedModel,
    dataset: ImageDataset,
    layers: Sequence[str] = (BLOCKS,),
    *,
    batch_size: int = BATCH_SIZE,
    device: torch.device | str = 'cpu',
    workers: int = 0,
    progress: bool = True,
) -> FourierResult:
    """Spectra of the layers, without class and register tokens.

    Args:
        model: What is measured; moved to `device`.
        dataset: N images, see `images.draw_images`.
        layers: See `layers.LayerOutputs`.
        batch_size: Images of a forward pass.
        device: Of the computation.
        workers: Processes that read images.
        progress: Whether to show a bar on a terminal.

    Raises:
        EvaluationError: If the model has no such layers, an output is not a map or not finite, or an image cannot
            be read.
    """
    sums: dict[str, torch.Tensor] = {}
    grids: dict[str, tuple[int, int]] = {}
    reduce = partial(_spectrum, model, grids)
    with (
        exact_cudnn(), torch.inference_mode(), untouched(model.model.to(device)),
        LayerOutputs(model, layers, reduce) as outputs,
    ):  # fmt: skip
        for (images,) in batches_of([model], dataset, batch_size, device=device, workers=workers, progress=progress):
            for name, values in outputs(images).items():
                sums[name] = sums.get(name, torch.zeros_like(values)) + values
    curves = {name: ((total - total[0]) / len(dataset)).cpu().numpy() for name, total in sums.items()}
    found = [
        LayerSpectrum(name, grids[name], np.linspace(0, 1, len(curve)), curve)
        for name, curve in curves.items()
        if len(curve) > 1
    ]
    if not found:
        raise EvaluationError(f'{model.name} has no map of at least 3x3 among these layers: take larger images.')
    return FourierResult(tuple(found), len(dataset), tuple(name for name, curve in curves.items() if len(curve) == 1))


def _spectrum(
    model: AnalysedModel,
    grids: dict[str, tuple[int, int]],
    name: str,
    x: torch.Tensor,
    size: tuple[int, int],
    module: torch.nn.Module,
) -> torch.Tensor:
    """Sum over images of the mean log amplitudes (F,) of a layer's output."""
    values = as_map(name, x, model, size, module)
    grids[name] = (values.shape[2], values.shape[3])
    total = log_amplitudes(values).sum(dim=0)
    if not total.isfinite().all():
        raise EvaluationError(f'The output of {name} is not finite: check the weights of the model, or use float32.')
    return total


def log_amplitudes(x: torch.Tensor) -> torch.Tensor:
    """Log amplitudes along the diagonal of the spectrum, from frequency 0 outward, mean over channels.

    They are computed in float64, each by the definition of the Fourier transform: the diagonal is a small part of it.

    Args:
        x: (B, C, h, w). On a map that is not square the diagonal takes as many steps as the shorter side has.

    Returns:
        float64 (B, F), F half of the shorter side, rounded up.
    """
    h, w = x.shape[-2:]
    F = (min(h, w) + 1) // 2
    share = torch.linspace(0, 1, F, dtype=torch.float64, device=x.device)
    turns = [
        (share * ((side + 1) // 2 - 1)).round()[:, None] / side
        * torch.arange(side, dtype=torch.float64, device=x.device) for side in (h, w)
    ]  # fmt: skip
    angle = 2 * torch.pi * (turns[0][:, :, None] + turns[1][:, None, :]).flatten(1).T  # (h * w, F)
    waves = torch.cat([angle.cos(), angle.sin()], dim=1)
    found = []
    most = IN_CACHE if x.device.type == 'cpu' else ON_CARD
    for part in x.split(max(1, most // x[0].numel())):
        real, imaginary = (part.flatten(2).double() @ waves).split(F, dim=-1)
        found.append(torch.hypot(real, imaginary).add(EPSILON).log().mean(dim=1))
    return torch.cat(found)
