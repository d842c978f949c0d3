"""TinyViT computes what the released code computes: double precision, from official-layout files."""

import json

import numpy as np
import pytest
import timm
import torch
from conftest import assert_same, load
from golden_case import RESIZED, SINGLE, Case, assert_close, assert_tap
from golden_rule import GOLDEN, golden, noise, official_state_dict, ramp
from timm.models._hub import save_for_hf
from timm.optim import param_groups_layer_decay

from tinyvit_zoo.checkpoints import TINYVIT_KEYS, head_22k_to_1k

NATIVE = [
    Case('tiny_vit_5m_224', 'tiny_vit_5m_224', 'tinyvit_5m_224'),
    Case('tiny_vit_11m_224', 'tiny_vit_11m_224', 'tinyvit_11m_224'),
    Case('tiny_vit_21m_224', 'tiny_vit_21m_224', 'tinyvit_21m_224'),
    Case('tiny_vit_21m_384', 'tiny_vit_21m_384', 'tinyvit_21m_384'),
    Case('tiny_vit_21m_512', 'tiny_vit_21m_512', 'tinyvit_21m_512'),
    Case('tiny_vit_5m_224_22khead', 'tiny_vit_5m_224_22khead', 'tinyvit_5m_224.dist_in22k'),
    # The 224 model on other sizes: its windows stay, the maps are padded.
    Case('tiny_vit_5m_pad256', 'tiny_vit_5m_224', 'tinyvit_5m_224'),
    Case('tiny_vit_5m_rect192x320', 'tiny_vit_5m_224', 'tinyvit_5m_224'),
]
CHAINED = Case('tiny_vit_21m_224to384to512', 'tiny_vit_21m_224', 'tinyvit_21m_224', then=(384, 512), atol=RESIZED)
RESIZED_CASES = [
    Case('tiny_vit_21m_224to384', 'tiny_vit_21m_224', 'tinyvit_21m_224', dict(img_size=384), atol=RESIZED),
    Case('tiny_vit_21m_224to512', 'tiny_vit_21m_224', 'tinyvit_21m_224', dict(img_size=512), atol=RESIZED),
    CHAINED,
]


def heavy(case: Case):
    """As a parameter; the larger models take long in double precision."""
    return pytest.param(case, marks=[] if '_5m_' in case.reference else [pytest.mark.slow])


@pytest.mark.parametrize('case', [heavy(case) for case in NATIVE + RESIZED_CASES], ids=str)
@torch.no_grad()
def test_outputs_equal_the_released_code(case, official_file):
    expected = golden(case.reference)
    model = case.build(official_file).double()
    size = tuple(expected['input_hw'])

    features = model.forward_features(noise(*size).double())
    assert_close(features.mean((2, 3)), expected['pooled'], SINGLE)
    assert_close(model.forward_head(features, pre_logits=True), expected['pre_logits'], SINGLE)
    assert_close(model.forward_head(features), expected['logits_f64'], case.atol)
    assert_close(model(ramp(*size).double()), expected['logits_ramp_f64'], case.atol)


@pytest.mark.parametrize('case', [heavy(c) for c in NATIVE + RESIZED_CASES if '512' not in c.reference], ids=str)
@torch.no_grad()
def test_every_stage_equals_the_released_code(case, official_file):
    expected = golden(case.reference)
    model = case.build(official_file)
    merged = {}
    for i, stage in enumerate(list(model.stages)[1:]):
        stage.downsample.register_forward_hook(lambda m, args, out, i=i: merged.update({f'layer{i}': out}))
    image = noise(*expected['input_hw'])
    final, stages = model.forward_intermediates(image)

    taps = {'patch_embed': model.patch_embed(image), **{f'stage{i}': s for i, s in enumerate(stages)}, **merged}
    taps['layer3'] = final  # the released code ends each of its layers with the downsample; the last has none
    assert len(taps) == 9
    for name, tap in taps.items():
        assert_tap(tap.flatten(2).transpose(1, 2), expected, name)


@pytest.mark.parametrize('case', RESIZED_CASES, ids=str)
def test_resized_tables_equal_the_released_code(case, official_file):
    tables = {k.removeprefix('param:'): v for k, v in golden(case.reference).items() if k.startswith('param:')}
    assert len(tables) == 3
    official = TINYVIT_KEYS.to_official(case.build(official_file).state_dict())
    for key, table in tables.items():
        assert_close(official[key], table, RESIZED)


def assert_same_weights(actual: torch.nn.Module, expected: torch.nn.Module) -> None:
    assert actual.window_sizes == expected.window_sizes
    assert_same(actual.state_dict(), expected.state_dict())


@pytest.mark.parametrize(
    'case',
    [
        Case('tiny_vit_21m_224to384', 'tiny_vit_21m_224', 'tinyvit_21m_384'),
        Case('tiny_vit_21m_224to384', 'tiny_vit_21m_224', 'tinyvit_21m_224', then=(384,)),
        Case('tiny_vit_21m_224to384', 'tiny_vit_21m_224', 'tinyvit_21m_512', dict(img_size=384)),
    ],
    ids=str,
)
def test_every_way_to_a_size_gives_the_same_model(case, official_file):
    assert_same_weights(case.build(official_file), RESIZED_CASES[0].build(official_file))


@pytest.mark.parametrize('saved_as', ['official-pth', 'hub-folder'])
def test_a_saved_384_model_reloaded_at_512_is_the_released_chain(saved_as, official_file, tmp_path):
    at_384 = load('tinyvit_21m_224', official_file('tiny_vit_21m_224'), img_size=384)
    if saved_as == 'official-pth':
        torch.save({'model': TINYVIT_KEYS.to_official(at_384.state_dict())}, tmp_path / 'at_384.pth')
        model = load('tinyvit_21m_384', tmp_path / 'at_384.pth', img_size=512)
    else:
        save_for_hf(at_384, tmp_path, safe_serialization=True)
        model = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, img_size=512)
    assert_same_weights(model, CHAINED.build(official_file))


def test_chained_and_direct_resizing_differ_in_the_released_code():
    """The references differ by more than the tolerances above, so the tests of both chains can fail."""
    direct, chained = golden('tiny_vit_21m_224to512'), golden('tiny_vit_21m_224to384to512')
    assert np.abs(direct['logits_f64'] - chained['logits_f64']).max() > 1e-5


@pytest.mark.parametrize('layout', ['official', 'ours'])
def test_22k_head_becomes_the_released_1k_head(layout):
    expected = golden('tiny_vit_22kto1k_head')
    state_dict = official_state_dict('tiny_vit_5m_224_22khead')
    if layout == 'ours':
        state_dict, _ = TINYVIT_KEYS.to_ours(state_dict)
    converted = head_22k_to_1k(state_dict)
    head = 'head' if layout == 'official' else 'head.fc'
    assert_close(converted[f'{head}.weight'], expected['pretrained.head.weight'], 1e-7)
    assert_close(converted[f'{head}.bias'], expected['pretrained.head.bias'], 1e-7)
    assert converted.keys() == state_dict.keys()
    assert state_dict[f'{head}.weight'].shape[0] == 21841  # the input is unchanged


@torch.no_grad()
def test_converted_22k_model_gives_the_released_logits():
    state_dict = head_22k_to_1k(official_state_dict('tiny_vit_5m_224_22khead'))
    overlay = dict(state_dict=state_dict)
    model = timm.create_model('tinyvit_5m_224', pretrained=True, pretrained_cfg_overlay=overlay).eval()
    assert_close(model(noise(224, 224)), golden('tiny_vit_22kto1k_head')['pretrained.logits'], SINGLE)


def test_layer_decay_and_weight_decay_groups_equal_the_released_recipe():
    reference = json.loads((GOLDEN / 'tinyvit_lr_scale.json').read_text())
    model = timm.create_model('tinyvit_21m_224')
    groups = param_groups_layer_decay(
        model,
        weight_decay=0.05,
        no_weight_decay_list=model.no_weight_decay(),
        layer_decay=reference['layer_lr_decay'],
    )
    by_id = {id(p): (g['lr_scale'], g['weight_decay']) for g in groups for p in g['params']}
    official = TINYVIT_KEYS.to_official(dict(model.named_parameters()))
    assert official.keys() == reference['lr_scale'].keys()
    for key, parameter in official.items():
        lr_scale, weight_decay = by_id[id(parameter)]
        assert lr_scale == pytest.approx(reference['lr_scale'][key], rel=1e-12), key
        assert (weight_decay > 0) == (key in reference['decay']), key
    assert {k for k, p in official.items() if by_id[id(p)][1] == 0} == set(reference['no_decay'])
