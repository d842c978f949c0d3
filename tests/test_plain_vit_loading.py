"""Files of TinyMIM and MAE-Lite, which look alike: parts dropped on purpose, and detection of wrong heads."""

import argparse
import logging

import pytest
import timm
import torch
from conftest import assert_same, load, refused, small_of
from golden_rule import official_state_dict
from timm.models._hub import save_for_hf

from tinyvit_zoo.checkpoints import (
    PLAIN_VIT_KEYS,
    Clues,
    check_beit_buffers,
    clues_of,
    find_heads,
    find_key_map,
    heads_of,
    read_checkpoint,
    unwrap,
)
from tinyvit_zoo.releases import FAMILIES

TINYMIM, STUDENT = 'tinymim_vit_tiny_patch16_224', 'tinymim_vit_tiny_student_patch16_224'
MAE_LITE, ENCODER = 'mae_lite_vit_tiny_patch16_224', 'mae_lite_vit_tiny_encoder_patch16_224'
RPE, STAR = 'mae_lite_vit_tiny_rpe_patch16_224', 'tinymim_vit_tiny_star_patch16_224'


@pytest.fixture(scope='module')
def fine_tuned() -> dict[str, torch.Tensor]:
    """A fine-tuned ViT-Tiny, of 3 or of 12 heads."""
    return official_state_dict('maelite_vit_tiny_patch16_ft')


@pytest.fixture(scope='module')
def mae() -> dict[str, torch.Tensor]:
    """MAE-Lite's pre-training: encoder and decoder."""
    return official_state_dict('maelite_mae_tiny')


@pytest.fixture(scope='module')
def student() -> dict[str, torch.Tensor]:
    """TinyMIM's pre-training."""
    return official_state_dict('tinymim_student_tiny')


@pytest.fixture
def save(tmp_path):
    def run(checkpoint, name='file.pth'):
        torch.save(checkpoint, tmp_path / name)
        return tmp_path / name

    return run


def prefixed(prefix: str, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state_dict.items()}


# --- parts that only training needs are left out by name


def test_the_encoder_of_a_pre_training_file_loads_without_its_decoder(mae, save):
    model = load(ENCODER, save({'model': prefixed('module.model.', mae), 'start_epoch': 400}))
    expected = {k: v for k, v in mae.items() if k != 'mask_token' and not k.startswith('decoder_')}
    assert_same(model.state_dict(), expected)


def test_a_mask_token_makes_no_dinov2_of_a_file(mae, save):
    """timm's filter mistakes it for one, drops the token and fails on the decoder."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    stock = timm.create_model('vit_tiny_patch16_224', num_heads=12, num_classes=0)
    assert any(k.startswith('decoder_') for k in checkpoint_filter_fn(dict(mae), stock))
    assert not any(k.startswith('decoder_') for k in PLAIN_VIT_KEYS.to_ours(mae)[0])
    load(ENCODER, save(mae))


def test_the_student_is_taken_from_d_mae_and_not_its_teacher(mae, save):
    teacher = {k: v + 1 for k, v in mae.items()}
    whole = prefixed('module.model.', mae) | prefixed('module.tch_model.', teacher)
    whole['module.attn_adapter.adapter11.weight'] = torch.zeros(12, 12, 1, 1)
    path = save({'model': whole})
    assert_same(read_checkpoint(path), mae)
    torch.testing.assert_close(load(ENCODER, path).cls_token.detach(), mae['cls_token'])


def test_the_trained_encoder_is_taken_from_moco_v3_without_its_projector(save):
    whole = official_state_dict('maelite_mocov3_tiny')
    path = save({'model': prefixed('module.', whole)})
    model = load(f'{ENCODER}.mocov3_in1k', path)
    encoder = {k.removeprefix('base_encoder.'): v for k, v in whole.items() if k.startswith('base_encoder.')}
    assert_same(model.state_dict(), {k: v for k, v in encoder.items() if not k.startswith('head.')})


def test_a_training_wrapper_can_be_read_whole(save):
    whole = official_state_dict('maelite_mocov3_tiny')
    assert_same(read_checkpoint(save({'model': prefixed('module.', whole)}), whole=True), whole)


def test_other_parts_of_a_wrapper_are_left_out_only_under_known_names(mae):
    both = prefixed('model.', mae) | {'projector.weight': torch.zeros(1)}
    refused(lambda: unwrap(both), 'model', 'projector', '--part')


@pytest.mark.parametrize('key', ['decoder.weight', 'mask_tokens', 'head.weight_g'])
def test_an_unknown_name_is_refused(key, mae, save):
    refused(lambda: load(ENCODER, save({**mae, key: torch.zeros(1)})), key)


def test_a_second_model_among_the_names_is_asked_for(mae, save):
    both = {**mae, 'teacher.blocks.0.norm1.weight': torch.zeros(1)}
    refused(lambda: load(ENCODER, save(both)), '(teacher, names without a prefix)', '--part')


# --- an encoder is not a classifier, except as initial values of a training


def test_an_encoder_for_a_classifier_is_refused_with_advice(mae, student, save):
    refused(lambda: load(MAE_LITE, save(mae), num_classes=1000), 'encoder', 'as_init=True')
    refused(lambda: load(TINYMIM, save(student), num_classes=1000, num_heads=3), 'encoder', 'as_init=True')


def test_a_fine_tuned_file_for_an_encoder_is_refused(fine_tuned, save):
    refused(lambda: load(ENCODER, save(fine_tuned), num_heads=12), '1000 classes', 'none')


@pytest.mark.parametrize('classes', [1000, 10])
def test_a_three_head_training_starts_from_a_six_head_student_if_asked(classes, student, save):
    model = load(TINYMIM, save({'model': student}), as_init=True, num_classes=classes)
    assert heads_of(model) == (3,) * 12
    state = model.state_dict()
    for key, value in student.items():
        if not key.startswith('norm.'):
            torch.testing.assert_close(state[key], value, rtol=0, atol=0)
    assert (state['fc_norm.weight'] == 1).all()
    assert state['head.weight'].shape == (classes, 192)
    assert state['head.weight'].std() < 0.03
    assert 'norm.weight' not in state


def test_as_init_leaves_no_trace_of_the_checkpoint_in_the_configuration(student, save):
    model = load(TINYMIM, save(student), as_init=True)
    assert 'state_dict' not in model.pretrained_cfg
    assert model.pretrained_cfg['num_classes'] == 1000
    assert 'as_init' not in model.pretrained_cfg


def test_as_init_still_refuses_a_damaged_file(student, save):
    damaged = {k: v for k, v in student.items() if k != 'blocks.3.mlp.fc1.weight'}
    refused(lambda: load(TINYMIM, save(damaged), as_init=True), 'blocks.3.mlp.fc1.weight', '1 missing')


@torch.no_grad()
def test_a_model_with_tables_initialized_from_a_plain_encoder_computes_the_same(mae, save):
    path = save({'model': prefixed('module.model.', mae)})
    model = load(RPE, path, as_init=True, init_values=1.0).double()  # LayerScale 1 and tables 0 change nothing
    encoder = load(ENCODER, path).double()
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    normed = encoder.norm(model.forward_features(x))  # RPE's own features have no norm
    torch.testing.assert_close(normed, encoder.forward_features(x), rtol=0, atol=1e-10)
    assert (load(RPE, path, as_init=True).state_dict()['blocks.5.gamma_1'] == 0.1).all()


def test_any_family_can_start_from_a_file_with_a_classifier_of_its_own(tmp_path):
    source = small_of('tinyvit')
    torch.save(source.state_dict(), tmp_path / 'w.pth')
    arguments = dict(embed_dims=(16, 32, 32, 64), num_heads=(1, 1, 2, 2), depths=(1, 1, 2, 1), num_classes=11)
    model = load('tinyvit_5m_224', tmp_path / 'w.pth', as_init=True, **arguments)
    assert (model.head.fc.weight != source.head.fc.weight).any()
    torch.testing.assert_close(model.head.norm.weight, source.head.norm.weight)


# --- heads: evidence in a file


TOLD = {
    'MAE-Lite writes its wrapper into the names': (
        lambda ft, mae, s: {'model': prefixed('module.model.', ft)}, 'file.pth', 12,
    ),
    "MAE-Lite's decoder": (lambda ft, mae, s: mae, 'file.pth', 12),
    'TinyMIM saves its arguments': (
        lambda ft, mae, s: {'model': ft, 'args': argparse.Namespace(model='vit_tiny_patch16')}, 'file.pth', 3,
    ),
    'TinyMIM saves its arguments in pre-training, too': (
        lambda ft, mae, s: {'model': s, 'args': argparse.Namespace(model='tinymim_vit_tiny_patch16')}, 'file.pth', 6,
    ),
    'the name of a released file': (
        lambda ft, mae, s: {'model': ft}, 'mae_tiny_400e_ft_300e.pth.tar', 12,
    ),
}  # fmt: skip


@pytest.mark.parametrize(('make', 'name', 'heads'), TOLD.values(), ids=TOLD)
def test_heads_are_found_in_a_file(make, name, heads, fine_tuned, mae, student, save):
    checkpoint = make(fine_tuned, mae, student)
    path = save(checkpoint, name)
    evidence = find_heads(clues_of(torch.load(path, weights_only=False), path), unwrap(checkpoint))
    assert evidence.heads[0] == heads
    assert len(evidence.heads) == 12
    assert evidence.heads[-1] == (12 if heads == 6 else heads)


@pytest.mark.parametrize('kind', ['tinymim', 'tinymim_student'])
def test_a_folder_of_ours_shows_the_heads_of_its_model(kind, tmp_path):
    saved = small_of(kind, num_heads=6, num_classes=0)
    save_for_hf(saved, tmp_path, safe_serialization=True)
    refused(
        lambda: timm.create_model(
            saved.pretrained_cfg['architecture'],
            pretrained=True,
            pretrained_cfg_overlay=dict(file=str(tmp_path / 'model.safetensors')),
            embed_dim=48,
            depth=len(saved.blocks),
            num_classes=0,
        ),
        '6 heads',
        'config.json',
    )
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True)
    assert heads_of(again) == heads_of(saved)


def test_tables_show_the_heads_of_a_file():
    assert find_heads(Clues(), small_of('mae_lite_rpe').state_dict()).heads == (6,) * 4


def test_a_bare_file_has_no_evidence(fine_tuned, student):
    assert find_heads(Clues(file='weights.pth'), fine_tuned) is None
    assert find_heads(Clues(), student) is None


def test_hostile_clues_are_no_clues(fine_tuned):
    for config in (
        {'architecture': 7},
        {'architecture': TINYMIM, 'model_args': {'depth': 'x'}},
        {'architecture': 'no'},
    ):
        assert find_heads(Clues(config=config), fine_tuned) is None
    for args in (7, 'vit', {'model': 7}, argparse.Namespace(), argparse.Namespace(model=['x'])):
        assert clues_of({'model': fine_tuned, 'args': args}).trained_as is None


# --- heads: consequences


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING)
    return lambda: [r.getMessage() for r in caplog.records if 'heads' in r.getMessage()]


def test_a_three_head_model_refuses_a_twelve_head_file(fine_tuned, save):
    path = save({'model': prefixed('module.model.', fine_tuned)})
    refused(lambda: load(TINYMIM, path), 'has 12 heads', 'has 3 heads', "begin with 'module.model.'", MAE_LITE)
    load(MAE_LITE, path)


def test_another_encoder_refuses_a_six_head_student(student, save):
    path = save({'model': student, 'args': argparse.Namespace(model='tinymim_vit_tiny_patch16')})
    refused(lambda: load(ENCODER, path), '6 heads, 12 in the last block', STUDENT)
    load(STUDENT, path)


@pytest.mark.parametrize('kwargs', [{}, dict(num_classes=7), dict(features_only=True)], ids=str)
def test_a_file_without_evidence_gets_one_warning(kwargs, fine_tuned, save, warnings):
    load(TINYMIM, save(fine_tuned), **kwargs)
    assert len(warnings()) == 1
    assert '3 heads' in warnings()[0]
    assert 'num_heads=' in warnings()[0]


def test_naming_the_heads_avoids_the_warning(fine_tuned, save, warnings):
    model = load(TINYMIM, save({'model': prefixed('module.model.', fine_tuned)}), num_heads=12)
    assert heads_of(model) == (12,) * 12
    assert warnings() == []


def test_a_state_dict_in_memory_is_checked_by_the_same_clues(fine_tuned, warnings):
    overlay = dict(state_dict=prefixed('module.model.', fine_tuned))
    refused(lambda: timm.create_model(TINYMIM, pretrained=True, pretrained_cfg_overlay=overlay), '12 heads')
    timm.create_model(TINYMIM, pretrained=True, pretrained_cfg_overlay=dict(state_dict=fine_tuned))
    assert len(warnings()) == 1


def test_every_release_of_one_name_has_the_heads_that_its_notes_state():
    """The records state it in words, for cards; the models have the numbers."""
    plain = FAMILIES['tinymim'] + FAMILIES['mae_lite']
    assert len(plain) == 20
    for release in plain:
        heads = heads_of(timm.create_model(release.architecture, device='meta'))
        words = f'{heads[0]} heads' + (f', {heads[-1]} in the last block' if heads[-1] != heads[0] else '')
        assert any(words in note for note in release.notes), release.name


# --- tables


def test_an_index_of_another_order_is_refused():
    released = official_state_dict('maelite_vit_tiny_patch16_rpe')
    assert find_key_map(released) is PLAIN_VIT_KEYS
    check_beit_buffers(released)
    released['blocks.7.attn.relative_position_index'] += 1
    refused(lambda: check_beit_buffers(released), 'blocks.7.attn.relative_position_index', '14 x 14')


def test_official_names_come_with_the_index_of_every_table():
    released = official_state_dict('maelite_vit_tiny_patch16_rpe')
    assert_same(PLAIN_VIT_KEYS.to_official(PLAIN_VIT_KEYS.to_ours(released)[0]), released)


def test_a_table_of_no_square_grid_has_no_official_form():
    ours = small_of('mae_lite_rpe', img_size=(64, 96)).state_dict()
    refused(lambda: PLAIN_VIT_KEYS.to_official(ours), 'relative_position_bias_table', 'square')
    official = PLAIN_VIT_KEYS.to_official(ours, (64, 96))
    assert official['blocks.0.attn.relative_position_index'].shape == (25, 25)


def test_tinymim_star_with_another_norm_than_was_inferred_is_refused(tmp_path):
    state = dict(timm.create_model(STAR).state_dict())
    state['fc_norm.weight'] = state['fc_norm.bias'] = torch.zeros(192)
    torch.save(state, tmp_path / 'star.pth')
    refused(lambda: load(STAR, tmp_path / 'star.pth'), 'fc_norm.weight is (192,), not (1280,)')
