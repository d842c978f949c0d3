"""A saved folder rebuilds the same model, appears whole or not at all, and the committed pages are up to date."""

import json

import pytest
import timm
import torch
from conftest import for_each, images_for, size_of
from golden_rule import fill_by_rule
from safetensors import safe_open
from timm.data import resolve_model_data_config

from tinyvit_zoo.build import build_model
from tinyvit_zoo.common.folders import swap_in
from tinyvit_zoo.hub import configs_folder, render_config, save_folder
from tinyvit_zoo.releases import all_releases

LABELS = [f'label {i}' for i in range(11)]


def again(folder):
    return timm.create_model(f'local-dir:{folder}', pretrained=True).eval()


def assert_same(model, reloaded):
    assert resolve_model_data_config(reloaded)['input_size'] == (model.in_chans, *size_of(model))
    assert getattr(reloaded, 'window_sizes', None) == getattr(model, 'window_sizes', None)
    images = images_for(model)
    with torch.no_grad():
        assert torch.equal(reloaded(images), model(images))


OF_ALL = [
    dict(img_size=64),
    dict(img_size=(64, 96)),
    dict(img_size=64, num_classes=3),
    dict(img_size=64, num_classes=0),
    dict(img_size=64, in_chans=1),
    dict(img_size=64, global_pool=''),
]
OF_ONE = {
    'tinyvit': [
        dict(img_size=64, window_sizes=5),
        dict(img_size=(64, 96), window_sizes=((4, 4), (4, 2), (3, 5), (2, 3))),
        dict(img_size=64, global_pool='max'),
        dict(img_size=64, bias_interpolation='bilinear'),
    ],
    'mini_deit': [
        dict(img_size=64, repeats=4),
        dict(img_size=64, rpe_scaled_q=False),
        dict(img_size=64, dynamic_img_size=True),
    ],
    'mini_swin': [
        dict(img_size=64, window_size=5),
        dict(img_size=(64, 96), window_size=((4, 4), (4, 2), (3, 5), (2, 3))),
        dict(img_size=64, repeats=(1, 2, 4, 1)),
        dict(img_size=64, mask_unshifted=False, replace_residual=False, local_conv_size=3),
        dict(img_size=64, dynamic_img_size=True),
    ],
}


@pytest.mark.parametrize(('family', 'kwargs'), [(f, kwargs) for f, own in OF_ONE.items() for kwargs in OF_ALL + own])
def test_a_reloaded_model_is_the_same(tmp_path, any_small, kwargs):
    model = any_small(**kwargs)
    assert_same(model, again(save_folder(model, tmp_path / 'model')))


@pytest.mark.parametrize(
    ('family', 'resize'),
    [
        *((f, dict(img_size=size)) for f in OF_ONE for size in (96, (96, 64))),
        ('tinyvit', dict(img_size=96, window_sizes=4)),
        ('mini_swin', dict(img_size=96, window_size=4)),
        ('mini_deit', dict(patch_size=8)),
    ],
)
def test_a_resized_model_is_saved_with_its_new_size(tmp_path, any_small, resize):
    model = any_small(img_size=64)
    model.set_input_size(**resize)
    assert_same(model, again(save_folder(model, tmp_path / 'model')))


def test_a_new_head_is_saved(tmp_path, any_small):
    model = any_small(img_size=64)
    model.reset_classifier(4)
    assert_same(model, again(save_folder(model, tmp_path / 'model')))


def test_a_released_architecture_with_12_classes_is_the_same(tmp_path):
    model = timm.create_model('tinyvit_5m_224', img_size=(32, 64), num_classes=12).eval()
    assert_same(model, again(save_folder(model, tmp_path / 'model')))


def test_half_precision_is_kept(tmp_path, small):
    folder = save_folder(small(img_size=64).bfloat16(), tmp_path / 'model')
    reloaded = timm.create_model(f'local-dir:{folder}', pretrained=True, dtype=torch.bfloat16)
    with safe_open(folder / 'model.safetensors', 'pt') as file:
        weight = file.get_tensor('head.fc.weight')
    assert weight.dtype == torch.bfloat16
    assert torch.equal(reloaded.head.fc.weight, weight)


def test_channels_last_and_compiled_models_are_saved(tmp_path, small):
    model = small(img_size=64)
    folder = save_folder(torch.compile(model.to(memory_format=torch.channels_last)), tmp_path / 'model')
    assert_same(model, again(folder))


def test_there_is_no_pickle_and_transformers_can_read_it(tmp_path, small):
    folder = save_folder(small(), tmp_path / 'model')
    assert sorted(p.name for p in folder.iterdir()) == ['config.json', 'model.safetensors', 'modeling_tinyvit_zoo.py']
    config = json.loads((folder / 'config.json').read_text())
    assert 'num_classes' not in config['model_args']
    assert config['num_classes'] == 11
    with safe_open(folder / 'model.safetensors', 'pt') as file:
        assert file.metadata() == {'format': 'pt'}


def test_label_names_travel_along(tmp_path, small):
    folder = save_folder(small(), tmp_path / 'one', LABELS, {'label 3': 'the third'})
    reloaded = again(folder)
    assert reloaded.pretrained_cfg['label_names'] == LABELS
    assert reloaded.pretrained_cfg['label_descriptions'] == {'label 3': 'the third'}
    second = again(save_folder(reloaded, tmp_path / 'two'))
    assert second.pretrained_cfg['label_names'] == LABELS


def test_own_weights_do_not_carry_the_facts_of_released_ones(tmp_path, small):
    model = small()
    cfg = again(save_folder(model, tmp_path / 'model', tag='mine')).pretrained_cfg
    assert cfg['tag'] == 'mine'
    assert not cfg.get('license')
    assert not cfg.get('origin_url')
    assert model.pretrained_cfg['license'] == 'mit'
    kept = again(save_folder(model, tmp_path / 'kept')).pretrained_cfg
    assert (kept['tag'], kept['license']) == ('dist_in22k_ft_in1k', 'mit')


@pytest.mark.parametrize('saved_by', [save_folder, timm.models.save_for_hf], ids=['us', 'timm'])
def test_a_model_trained_from_initial_weights_is_rebuilt_without_as_init(tmp_path, any_small, saved_by):
    start = save_folder(any_small(), tmp_path / 'start')
    trained = fill_by_rule(timm.create_model(f'local-dir:{start}', pretrained=True, as_init=True, num_classes=5))
    saved_by(trained, tmp_path / 'trained')
    assert_same(trained, again(tmp_path / 'trained'))


def test_own_preprocessing_is_saved(tmp_path, small):
    reloaded = again(save_folder(small(img_size=64), tmp_path / 'model', data_config=dict(crop_pct=1.0)))
    assert resolve_model_data_config(reloaded)['crop_pct'] == 1.0


def test_a_wrong_number_of_labels_is_refused(tmp_path, small):
    with pytest.raises(ValueError, match='3 label names for 11 classes'):
        save_folder(small(), tmp_path / 'model', LABELS[:3])


def test_a_folded_or_features_only_model_is_refused_and_leaves_nothing(tmp_path, small):
    folded = timm.models.reparameterize_model(small())
    features = timm.create_model('tinyvit_5m_224', features_only=True, img_size=32)
    for model in (folded, features):
        with pytest.raises(ValueError, match=r'Save the model before|not a whole timm model'):
            save_folder(model, tmp_path / 'model')
    assert list(tmp_path.iterdir()) == []


def test_saving_again_replaces_the_folder(tmp_path, small):
    save_folder(small(), tmp_path / 'model')
    model = small(num_classes=3)
    assert_same(model, again(save_folder(model, tmp_path / 'model')))
    assert [p.name for p in tmp_path.iterdir()] == ['model']


def test_a_failure_leaves_the_old_folder(tmp_path, small, monkeypatch):
    model = small()
    folder = save_folder(model, tmp_path / 'model')
    monkeypatch.setattr('tinyvit_zoo.hub.folder.save_config', lambda *args: (_ for _ in ()).throw(OSError('disk full')))
    with pytest.raises(OSError, match='disk full'):
        save_folder(small(num_classes=3), folder)
    assert_same(model, again(folder))
    assert [p.name for p in tmp_path.iterdir()] == ['model']


def test_a_folder_with_other_files_is_never_replaced(tmp_path, small):
    (tmp_path / 'thesis.tex').write_text('years of work')
    with pytest.raises(FileExistsError, match=r'thesis\.tex'):
        save_folder(small(), tmp_path)
    assert (tmp_path / 'thesis.tex').read_text() == 'years of work'


def test_a_folder_that_is_saved_again_while_it_is_read_gives_one_version(tmp_path, small, monkeypatch):
    """A classifier of 3 classes, replaced by one of 5 after its config.json was read."""
    folder = save_folder(small(num_classes=3), tmp_path / 'model')
    newer, read = small(num_classes=5), timm.models._factory.load_model_config_from_path
    again = iter([True])

    def replaced_after_reading(path):
        config = read(path)
        if next(again, False):
            save_folder(newer, folder)
        return config

    monkeypatch.setattr(timm.models._factory, 'load_model_config_from_path', replaced_after_reading)
    model = build_model(f'local-dir:{folder}', pretrained=True)
    assert torch.equal(model.head.fc.weight, newer.head.fc.weight)


def test_a_new_folder_has_ordinary_rights(tmp_path):
    (tmp_path / 'ordinary').mkdir()
    with swap_in(tmp_path / 'swapped') as folder:
        (folder / 'file').write_text('')
    assert (tmp_path / 'swapped').stat().st_mode == (tmp_path / 'ordinary').stat().st_mode


@pytest.mark.slow
@for_each('release', all_releases())
def test_a_page_makes_the_model_of_its_release(release):
    model = timm.create_model(f'local-dir:{configs_folder() / release.name}', device='meta')
    stock = timm.create_model(release.name, device='meta')
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (model, stock)]
    assert shapes[0] == shapes[1]
    configs = [{k: v if isinstance(v, (str, float)) else tuple(v) for k, v in resolve_model_data_config(m).items()}
               for m in (model, stock)]  # fmt: skip
    assert configs[0] == configs[1]
    assert json.loads(render_config(release.name))['pretrained_cfg']['license'] == release.license.spdx


def test_the_files_of_a_folder_have_ordinary_rights(small, tmp_path):
    """Otherwise, weights in a shared or served folder could be read by their owner alone."""
    (tmp_path / 'ordinary').touch()
    folder = save_folder(small(), tmp_path / 'model')
    assert {f.stat().st_mode for f in folder.iterdir()} == {(tmp_path / 'ordinary').stat().st_mode}


def test_tensors_of_several_names_are_written_under_each(tmp_path):
    model = timm.create_model('coat_lite_tiny', num_classes=3, img_size=32).eval()  # its blocks share their positions
    assert model.cpe1.proj.weight is model.serial_blocks1[0].cpe.proj.weight
    folder = save_folder(model, tmp_path / 'page', label_names=['a', 'b', 'c'], tag='test')
    assert again(folder).state_dict().keys() == model.state_dict().keys()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(folder)(images), model(images))
