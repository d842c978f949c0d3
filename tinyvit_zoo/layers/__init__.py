"""Layers and functions that the model families share."""

from .beit_table import beit_offset_index, beit_table_rows, expand_beit_bias, resize_beit_table
from .bias_table import (
    abs_offset_index,
    expand_abs_bias,
    expand_signed_bias,
    resize_grid,
    signed_offset,
    signed_offset_index,
)
from .checkpointing import checkpoint_block
from .containers import TypedModuleList, TypedSequential
from .conv_norm import ConvNorm, conv_act, linear_act
from .cuda import cuda_sdpa, runs_on_cuda, sdpa_bias
from .deploy import DeployConv2d, DeployLinear
from .filled_buffers import FillsBuffers
from .head_mix import HeadMix
from .head_mix_cuda import has_attention_kernel, run_attention_kernel
from .image_size import check_image_size, check_patch_grid
from .inference import (
    activate,
    add_to_fresh,
    in_sub_batches,
    is_observed,
    is_plain_cuda,
    is_plain_inference,
    is_untouched,
    known_class,
)
from .irpe import RelativeKeys, irpe_index, piecewise_index
from .kept_bias import KeepsBias
from .mlp import Mlp
from .position import resize_position, sincos_position
from .pyramid import SimpleFeaturePyramid, TinyMimNeck, TinyMimStarNeck
from .repeat import PerRepeat
from .routes import check_setting
from .window import (
    is_exactly,
    is_fx_proxy,
    per_stage_windows,
    scaled_windows,
    shifted_window_mask,
    stage_grids,
    window_partition,
    window_reverse,
)
from .window_cuda import gather_windows, gathers_windows, return_windows

__all__ = [
    'ConvNorm',
    'DeployConv2d',
    'DeployLinear',
    'FillsBuffers',
    'HeadMix',
    'KeepsBias',
    'Mlp',
    'PerRepeat',
    'RelativeKeys',
    'SimpleFeaturePyramid',
    'TinyMimNeck',
    'TinyMimStarNeck',
    'TypedModuleList',
    'TypedSequential',
    'abs_offset_index',
    'activate',
    'add_to_fresh',
    'beit_offset_index',
    'beit_table_rows',
    'check_image_size',
    'check_patch_grid',
    'check_setting',
    'checkpoint_block',
    'conv_act',
    'cuda_sdpa',
    'expand_abs_bias',
    'expand_beit_bias',
    'expand_signed_bias',
    'gather_windows',
    'gathers_windows',
    'has_attention_kernel',
    'in_sub_batches',
    'irpe_index',
    'is_exactly',
    'is_fx_proxy',
    'is_observed',
    'is_plain_cuda',
    'is_plain_inference',
    'is_untouched',
    'known_class',
    'linear_act',
    'per_stage_windows',
    'piecewise_index',
    'resize_beit_table',
    'resize_grid',
    'resize_position',
    'return_windows',
    'run_attention_kernel',
    'runs_on_cuda',
    'scaled_windows',
    'sdpa_bias',
    'shifted_window_mask',
    'signed_offset',
    'signed_offset_index',
    'sincos_position',
    'stage_grids',
    'window_partition',
    'window_reverse',
]
