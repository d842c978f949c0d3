"""What a model expects of its input, where its size or channels are not those of its weights' release."""

from collections.abc import Sequence
from typing import Any

from timm.data import resolve_model_data_config
from timm.models._input import get_model_input_config
from torch import nn

__all__ = ['for_channels', 'model_data_config']


def for_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Mean or standard deviation of the channels of a release for a model with another number of channels.

    As timm converts the weights of the first layer: for one channel it sums them, so that this has the mean of the
    values; otherwise it repeats them in turn. Values of as many channels are returned as they are.
    """
    if len(values) == channels:
        return tuple(values)
    if channels == 1:
        return (sum(values) / len(values),)
    return tuple(values[i % len(values)] for i in range(channels))


def model_data_config(model: nn.Module) -> dict[str, Any]:
    """timm's `resolve_model_data_config` at the real input size (C, H, W), with a mean and deviation per channel."""
    config = resolve_model_data_config(model)
    size = get_model_input_config(model)['input_size']
    return config | dict(input_size=size, **{key: for_channels(config[key], size[0]) for key in ('mean', 'std')})
