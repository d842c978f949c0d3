"""What the tests of fine-tuning share: a recipe for digits, small models, and a short way to train them."""

import json

import timm
import torch
from conftest import SMALL

import tinyvit_zoo  # noqa: F401  registers the models
from tinyvit_zoo.downstream.finetune import finetune
from tinyvit_zoo.training.recipes import find_recipe

CPU = torch.device('cpu')
PLAIN = find_recipe('tinyvit_scratch').changed(
    epochs=3, batch_size=32, lr=4e-3, lr_batch=32, auto_augment=None, random_erase=0.0, crop_area=(0.7, 1.0), flip=0.0,
    mixup=0.0, cutmix=0.0, label_smoothing=0.0, crop_pct=None, crop_mode=None, interpolation=None, held_out=0.1,
)  # fmt: skip
"""For digits, which are neither flipped nor cropped to an eighth."""


def small_model(**kwargs):
    torch.manual_seed(0)
    return timm.create_model('tinyvit_5m_224', img_size=32, **{**SMALL, 'num_classes': 10, **kwargs})


def plain_vit(**kwargs):
    """Without BatchNorm: the output for an image does not depend on the others of its batch."""
    torch.manual_seed(0)
    sizes = dict(img_size=32, embed_dim=48, depth=2, num_heads=3, num_classes=10)
    return timm.create_model('tinymim_vit_tiny_patch16_224', **{**sizes, **kwargs})


def fit(model, data, recipe, output, **options):
    return finetune(model, data, recipe, output, **{'device': CPU, 'say': lambda text: None, **options})


def losses(result):
    return [epoch.loss for epoch in result.history]


def read_results(folder):
    return json.loads((folder / 'results.json').read_text())


def read_state(folder):
    return torch.load(folder / 'state.pt', weights_only=True)


def assert_same(one, two):
    """Equal to the bit, whatever they are made of."""
    assert type(one) is type(two)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_same(a, b)
    else:
        assert one == two
