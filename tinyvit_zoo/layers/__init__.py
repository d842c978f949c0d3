"""Shared maths of the model families: each idea once."""

from .bias_table import abs_offset_index, expand_abs_bias, resize_grid
from .conv_norm import ConvNorm, conv_act, linear_act
from .deploy import DeployConv2d, DeployLinear, fold_gelu
from .head_mix import HeadMix
from .inference import activate, is_plain_inference, is_untouched
from .mlp import Mlp
from .repeat import PerRepeat
from .window import fits_one_window, per_stage_windows, scaled_windows, stage_grids, window_partition, window_reverse

__all__ = [
    'ConvNorm',
    'DeployConv2d',
    'DeployLinear',
    'HeadMix',
    'Mlp',
    'PerRepeat',
    'abs_offset_index',
    'activate',
    'conv_act',
    'expand_abs_bias',
    'fits_one_window',
    'fold_gelu',
    'is_plain_inference',
    'is_untouched',
    'linear_act',
    'per_stage_windows',
    'resize_grid',
    'scaled_windows',
    'stage_grids',
    'window_partition',
    'window_reverse',
]
