"""timm's tests of families that it names itself, called with our models. `test_timm_suite.py` runs this file."""

import pytest
from timm_suite import OURS

from tests import test_model_input  # timm's own folder
from tests import test_models as timms

each_model = pytest.mark.parametrize('model_name', sorted(OURS))


@each_model
def test_prune_intermediate_layers_params_used(model_name):
    timms.test_prune_intermediate_layers_params_used(model_name)


@each_model
def test_forward_after_prune_intermediate_layers(model_name):
    timms.test_forward_after_prune_intermediate_layers(model_name)


@each_model
def test_prune_intermediate_layers_last_feature(model_name):
    timms.test_prune_intermediate_layers_last_feature(model_name, stop_early_final=True)


@each_model
def test_reset_classifier_keeps_pool(model_name):
    timms.test_reset_classifier_keeps_pool(model_name)


@each_model
def test_head_hidden_size(model_name):
    timms.test_head_hidden_size(model_name, {})


@each_model
def test_features_only_grad_checkpointing_backward(model_name):
    timms.test_features_only_grad_checkpointing_backward(model_name)


@each_model
def test_feature_getter_stage_ends_torchscript(model_name):
    timms.test_feature_getter_stage_ends_torchscript(model_name)


@each_model
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
