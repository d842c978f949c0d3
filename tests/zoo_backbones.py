"""Shared by the tests of `ZooBackbone`: small ones of every kind, and mmdet's Swin of the same size."""

import pytest
import torch
from conftest import SMALL_OF
from golden_rule import fill_by_rule

from tinyvit_zoo.downstream.detection import ZooBackbone  # before mmdet, whose operators it installs

# isort: split
from mmdet.models.backbones import SwinTransformer
from mmengine.registry import MODELS

KINDS = list(SMALL_OF)
DYNAMIC = [kind for kind in KINDS if kind != 'mae_lite_rpe']
SWIN = ('swin_tiny_patch4_window7_224', dict(embed_dim=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4)))


def args_of(kind: str) -> tuple[str, dict]:
    if kind == 'swin':
        return SWIN
    name, arguments = SMALL_OF[kind]
    return name, {k: v for k, v in arguments.items() if k != 'num_classes'}


def backbone_of(kind: str, **kwargs) -> ZooBackbone:
    """A small backbone with weights far from their initial values, in eval mode."""
    name, arguments = args_of(kind)
    return fill_by_rule(MODELS.build(dict(type='ZooBackbone', model_name=name, **{**arguments, **kwargs})))


def images(height: int = 64, width: int = 96, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, height, width)


def mmdet_swin() -> SwinTransformer:
    theirs = SwinTransformer(embed_dims=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4))
    fill_by_rule(theirs)  # mmdet's .eval() returns nothing
    return theirs


def heavy(name: str):
    return pytest.param(name, marks=() if '_tiny' in name or '_5m' in name else pytest.mark.slow)
