"""Counted numbers: parameters, multiply-accumulates and bytes against the published ones, and `describe`."""

import pytest
import timm

from tinyvit_zoo.build import build_model
from tinyvit_zoo.common.errors import ModelError
from tinyvit_zoo.hub import save_folder
from tinyvit_zoo.info import count_profiles, describe, list_releases, profile_model
from tinyvit_zoo.releases import FAMILIES, all_releases, find_release
from tinyvit_zoo.releases.profile import find_profile, stored_profiles

# The released models with 1000 classes, counted on the authors' own classes: parameters, MACs in G of one image.
PUBLISHED = {
    'tinyvit_5m_224': (5_392_764, 1.255),
    'tinyvit_11m_224': (10_996_972, 2.016),
    'tinyvit_21m_224': (21_198_568, 4.250),
    'tinyvit_21m_384': (21_230_488, 13.698),
    'tinyvit_21m_512': (21_268_120, 26.884),
    'mini_deit_tiny_patch16_224': (3_090_304, 1.277),
    'mini_deit_small_patch16_224': (11_450_824, 4.651),
    'mini_deit_base_patch16_224': (44_098_408, 17.693),
    'mini_deit_base_patch16_384': (44_390_248, 56.785),
    'mini_swin_tiny_patch4_window7_224': (12_001_765, 4.594),
    'mini_swin_small_patch4_window7_224': (26_463_205, 8.922),
    'mini_swin_base_patch4_window7_224': (46_444_852, 15.701),
    'mini_swin_base_patch4_window12_384': (46_512_532, 48.550),
}
# Parameters as the authors' classes have them, and the width that the products follow from.
PLAIN = {
    'tinymim_vit_tiny_patch16_224': (5_717_416, 192),
    'tinymim_vit_small_patch16_224': (22_050_664, 384),
    'tinymim_vit_base_patch16_224': (86_567_656, 768),
    'mae_lite_vit_tiny_patch16_224': (5_717_416, 192),
    'mae_lite_vit_small_patch16_224': (22_050_664, 384),
    'mae_lite_vit_tiny_rpe_patch16_224': (5_825_128, 192),
}
# With neither classifier nor, in students, a last block that runs; all blocks of theirs are counted.
ENCODERS = {
    **{
        f'tinymim_vit_{s}_student_patch16_224': p
        for s, p in zip(('tiny', 'small', 'base'), (5_524_416, 21_665_664, 85_798_656), strict=True)
    },
    'mae_lite_vit_tiny_encoder_patch16_224': 5_524_416,
    'mae_lite_vit_small_encoder_patch16_224': 21_665_664,
}
# The encoder's 5.52 M, one more token and its position, the expansion of 192 to 1280, a norm and two classifiers of it.
STAR = {'tinymim_vit_tiny_star_patch16_224': 5_524_416 - 384 + 384 + (384 + 192 * 1280 + 1280) + 2560 + 2 * 1_281_000}
# As the authors' class has them, with 21841 classes.
TEACHER = {'clip_vit_large_patch14_224': 320_761_937}
PUBLISHED_22K = {'tinyvit_5m_224': 12_082_725, 'tinyvit_11m_224': 20_354_581, 'tinyvit_21m_224': 33_223_825}


@pytest.mark.parametrize('family', FAMILIES)
def test_stored_profiles_are_those_of_the_models(family):
    """Of the first release of each family; `cards check` counts all of them."""
    release = FAMILIES[family][0]
    assert count_profiles([release]) == {release.name: release.profile}


def test_stored_profiles_are_those_of_the_releases():
    assert list(stored_profiles()) == [release.name for release in all_releases()]


def test_a_release_without_a_stored_profile_says_what_to_do():
    with pytest.raises(LookupError, match=r'no entry for nobody\.nothing: run `tinyvit-zoo cards build`'):
        find_profile('nobody.nothing')


@pytest.mark.parametrize('architecture', PUBLISHED)
def test_parameters_and_macs_are_the_published_ones(architecture):
    profile = find_release(architecture).profile
    params, gmacs = PUBLISHED[architecture]
    assert profile.params == params
    assert round(profile.macs / 1e9, 3) == gmacs


@pytest.mark.parametrize('architecture', PLAIN)
def test_products_of_a_plain_vit_are_those_of_its_layers(architecture):
    params, width = PLAIN[architecture]
    profile = find_release(architecture).profile
    tokens = 197
    layer = 12 * tokens * width**2 + 2 * tokens**2 * width
    assert profile.params == params
    assert profile.macs == 196 * 768 * width + 12 * layer + 1000 * width


def test_the_block_that_a_student_leaves_out_costs_nothing():
    student = find_release('tinymim_vit_tiny_student_patch16_224').profile
    assert student.macs == 196 * 768 * 192 + 11 * (12 * 197 * 192**2 + 2 * 197**2 * 192)


def test_bytes_are_those_of_the_file_that_is_saved(tmp_path):
    release = find_release('mini_deit_tiny_patch16_224')
    file = save_folder(timm.create_model(release.name), tmp_path / 'model') / 'model.safetensors'
    header = 8 + int.from_bytes(file.read_bytes()[:8], 'little')
    assert file.stat().st_size - header == release.profile.bytes == 4 * release.profile.params


def test_buffers_count_as_bytes_and_not_as_parameters():
    """BatchNorm's, which Mini-DeiT does not have."""
    profile = profile_model(build_model('tinyvit_5m_224', img_size=64, device='meta'))
    assert profile.bytes > 4 * profile.params


def test_rows_of_the_list_have_the_stored_profile_of_each_release_with_its_own_head():
    rows = {row['name']: row for row in list_releases()}
    assert set(rows) == {release.name for release in all_releases()}
    for name, row in rows.items():
        release = find_release(name)
        params = {k: v[0] for k, v in (PUBLISHED | PLAIN).items()} | ENCODERS | STAR
        expected = PUBLISHED_22K if row['num_classes'] == 21841 else params
        assert row['params'] == (expected | TEACHER)[release.architecture], name
        assert (row['bytes'], row['gmacs']) == (release.profile.bytes, round(release.profile.macs / 1e9, 3))


def test_the_list_is_filtered_by_a_shell_pattern():
    assert {row['name'].partition('.')[0] for row in list_releases('tinyvit_21m*')} == {
        'tinyvit_21m_224',
        'tinyvit_21m_384',
        'tinyvit_21m_512',
    }
    assert len(list_releases('tinyvit_5m_224')) == 3
    assert [row['name'] for row in list_releases('*5m*.in1k')] == ['tinyvit_5m_224.in1k']
    assert list_releases('resnet*') == []


def test_macs_do_not_depend_on_the_device_and_follow_the_size():
    on_cpu = profile_model(timm.create_model('tinyvit_5m_224', img_size=64).eval())
    on_meta = profile_model(build_model('tinyvit_5m_224', img_size=64, device='meta'))
    assert on_cpu == on_meta
    assert on_meta.macs < profile_model(build_model('tinyvit_5m_224', device='meta')).macs / 10


def test_describe_follows_the_real_size():
    facts = describe('tinyvit_5m_224', (256, 320))
    assert facts['model']['img_size'] == (256, 320)
    assert facts['model']['windows'] == [None, [8, 10], [16, 20], [8, 10]]
    assert facts['preprocessing']['input_size'] == (3, 256, 320)
    assert facts['model']['gmacs'] > describe('tinyvit_5m_224')['model']['gmacs']


def test_describe_gives_both_protocols_with_the_default_first():
    facts = describe('tinyvit_21m_224')
    assert [(p['crop_pct'], p['default']) for p in facts['protocols']] == [(0.95, True), (0.875, False)]
    assert facts['protocols'][0]['results'][0]['top1'] > facts['protocols'][1]['results'][0]['top1']
    assert all(result['source'] for p in facts['protocols'] for result in p['results'])
    assert facts['preprocessing']['crop_pct'] == facts['protocols'][0]['crop_pct']


def test_describe_says_nothing_of_a_release_about_a_folder(tmp_path, small):
    folder = save_folder(small(), tmp_path / 'model')
    facts = describe(f'local-dir:{folder}')
    assert facts['release'] is None
    assert facts['protocols'] == []
    assert facts['model']['num_classes'] == 11


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('tinyvit_5m_244', 'Did you mean tinyvit_5m_224'),
        ('tinyvit_5m_224.nope', 'it has: dist_in22k_ft_in1k, dist_in22k, in1k'),
        ('timm/tiny_vit_5m_224', 'hf-hub:'),
        ('local-dir:/nowhere', '/nowhere'),
        ('hf-hub:nobody/nothing', 'nobody/nothing'),
    ],
)
def test_a_wrong_name_is_reported_with_a_hint(name, message):
    with pytest.raises(ModelError, match=message):
        build_model(name, device='meta')


def test_an_impossible_size_is_reported():
    with pytest.raises(ModelError, match='at least 32'):
        describe('tinyvit_5m_224', (16, 16))
