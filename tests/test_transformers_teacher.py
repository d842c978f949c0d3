"""A classifier of transformers as teacher: by folder or page, with its own preprocessing, without its code."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import refused
from minihub import Page

from tinyvit_zoo.common.errors import ModelError
from tinyvit_zoo.data import load_dataset
from tinyvit_zoo.data.replay import Place, ReplayedViews, ViewSpec
from tinyvit_zoo.soft_labels import Store
from tinyvit_zoo.soft_labels.transformers_teacher import find_transformers_teacher

transformers = pytest.importorskip('transformers')

SMALL = dict(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8
)
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


def write(folder: Path, kind: str = 'ViTForImageClassification', labels: int = 10, **processor) -> Path:
    """A small ViT with its preprocessing."""
    torch.manual_seed(0)
    model = getattr(transformers, kind)(transformers.ViTConfig(**SMALL, num_labels=labels))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    model.save_pretrained(folder)
    settings = dict(size=dict(height=32, width=32), image_mean=MEAN, image_std=STD) | processor
    transformers.ViTImageProcessor(**settings).save_pretrained(folder)
    return folder


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp('models') / 'vit')


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    root, digits = tmp_path_factory.mktemp('data'), load_dataset('digits', 'train')
    for i in range(24):
        place = root / 'train' / f'digit{digits.labels[i]}'
        place.mkdir(parents=True, exist_ok=True)
        digits.image(i).save(place / f'{i}.png')
    return root


def change(folder: Path, file: str, **values) -> None:
    content = json.loads((folder / file).read_text()) | values
    (folder / file).write_text(json.dumps(content))


def test_a_folder_is_a_teacher_with_its_own_preprocessing(folder):
    teacher = find_transformers_teacher(str(folder), precision='bfloat16')
    assert (teacher.size, teacher.mean, teacher.std, teacher.precision) == ((32, 32), MEAN, STD, 'bfloat16')
    images = torch.randn(2, 3, 32, 32)
    model = transformers.ViTForImageClassification.from_pretrained(folder)
    with teacher.ready(), torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(teacher.logits(images), model.eval()(images).logits.float())


def test_its_pixels_are_those_of_its_own_processor(tmp_path):
    """Also where the processor scales to -1 to 1 first."""
    digits = load_dataset('digits', 'train')
    spec = ViewSpec((32, 32), scale=(1, 1), ratio=(1, 1), hflip=0)
    for i, settings in enumerate((dict(), dict(rescale_factor=1 / 127.5), dict(do_normalize=False))):
        place = write(tmp_path / str(i), **settings)
        teacher = find_transformers_teacher(str(place))
        view = ReplayedViews(digits, spec, 0, size=teacher.size, mean=teacher.mean, std=teacher.std)[Place(0, 3)]
        processor = transformers.AutoImageProcessor.from_pretrained(place)
        expected = processor(digits.image(3), return_tensors='pt').pixel_values[0]
        torch.testing.assert_close(view.image, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ('processor', 'size'),
    [
        (dict(do_resize=True, size=dict(shortest_edge=40), do_center_crop=True, crop_size=dict(height=36, width=28)),
         (36, 28)),
        (dict(do_resize=True, size=dict(shortest_edge=40), do_center_crop=False), (40, 40)),
        (dict(do_resize=False, do_center_crop=False, size=dict(height=99, width=99)), (32, 32)),
    ],
    ids=['crop', 'shortest edge', 'of the model'],
)  # fmt: skip
def test_the_size_is_what_the_model_gets_in_the_end(processor, size, tmp_path):
    write(tmp_path / 'm')
    change(tmp_path / 'm', 'preprocessor_config.json', **processor, image_processor_type='CLIPImageProcessor')
    assert find_transformers_teacher(str(tmp_path / 'm')).size == size


def test_models_of_timm_are_left_to_timm(tmp_path):
    model = timm.create_model('test_vit', num_classes=10, img_size=32)
    timm.models.save_for_hf(model, tmp_path / 'm')
    assert find_transformers_teacher(str(tmp_path / 'm')) is None
    assert find_transformers_teacher('test_vit') is None
    assert find_transformers_teacher('no_such_model') is None


FAULTS = {
    'no classifier': (lambda d: write(d, 'ViTModel'), ('classifier.bias', 'fine-tuned')),
    'no preprocessing': (
        lambda d: (write(d) / 'preprocessor_config.json').unlink(),
        ('cannot be loaded', 'image processor'),
    ),
    'code of its own': (
        lambda d: change(write(d), 'config.json', model_type='mine', auto_map={'AutoConfig': 'evil.Config'}),
        ('cannot be loaded',),
    ),
    'colors reversed': (
        lambda d: change(write(d), 'preprocessor_config.json', do_flip_channel_order=True,
                         image_processor_type='MobileViTImageProcessor'),
        ('do_flip_channel_order',),
    ),
    'gray': (
        lambda d: change(write(d), 'preprocessor_config.json', image_mean=[0.5], image_std=[0.5]),
        ('1 channel,', 'RGB'),
    ),
}  # fmt: skip


@pytest.mark.parametrize('fault', FAULTS)
def test_what_cannot_teach_is_one_sentence(fault, tmp_path):
    make, words = FAULTS[fault]
    make(tmp_path / 'm')
    (tmp_path / 'm' / 'evil.py').write_text(f'open({str(tmp_path / "ran")!r}, "w")')
    refused(lambda: find_transformers_teacher(str(tmp_path / 'm')), *words, kind=ModelError)
    assert not (tmp_path / 'ran').exists()


def test_a_page_that_nobody_can_reach_is_one_sentence():
    message = refused(lambda: find_transformers_teacher('hf-hub:nobody/nothing'), 'nobody/nothing', kind=ModelError)
    assert 'not in the cache' in message


def test_a_page_of_the_hub_teaches_also_from_the_cache_of_a_silent_hub(hub, client, folder):
    hub.pages['me/vit'] = Page({path.name: path.read_bytes() for path in folder.iterdir()})
    ask = """
import tinyvit_zoo
from huggingface_hub import constants
from tinyvit_zoo.soft_labels.transformers_teacher import find_transformers_teacher
constants.HF_HUB_OFFLINE = OFFLINE
teacher = find_transformers_teacher('hf-hub:me/vit@main')
print(teacher.name, teacher.size, teacher.sha256)
"""
    expected = find_transformers_teacher(str(folder)).sha256
    for offline in ('False', 'True'):
        code, out, err = client.run(python=ask.replace('OFFLINE', offline))
        assert (code, out.split('\n')[0]) == (0, f'hf-hub:me/vit@main (32, 32) {expected}'), err


def test_the_commands_take_a_transformers_teacher(folder, data, cli, tmp_path):
    def ran(*words) -> str:
        code, out, err = cli('distill', *map(str, words), '--device', 'cpu')
        assert code == 0, err
        return out

    store = tmp_path / 's'
    ran('save', folder, '-d', data, '--store', store, '--epochs', '0', '-k', '4')
    assert Store.open(store).info.teacher == str(folder)
    assert 'Teacher: 12 views' in ran('check', store, '-d', data, '--against', folder, '--share', '0.5')
    options = ('--random', '--epochs', '1', '--batch-size', '8', '-o', tmp_path / 'run')
    ran('train', 'test_vit', '-d', data, '--teacher', folder, '-k', '4', *options)
    results = json.loads((tmp_path / 'run' / 'results.json').read_text())
    assert results['soft_labels']['teacher'] == str(folder)
    assert results['soft_labels']['teacher_sha256'] == Store.open(store).info.teacher_sha256
    assert np.isfinite(results['loss'])


@pytest.mark.parametrize('fault', ['classes', 'file'])
def test_other_classes_and_files_of_weights_are_refused(fault, folder, data, cli, tmp_path):
    teacher = folder if fault == 'file' else write(tmp_path / 'm', labels=7)
    weights = ('--weights', str(tmp_path / 'w.pth')) if fault == 'file' else ()
    code, _, err = cli(
        'distill', 'save', str(teacher), *weights, '-d', str(data), '--store', str(tmp_path / 's'), '--epochs', '0'
    )
    assert code == 1
    assert ('w.pth' if fault == 'file' else '7 classes') in err
    assert err.count('\n') == 1
