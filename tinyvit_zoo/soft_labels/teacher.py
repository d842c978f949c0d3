"""A teacher: a classifier, how it takes images, and what is kept of its output."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..common.errors import EvaluationError
from ..common.hashes import state_hash
from ..data.transforms import data_config
from .record import SoftLabels

__all__ = ['PRECISIONS', 'Teacher', 'rounded']

PRECISIONS = {'float32': torch.float32, 'bfloat16': torch.bfloat16}


@dataclass
class Teacher:
    """A classifier for views of images.

    Attributes:
        model: Images (B, 3, H, W) to logits (B, C), or to an object with `logits`, as transformers' classifiers return.
        name: For people.
        size: (H, W).
        mean: Of the normalized images.
        std: Of the normalized images.
        precision: 'float32', or 'bfloat16' by autocast; the softmax is always in float32.
        device: None for the CPU.
    """

    model: nn.Module
    name: str
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    precision: str = 'float32'
    device: torch.device | str = 'cpu'

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise EvaluationError(f'The teacher computes in {" or ".join(PRECISIONS)}, not {self.precision!r}.')

    @classmethod
    def of_timm(cls, model: nn.Module, name: str, **settings: Any) -> 'Teacher':
        """A timm model, which says itself how it takes images.

        Raises:
            EvaluationError: If it does not take RGB images.
        """
        config = data_config(model)
        return cls(model, name, tuple(config['input_size'][-2:]), config['mean'], config['std'], **settings)

    @property
    def sha256(self) -> str:
        """`state_hash` of its weights."""
        return state_hash(self.model)

    @contextmanager
    def ready(self) -> Iterator['Teacher']:
        """A block in which it is on its device and in evaluation mode; its mode is as before afterwards."""
        training = self.model.training
        self.model.to(self.device).eval()
        try:
            yield self
        finally:
            self.model.train(training)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """float32 (B, C) for images (B, 3, H, W), on its device, without gradient."""
        device = torch.device(self.device)
        dtype = PRECISIONS[self.precision]
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            output: Any = self.model(images.to(device, non_blocking=True))
        logits = getattr(output, 'logits', output)
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
            raise EvaluationError(f'{self.name} gives no logits (images, classes): only classifiers can teach here.')
        return logits.float()

    def labels(self, images: torch.Tensor, k: int) -> SoftLabels:
        """The K most probable classes of images (B, 3, H, W), most probable first."""
        probabilities, ids = self._largest(images, k)
        return SoftLabels(ids.cpu().numpy(), probabilities.cpu().numpy())

    def live_labels(self, images: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What an `exact` store would give a student of images (B, 3, H, W): ids int64 and probabilities float16, both
        (B, K), on its device.
        """
        probabilities, ids = self._largest(images, k)
        return ids, rounded(probabilities)

    def _largest(self, images: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.logits(images).softmax(dim=1).topk(k, dim=1)


def rounded(probabilities: torch.Tensor) -> torch.Tensor:
    """As float16, like `exact` records: to nearest, but down in rows that would then sum to more than 1.

    Args:
        probabilities: float32 (B, K), largest first.
    """
    halves = probabilities.half()
    halves = _where_above_1(halves, _next_below(halves, halves > probabilities))
    first = torch.arange(halves.shape[1], device=halves.device) == 0
    return _where_above_1(halves, _next_below(halves, first.expand_as(halves)))  # float32 itself summed to more


def _where_above_1(halves: torch.Tensor, lower: torch.Tensor) -> torch.Tensor:
    return torch.where(halves.double().sum(dim=1, keepdim=True) > 1, lower, halves)


def _next_below(halves: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """Positive float16 numbers as bits are in order: one less is the next number below."""
    return (halves.view(torch.int16) - which.to(torch.int16)).view(torch.float16)
