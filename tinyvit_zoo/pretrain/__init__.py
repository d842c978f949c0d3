"""Pre-training forms of the plain ViTs: modules and their losses, which `training.pretraining` trains.

Not imported by `tinyvit_zoo`.
"""

from .d_mae import DMae, DMaeOutput
from .load import load_pretraining
from .mae import MaeOutput, MaskedAutoencoder, mae_lite_base, mae_lite_small, mae_lite_tiny
from .moco import MocoV3, cosine_momentum, moco_position, mocov3_tiny
from .tinymim import RelationEncoder, tinymim_student, tinymim_teacher
from .tinymim_study import TARGETS, TinyMim

__all__ = [
    'TARGETS',
    'DMae',
    'DMaeOutput',
    'MaeOutput',
    'MaskedAutoencoder',
    'MocoV3',
    'RelationEncoder',
    'TinyMim',
    'cosine_momentum',
    'load_pretraining',
    'mae_lite_base',
    'mae_lite_small',
    'mae_lite_tiny',
    'moco_position',
    'mocov3_tiny',
    'tinymim_student',
    'tinymim_teacher',
]
