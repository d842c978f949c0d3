"""Features of several layers from one pass through a backbone."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from .layers import feature_function

__all__ = ['features_of_layers']


def features_of_layers(model: nn.Module, layers: Sequence[str]) -> Callable[[torch.Tensor], list[torch.Tensor]]:
    """The function from images to the features of every layer, with one pass through the backbone for all of them.

    Args:
        model: Any timm model, in eval mode.
        layers: See `layers.feature_function`.

    Returns:
        A function of images (B, C, H, W) that returns a list of features (B, D), in the order of `layers`.

    Raises:
        EvaluationError: See `layers.feature_function`.
    """
    alone = [feature_function(model, layer) for layer in layers]  # refuses missing layers
    if len(layers) == 1:
        return lambda images: [alone[0](images)]
    blocks = max((int(layer.removeprefix('last:')) for layer in layers if layer.startswith('last:')), default=0)

    def features(images: torch.Tensor) -> list[torch.Tensor]:
        passed: Any = _Passed(model, blocks)
        # Blocks first: a pass that returns them also returns the result of `forward_features` (true of all 73 timm
        # models that were examined, one per family).
        blocks_first = sorted(layers, key=lambda layer: not layer.startswith('last:'))
        found = {layer: feature_function(passed, layer)(images) for layer in blocks_first}
        return [found[layer] for layer in layers]

    return features


class _Passed:
    """A model whose images pass once: later calls return the results of the first."""

    def __init__(self, model: Any, blocks: int) -> None:
        self._model, self._blocks = model, blocks
        self._last: torch.Tensor | None = None
        self._intermediates: list[Any] = []
        if blocks:  # `feature_function` inspects the signature
            self.forward_intermediates = functools.wraps(model.forward_intermediates)(
                functools.partial(self._forward_intermediates)
            )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def _forward_intermediates(
        self, images: torch.Tensor, indices: int, intermediates_only: bool, **settings: Any
    ) -> list[Any]:
        if self._last is None:
            self._last, self._intermediates = self._model.forward_intermediates(
                images, indices=self._blocks, **settings
            )
        return self._intermediates[-indices:]

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        if self._last is None:
            self._last = self._model.forward_features(images)
        return self._last
