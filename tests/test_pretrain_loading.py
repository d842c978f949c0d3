"""Released pre-training files in their pre-training forms: every tensor accounted for, nothing left out silently."""

from argparse import Namespace

import pytest
import torch
from conftest import assert_same, refused
from golden_rule import fill_by_rule, official_state_dict

from tinyvit_zoo.checkpoints import WeightsNotFoundError
from tinyvit_zoo.pretrain import (
    DMae,
    MaskedAutoencoder,
    load_pretraining,
    mae_lite_tiny,
    mocov3_tiny,
    tinymim_student,
    tinymim_teacher,
)

ENCODER = dict(img_size=32, embed_dim=192, depth=1, num_heads=12)


def saved(path, state_dict: dict[str, torch.Tensor], prefix: str = '', **beside):
    torch.save({'model': {prefix + key: tensor for key, tensor in state_dict.items()}, **beside}, path)
    return path


def dmae() -> DMae:
    student = MaskedAutoencoder(**ENCODER)
    teacher = tinymim_teacher('base', img_size=32, depth=1, block=1).vit
    return fill_by_rule(DMae(student, teacher, attention_blocks=(1,)))


def test_a_students_file_loads_into_a_student(tmp_path):
    weights = official_state_dict('tinymim_student_tiny')
    student = tinymim_student('tiny')
    load_pretraining(
        student, saved(tmp_path / 'student.pth', weights, args=Namespace(model='tinymim_vit_tiny_patch16'))
    )
    assert_same(student.vit.state_dict(), weights)


def test_a_students_file_loads_into_a_teacher_with_the_heads_of_its_last_block(tmp_path):
    weights = official_state_dict('tinymim_student_small')
    teacher = tinymim_teacher('small', last_heads=12)
    args = Namespace(model='tinymim_vit_small_patch16')
    load_pretraining(teacher, saved(tmp_path / 'student.pth', weights, args=args))
    assert_same(teacher.vit.state_dict(), weights)


def test_a_teacher_leaves_out_the_decoder_of_a_whole_mae(tmp_path):
    mae = fill_by_rule(MaskedAutoencoder(img_size=32, embed_dim=24, depth=2, num_heads=3))
    teacher = tinymim_teacher('small', img_size=32, embed_dim=24, depth=2, num_heads=3, block=2)
    load_pretraining(teacher, saved(tmp_path / 'mae.pth', mae.state_dict()))
    names = teacher.vit.state_dict()
    assert_same(names, {key: tensor for key, tensor in mae.state_dict().items() if key in names})


@pytest.mark.parametrize('prefix', ['', 'module.model.'])
def test_a_released_mae_loads(tmp_path, prefix):
    weights = official_state_dict('maelite_mae_tiny')
    model = mae_lite_tiny()
    load_pretraining(model, saved(tmp_path / 'mae.pth.tar', weights, prefix, start_epoch=400))
    assert_same(model.state_dict(), weights)
    assert not model.pos_embed.requires_grad


def test_a_mae_is_the_student_of_a_d_mae_file(tmp_path):
    whole = dmae()
    model = MaskedAutoencoder(**ENCODER)
    load_pretraining(model, saved(tmp_path / 'dmae.pth.tar', whole.state_dict(), 'module.'))
    assert_same(model.state_dict(), whole.model.state_dict())


def test_a_d_mae_file_loads_whole(tmp_path):
    whole, model = dmae(), DMae(MaskedAutoencoder(**ENCODER), dmae().tch_model, attention_blocks=(1,))
    load_pretraining(model, saved(tmp_path / 'dmae.pth.tar', whole.state_dict(), 'module.'))
    assert_same(model.state_dict(), whole.state_dict())


def test_a_moco_file_loads_whole(tmp_path):
    args = dict(img_size=32, depth=1, mlp_dim=8, dim=4)
    whole, model = fill_by_rule(mocov3_tiny(**args)), mocov3_tiny(**args)
    load_pretraining(model, saved(tmp_path / 'moco.pth.tar', whole.state_dict(), 'module.'))
    assert_same(model.state_dict(), whole.state_dict())


def test_a_state_dict_loads_without_a_file():
    whole = fill_by_rule(MaskedAutoencoder(**ENCODER))
    model = MaskedAutoencoder(**ENCODER)
    load_pretraining(model, whole.state_dict())
    assert_same(model.state_dict(), whole.state_dict())


def test_a_student_saved_by_its_own_names_loads(tmp_path):
    student = fill_by_rule(tinymim_student('tiny', img_size=32, depth=2))
    torch.save(student.state_dict(), tmp_path / 'student.pth')
    for checkpoint in (student.state_dict(), tmp_path / 'student.pth'):
        other = tinymim_student('tiny', img_size=32, depth=2)
        load_pretraining(other, checkpoint)
        assert_same(other.state_dict(), student.state_dict())


def test_a_loaded_checkpoint_is_as_good_as_its_file():
    """It is unwrapped, and its saved arguments give the number of heads."""
    weights = official_state_dict('tinymim_student_tiny')
    checkpoint = {'model': weights, 'args': Namespace(model='tinymim_vit_tiny_patch16')}
    student = tinymim_student('tiny')
    load_pretraining(student, checkpoint)
    assert_same(student.vit.state_dict(), weights)
    refused(lambda: load_pretraining(tinymim_student('tiny', num_heads=3), checkpoint), '6', '3', 'heads')


@pytest.mark.parametrize('known', [False, True])
def test_an_unknown_number_of_heads_gives_a_warning(known, caplog):
    weights = official_state_dict('tinymim_student_tiny')
    args = Namespace(model='tinymim_vit_tiny_patch16') if known else None
    load_pretraining(tinymim_student('tiny'), {'model': weights, 'args': args})
    assert ['heads' in r.getMessage() for r in caplog.records if r.levelname == 'WARNING'] == [True] * (not known)


# refusals


@pytest.mark.parametrize('form', [MaskedAutoencoder(**ENCODER), dmae()], ids=['mae', 'd-mae'])
@pytest.mark.parametrize('what', ['missing', 'unknown', 'of a wrong shape'])
def test_keys_that_do_not_fit_are_named(tmp_path, form, what):
    weights = dict(form.state_dict())
    prefix = 'model.' if isinstance(form, DMae) else ''
    key = f'{prefix}decoder_norm.weight'
    if what == 'missing':
        del weights[key]
    elif what == 'unknown':
        key = f'{prefix}decoder_gate.weight'
        weights[key] = torch.zeros(1)
    else:
        weights[key] = torch.zeros(3)
    before = {k: v.clone() for k, v in form.state_dict().items()}
    path = saved(tmp_path / 'changed.pth', weights, 'module.')
    refused(lambda: load_pretraining(form, path), what, key)
    assert_same(form.state_dict(), before)


def test_an_encoder_alone_is_no_mae(tmp_path):
    weights = {k: v for k, v in official_state_dict('maelite_mae_tiny').items() if not k.startswith('decoder')}
    refused(lambda: load_pretraining(mae_lite_tiny(), saved(tmp_path / 'e.pth', weights)), 'missing', 'decoder_blocks')


def test_a_mae_alone_is_no_d_mae(tmp_path):
    path = saved(tmp_path / 'mae.pth', MaskedAutoencoder(**ENCODER).state_dict(), 'module.model.')
    refused(lambda: load_pretraining(dmae(), path), 'missing')


def test_a_file_of_other_heads_is_refused(tmp_path):
    weights = official_state_dict('tinymim_student_tiny')
    path = saved(tmp_path / 'student.pth', weights, args=Namespace(model='tinymim_vit_tiny_patch16'))
    encoder = tinymim_student('tiny', num_heads=3)
    refused(lambda: load_pretraining(encoder, path), '6', '3', 'heads')


def test_another_depth_or_width_is_not_mistaken_for_other_heads(tmp_path):
    path = saved(tmp_path / 'mae.pth', MaskedAutoencoder(**ENCODER).state_dict(), 'module.model.')
    refused(lambda: load_pretraining(MaskedAutoencoder(**{**ENCODER, 'depth': 2}), path), 'missing', 'blocks.1.')
    narrow = MaskedAutoencoder(**{**ENCODER, 'embed_dim': 48, 'num_heads': 3})
    refused(lambda: load_pretraining(narrow, path), 'wrong shape')


def test_positions_of_another_size_are_refused_and_can_be_resized_later(tmp_path):
    path = saved(tmp_path / 'mae.pth', fill_by_rule(MaskedAutoencoder(**ENCODER)).state_dict())
    larger = MaskedAutoencoder(**{**ENCODER, 'img_size': 48})
    refused(lambda: load_pretraining(larger, path), 'wrong shape', 'pos_embed')
    model = MaskedAutoencoder(**ENCODER)
    load_pretraining(model, path)
    model.set_input_size(48)
    assert model(torch.randn(1, 3, 48, 48)).loss.isfinite()


def test_a_missing_file_is_reported(tmp_path):
    refused(lambda: load_pretraining(mae_lite_tiny(), tmp_path / 'none.pth'), 'none.pth', kind=WeightsNotFoundError)
