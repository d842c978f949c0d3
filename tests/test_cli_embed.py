"""`tinyvit-zoo embed`: features in a file, with paths and labels, of class folders and of plain folders."""

import numpy as np
import pytest
import timm
import torch
from conftest import small_of
from PIL import Image

from tinyvit_zoo.cli.console import printer
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.downstream.embed import embed, find_images
from tinyvit_zoo.downstream.features import extract
from tinyvit_zoo.hub import save_folder


@pytest.fixture
def model(tmp_path):
    """A small model for images of 32 pixels, as a folder."""
    return f'local-dir:{save_folder(small_of("tinyvit", img_size=32), tmp_path / "model")}'


@pytest.fixture
def images(tmp_path):
    """Five images in a folder and in folders below it, and what is none."""
    folder = tmp_path / 'images'
    (folder / 'a').mkdir(parents=True)
    (folder / '.thumbnails').mkdir()
    for i, name in enumerate(('b.PNG', 'a/x.jpg', 'a/y.webp', 'ä.png', 'z.bmp', '.thumbnails/t.png')):
        Image.effect_noise((40, 48), 60 + 20 * i).convert('RGB').save(folder / name)
    (folder / 'notes.txt').write_text('no image')
    return folder


@pytest.fixture
def classes(tmp_path):
    """Two classes of two images."""
    for name in ('ant', 'bee'):
        (tmp_path / 'data' / name).mkdir(parents=True)
        for i in range(2):
            Image.effect_noise((32, 32), 40 + 30 * i).convert('RGB').save(tmp_path / 'data' / name / f'{i}.png')
    return tmp_path / 'data'


def test_a_plain_folder_gives_features_and_paths(cli, model, images, tmp_path):
    code, out, err = cli('embed', model, '-d', images, '-o', tmp_path / 'out' / 'features.npz', '--batch-size', 2)
    assert (code, err) == (0, '')
    assert '64 features of 5 images, no labels' in out
    with np.load(tmp_path / 'out' / 'features.npz') as file:  # without pickle
        assert set(file) == {'features', 'paths'}
        assert file['features'].dtype == np.float32
        paths = file['paths'].tolist()
        features = file['features']
    assert paths == sorted(str(images / n) for n in ('b.PNG', 'a/x.jpg', 'a/y.webp', 'ä.png', 'z.bmp'))
    net = timm.create_model(model, pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(net))
    for path, row in zip(paths, features, strict=True):
        with torch.inference_mode(), Image.open(path) as image:
            expected = net.forward_head(net.forward_features(transform(image.convert('RGB'))[None]), pre_logits=True)
        np.testing.assert_allclose(row, expected[0], rtol=1e-4, atol=1e-4)


def test_class_folders_give_labels_as_well(cli, model, classes, tmp_path):
    code, out, err = cli('embed', model, '-d', classes, '-o', tmp_path / 'features.npz', '--layers', 'last:2')
    assert (code, err) == (0, '')
    assert '2 classes' in out
    with np.load(tmp_path / 'features.npz') as file:
        assert file['labels'].tolist() == [0, 0, 1, 1]
        assert file['classes'].tolist() == ['ant', 'bee']
        assert [path.rsplit('/', 2)[1:] for path in file['paths']] == [
            ['ant', '0.png'], ['ant', '1.png'], ['bee', '0.png'], ['bee', '1.png'],
        ]  # fmt: skip


def test_python_gets_what_the_file_holds(model, classes, tmp_path):
    net, dataset = timm.create_model(model, pretrained=True), find_images(classes)
    features = embed(net, dataset, tmp_path / 'features.npz')
    assert torch.equal(features.values, extract(net, dataset).values)
    with np.load(tmp_path / 'features.npz') as file:
        np.testing.assert_array_equal(file['features'], features.values.numpy())


def test_images_that_cannot_be_read_are_named_or_left_out(cli, model, images, tmp_path):
    (images / 'c.jpg').write_bytes(b'nothing')
    code, out, err = cli('embed', model, '-d', images, '-o', tmp_path / 'features.npz')
    assert (code, out, err.count('\n')) == (1, '', 1)
    assert 'c.jpg' in err
    assert not (tmp_path / 'features.npz').exists()
    code, out, err = cli('embed', model, '-d', images, '-o', tmp_path / 'features.npz', '--skip-unreadable')
    assert code == 0, err
    assert f'{images / "c.jpg"}' in out
    with np.load(tmp_path / 'features.npz') as file:
        assert len(file['features']) == len(file['paths']) == 5


@pytest.mark.parametrize(
    ('data', 'output', 'code', 'words'),
    [
        ('nowhere', 'f.npz', 1, 'nowhere'),
        ('empty', 'f.npz', 1, 'no images'),
        ('images', 'f.csv', 2, '.npz'),
        ('images', 'images/notes.txt/f.npz', 1, 'another --output'),
    ],
)
def test_refusals_are_one_sentence(cli, model, images, tmp_path, monkeypatch, data, output, code, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    got, out, err = cli('embed', model, '-d', data, '-o', output)
    assert (got, out, err.count('\n')) == (code, '', 1)
    assert words in err


def test_a_folder_of_images_has_one_split_and_says_that_its_folders_are_no_classes(images, classes, caplog):
    with pytest.raises(EvaluationError, match="only split is 'all'"):
        find_images(images, 'train')
    Image.new('RGB', (8, 8)).save(classes / 'cover.png')
    assert find_images(classes).classes == ()
    assert f'{classes}: its folders are not classes, as images lie beside them' in caplog.text


def test_another_suffix_is_refused_from_python_too(tmp_path, classes):
    with pytest.raises(EvaluationError, match=r'\.npz'):
        embed(small_of('tinyvit', img_size=32), find_images(classes), tmp_path / 'features.csv')


def test_names_that_would_act_on_a_terminal_are_printed_as_escapes(capsys):
    printer()('top-1 of ant\x1b[2J\nand of \ud800')
    assert capsys.readouterr().out == 'top-1 of ant\\x1b[2J\nand of \\ud800\n'
