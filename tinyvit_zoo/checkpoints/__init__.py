"""Checkpoints: where weights come from (`source`), what is in a file (`read`), whose names it uses (`keymap`),
and what its tables were laid out for (`tables`)."""

from .errors import CheckpointError, WeightsNotFoundError
from .head import head_22k_to_1k, in1k_classes_in_22k
from .keymap import (
    KEY_MAPS,
    MINI_DEIT_KEYS,
    MINI_SWIN_KEYS,
    TINYVIT_KEYS,
    KeyMap,
    check_keys,
    drop_head,
    find_key_map,
    fit_to_model,
)
from .read import find_checkpoint, read_checkpoint, unwrap
from .source import Weights, find_weights, imported_path
from .swin_buffers import check_swin_buffers
from .tables import source_windows, stage_tables

__all__ = [
    'KEY_MAPS',
    'MINI_DEIT_KEYS',
    'MINI_SWIN_KEYS',
    'TINYVIT_KEYS',
    'CheckpointError',
    'KeyMap',
    'Weights',
    'WeightsNotFoundError',
    'check_keys',
    'check_swin_buffers',
    'drop_head',
    'find_checkpoint',
    'find_key_map',
    'find_weights',
    'fit_to_model',
    'head_22k_to_1k',
    'imported_path',
    'in1k_classes_in_22k',
    'read_checkpoint',
    'source_windows',
    'stage_tables',
    'unwrap',
]
