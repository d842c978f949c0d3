"""`tinyvit-zoo analyze cka|attention|fourier`: what they print, what they leave, and mistakes in one sentence."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_of
from fake_datasets import image

from tinyvit_zoo.hub import save_folder

RUN = ('-d', 'digits', '--device', 'cpu')


@pytest.fixture(scope='module')
def models(tmp_path_factory) -> dict[str, str]:
    """Small models for images of 64 pixels as folders."""
    folder = tmp_path_factory.mktemp('models')
    return {kind: str(save_folder(small_of(kind, img_size=64), folder / kind)) for kind in ('tinyvit', 'mini_deit')}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline='') as file:
        return list(csv.DictReader(file))


def test_cka_of_two_models(cli, models, tmp_path):
    batches = ('--images', 13, '--batch-size', 6)
    code, out, err = cli('analyze', 'cka', models['tinyvit'], models['mini_deit'], *RUN, *batches, '-o', tmp_path)
    assert (code, err) == (0, '')
    assert '2 batches of 6 images; 1 image after the last full batch left out' in out
    assert {path.name for path in tmp_path.iterdir()} >= {'cka.csv', 'cka.png', 'results.json'}
    results = json.loads((tmp_path / 'results.json').read_text())
    assert results['evaluator'] == 'analyze cka'
    assert results['data']['images'] == 13
    assert results['model']['weights_sha256'] != results['b']['weights_sha256']
    value = np.array(results['result']['value'], dtype=float)
    assert value.shape == (5, 4)
    table = rows(tmp_path / 'cka.csv')
    assert [(row['a'], row['b']) for row in table[:2]] == [
        ('stages.0.blocks.0', 'blocks.0'), ('stages.0.blocks.0', 'blocks.0 (2)'),
    ]  # fmt: skip
    np.testing.assert_allclose([float(row['cka']) for row in table], value.flatten())


def test_cka_of_one_model_with_layers_by_name(cli, models):
    code, out, err = cli(
        'analyze', 'cka', models['mini_deit'], *RUN, '--images', 8, '--layers', 'blocks.*.norm2,blocks.*.mlp'
    )
    assert (code, err) == (0, '')
    assert 'blocks.1.mlp (2): most similar to ' in out
    assert 'Intervals need a second batch' in out


def test_attention_of_a_model(cli, models, tmp_path):
    code, out, err = cli('analyze', 'attention', models['tinyvit'], *RUN, '--images', 5, '-o', tmp_path)
    assert (code, err) == (0, '')
    assert 'stages.3.blocks.0: ' in out
    table = rows(tmp_path / 'attention.csv')
    assert len(table) == 1 + 2 + 2 + 2
    last = table[-1]
    assert (last['layer'], last['head'], last['queries'], last['pixel_step']) == ('stages.3.blocks.0', '1', '20', '32')
    assert float(last['relative_entropy']) == pytest.approx(float(last['entropy']) / np.log(4))
    results = json.loads((tmp_path / 'results.json').read_text())
    assert results['result']['layers'][-1]['distance'][1] == pytest.approx(float(last['distance']))
    assert (tmp_path / 'attention.png').stat().st_size > 1000


def test_the_pixel_step_of_a_release_can_be_asked_for(cli, models, tmp_path):
    found = []
    for options in ((), ('--pixel-step', 14)):
        assert cli('analyze', 'attention', models['mini_deit'], *RUN, '--images', 2, *options, '-o', tmp_path)[0] == 0
        found.append([float(row['distance']) for row in rows(tmp_path / 'attention.csv')])
    np.testing.assert_allclose(np.array(found[0]) * 14 / 16, found[1], rtol=1e-6)


def test_frequencies_of_a_model(cli, models, tmp_path):
    code, out, err = cli('analyze', 'fourier', models['tinyvit'], *RUN, '--images', 5, '-o', tmp_path)
    assert (code, err) == (0, '')
    assert 'Too small for frequencies: stages.3.blocks.0.' in out
    results = json.loads((tmp_path / 'results.json').read_text())
    table = rows(tmp_path / 'fourier.csv')
    assert [row['layer'] for row in table].count('stages.0.blocks.0') == 8
    assert float(table[7]['delta_log_amplitude']) == pytest.approx(results['delta_log_amplitude']['stages.0.blocks.0'])
    assert (tmp_path / 'fourier.png').is_file()


def test_a_model_of_transformers_is_analysed_from_its_folder(cli, tmp_path):
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8
    )
    transformers.ViTModel(config).save_pretrained(tmp_path / 'vit')
    transformers.ViTImageProcessor(size=dict(height=32, width=32)).save_pretrained(tmp_path / 'vit')
    code, out, err = cli('analyze', 'attention', tmp_path / 'vit', *RUN, '--images', 3, '-o', tmp_path / 'out')
    assert (code, err) == (0, '')
    assert '4x4 tokens of 8 pixels' in out
    assert len(rows(tmp_path / 'out' / 'attention.csv')) == 4
    # At another size, its positions are resized.
    options = ('--images', 4, '--img-size', 48, '--layers', 'mae-lite')
    code, out, err = cli('analyze', 'cka', tmp_path / 'vit', *RUN, *options)
    assert (code, err) == (0, '')
    assert out.count('most similar') == 3


def test_images_need_no_labels(cli, models, tmp_path):
    for i in range(3):
        image(tmp_path / 'photos' / f'{i}.png', seed=i)
    code, _, err = cli('analyze', 'fourier', models['tinyvit'], '-d', tmp_path / 'photos', '-o', tmp_path / 'out')
    assert (code, err) == (0, '')
    data = json.loads((tmp_path / 'out' / 'results.json').read_text())['data']
    assert (data['images'], data['classes']) == (3, 0)


@pytest.mark.parametrize('option', [('--weights-b', 'model.safetensors'), ('--random-b',)])
def test_weights_of_a_second_model_need_one(cli, models, option):
    code, out, err = cli('analyze', 'cka', models['tinyvit'], *RUN, *option)
    assert (code, out) == (2, '')
    assert 'a second model B' in err


@pytest.mark.parametrize(
    ('words', 'part'),
    [
        (('cka', 'MODEL', '--batch-size', 3), '--batch-size'),
        (('cka', 'MODEL', '--batch-size', 9), '8 images'),
        (('cka', 'MODEL', '--images', 2), '--images'),
        (('cka', 'MODEL', '--layers', 'nothing.*'), 'nothing.*'),
        (('cka', 'MODEL', 'test_vit', '--random-b'), '--img-size'),
        (('attention', 'test_resnet', '--random'), 'no attention'),
        (('attention', 'test_vit', '--random', '--img-size', 70), '16x16 pixels: give multiples of them, not 70x70'),
        (('attention', 'efficientvit_b0', '--random', '--img-size', 64), 'such as linear attention'),
        (('attention', 'test_maxvit', '--random'), 'not known here'),
        (('fourier', 'no_such_model'), 'Unknown model'),
    ],
)
def test_a_mistake_ends_in_one_sentence(cli, models, words, part):
    words = [models['tinyvit'] if word == 'MODEL' else word for word in words]
    options = () if '--images' in words else ('--images', 8)
    code, out, err = cli('analyze', *words, *RUN, *options)
    assert (code, out) == (1, '')
    assert part in err
    assert err.count('\n') == 1
