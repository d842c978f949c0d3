"""transformers loads the folders that we write: with our classes, or for TinyViT with timm's own.

That it does for every released tag, and through the Hub, is in test_push.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import SMALL_OF, images_for, rest_is_full, size_of, small_of
from minihub import MiniHub, Page
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from tinyvit_zoo.hub import save_folder

transformers = pytest.importorskip('transformers')

# transformers takes seconds to import, Trainer and subprocesses more.
pytestmark = pytest.mark.slow

CODE = 'modeling_tinyvit_zoo.py'
AUTO_CLASSES = ('AutoModel', 'AutoModelForImageClassification')
IMAGE = Image.fromarray(np.arange(80 * 100 * 3, dtype=np.uint32).reshape(80, 100, 3).astype(np.uint8))


@pytest.fixture(autouse=True)
def _quiet():
    transformers.logging.set_verbosity_error()


@pytest.fixture
def model(any_small):
    return any_small(img_size=64)


@pytest.fixture
def folder(model, tmp_path):
    return save_folder(model, tmp_path / 'page', [f'label {i}' for i in range(11)])


def auto(name: str, folder: Path, **kwargs):
    return getattr(transformers, name).from_pretrained(folder, **kwargs)


def batch_norms(model: torch.nn.Module) -> list[torch.nn.BatchNorm2d]:
    return [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def assert_equal(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


# --- one model of every family and kind


@pytest.mark.parametrize('trust', [True, False], ids=['remote code', 'imported'])
@torch.no_grad()
def test_a_classifier_computes_the_same(model, folder, trust):
    loaded = auto('AutoModelForImageClassification', folder, trust_remote_code=trust)
    assert type(loaded.timm_model) is type(model)
    assert type(loaded).__module__.startswith('transformers_modules.' if trust else 'transformers.models.')
    assert isinstance(loaded, transformers.TimmWrapperForImageClassification)
    x = images_for(model)
    assert_equal(loaded(x).logits, model(x))
    assert loaded.config.id2label[3] == 'label 3'


@torch.no_grad()
def test_a_model_without_classifier_gives_features(model, folder):
    loaded = auto('AutoModel', folder, trust_remote_code=True)
    x = images_for(model)
    found = loaded(x, output_hidden_states=True)
    assert_equal(found.last_hidden_state, model.forward_features(x))
    for actual, expected in zip(found.hidden_states, model.forward_intermediates(x)[1], strict=True):
        assert_equal(actual, expected)
    model.reset_classifier(0)
    assert_equal(loaded(x).pooler_output, model(x))


@torch.no_grad()
def test_an_encoder_has_features_only(any_small, tmp_path):
    model = any_small(img_size=64, num_classes=0)
    folder = save_folder(model, tmp_path / 'page')
    x = images_for(model)
    assert_equal(auto('AutoModel', folder, trust_remote_code=True)(x).pooler_output, model(x))
    with pytest.raises(ValueError, match='no classifier head'):
        auto('AutoModelForImageClassification', folder, trust_remote_code=True)


def test_images_are_processed_as_timm_does(model, folder):
    processor = auto('AutoImageProcessor', folder)
    expected = create_transform(**resolve_model_data_config(model), is_training=False)(IMAGE)
    assert_equal(processor(IMAGE)['pixel_values'][0], expected)
    assert expected.shape[1:] == size_of(model)


@torch.no_grad()
def test_a_pipeline_names_classes(model, folder):
    classify = transformers.pipeline('image-classification', str(folder), trust_remote_code=True, top_k=11)
    x = create_transform(**resolve_model_data_config(model), is_training=False)(IMAGE)[None]
    expected = model(x)[0].softmax(0)
    found = {p['label']: p['score'] for p in classify(IMAGE)}
    assert found == pytest.approx({f'label {i}': p.item() for i, p in enumerate(expected)}, abs=1e-5)


@pytest.mark.parametrize('auto_class', [False, True], ids=['TimmBackbone', 'AutoBackbone'])
@torch.no_grad()
def test_a_backbone_gives_maps(folder, model, auto_class):
    """`AutoBackbone.from_pretrained` takes ids of Hub pages only, so a folder goes to `from_config`."""
    source = f'local-dir:{folder}'
    taps = (1, 3) if type(model).__name__ in ('TinyViT', 'MiniSwin') else (-1,)
    if auto_class:
        config = transformers.TimmBackboneConfig(backbone=source, out_indices=taps)
        backbone = transformers.AutoBackbone.from_config(config, pretrained=True)
    else:
        backbone = transformers.TimmBackbone.from_pretrained(source, out_indices=taps)
    assert type(backbone) is transformers.TimmBackbone
    timms = timm.create_model(source, pretrained=True, features_only=True, out_indices=taps).eval()
    x = images_for(model)
    for actual, expected in zip(backbone.eval()(x).feature_maps, timms(x), strict=True):
        assert_equal(actual, expected)


@pytest.mark.parametrize('num_maps', [1, 4])
def test_a_backbone_keeps_its_batch_norm_statistics(num_maps, tmp_path):
    """See `keep_statistics_in_transformers`, without which transformers resets them."""
    model = small_of('tinyvit', img_size=64)
    for norm in batch_norms(model):
        norm.running_mean.fill_(3.0)
        norm.running_var.fill_(5.0)
        norm.num_batches_tracked.fill_(7)
    folder = save_folder(model, tmp_path / 'page')
    backbone = transformers.TimmBackbone.from_pretrained(f'local-dir:{folder}', out_indices=range(num_maps))
    kept = batch_norms(backbone)
    assert len(kept) > num_maps
    assert all((norm.running_mean == 3.0).all() and (norm.running_var == 5.0).all() for norm in kept)
    assert {norm.num_batches_tracked.item() for norm in kept} == {7}


@pytest.mark.parametrize('name', AUTO_CLASSES)
@torch.no_grad()
def test_what_transformers_saves_is_loaded_by_both(model, folder, tmp_path, name):
    loaded = auto(name, folder, trust_remote_code=True)
    loaded.save_pretrained(tmp_path / 'saved')
    assert (tmp_path / 'saved' / CODE).read_text() == (folder / CODE).read_text()
    x = images_for(model)
    expected = loaded(x)[0]
    assert_equal(auto(name, tmp_path / 'saved', trust_remote_code=True)(x)[0], expected)
    if name == 'AutoModelForImageClassification':
        again = timm.create_model(f'local-dir:{tmp_path / "saved"}', pretrained=True).eval()
        assert type(again) is type(model)
        assert_equal(again(x), expected)


@pytest.mark.parametrize('family', rest_is_full(SMALL_OF, ('tinyvit', 'mini_swin')))
def test_trainer_trains_it(folder, tmp_path):
    pytest.importorskip('accelerate')
    model = auto(
        'AutoModelForImageClassification', folder, trust_remote_code=True, num_labels=3, ignore_mismatched_sizes=True
    )
    before = {k: v.clone() for k, v in model.state_dict().items()}
    data = [dict(pixel_values=torch.randn(3, *size_of(model.timm_model)), labels=i % 3) for i in range(8)]
    arguments = transformers.TrainingArguments(
        tmp_path / 'run',
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        use_cpu=True,
        report_to='none',
        disable_tqdm=True,
        remove_unused_columns=False,
        save_strategy='no',
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=data)
    done = trainer.train()
    assert done.global_step == 3
    assert np.isfinite(done.training_loss)
    assert any(not torch.equal(before[k], v) for k, v in model.state_dict().items())
    trainer.save_model(tmp_path / 'trained')
    again = timm.create_model(f'local-dir:{tmp_path / "trained"}', pretrained=True).eval()
    assert again.num_classes == 3
    with torch.no_grad():
        x = data[0]['pixel_values'][None]
        assert_equal(again(x), model.eval()(x).logits)


@torch.no_grad()
def test_a_resized_model_is_loaded_at_its_size(any_small, tmp_path):
    model = any_small(img_size=64)
    model.set_input_size(img_size=(64, 96))
    folder = save_folder(model, tmp_path / 'page')
    x = images_for(model)
    assert x.shape[2:] == (64, 96)
    assert_equal(auto('AutoModelForImageClassification', folder, trust_remote_code=True)(x).logits, model(x))


@torch.no_grad()
def test_a_multiplexed_model_is_loaded(tmp_path):
    from tinyvit_zoo.compress import multiplex

    base = timm.create_model('vit_tiny_patch16_224', img_size=32, depth=4, embed_dim=48, num_heads=3, num_classes=5)
    model = multiplex(base.eval())
    folder = save_folder(model, tmp_path / 'page')
    loaded = auto('AutoModelForImageClassification', folder, trust_remote_code=True)
    x = torch.randn(2, 3, 32, 32)
    assert_equal(loaded(x).logits, model(x))


# --- in a process that has not imported us


def in_new_process(code: str, *args: object, **environment: str) -> subprocess.CompletedProcess:
    code = f'import json, sys, torch, transformers\ntransformers.logging.set_verbosity_error()\n{code}'
    return subprocess.run(
        [sys.executable, '-c', code, *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | dict(OMP_NUM_THREADS='1', **environment),
    )


LOAD = """
folder, trust = sys.argv[1], sys.argv[2] == 'True'
model = transformers.AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=trust)
with torch.no_grad():
    logits = model(torch.linspace(-1, 1, 2 * 3 * int(sys.argv[3]) ** 2).view(2, 3, int(sys.argv[3]), -1)).logits
timms = type(model.timm_model)
print(json.dumps([f'{timms.__module__}.{timms.__name__}', 'tinyvit_zoo' in sys.modules, logits.tolist()]))
"""
BLOCK = "sys.modules['tinyvit_zoo'] = None  # as if it were not installed\n"


def ramp(side: int) -> torch.Tensor:
    return torch.linspace(-1, 1, 2 * 3 * side**2).view(2, 3, side, side)


@pytest.mark.parametrize('family', rest_is_full(SMALL_OF, ('tinyvit', 'tinymim')))
def test_remote_code_imports_our_class_in_a_process_without_it(model, folder):
    done = in_new_process(LOAD, folder, True, 64)
    assert done.returncode == 0, done.stderr[-2000:]
    class_name, imported, logits = json.loads(done.stdout)
    assert class_name == f'{type(model).__module__}.{type(model).__name__}'
    assert imported
    with torch.no_grad():
        assert_equal(torch.tensor(logits), model(ramp(64)))


def test_a_page_of_the_hub_brings_its_code_along(small, tmp_path):
    model = small(img_size=64)
    folder = save_folder(model, tmp_path / 'page')
    with MiniHub() as hub:
        hub.pages['me/small'] = Page({p.name: p.read_bytes() for p in folder.iterdir()})
        done = in_new_process(LOAD, 'me/small', True, 64, HF_HOME=str(tmp_path / 'home'), **hub.environment)
        assert f'me/small/{CODE}' in hub.downloads
    assert done.returncode == 0, done.stderr[-2000:]
    class_name, _, logits = json.loads(done.stdout)
    assert class_name == 'tinyvit_zoo.models.tinyvit.TinyViT'
    with torch.no_grad():
        assert_equal(torch.tensor(logits), model(ramp(64)))


def test_without_the_package_remote_code_says_what_to_install(small, tmp_path):
    folder = save_folder(small(img_size=64), tmp_path / 'page')
    done = in_new_process(BLOCK + LOAD, folder, True, 64)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('ImportError: This model needs the package tinyvit-zoo')
    assert last.endswith('pip install tinyvit-zoo, or pip install . in a clone of it')


@pytest.fixture
def for_timm(tmp_path):
    """A TinyViT of released size, and its folder under timm's own name."""
    model = small_of('tinyvit', bias_interpolation='bilinear')
    return model, save_folder(model, tmp_path / 'page', for_timm=True)


def test_written_for_timm_it_loads_without_us_as_timms_own_class(for_timm):
    model, folder = for_timm
    done = in_new_process(BLOCK + LOAD, folder, False, 224)
    assert done.returncode == 0, done.stderr[-2000:]
    class_name, _, logits = json.loads(done.stdout)
    assert class_name == 'timm.models.tiny_vit.TinyVit'
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(logits), model(ramp(224)), rtol=0, atol=1e-5)


@torch.no_grad()
def test_written_for_timm_it_is_timms_class_with_our_package_imported_too(for_timm):
    model, folder = for_timm
    assert sorted(p.name for p in folder.iterdir()) == ['config.json', 'model.safetensors']
    config = json.loads((folder / 'config.json').read_text())
    assert config['architecture'] == 'tiny_vit_5m_224'
    assert 'auto_map' not in config
    again = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    assert type(again).__module__ == 'timm.models.tiny_vit'
    torch.testing.assert_close(again(ramp(224)), model(ramp(224)), rtol=0, atol=1e-5)


@pytest.mark.parametrize('name', [f'tinyvit_{size}' for size in ('5m_224', '11m_224', '21m_224', '21m_384', '21m_512')])
def test_every_released_tinyvit_can_be_written_for_timm(name, tmp_path):
    from tinyvit_zoo.hub.folder import save_config

    save_config(timm.create_model(name, device='meta'), tmp_path / 'config.json', for_timm=True)
    again = timm.create_model(f'local-dir:{tmp_path}', device='meta')
    assert type(again).__module__ == 'timm.models.tiny_vit'
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (again, timm.create_model(name, device='meta'))]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ('family', 'kwargs', 'words'),
    [
        ('tinyvit', dict(img_size=64), 'takes only 224x224 with its windows: this model, at 64x64'),
        ('tinyvit', dict(window_sizes=8), 'takes only 224x224 with its windows: this model, at 224x224'),
        *((family, {}, 'only TinyViT can be written for timm') for family in SMALL_OF if family != 'tinyvit'),
    ],
)
def test_models_without_a_class_in_timm_are_not_written_for_it(family, kwargs, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        save_folder(small_of(family, **kwargs), tmp_path / 'page', for_timm=True)
    assert list(tmp_path.iterdir()) == []


# --- what upstream does today


def test_timms_own_folders_still_collide_with_transformers(tmp_path):
    """When this fails, the collision is gone and `hub.folder.save_config` may leave `num_classes` in `model_args`."""
    model = timm.create_model('test_vit', num_classes=5)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    assert 'num_classes' in json.loads((tmp_path / 'config.json').read_text())['model_args']
    with pytest.raises(TypeError, match="multiple values for keyword argument 'num_classes'"):
        auto('AutoModelForImageClassification', tmp_path)


def test_backbones_of_timms_own_models_still_lose_their_statistics(tmp_path):
    """When this fails, `models._create.keep_statistics_in_transformers` is no longer needed."""
    model = timm.create_model('test_resnet', num_classes=5)
    for norm in batch_norms(model):
        norm.running_mean.fill_(3.0)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    backbone = transformers.TimmBackbone.from_pretrained(f'local-dir:{tmp_path}')
    assert not any(norm.running_mean.any() for norm in batch_norms(backbone))


def test_folders_of_timms_own_models_carry_no_code(tmp_path):
    folder = save_folder(timm.create_model('test_vit', num_classes=5), tmp_path / 'page')
    assert sorted(p.name for p in folder.iterdir()) == ['config.json', 'model.safetensors']
    assert type(auto('AutoModelForImageClassification', folder).timm_model).__module__.startswith('timm.')
