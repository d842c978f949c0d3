"""Multiplexed models in folders and by name."""

import json

import pytest
import timm
import torch
from conftest import assert_same
from multiplexed import SMALL, blocks, count, each_kind, each_transform, images, stirred, teacher
from timm.models import save_for_hf
from timm.models.vision_transformer import VisionTransformer

from tinyvit_zoo.compress import multiplex
from tinyvit_zoo.hub import save_folder


@each_kind
@each_transform
@pytest.mark.parametrize('share_every', [2, 'stage'])
def test_a_saved_folder_makes_the_model_again(kind, transform, share_every, tmp_path):
    student = stirred(multiplex(teacher(kind), share_every, transform=transform))
    folder = save_folder(student, tmp_path / 'folder')
    config = json.loads((folder / 'config.json').read_text())
    assert config['architecture'] == 'multiplexed'
    assert config['model_args']['base'] == SMALL[kind][0]
    assert config['model_args']['share_every'] == share_every
    assert 'tag' not in config['pretrained_cfg']
    assert config['pretrained_cfg']['license'] == teacher(kind).pretrained_cfg['license']
    again = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    assert type(again) is type(student)
    assert_same(again.state_dict(), student.state_dict())
    x = images()
    torch.testing.assert_close(again(x), student(x), rtol=0, atol=0)
    size = (folder / 'model.safetensors').stat().st_size
    assert abs(size - 4 * count(student)) < 40_000  # the names of the tensors


@each_kind
def test_timms_own_export_makes_the_model_again(kind, tmp_path):
    student = stirred(multiplex(teacher(kind)))
    save_for_hf(student, tmp_path, safe_serialization='both')
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert_same(again.state_dict(), student.state_dict())
    (tmp_path / 'model.safetensors').unlink()
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert_same(again.state_dict(), student.state_dict())


@each_kind
def test_a_saved_model_takes_other_classes_channels_and_sizes(kind, tmp_path):
    folder = save_folder(stirred(multiplex(teacher(kind))), tmp_path / 'folder')
    name = f'local-dir:{folder}'
    same = timm.create_model(name, pretrained=True).eval()
    other = timm.create_model(name, pretrained=True, num_classes=3, in_chans=1, img_size=64).eval()
    assert other(torch.randn(1, 1, 64, 64)).shape == (1, 3)
    for key in ('attn.qkv.weight', 'mlp.fc1.bias'):
        assert torch.equal(blocks(other)[0].get_parameter(key), blocks(same)[0].get_parameter(key))
    headless = timm.create_model(name, pretrained=True, num_classes=0).eval()
    x = images()
    torch.testing.assert_close(headless(x), same.forward_head(same.forward_features(x), pre_logits=True))


@each_kind
def test_features_only_is_that_of_the_base(kind, tmp_path):
    base, small = SMALL[kind]
    student = stirred(multiplex(teacher(kind)))
    folder = save_folder(student, tmp_path / 'folder')
    features = timm.create_model(f'local-dir:{folder}', pretrained=True, features_only=True).eval()
    theirs = timm.create_model(base, features_only=True, **small)
    x = images()
    assert [f.shape for f in features(x)] == [f.shape for f in theirs(x)]
    assert features.feature_info.channels() == theirs.feature_info.channels()
    expected = student.forward_intermediates(x, intermediates_only=True)[-1]
    last = features(x)[-1] if kind == 'vit' else features(x)[-1].permute(0, 3, 1, 2)
    torch.testing.assert_close(last, expected)
    assert sum(v.numel() for v in features.state_dict().values()) == count(features)
    some = timm.create_model(f'local-dir:{folder}', pretrained=True, features_only=True, out_indices=[1])
    assert len(some(x)) == 1
    assert len(some.state_dict()) == len(list(some.parameters()))


@each_kind
def test_a_resized_model_is_saved_at_its_size(kind, tmp_path):
    student = stirred(multiplex(teacher(kind)))
    student.set_input_size((64, 48))
    folder = save_folder(student, tmp_path / 'folder')
    again = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    x = torch.randn(1, 3, 64, 48)
    torch.testing.assert_close(again(x), student(x), rtol=0, atol=0)


def test_a_model_without_classes_stays_without(tmp_path):
    student = multiplex(timm.create_model('vit_base_patch16_224.mae', **SMALL['vit'][1]))
    assert student.num_classes == 0
    folder = save_folder(student, tmp_path / 'folder')
    assert timm.create_model(f'local-dir:{folder}', pretrained=True).num_classes == 0


def test_the_name_alone_makes_a_fresh_model_of_any_base():
    model = timm.create_model('multiplexed', device='meta')
    assert (count(model), model.num_classes) == (11_413_960, 1000)
    assert model.pretrained_cfg['first_conv'] == 'patch_embed.proj'
    assert model._model_args['base'] == 'deit_small_patch16_224'
    model = timm.create_model('multiplexed', base='vit_base_patch16_224.mae', share_every='stage', device='meta')
    assert (count(model), model.num_classes) == (7_869_312, 0)
    swin = timm.create_model('multiplexed', base='swin_tiny_patch4_window7_224', transform=False, device='meta')
    assert count(swin) == 15_317_557
    assert timm.create_model('multiplexed', num_classes=7, device='meta').num_classes == 7


def test_there_are_no_weights_by_the_name_alone():
    with pytest.raises(RuntimeError, match='No pretrained weights exist'):
        timm.create_model('multiplexed', pretrained=True)
    with pytest.raises(ValueError, match='no weights called'):
        timm.create_model('multiplexed.in1k')
    with pytest.raises(ValueError, match="base='no_such_model' is not a model"):
        timm.create_model('multiplexed', base='no_such_model')


def test_a_model_that_timm_did_not_make_is_multiplexed_but_has_no_name():
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=4, num_heads=3)
    student = multiplex(model)
    assert student(images()).shape == (2, 1000)
    with pytest.raises(ValueError, match='not a whole timm model'):
        save_folder(student, 'nowhere')


@pytest.mark.slow
@pytest.mark.parametrize('name', ['deit_small_patch16_224', 'vit_base_patch16_224.mae', 'swin_tiny_patch4_window7_224'])
def test_full_size_models_start_as_themselves_and_are_made_again(name, tmp_path):
    model = timm.create_model(name, dtype=torch.float64).eval()
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    torch.testing.assert_close(multiplex(model, 1)(x), model(x), rtol=0, atol=1e-10)
    student = multiplex(model.float(), calibration=[x.float()], fit=False)
    folder = save_folder(student, tmp_path / 'folder')
    again = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    torch.testing.assert_close(again(x.float()), student(x.float()), rtol=0, atol=0)
