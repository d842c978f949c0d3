"""The command line: results on stdout, one sentence on stderr, exit codes, and nothing half-written."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import forget_modules
from golden_rule import fill_by_rule, official_state_dict
from PIL import Image
from safetensors.torch import load_file, save_file

import tinyvit_zoo.cli
from tinyvit_zoo.checkpoints import TINYVIT_KEYS, find_key_map, imported_path, read_checkpoint
from tinyvit_zoo.classify import load_image
from tinyvit_zoo.cli.app import run_app
from tinyvit_zoo.hub import save_folder

NAME = 'tinyvit_5m_224.dist_in22k_ft_in1k'
SWIN = 'mini_swin_tiny_patch4_window7_224'


@pytest.fixture
def folder(tmp_path, small):
    """A Hub-ready folder of a small model with 11 named classes, for images of 32 pixels."""
    return save_folder(small(img_size=32), tmp_path / 'model', [f'label {i}' for i in range(11)])


@pytest.fixture
def image(tmp_path):
    path = tmp_path / 'image.png'
    Image.effect_noise((50, 40), 80).convert('RGB').save(path)
    return path


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv('TINYVIT_ZOO_HOME', str(tmp_path / 'store'))
    return tmp_path / 'store'


def python(*args, cwd=None, **env):
    """Runs this Python in a new process."""
    return subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=500,
    )


def assert_one_sentence(err, *parts):
    assert err.count('\n') == 1, err
    assert 'Traceback' not in err
    for part in parts:
        assert str(part) in err


# list, info


def test_list_shows_numbers_accuracies_and_licenses(cli):
    code, out, _ = cli('list')
    assert code == 0
    line = next(line for line in out.splitlines() if line.startswith(NAME))
    assert line.split() == [
        NAME,
        '5.39',
        '1.255',
        '224',
        '80.874',
        '(timm)',
        'MIT',
        f'timm/{NAME.replace("yv", "y_v")}',
    ]
    assert 'measured by others' in out


def test_list_prints_pure_json(cli):
    code, out, err = cli('list', 'tinyvit_21m*', '--json')
    rows = json.loads(out)
    assert (code, err) == (0, '')
    assert {row['name'].partition('.')[0] for row in rows} == {'tinyvit_21m_224', 'tinyvit_21m_384', 'tinyvit_21m_512'}


def test_list_says_when_nothing_matches(cli):
    code, out, err = cli('list', 'resnet*')
    assert (code, out) == (2, '')
    assert_one_sentence(err, 'resnet*')


def test_info_shows_license_protocols_sources_and_preprocessing(cli):
    code, out, _ = cli('info', 'tinyvit_5m_224')
    assert code == 0
    for part in (
        NAME,
        'MIT, stated at https://',
        "'apache-2.0'",
        'crop 0.95',
        'crop 0.875',
        '80.874',
        '80.7',
        'results-imagenet.csv',
        'README of the released code',
        'arxiv.org/abs/2207.10666',
        'tiny_vit_5m_22kto1k_distill.pth',
        '5,392,764',
        '1.255 G',
        '7x7, 14x14, 7x7 (stages 1-3)',
        'measured by others',
    ):
        assert part in out, part


def test_info_prints_pure_json_at_the_size_asked_for(cli):
    code, out, err = cli('info', 'tinyvit_5m_224', '--img-size', '256x320', '--json')
    facts = json.loads(out)
    assert (code, err) == (0, '')
    assert facts['preprocessing']['input_size'] == [3, 256, 320]
    assert facts['model']['windows'] == [None, [8, 10], [16, 20], [8, 10]]
    assert [p['crop_pct'] for p in facts['protocols']] == [0.95, 0.875]


def test_info_shows_what_there_is_of_mini_swin(cli):
    code, out, _ = cli('info', SWIN)
    assert code == 0
    for part in ('MIT, stated at', '12,001,765', '4.594 G', 'stages 0-3', 'no page', 'pickled', '81.4', 'Table 4'):
        assert part in out, part


def test_info_reads_a_folder(cli, folder):
    code, out, _ = cli('info', f'local-dir:{folder}')
    assert code == 0
    assert 'label 3' in out
    assert 'Release' not in out


@pytest.mark.parametrize(
    ('args', 'code', 'part'),
    [
        (['info', 'tinyvit_5m_244'], 1, 'Did you mean tinyvit_5m_224'),
        (['info', 'tinyvit_5m_224.nope'], 1, 'dist_in22k'),
        (['info', 'local-dir:/nowhere'], 1, '/nowhere'),
        (['info', 'hf-hub:nobody/nothing'], 1, 'nobody/nothing'),
        (['info', 'tinyvit_5m_224', '--img-size', '16'], 1, 'at least 32'),
        (['info', 'tinyvit_5m_224', '--img-size', 'big'], 2, "'big'"),
        (['info', 'test_vit', '--img-size', '70'], 1, '16x16 pixels: give multiples of them, not 70x70'),
        (['export', 'test_vit', '--random', '--img-size', '70', '-o', 'x.onnx'], 1, 'give multiples of them'),
        (['info'], 2, 'Missing'),
        (['list', '--nope'], 2, '--nope'),
        (['nope'], 2, 'nope'),
        (['classify', 'x.png', '--model', 'tinyvit_5m_224', '--topk', '0'], 2, '--topk'),
    ],
    ids=str,
)
def test_a_mistake_ends_in_one_sentence(cli, args, code, part):
    got, out, err = cli(*args)
    assert (got, out) == (code, '')
    assert_one_sentence(err, part)


# classify


def test_classify_names_the_classes_of_a_folder(cli, folder, image):
    code, out, err = cli('classify', image, '--model', f'local-dir:{folder}', '--topk', 2, '--json')
    (result,) = json.loads(out)
    assert (code, err) == (0, '')
    assert result['image'] == str(image)
    best, second = result['predictions']
    assert best['label'] == f'label {best["index"]}'
    assert best['probability'] >= second['probability']


def test_classify_prints_probabilities_and_names(cli, folder, image):
    code, out, _ = cli('classify', image, '--model', f'local-dir:{folder}', '--topk', 3)
    lines = out.splitlines()
    assert (code, lines[0], len(lines)) == (0, str(image), 4)
    assert '%' in lines[1]
    assert 'label' in lines[1]


def test_classify_takes_weights_in_the_official_layout(cli, official_file, image):
    args = ('classify', image, '--model', 'tinyvit_5m_224', '--weights', official_file('tiny_vit_5m_224'), '--json')
    code, out, _ = cli(*args)
    predictions = json.loads(out)[0]['predictions']
    assert code == 0
    names = timm.data.ImageNetInfo('imagenet-1k').label_descriptions()
    assert [p['label'] for p in predictions] == [names[p['index']] for p in predictions]
    assert len(predictions) == 5


def test_classify_explains_weights_of_another_family(cli, official_file, image):
    weights = official_file('mini_deit_tiny_patch16_224')
    code, out, err = cli('classify', image, '--model', 'tinyvit_5m_224', '--weights', weights)
    assert (code, out) == (1, '')
    assert_one_sentence(err, 'TinyViT')


def test_classify_takes_the_number_of_classes_and_their_names_from_the_weights(cli, official_file, image):
    weights = official_file('tiny_vit_5m_224_22khead')
    code, out, _ = cli('classify', image, '--model', 'tinyvit_5m_224', '--weights', weights, '--json')
    (best, *_) = json.loads(out)[0]['predictions']
    assert code == 0
    assert best['label'] == timm.data.ImageNetInfo('imagenet-22k').index_to_description(best['index'])


def test_classify_numbers_classes_without_names(cli, tmp_path, small, image):
    folder = save_folder(small(img_size=32), tmp_path / 'nameless')
    _, out, _ = cli('classify', image, '--model', f'local-dir:{folder}', '--topk', 1, '--json')
    (best,) = json.loads(out)[0]['predictions']
    assert best['label'] == f'class {best["index"]}'


def test_classify_uses_the_preprocessing_of_the_model(cli, folder, image):
    code, out, _ = cli('classify', image, '--model', f'local-dir:{folder}', '--img-size', '64x96', '--json')
    model = timm.create_model(f'local-dir:{folder}', pretrained=True, img_size=(64, 96)).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    with torch.no_grad():
        expected = model(transform(Image.open(image))[None]).softmax(dim=1).max().item()
    assert code == 0
    assert json.loads(out)[0]['predictions'][0]['probability'] == pytest.approx(expected, abs=1e-6)


def test_classify_gives_a_model_of_timm_images_of_the_size_asked_for(cli, tmp_path, image):
    model = timm.create_model('vit_tiny_patch16_224', num_classes=3, depth=1, img_size=32)
    folder = save_folder(model, tmp_path / 'vit')
    code, out, err = cli('classify', image, '--model', f'local-dir:{folder}', '--img-size', '64x96', '--json')
    assert code == 0, err
    larger = timm.create_model(f'local-dir:{folder}', pretrained=True, img_size=(64, 96)).eval()
    config = timm.data.resolve_model_data_config(larger) | dict(input_size=(3, 64, 96))
    with torch.no_grad():
        expected = larger(timm.data.create_transform(**config)(Image.open(image))[None]).softmax(dim=1).max().item()
    assert json.loads(out)[0]['predictions'][0]['probability'] == pytest.approx(expected, abs=1e-6)


def test_classify_turns_images_upright(cli, folder, tmp_path):
    upright = Image.linear_gradient('L').convert('RGB')
    upright.save(tmp_path / 'upright.png')
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / 'turned.png', exif=exif)
    files = tmp_path / 'upright.png', tmp_path / 'turned.png'
    _, out, _ = cli('classify', *files, '--model', f'local-dir:{folder}', '--json')
    one, other = json.loads(out)
    assert one['predictions'] == other['predictions']


@pytest.mark.parametrize('mode', ['L', 'LA', 'P', 'RGBA', 'CMYK', '1', 'I;16'])
def test_classify_reads_every_kind_of_image(cli, folder, tmp_path, mode):
    path = tmp_path / ('image.tiff' if mode == 'CMYK' else 'image.png')
    Image.new(mode, (40, 40)).save(path)
    assert cli('classify', path, '--model', f'local-dir:{folder}')[0] == 0


def test_sixteen_bits_are_not_clipped(tmp_path):
    from tinyvit_zoo.classify import load_image

    Image.new('I;16', (8, 8), 0x8000).save(tmp_path / 'grey.png')
    assert load_image(tmp_path / 'grey.png').getpixel((0, 0)) == (128, 128, 128)


def test_classify_continues_after_a_bad_image(cli, folder, image, tmp_path):
    text = tmp_path / 'notes.png'
    text.write_text('no image')
    cut = tmp_path / 'cut.png'
    cut.write_bytes(image.read_bytes()[:200])
    missing = tmp_path / 'missing.png'
    code, out, err = cli('classify', text, cut, missing, image, '--model', f'local-dir:{folder}', '--json')
    results = json.loads(out)
    assert code == 1
    assert ['error' in result for result in results] == [True, True, True, False]
    assert [path.name in line for path, line in zip((text, cut, missing), err.splitlines(), strict=True)] == [True] * 3
    assert 'Traceback' not in err


def test_classify_explains_missing_and_damaged_weights(cli, image, tmp_path):
    page = tmp_path / 'page.pth'
    page.write_text('<!doctype html><title>quota</title>')
    for weights, part in ((page, 'web page'), (tmp_path / 'none.pth', 'No checkpoint')):
        code, out, err = cli('classify', image, '--model', 'tinyvit_5m_224', '--weights', weights)
        assert (code, out) == (1, '')
        assert_one_sentence(err, part, weights)


def test_classify_explains_unreachable_pretrained_weights(cli, image):
    code, _, err = cli('classify', image, '--model', 'tinyvit_5m_224', '--weights', image)
    assert code == 1
    assert_one_sentence(err, image)


@pytest.fixture
def album(tmp_path):
    """A folder with two images, one of them in a folder of its own, and files that are none."""
    (tmp_path / 'album' / 'more').mkdir(parents=True)
    (tmp_path / 'album' / '.hidden').mkdir()
    for name in ('a.png', 'more/b.JPG', '.hidden/c.png'):
        Image.effect_noise((50, 40), 80).convert('RGB').save(tmp_path / 'album' / name)
    (tmp_path / 'album' / 'notes.txt').write_text('no image')
    return tmp_path / 'album'


def test_classify_takes_folders_with_all_that_is_below_them(cli, folder, album, image):
    code, out, err = cli('classify', album, image, '--model', f'local-dir:{folder}', '--topk', 1)
    assert (code, err) == (0, '')
    assert out.splitlines()[::2] == [str(album / 'a.png'), str(album / 'more' / 'b.JPG'), str(image)]


def test_classify_writes_a_table_and_json(cli, folder, album, tmp_path):
    (album / 'broken.png').write_bytes(b'nothing')
    args = ('classify', album, '--model', f'local-dir:{folder}', '--topk', 2)
    for suffix in ('csv', 'json'):
        code, _, err = cli(*args, '-o', tmp_path / 'new' / f'results.{suffix}')
        assert code == 1
        assert_one_sentence(err, 'broken.png')
    results = json.loads((tmp_path / 'new' / 'results.json').read_text())
    assert [Path(result['image']).name for result in results] == ['a.png', 'broken.png', 'b.JPG']
    with (tmp_path / 'new' / 'results.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert [(Path(row['image']).name, row['rank']) for row in rows] == [
        ('a.png', '1'), ('a.png', '2'), ('broken.png', ''), ('b.JPG', '1'), ('b.JPG', '2'),
    ]  # fmt: skip
    best = results[0]['predictions'][0]
    assert (rows[0]['label'], float(rows[0]['probability'])) == (best['label'], best['probability'])
    assert rows[2]['error'] == results[1]['error']


def test_classify_says_at_once_what_it_cannot_write_and_find(cli, folder, album, tmp_path):
    code, out, err = cli('classify', album, '--model', f'local-dir:{folder}', '-o', tmp_path / 'results.xlsx')
    assert (code, out) == (2, '')
    assert_one_sentence(err, 'results.xlsx', '.csv or .json')
    (tmp_path / 'empty').mkdir()
    code, out, err = cli('classify', tmp_path / 'empty', '--model', f'local-dir:{folder}')
    assert (code, out) == (1, '')
    assert_one_sentence(err, tmp_path / 'empty', 'no images')


# convert, import


@pytest.fixture
def five_million(tmp_path):
    """A TinyViT-5M in our layout, as a file and as its state dict."""
    state_dict = fill_by_rule(timm.create_model('tinyvit_5m_224')).state_dict()
    save_file(state_dict, tmp_path / 'ours.safetensors')
    return tmp_path / 'ours.safetensors', state_dict


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_convert_goes_both_ways_without_loss(cli, five_million, tmp_path):
    ours, state_dict = five_million
    assert cli('convert', ours, tmp_path / 'official.pth')[0] == 0
    official = torch.load(tmp_path / 'official.pth', weights_only=True)
    assert list(official) == ['model']
    assert_equal(official['model'], TINYVIT_KEYS.to_official(state_dict))
    code, out, _ = cli('convert', tmp_path / 'official.pth', tmp_path / 'back.safetensors', '--name', NAME)
    assert code == 0
    assert_equal(load_file(tmp_path / 'back.safetensors'), state_dict)
    for part in ('official layout', '296 keys', 'float32', '1000 classes', NAME, 'back.safetensors'):
        assert part in out


@pytest.mark.parametrize(
    ('file', 'name', 'read'),
    [
        ('tiny_vit_5m_224', 'tinyvit_5m_224.in1k', 'TinyViT in official layout, 296 keys'),
        ('mini_deit_tiny_patch16_224', 'mini_deit_tiny_patch16_224', 'Mini-DeiT in official layout, 139 keys'),
        ('mini_swin_tiny', 'mini_swin_tiny_patch4_window7_224', 'Mini-Swin in official layout, 204 keys'),
    ],
)
def test_a_released_file_goes_through_our_layout_without_loss(cli, official_file, tmp_path, file, name, read):
    """Masks and indices, which the released code stores besides the weights, are restored."""
    code, out, _ = cli('convert', official_file(file), tmp_path / 'ours', '--name', name)
    assert code == 0
    assert f'{read}, float32, 1000 classes' in out
    assert cli('convert', tmp_path / 'ours', tmp_path / 'back.pth', '--name', name)[0] == 0
    back = torch.load(tmp_path / 'back.pth', weights_only=True)['model']
    released = official_state_dict(file)
    assert_equal(back, released)
    assert {k: v.dtype for k, v in back.items()} == {k: v.dtype for k, v in released.items()}


def test_rectangular_windows_stay_in_our_layout(cli, tmp_path):
    """The released code has no name for them."""
    save_file(timm.create_model(SWIN, img_size=(64, 96)).state_dict(), tmp_path / 'ours.safetensors')
    args = ('convert', tmp_path / 'ours.safetensors')
    assert cli(*args, tmp_path / 'folder', '--name', SWIN, '--img-size', '64x96')[0] == 0
    code, _, err = cli(*args, tmp_path / 'official.pth')
    assert code == 1
    assert_one_sentence(err, 'square window')
    assert not (tmp_path / 'official.pth').exists()


@pytest.mark.parametrize('buffer', ['layers.0.blocks.0.attn_mask', 'layers.3.blocks.0.attn.relative_position_index'])
def test_buffers_that_disagree_with_the_weights_are_reported(cli, tmp_path, buffer):
    state_dict = official_state_dict('mini_swin_tiny')
    state_dict[buffer].view(-1)[5] += 1
    torch.save({'model': state_dict}, tmp_path / 'odd.pth')
    for target in ('out.safetensors', 'out.pth', 'out'):
        code, _, err = cli('convert', tmp_path / 'odd.pth', tmp_path / target, '--name', SWIN)
        assert code == 1
        assert_one_sentence(err, buffer, 'odd.pth')
    assert [p.name for p in tmp_path.iterdir()] == ['odd.pth']


def test_a_file_of_no_known_family_is_reported(cli, tmp_path):
    torch.save(timm.create_model('resnet10t').state_dict(), tmp_path / 'resnet.pth')
    code, _, err = cli('convert', tmp_path / 'resnet.pth', tmp_path / 'out.safetensors')
    assert code == 1
    assert_one_sentence(
        err, 'no known family (TinyViT, Mini-DeiT, Mini-Swin, CLIP ViT, plain ViT', 'conv1.0.weight', 'resnet.pth'
    )


def test_convert_obeys_the_layout_asked_for(cli, five_million, tmp_path):
    ours, state_dict = five_million
    cli('convert', ours, tmp_path / 'a.safetensors', '--to', 'official')
    assert_equal(load_file(tmp_path / 'a.safetensors'), TINYVIT_KEYS.to_official(state_dict))
    cli('convert', ours, tmp_path / 'b.pth', '--to', 'ours')
    assert_equal(torch.load(tmp_path / 'b.pth', weights_only=True), state_dict)


def test_convert_makes_a_folder_for_timm(cli, official_file, tmp_path):
    code, _, _ = cli('convert', official_file('tiny_vit_5m_224'), tmp_path / NAME, '--name', NAME)
    assert code == 0
    model = timm.create_model(f'local-dir:{tmp_path / NAME}', pretrained=True)
    expected, _ = TINYVIT_KEYS.to_ours(read_checkpoint(official_file('tiny_vit_5m_224')))
    assert_equal(model.state_dict(), expected)
    assert model.pretrained_cfg['tag'] == 'dist_in22k_ft_in1k'


def test_convert_turns_the_22k_head_into_the_1k_one(cli, official_file, tmp_path):
    source = official_file('tiny_vit_5m_224_22khead')
    code, out, _ = cli('convert', source, tmp_path / 'out.safetensors', '--head', 'in1k', '--name', NAME)
    assert code == 0
    assert '21841 classes' in out
    assert load_file(tmp_path / 'out.safetensors')['head.fc.weight'].shape[0] == 1000


def test_convert_leaves_the_head_out_for_zero_classes(cli, five_million, tmp_path):
    code, _, _ = cli('convert', five_million[0], tmp_path / 'out', '--name', NAME, '--num-classes', 0)
    assert code == 0
    model = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True)
    assert model.num_classes == 0


def test_convert_keeps_own_classes_size_and_dtype(cli, tmp_path):
    model = fill_by_rule(timm.create_model('tinyvit_5m_224', num_classes=7, img_size=(64, 96))).bfloat16()
    save_file(model.state_dict(), tmp_path / 'mine.safetensors')
    args = ('convert', tmp_path / 'mine.safetensors', tmp_path / 'out', '--name', 'tinyvit_5m_224', '--num-classes', 7)
    assert cli(*args)[0] == 1
    assert cli(*args, '--img-size', '64x96')[0] == 0
    assert_equal(load_file(tmp_path / 'out' / 'model.safetensors'), model.state_dict())
    again = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True)
    assert (again.img_size, again.num_classes) == ((64, 96), 7)


@pytest.mark.parametrize(
    ('options', 'part'),
    [
        (['--name', 'tinyvit_11m_224'], 'does not fit'),
        (['--name', 'mini_deit_tiny_patch16_224'], 'holds TinyViT weights, mini_deit_tiny_patch16_224 is a Mini-DeiT'),
        (['--name', 'resnet18'], 'holds TinyViT weights'),
        (['--name', 'tinyvit_5m_224.dist_in22k'], '21841'),
        (['--name', 'tinyvit_5m_224', '--num-classes', '7'], '7'),
        (['--name', 'tinyvit_5m_224', '--img-size', '384'], 'wrong shape'),
        (['--name', 'tinyvit_6m_224'], 'Unknown model'),
        (['--head', 'in1k'], '21841-class head'),
    ],
    ids=str,
)
def test_a_failed_conversion_leaves_an_existing_target_alone(cli, five_million, tmp_path, options, part):
    target = tmp_path / 'target.pth'
    target.write_text('precious')
    code, out, err = cli('convert', five_million[0], target, *options)
    assert (code, out) == (1, '')
    assert_one_sentence(err, part)
    assert target.read_text() == 'precious'
    assert sorted(p.name for p in tmp_path.iterdir()) == ['ours.safetensors', 'target.pth']


@pytest.mark.parametrize(
    ('target', 'error'), [('out.safetensors', OSError), ('out.pth', RuntimeError), ('out', OSError)]
)
def test_an_interrupted_write_leaves_no_partial_file(cli, five_million, tmp_path, monkeypatch, target, error):
    def fail_in(file):
        file.write(b'half')
        raise error('No space left on device')

    def fail(path, data):
        with path.open('wb') as file:
            fail_in(file)

    monkeypatch.setattr(Path, 'write_bytes', fail)
    monkeypatch.setattr('torch.save', lambda tensors, file: fail_in(file))
    code, _, err = cli('convert', five_million[0], tmp_path / target, '--name', NAME)
    assert code == 1
    assert_one_sentence(err, 'No space left')
    assert [p.name for p in tmp_path.iterdir()] == ['ours.safetensors']


def test_convert_needs_a_name_for_a_folder(cli, five_million, tmp_path):
    code, _, err = cli('convert', five_million[0], tmp_path / 'out')
    assert code == 1
    assert_one_sentence(err, '--name')


def test_convert_never_replaces_a_folder_with_other_files(cli, five_million, tmp_path):
    (tmp_path / 'home').mkdir()
    (tmp_path / 'home' / 'thesis.tex').write_text('years of work')
    code, _, err = cli('convert', five_million[0], tmp_path / 'home', '--name', NAME)
    assert code == 1
    assert_one_sentence(err, 'thesis.tex')
    assert (tmp_path / 'home' / 'thesis.tex').exists()


@pytest.mark.parametrize(
    ('file', 'name'), [('tiny_vit_5m_224', NAME), ('mini_swin_tiny', f'{SWIN}.distill_in1k')]
)  # fmt: skip
def test_import_makes_pretrained_work_offline(cli, official_file, store, file, name):
    code, out, _ = cli('import', official_file(file), '--name', name)
    assert code == 0
    assert str(imported_path(name)) in out
    assert imported_path(name).is_relative_to(store)
    model = timm.create_model(name.partition('.')[0], pretrained=True)
    state_dict = read_checkpoint(official_file(file))
    assert_equal(model.state_dict(), find_key_map(state_dict).to_ours(state_dict)[0])
    code, out, _ = cli('info', name.partition('.')[0], '--json')
    assert json.loads(out)['release']['imported'] == str(imported_path(name))


@pytest.mark.parametrize(
    ('file', 'name', 'part'),
    [
        ('tiny_vit_5m_224', 'tinyvit_11m_224.in1k', 'does not fit'),
        ('tiny_vit_5m_224', 'tinyvit_5m_224.dist_in22k', '21841'),
        ('tiny_vit_21m_384', 'tinyvit_21m_224.in1k', 'wrong shape'),  # create_model would resize it in silence
        ('tiny_vit_5m_224', 'tinyvit_5m_224.mine', 'no release'),
        ('tiny_vit_5m_224', 'mini_deit_tiny_patch16_224', 'holds TinyViT weights'),
        ('mini_swin_tiny', 'tinyvit_5m_224.in1k', 'holds Mini-Swin weights'),
        ('mini_swin_base', 'mini_swin_base_patch4_window12_384', 'wrong shape'),
        ('mini_deit_base_patch16_384', 'mini_deit_base_patch16_224', 'wrong shape'),
    ],
)
def test_import_stores_nothing_that_is_not_the_release(cli, official_file, store, file, name, part):
    code, out, err = cli('import', official_file(file), '--name', name)
    assert (code, out) == (1, '')
    assert_one_sentence(err, part)
    assert not store.exists()


# run

SCRIPT = """
import argparse, sys, timm
import neighbor
parser = argparse.ArgumentParser('mine')
parser.add_argument('--model')
args = parser.parse_args()
print(__name__, sys.argv[1:], neighbor.VALUE, timm.is_model(args.model))
sys.exit(3)
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / 'scripts').mkdir()
    (tmp_path / 'scripts' / 'neighbor.py').write_text('VALUE = 7')
    (tmp_path / 'scripts' / 'mine.py').write_text(SCRIPT)
    return tmp_path / 'scripts' / 'mine.py'


def test_run_registers_the_models_and_passes_arguments_and_exit_code_on(script, tmp_path):
    done = python('-m', 'tinyvit_zoo.cli', 'run', script, '--model', 'tinyvit_5m_224', cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert done.stdout == "__main__ ['--model', 'tinyvit_5m_224'] 7 True\n"


@pytest.fixture
def fresh_path(monkeypatch):
    monkeypatch.setattr(sys, 'path', ['', *sys.path])


def test_options_after_the_script_are_its_own(cli, script, fresh_path):
    code, out, _ = cli('run', script, '--help')
    assert code == 0
    assert out.startswith('usage: mine')


def test_errors_of_the_script_stay_its_own(monkeypatch, tmp_path, fresh_path):
    (tmp_path / 'fails.py').write_text('raise OSError("mine")')
    monkeypatch.setattr(sys, 'argv', ['tinyvit-zoo', 'run', str(tmp_path / 'fails.py')])
    with pytest.raises(OSError, match='mine'):
        run_app()


def test_a_missing_script_is_one_sentence(cli, tmp_path):
    code, _, err = cli('run', tmp_path / 'none.py')
    assert code == 2
    assert_one_sentence(err, 'none.py')


@pytest.mark.slow
def test_run_works_under_torchrun(tmp_path):
    script = tmp_path / 'ranks.py'
    script.write_text(
        'import os, pathlib, timm\n'
        'ok = timm.is_model("tinyvit_5m_224")\n'
        'pathlib.Path(__file__).with_name("rank" + os.environ["RANK"]).write_text(str(ok))\n'
    )
    launch = ('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2')
    done = python(*launch, '-m', 'tinyvit_zoo.cli', 'run', script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f'rank{i}').read_text() for i in range(2)] == ['True', 'True']


# the entry point


@pytest.mark.parametrize('missing', ['typer', 'rich'])
def test_without_the_cli_packages_one_sentence_says_what_to_install(monkeypatch, missing):
    forget_modules(monkeypatch, 'tinyvit_zoo.cli.')
    forget_modules(monkeypatch, f'{missing}.')
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit, match=r"pip install 'tinyvit-zoo\[cli\]'"):
        tinyvit_zoo.cli.main()


def test_classify_prints_names_as_they_are_and_whole(cli, folder, image, tmp_path):
    odd = tmp_path / 'my:cat:[red].png'
    deep = tmp_path.joinpath(*['a long folder name ' * 4] * 4)
    deep.mkdir(parents=True)
    for path in (odd, deep / 'x.png'):
        shutil.copy(image, path)
        code, out, _ = cli('classify', path, '--model', f'local-dir:{folder}')
        assert code == 0
        assert str(path) in out.splitlines()


@pytest.mark.parametrize('order', ['<u2', '>u2'])
def test_sixteen_bit_images_of_either_byte_order_keep_their_brightness(tmp_path, order):
    values = np.linspace(0, 65535, 64).reshape(8, 8)
    Image.fromarray(values.astype(order)).save(tmp_path / 'x.tif')
    read = np.asarray(load_image(tmp_path / 'x.tif').convert('L'), dtype=float)
    assert np.abs(read - values / 257).max() < 2
