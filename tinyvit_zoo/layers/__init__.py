"""Shared maths of the model families: each idea once."""

from .bias_table import abs_offset_index, expand_abs_bias, resize_grid
from .conv_norm import ConvNorm
from .deploy import DeployConv2d, DeployLinear, fold_gelu
from .inference import GELU, is_plain_inference
from .window import fits_one_window, per_stage_windows, scaled_windows, stage_grids, window_partition, window_reverse

__all__ = [
    'GELU',
    'ConvNorm',
    'DeployConv2d',
    'DeployLinear',
    'abs_offset_index',
    'expand_abs_bias',
    'fits_one_window',
    'fold_gelu',
    'is_plain_inference',
    'per_stage_windows',
    'resize_grid',
    'scaled_windows',
    'stage_grids',
    'window_partition',
    'window_reverse',
]
