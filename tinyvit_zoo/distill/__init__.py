"""Distillation: the losses, and taking from teacher and student what they compare. Not imported by `tinyvit_zoo`."""

from .features import FeatureTap, LayerFeatures, match_layers, stage_depths
from .losses import (
    MINI_DEIT,
    MINI_SWIN,
    PAPER,
    QKV,
    WeightDistillation,
    feature_map_loss,
    hidden_mse_loss,
    hidden_relation_ce_loss,
    hidden_relation_loss,
    prediction_ce_loss,
    prediction_hard_loss,
    prediction_kl_per_logit_loss,
    qkv_relation_loss,
)

__all__ = [
    'MINI_DEIT',
    'MINI_SWIN',
    'PAPER',
    'QKV',
    'FeatureTap',
    'LayerFeatures',
    'WeightDistillation',
    'feature_map_loss',
    'hidden_mse_loss',
    'hidden_relation_ce_loss',
    'hidden_relation_loss',
    'match_layers',
    'prediction_ce_loss',
    'prediction_hard_loss',
    'prediction_kl_per_logit_loss',
    'qkv_relation_loss',
    'stage_depths',
]
