"""Checkpoints: where weights come from (`source`), reading a file safely (`read`; torch files in `torch_file`, after
the checks of `archive` and `pickles`; several files in `shards`), the model in what it holds (`wrappers`), translating
its names (`keymap`), the sizes its tables were made for (`tables`), the number of heads of its model (`head_count`),
classifiers of 22k classes (`head_22k`), the backbone inside a detector (`detector`), and the names of Segment Anything
(`sam_keys`)."""

from ..common.errors import CheckpointError, WeightsNotFoundError
from .beit_buffers import check_beit_buffers
from .counters import with_counters
from .detector import backbone_part, counted_by_part
from .finite import check_finite, nonfinite, warn_nonfinite
from .head_22k import CLASSES_22K, head_22k_to_1k, in1k_classes_in_22k
from .head_count import Evidence, check_heads, find_heads, heads_of
from .keymap import (
    CLIP_VIT_KEYS,
    KEY_MAPS,
    MINI_DEIT_KEYS,
    MINI_SWIN_KEYS,
    PLAIN_VIT_KEYS,
    TINYVIT_KEYS,
    KeyMap,
    check_keys,
    drop_head,
    find_key_map,
    fit_to_model,
)
from .read import Clues, clues_of, find_checkpoint, read_checkpoint, read_with_clues, unwrap
from .sam_keys import (
    SAM_ENCODER_KEYS,
    SAM_KEYS,
    SAM_POSITIONS,
    SAM_TRUNK,
    is_whole_sam,
    refuse_other_sam,
    sam_encoder_part,
    without_classifier,
)
from .source import Weights, find_weights, imported_path
from .swin_buffers import check_swin_buffers
from .tables import source_grid, source_windows, stage_tables

__all__ = [
    'CLASSES_22K',
    'CLIP_VIT_KEYS',
    'KEY_MAPS',
    'MINI_DEIT_KEYS',
    'MINI_SWIN_KEYS',
    'PLAIN_VIT_KEYS',
    'SAM_ENCODER_KEYS',
    'SAM_KEYS',
    'SAM_POSITIONS',
    'SAM_TRUNK',
    'TINYVIT_KEYS',
    'CheckpointError',
    'Clues',
    'Evidence',
    'KeyMap',
    'Weights',
    'WeightsNotFoundError',
    'backbone_part',
    'check_beit_buffers',
    'check_finite',
    'check_heads',
    'check_keys',
    'check_swin_buffers',
    'clues_of',
    'counted_by_part',
    'drop_head',
    'find_checkpoint',
    'find_heads',
    'find_key_map',
    'find_weights',
    'fit_to_model',
    'head_22k_to_1k',
    'heads_of',
    'imported_path',
    'in1k_classes_in_22k',
    'is_whole_sam',
    'nonfinite',
    'read_checkpoint',
    'read_with_clues',
    'refuse_other_sam',
    'sam_encoder_part',
    'source_grid',
    'source_windows',
    'stage_tables',
    'unwrap',
    'warn_nonfinite',
    'with_counters',
    'without_classifier',
]
