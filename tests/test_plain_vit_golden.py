"""TinyMIM and MAE-Lite compute what the released code computes: double precision, from official-layout files.

The references hold single-precision numbers. Each kind of model is checked again with other weights, heads, sizes and
inputs by a slow model that is spelled out in `plain_vit_reference.py`.
"""

import json

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import small_of
from golden_case import SINGLE, Case, assert_close
from golden_rule import GOLDEN, fill_by_rule, golden, noise
from plain_vit_reference import linear, norm, tokens
from timm.optim import param_groups_layer_decay

from tinyvit_zoo.checkpoints import heads_of
from tinyvit_zoo.layers import resize_position, sincos_position

TINY, SMALL = 'mae_lite_vit_tiny_patch16_224', 'mae_lite_vit_small_patch16_224'
RPE = 'mae_lite_vit_tiny_rpe_patch16_224'
SHARED = dict(use_rel_pos_bias=False, use_shared_rel_pos_bias=True)


def case(file: str, model: str, **kwargs) -> Case:
    return Case(file, file, model, kwargs, atol=SINGLE)


TINYMIM = [
    case('tinymim_vit_tiny_patch16_ft', 'tinymim_vit_tiny_patch16_224'),
    case('tinymim_vit_tiny_patch16_ft_clstoken', 'tinymim_vit_tiny_patch16_224', global_pool='token'),
    case('tinymim_vit_small_patch16_ft', 'tinymim_vit_small_patch16_224'),
    case('tinymim_vit_base_patch16_ft', 'tinymim_vit_base_patch16_224'),
]
MAE_LITE = [
    case('maelite_vit_tiny_patch16_ft', TINY),
    case('maelite_vit_tiny_patch16_ft_clstoken', TINY, global_pool='token'),
    case('maelite_vit_small_patch16_ft', SMALL),
    case('maelite_vit_tiny_patch16_rpe', RPE),
    case('maelite_vit_tiny_patch16_rpe_noabs', RPE, use_abs_pos_emb=False),
    case('maelite_vit_tiny_patch16_rpe_shared', RPE, **SHARED),
]
DISTILLED = case('maelite_vit_tiny_patch16_ft_distilled', TINY, distilled=True)


def heavy(case: Case):
    """As a parameter; all but the tiny ones take long in double precision."""
    return pytest.param(case, marks=[] if 'tiny' in case.reference else [pytest.mark.slow])


@pytest.mark.parametrize('case', [heavy(case) for case in [*TINYMIM, *MAE_LITE]], ids=str)
@torch.no_grad()
def test_logits_and_pooled_features_equal_the_released_code(case, official_file):
    expected, model = golden(case.reference), case.build(official_file).double()
    features = model.forward_features(noise(224, 224).double())
    assert_close(model.forward_head(features), expected['logits'], case.atol)
    assert_close(model.forward_head(features, pre_logits=True), expected['pooled'], case.atol)


@pytest.mark.parametrize('case', [heavy(case) for case in [*TINYMIM, *MAE_LITE[:3]]], ids=str)
@torch.no_grad()
def test_every_block_equals_the_released_code(case, official_file):
    expected, model = golden(case.reference), case.build(official_file).double()
    after = model.forward_intermediates(
        noise(224, 224).double(), output_fmt='NLC', return_prefix_tokens=True, intermediates_only=True
    )
    after = [torch.cat([prefix, patches], dim=1) for patches, prefix in after]
    statistics = torch.tensor([[x.mean(), x.std()] for x in after])
    assert_close(statistics, expected['block_mean_std'], 1e-5)
    assert_close(after[-1][:, expected['rows']], expected['tokens_rows'], 3e-6 * np.abs(expected['tokens_rows']).max())


@torch.no_grad()
def test_two_classifiers_equal_the_released_code(official_file):
    expected, model = golden(DISTILLED.reference), DISTILLED.build(official_file).double()
    x = noise(224, 224).double()
    features = model.forward_features(x)
    pooled = model.fc_norm(features[:, 1:].mean(dim=1)), model.dist_norm(features[:, 0])
    assert_close(pooled[0], expected['pooled'], SINGLE)
    assert_close(pooled[1], expected['pooled_dist'], SINGLE)
    assert_close(model(x), expected['logits'], SINGLE)
    model.set_distilled_training(True)
    for logits, name in zip(model.train()(x), ('logits_cls', 'logits_dist'), strict=True):
        assert_close(logits, expected[name], SINGLE)


def test_the_files_of_equal_weights_differ_by_their_heads_only(official_file):
    """A wrong number of heads would matter: the references of 3 and 12 heads share all their weights."""
    three, twelve = golden('tinymim_vit_tiny_patch16_ft')['logits'], golden('maelite_vit_tiny_patch16_ft')['logits']
    assert np.abs(three - twelve).max() > 0.1
    model = MAE_LITE[0]
    wrong = Case(model.reference, model.file, 'tinymim_vit_tiny_patch16_224').build(official_file).double()
    with torch.no_grad():
        assert_close(wrong(noise(224, 224).double()), three, SINGLE)


# --- other weights, heads and sizes, against the slow model


@pytest.mark.parametrize('size', [(64, 64), (96, 32)], ids=str)
@pytest.mark.parametrize('heads', [3, 6])
@torch.no_grad()
def test_a_fine_tuned_model_equals_the_slow_one(size, heads):
    model = small_of('tinymim', num_heads=heads, img_size=size).double()
    state, x = model.state_dict(), torch.randn(2, 3, *size, dtype=torch.float64)
    mean = tokens(state, x, [heads] * 4)[-1][:, 1:].mean(dim=1)
    expected = linear(state, 'head', norm(state, 'fc_norm', mean))
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_a_student_stops_after_the_last_trained_block_and_the_last_has_heads_of_its_own():
    student = small_of('tinymim_student', num_classes=0, img_size=64).double()
    whole = small_of('tinymim_student', num_classes=0, img_size=64, forward_depth=5).double()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert heads_of(student) == (3, 3, 3, 3, 6)
    after = tokens(student.state_dict(), x, list(heads_of(student)))
    torch.testing.assert_close(student.forward_features(x), after[3], rtol=0, atol=1e-10)
    torch.testing.assert_close(student(x), after[3][:, 1:].mean(dim=1), rtol=0, atol=1e-10)
    expected = norm(whole.state_dict(), 'norm', after[4])
    torch.testing.assert_close(whole.forward_features(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize('size', [(64, 64), (96, 32)], ids=str)
@torch.no_grad()
def test_tinymim_star_expands_all_tokens_and_averages_two_classifiers(size):
    model = small_of('tinymim_star', img_size=size).double()
    state, x = model.state_dict(), torch.randn(2, 3, *size, dtype=torch.float64)
    assert state['pos_embed'].shape[1] == size[0] * size[1] // 256 + 2
    expanded = norm(state, 'conv1x1.0', tokens(state, x, [6] * 4)[-1], eps=1e-5)
    expanded = F.gelu(linear(state, 'conv1x1.1', expanded))
    torch.testing.assert_close(model.forward_features(x), expanded, rtol=0, atol=1e-10)
    of_patches = linear(state, 'head', norm(state, 'fc_norm', expanded[:, 2:].mean(dim=1)))
    of_token = linear(state, 'head_dist', expanded[:, 1])
    torch.testing.assert_close(model(x), (of_patches + of_token) / 2, rtol=0, atol=1e-10)


@pytest.mark.parametrize('kwargs', [{}, dict(use_abs_pos_emb=False), SHARED, dict(use_rel_pos_bias=False)], ids=str)
@torch.no_grad()
def test_tables_equal_the_slow_model(kwargs):
    model = small_of('mae_lite_rpe', img_size=64, **kwargs).double()
    state, x = model.state_dict(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    mean = tokens(state, x, [6] * 4)[-1][:, 1:].mean(dim=1)
    expected = linear(state, 'head', norm(state, 'fc_norm', mean))
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_an_encoder_gives_the_mean_of_its_normalized_patches_or_the_class_token():
    x = torch.randn(2, 3, 224, 224)
    for pool in ('avg', 'token'):
        model = fill_by_rule(timm.create_model('mae_lite_vit_tiny_encoder_patch16_224', depth=2, global_pool=pool))
        state = model.state_dict()
        normed = norm(state, 'norm', tokens(state, x, [12] * 2)[-1])
        expected = normed[:, 1:].mean(dim=1) if pool == 'avg' else normed[:, 0]
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


# --- positions


@pytest.mark.parametrize(('width', 'side'), [(192, 14), (96, 14), (384, 14), (8, 4)])
def test_fixed_positions_equal_the_released_table(width, side):
    expected = golden('tinymim_pos_embed')[f'sincos_{width}_{side}']
    np.testing.assert_array_equal(sincos_position(width, (side, side))[0].numpy(), expected)


def test_fixed_positions_of_a_rectangle_are_those_of_its_rows_and_columns():
    table = sincos_position(8, (2, 3), prefix_tokens=2, dtype=torch.float64)[0]
    assert table.shape == (2 + 6, 8)
    assert (table[:2] == 0).all()
    for row in range(2):
        for column in range(3):
            place = torch.tensor([column, column / 100, row, row / 100], dtype=torch.float64).view(2, 2)
            expected = torch.cat([place.sin(), place.cos()], dim=1).flatten()
            torch.testing.assert_close(table[2 + 3 * row + column], expected)


def test_a_width_that_two_axes_cannot_share_is_refused():
    with pytest.raises(ValueError, match='multiple of 4'):
        sincos_position(6, (2, 2))


@pytest.mark.parametrize('side', [32, 10])
def test_positions_are_resized_as_released_and_timm_resizes_otherwise(side):
    from timm.layers import resample_abs_pos_embed

    arrays = golden('tinymim_pos_embed')
    expected, given = arrays[f'interp_14to{side}'], torch.from_numpy(arrays['interp_in'])
    assert_close(resize_position(given, (14, 14), (side, side), prefix_tokens=1), expected, 1e-7)
    timms = resample_abs_pos_embed(given, new_size=(side, side), old_size=(14, 14), num_prefix_tokens=1)
    assert np.abs(timms.numpy() - expected).max() > 0.01


# --- training


def assert_groups(model: torch.nn.Module, expected: dict[str, list[float]], layer_decay: float) -> None:
    """timm's parameter groups have the scale of the learning rate and the weight decay of the released recipe."""
    groups = param_groups_layer_decay(
        model, weight_decay=0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=layer_decay
    )
    by_id = {id(p): (g['lr_scale'], g['weight_decay']) for g in groups for p in g['params']}
    assert dict(model.named_parameters()).keys() == expected.keys()
    for key, parameter in model.named_parameters():
        assert by_id[id(parameter)] == pytest.approx(tuple(expected[key]), rel=1e-12), key


def test_layer_decay_of_tinymim_equals_the_released_recipe():
    reference = json.loads((GOLDEN / 'tinymim_layer_decay.json').read_text())
    model = timm.create_model('tinymim_vit_base_patch16_224')
    assert_groups(model, reference['lr_scale_and_wd'], reference['layer_decay'])


@pytest.mark.parametrize(('name', 'official'), [(TINY, 'vit_tiny_patch16'), (RPE, 'vit_tiny_patch16_rpe')])
def test_layer_decay_of_mae_lite_equals_the_released_recipe(name, official):
    reference = json.loads((GOLDEN / 'maelite_layer_decay.json').read_text())
    assert_groups(timm.create_model(name), reference['lr_scale_and_wd'][official], reference['layer_decay'])
