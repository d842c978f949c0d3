"""Distillation: the losses, and taps that take the features that they compare. Not imported by `tinyvit_zoo`."""

from .attention import attention_distillation_loss
from .contrastive import info_nce_loss
from .feature_targets import class_token_loss, smooth_l1_loss, whitened
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
from .relation import HeadQKV, RelationLoss, relation_distillation_loss, relation_logits, relation_losses
from .sparse import dense_log_probabilities, sparse_cross_entropy
from .taps import FeatureTap, LayerFeatures, match_layers, stage_depths

__all__ = [
    'MINI_DEIT',
    'MINI_SWIN',
    'PAPER',
    'QKV',
    'FeatureTap',
    'HeadQKV',
    'LayerFeatures',
    'RelationLoss',
    'WeightDistillation',
    'attention_distillation_loss',
    'class_token_loss',
    'dense_log_probabilities',
    'feature_map_loss',
    'hidden_mse_loss',
    'hidden_relation_ce_loss',
    'hidden_relation_loss',
    'info_nce_loss',
    'match_layers',
    'prediction_ce_loss',
    'prediction_hard_loss',
    'prediction_kl_per_logit_loss',
    'qkv_relation_loss',
    'relation_distillation_loss',
    'relation_logits',
    'relation_losses',
    'smooth_l1_loss',
    'sparse_cross_entropy',
    'stage_depths',
    'whitened',
]
