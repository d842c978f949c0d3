"""Mini-DeiT and Mini-Swin compute what the released code computes: double precision, from official-layout files.

Each model is checked twice: by the outputs of the released code, and with other weights, sizes and inputs by a slow
model that is spelled out here from the description of the released one (`minivit_reference.py`).
"""

import numpy as np
import pytest
import timm
import torch
from conftest import assert_same
from golden_case import RESIZED, SINGLE, Case, assert_close, assert_tap
from golden_rule import golden, noise, ramp
from minivit_reference import mini_deit, mini_swin

from tinyvit_zoo.checkpoints import MINI_DEIT_KEYS, MINI_SWIN_KEYS
from tinyvit_zoo.layers import RelativeKeys, irpe_index, piecewise_index

DEIT = [
    Case(name, name, name)
    for name in (
        'mini_deit_tiny_patch16_224',
        'mini_deit_small_patch16_224',
        'mini_deit_base_patch16_224',
        'mini_deit_base_patch16_384',
    )
]
DEIT_AT_384 = Case(
    'mini_deit_base_224to384',
    'mini_deit_base_patch16_224',
    'mini_deit_base_patch16_224',
    dict(img_size=384),
    atol=RESIZED,
)


def size_of(case: Case) -> int:
    return 384 if '384' in case.reference else 224


def cases(*cases: Case) -> list:
    """As parameters; all but the tiny ones take long in double precision."""
    return [
        pytest.param(case, marks=[] if size_of(case) == 224 and 'tiny' in case.reference else [pytest.mark.slow])
        for case in cases
    ]


@pytest.mark.parametrize('case', cases(*DEIT, DEIT_AT_384), ids=str)
@torch.no_grad()
def test_mini_deit_equals_the_released_code(case, official_file):
    expected, size = golden(case.reference), size_of(case)
    model = case.build(official_file).double()
    image = noise(size, size).double()

    final, layers = model.forward_intermediates(image, output_fmt='NLC')
    assert_close(model.forward_head(final), expected['logits_f64'], case.atol)
    assert_close(model.forward_head(final, pre_logits=True), expected['pooled'], SINGLE)
    assert_close(model(ramp(size, size).double()), expected['logits_ramp_f64'], case.atol)

    assert len(layers) == 12
    taps = {f'layer{i}': layer for i, layer in enumerate(layers)}
    taps |= {'patch_embed': model.patch_embed(image).flatten(1, 2), 'tokens_normed': final}
    for name, tokens in taps.items():
        assert_tap(tokens, expected, name)


def test_the_resized_positions_equal_the_released_code(official_file):
    expected = golden(DEIT_AT_384.reference)
    positions = DEIT_AT_384.build(official_file).pos_embed.detach()
    assert_close(positions[:, :64], expected['param:pos_embed'], RESIZED)
    assert_close(positions[0].double().sum(0), expected['param:pos_embed.sum'], 576 * RESIZED)


SWIN = [
    Case('mini_swin_tiny', 'mini_swin_tiny', 'mini_swin_tiny_patch4_window7_224'),
    Case('mini_swin_small', 'mini_swin_small', 'mini_swin_small_patch4_window7_224'),
    Case('mini_swin_base', 'mini_swin_base', 'mini_swin_base_patch4_window7_224'),
    Case('mini_swin_base_384', 'mini_swin_base_384', 'mini_swin_base_patch4_window12_384'),
]
SWIN_AT_384 = Case(
    'mini_swin_base_224to384', 'mini_swin_base', 'mini_swin_base_patch4_window7_224', dict(img_size=384), atol=RESIZED
)


@pytest.mark.parametrize('case', cases(*SWIN, SWIN_AT_384), ids=str)
@torch.no_grad()
def test_mini_swin_equals_the_released_code(case, official_file):
    expected, size = golden(case.reference), size_of(case)
    model = case.build(official_file).double()
    layers, projections, merged, hooks = [], [], [], []
    for stage in model.stages:
        hooks.append(stage.downsample.register_forward_hook(lambda module, args, out: merged.append(out)))
        for block in stage.blocks:  # runs once for each of its repeats
            hooks.append(block.register_forward_hook(lambda module, args, out: layers.append(out)))
            hooks.append(block.attn.qkv.register_forward_hook(lambda module, args, out: projections.append(out)))
    image = noise(size, size).double()
    final, stages = model.forward_intermediates(image)
    for hook in hooks:  # from here on the shortcuts of a model without hooks are allowed
        hook.remove()

    assert_close(model.forward_head(final), expected['logits_f64'], case.atol)
    assert_close(model.forward_head(final, pre_logits=True), expected['pooled'], SINGLE)
    assert len(layers) == len(projections) == expected['n_layers']
    taps = {f'hidden{i}': layer for i, layer in enumerate(layers)}
    # The released code ends each of its layers with the downsample; the last has none.
    taps |= {f'layer{i}': tokens for i, tokens in enumerate([*merged[1:], layers[-1]])}
    taps |= {f'stage{i}': stage.permute(0, 2, 3, 1) for i, stage in enumerate(stages)}
    taps |= {'patch_embed': model.patch_embed(image), 'tokens_normed': final}
    for name, tokens in taps.items():
        assert_tap(tokens.flatten(1, 2), expected, name)
    for i, qkv in enumerate(projections):
        assert tuple(qkv.shape[:2]) == tuple(expected[f'qkv{i}.shape'][:2])
        parts = [[part.mean().item(), part.std(correction=0).item()] for part in qkv.chunk(3, dim=-1)]
        np.testing.assert_allclose(parts, expected[f'qkv{i}.mean_std'], rtol=0, atol=SINGLE)

    assert_close(model(ramp(size, size).double()), expected['logits_ramp_f64'], case.atol)


def test_the_resized_tables_equal_the_released_code(official_file):
    expected = {k.removeprefix('param:'): v for k, v in golden(SWIN_AT_384.reference).items() if k.startswith('param:')}
    assert len(expected) == 3
    official = MINI_SWIN_KEYS.to_official(SWIN_AT_384.build(official_file).state_dict())
    for key, table in expected.items():
        assert_close(official[key], table, RESIZED)


@pytest.mark.slow
@pytest.mark.parametrize(
    'case',
    [
        Case('', 'mini_deit_base_patch16_224', 'mini_deit_base_patch16_384'),
        Case('', 'mini_deit_base_patch16_224', 'mini_deit_base_patch16_224', then=(384,)),
        Case('', 'mini_deit_base_patch16_224', 'mini_deit_base_patch16_384', dict(img_size=224), then=(384,)),
        Case('', 'mini_swin_base', 'mini_swin_base_patch4_window12_384'),
        Case('', 'mini_swin_base', 'mini_swin_base_patch4_window7_224', then=(384,)),
        Case('', 'mini_swin_base', 'mini_swin_base_patch4_window12_384', dict(img_size=224), then=(384,)),
    ],
    ids=str,
)
def test_every_way_to_a_size_gives_the_same_model(case, official_file):
    expected = SWIN_AT_384 if 'swin' in case.model else DEIT_AT_384
    assert_same(case.build(official_file).state_dict(), expected.build(official_file).state_dict())


# --- relative keys


def test_buckets_equal_the_released_code():
    expected = golden('mini_deit_irpe')
    offsets = torch.from_numpy(expected['piecewise.d'])
    assert_close(piecewise_index(offsets), expected['piecewise.idx'], 0)
    for side in (4, 14, 24):
        flat = irpe_index((side, side)).view(side**2, side**2)
        buckets = flat - torch.arange(side**2)[:, None] * 49
        assert_close(buckets, expected[f'bucket{side}'], 0)


def test_relative_keys_equal_the_released_code():
    expected = golden('mini_deit_irpe')
    keys = RelativeKeys(head_dim=8)
    keys.table.data.copy_(torch.from_numpy(expected['unit.w']))
    out = keys(torch.from_numpy(expected['unit.q']).flatten(0, 1), irpe_index((4, 4)))
    assert_close(out, expected['unit.out'].reshape(out.shape), SINGLE)


# --- other weights and inputs


def scattered(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The model in double precision with weights that no rule of the references knows, all far from zero effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.rand(parameter.shape, generator=generator) * 2 - 1
            scale = 3 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 and 'table' not in key else 0.5
            parameter.copy_(noise * scale + (1.0 if parameter.ndim == 1 and key.endswith('weight') else 0.0))
    return model.double().eval()


def small_deit(**kwargs) -> torch.nn.Module:
    args = dict(img_size=(96, 80), embed_dim=24, num_heads=3, depth=6, num_classes=5)
    return timm.create_model('mini_deit_tiny_patch16_224', **{**args, **kwargs})


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize(
    'kwargs',
    [{}, dict(repeats=3), dict(repeats=6), dict(repeats=1), dict(rpe_scaled_q=False), dict(in_chans=4, patch_size=8)],
    ids=str,
)
@torch.no_grad()
def test_mini_deit_equals_a_model_spelled_out(kwargs, seed):
    model = scattered(small_deit(**kwargs), seed)
    images = torch.rand(2, model.in_chans, *model.patch_embed.img_size, dtype=torch.float64) * 4 - 2
    state = MINI_DEIT_KEYS.to_official(model.state_dict())
    expected, layers = mini_deit(state, images, kwargs.get('rpe_scaled_q', True))
    final, found = model.forward_intermediates(images, output_fmt='NLC')
    for layer, tokens in zip(layers, found, strict=True):
        torch.testing.assert_close(tokens, layer, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.forward_head(final), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model(images), expected, rtol=1e-10, atol=1e-10)


def small_swin(**kwargs) -> torch.nn.Module:
    args = dict(img_size=96, embed_dim=6, depths=(2, 2, 6, 2), num_heads=(1, 2, 3, 4), num_classes=5)
    return timm.create_model('mini_swin_tiny_patch4_window7_224', **{**args, **kwargs})


@pytest.mark.parametrize('seed', range(2))
@pytest.mark.parametrize(
    'kwargs',
    [
        {},
        dict(repeats=2),
        dict(repeats=(2, 1, 3, 2)),
        dict(repeats=1, in_chans=4),
        dict(mask_unshifted=False),
        dict(replace_residual=False),
        dict(img_size=64),  # windows of 2
        dict(img_size=(64, 96)),  # windows of 2 x 3
        dict(img_size=(128, 64), window_size=4),  # at last a window of 4 x 4 on a map of 4 x 2
        dict(img_size=(100, 72), window_size=4),  # maps of 25 x 18, 13 x 9, 7 x 5 and 4 x 3
        dict(img_size=(64, 128), window_size=((4, 8), (4, 2), (2, 8), (1, 2)), local_conv_size=3),
    ],
    ids=str,
)
@torch.no_grad()
def test_mini_swin_equals_a_model_spelled_out(kwargs, seed):
    model = scattered(small_swin(**kwargs), seed)
    images = torch.rand(2, model.in_chans, *model.img_size, dtype=torch.float64) * 4 - 2
    state = {MINI_SWIN_KEYS.official_name(key): value for key, value in model.state_dict().items()}
    quirks = {name: kwargs[name] for name in ('mask_unshifted', 'replace_residual') if name in kwargs}
    expected, layers = mini_swin(state, images, model.window_sizes, **quirks)
    found = []
    for stage in model.stages:
        for block in stage.blocks:
            block.register_forward_hook(lambda module, args, out: found.append(out))
    logits = model(images)
    for layer, tokens in zip(layers, found, strict=True):
        torch.testing.assert_close(tokens, layer, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
