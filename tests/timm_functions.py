"""timm's tests of families that it names itself, called with our models. `test_timm_suite.py` runs this file."""

import fnmatch

import pytest
import timm
from timm_suite import OURS, PLAIN_VIT

from tests import test_model_input  # timm's own folder
from tests import test_models as timms

# These tests choose image sizes freely.
FIXED_SIZE = [name for name in OURS if timm.get_pretrained_cfg_value(name, 'fixed_input_size')]
# Models of tokens: no pooling but the mean, no extractor but the getter.
TOKENS = [name for name in OURS if any(fnmatch.fnmatch(name, pattern) for pattern in PLAIN_VIT)]
# Subclasses of timm's ViT and BEiT: the getter around those cannot be scripted, nor can BEiT take every size.
TIMMS_VIT = [name for name in OURS if name.startswith(('tinymim_', 'mae_lite_', 'clip_vit_'))]
TIMMS_BEIT = [name for name in OURS if '_rpe_' in name]
# Their features come as (B, H, W, C), the tests mean (B, C, H, W).
CHANNELS_LAST = [name for name in OURS if name.startswith('mini_swin')]


def each_model_but(*others: list[str]):
    return pytest.mark.parametrize('model_name', sorted(OURS.difference(*others)))


each_model = each_model_but()


@pytest.fixture
def any_size(monkeypatch, model_name) -> None:
    """timm's tests make a model that takes every size."""
    create = timms.create_model
    if model_name in FIXED_SIZE:
        size = dict(img_size=128) if model_name in TIMMS_BEIT else dict(dynamic_img_size=True)
        monkeypatch.setattr(timms, 'create_model', lambda *args, **kwargs: create(*args, **{**size, **kwargs}))


@each_model
def test_prune_intermediate_layers_params_used(model_name):
    timms.test_prune_intermediate_layers_params_used(model_name)


@pytest.mark.usefixtures('any_size')
@each_model
def test_forward_after_prune_intermediate_layers(model_name):
    timms.test_forward_after_prune_intermediate_layers(model_name)


@pytest.mark.usefixtures('any_size')
@each_model_but(TOKENS, CHANNELS_LAST)
def test_prune_intermediate_layers_last_feature(model_name):
    timms.test_prune_intermediate_layers_last_feature(model_name, stop_early_final=True)


@pytest.mark.usefixtures('any_size')
@each_model_but(TOKENS)
def test_reset_classifier_keeps_pool(model_name):
    timms.test_reset_classifier_keeps_pool(model_name)


@pytest.mark.usefixtures('any_size')
@each_model_but(TOKENS)
def test_head_hidden_size(model_name):
    timms.test_head_hidden_size(model_name, {})


@pytest.mark.usefixtures('any_size')
@each_model_but(TOKENS)
def test_features_only_grad_checkpointing_backward(model_name):
    timms.test_features_only_grad_checkpointing_backward(model_name)


@pytest.mark.usefixtures('any_size')
@each_model_but(TIMMS_VIT)
def test_feature_getter_stage_ends_torchscript(model_name):
    timms.test_feature_getter_stage_ends_torchscript(model_name)


@pytest.mark.usefixtures('any_size')
@each_model_but(TIMMS_BEIT)
def test_model_init_weights_after_to_empty(model_name):
    timms.test_model_init_weights_after_to_empty(model_name, {})


@each_model
def test_headless_checkpoint_reload(model_name):
    timms.test_headless_checkpoint_reload(model_name, {})


@each_model
@pytest.mark.parametrize('size', [160, 256])
def test_relpos_family_set_input_size(model_name, size):
    timms.test_relpos_family_set_input_size(model_name, {}, 224, size)


@each_model
def test_relpos_non_square_checkpoint_reload(model_name):
    timms.test_relpos_non_square_checkpoint_reload(model_name, {})


@each_model
def test_relpos_non_square_set_input_size(model_name):
    timms.test_relpos_non_square_set_input_size(model_name, {})


@each_model
def test_default_resize_hub_roundtrip(model_name, tmp_path):
    test_model_input.test_default_resize_hub_roundtrip(tmp_path, model_name, {}, 224, 256)
