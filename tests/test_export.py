"""Exported files compute what PyTorch does, run without this package, and hold their labels and preprocessing."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterable
from itertools import product

import numpy as np
import pytest
import timm
import torch
from conftest import ARCHITECTURES, LARGE, SMALL_OF, images_for, refused, rest_is_full, shallow, size_of, small_of
from golden_rule import fill_by_rule

from tinyvit_zoo.classify import class_names
from tinyvit_zoo.common.errors import ModelError
from tinyvit_zoo.export import FORMATS, TOLERANCE, check_output, export_model, model_to_export
from tinyvit_zoo.hub import save_folder

SIZE = (64, 96)


def in_turn(values: Iterable[str]) -> list[tuple[str, str]]:
    """Each with one of the formats."""
    return [(value, FORMATS[i % len(FORMATS)]) for i, value in enumerate(values)]


def only(usual: list[tuple[str, str]], families: Iterable[str] = SMALL_OF):
    """A test of these pairs of a family and a format; the others are left to `make test-all`."""
    parameters = rest_is_full(product(families, FORMATS), usual)
    return pytest.mark.parametrize(('family', 'format'), parameters, indirect=['format'])


@pytest.fixture(params=FORMATS)
def format(request) -> str:
    if request.param == 'onnx':
        pytest.importorskip('onnxruntime')
        pytest.importorskip('onnxscript')
    return request.param


def runner(path):
    """Runs an exported file on a tensor."""
    if path.suffix == '.pt2':
        return torch.export.load(path).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    (output,) = session.get_outputs()
    return lambda x: torch.from_numpy(session.run([output.name], {'images': x.numpy()})[0])


def metadata_of(path) -> dict[str, str]:
    if path.suffix == '.pt2':
        found = dict.fromkeys(('producer', 'model', 'license', 'labels', 'preprocessing'), '')
        torch.export.load(path, extra_files=found)
        return found
    import onnxruntime

    return onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map


def assert_agrees(path, model, *inputs, tolerance=1e-4):
    run = runner(path)
    with torch.no_grad():
        for x in inputs:
            expected = model(x)
            scale = max(1.0, expected.abs().max().item())
            torch.testing.assert_close(run(x), expected, rtol=0, atol=tolerance * scale)


# --- every architecture, as released


# One of each kind of graph; the others differ in width, depth and size.
KINDS = {architecture for architecture, _ in SMALL_OF.values()} - LARGE
OTHERS = [name for name in ARCHITECTURES if name not in KINDS | LARGE]


@pytest.mark.slow
@pytest.mark.parametrize('name', rest_is_full([name for name in ARCHITECTURES if name not in LARGE], KINDS))
def test_every_architecture_agrees_with_pytorch(name, format, tmp_path):
    assert_is_exported_as_released(fill_by_rule(timm.create_model(name)), format, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'format'), rest_is_full(product(OTHERS, FORMATS), in_turn(OTHERS)), indirect=['format']
)
def test_every_width_agrees_with_pytorch_in_few_blocks(name, format, tmp_path):
    assert_is_exported_as_released(shallow(name), format, tmp_path)


def assert_is_exported_as_released(model, format, folder):
    done = export_model(model, folder / f'model.{format}')
    assert done.difference <= TOLERANCE['fp32'] == 1e-4
    assert done.input_shape == (1, model.in_chans, *size_of(model))
    assert done.output == ('logits' if model.num_classes else 'features')
    assert done.path.stat().st_size < 1.1 * sum(4 * t.numel() for t in model.state_dict().values()) + 3e6
    assert_agrees(done.path, model, images_for(model, 1))


# --- what it can be asked for, on a small model of every family and kind


@pytest.mark.slow
@only([*product(['tinyvit', 'mini_deit'], FORMATS), *in_turn(SMALL_OF)])
def test_a_dynamic_batch_takes_any_number_of_images(any_small, format, tmp_path):
    model = any_small(img_size=SIZE)
    done = export_model(model, tmp_path / f'model.{format}', dynamic_batch=True)
    assert done.input_shape == ('batch', 3, *SIZE)
    assert_agrees(done.path, model, *(images_for(model, batch) for batch in (1, 2, 7)))


OPEN_SIZES = {
    'tinyvit': ({}, [(33, 47), (64, 64), (224, 224), (200, 136)]),
    **{
        family: (dict(dynamic_img_size=True), [(32, 48), (64, 64), (224, 224), (208, 144)])
        for family in ('mini_deit', 'tinymim', 'tinymim_student', 'tinymim_star', 'clip_vit')
    },
}


@pytest.mark.slow
# Both formats of TinyViT and of the first plain ViT.
@only([*product(['tinyvit', 'mini_deit'], FORMATS), *in_turn(OPEN_SIZES)], OPEN_SIZES)
def test_a_dynamic_size_takes_other_images(family, format, tmp_path):
    kwargs, sizes = OPEN_SIZES[family]
    model = small_of(family, img_size=SIZE, **kwargs)
    done = export_model(model, tmp_path / f'model.{format}', dynamic_batch=True, dynamic_size=True)
    assert done.input_shape == ('batch', 3, 'height', 'width')
    assert_agrees(done.path, model, *(torch.randn(2, 3, *size) for size in sizes))


@pytest.mark.slow
def test_one_image_of_any_size_may_have_more_windows_than_those_of_the_models_own(format, tmp_path):
    model = small_of('tinyvit', img_size=32, window_sizes=(7, 7, 14, 7))  # smaller than what the file takes
    done = export_model(model, tmp_path / f'model.{format}', dynamic_size=True)
    assert done.input_shape == (1, 3, 'height', 'width')
    assert_agrees(done.path, model, *(torch.randn(1, 3, *size) for size in [(64, 96), (224, 256), (480, 40)]))


@pytest.mark.slow
def test_onnx_names_dynamic_dimensions(tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    done = export_model(
        small_of('tinymim', img_size=SIZE, dynamic_img_size=True), tmp_path / 'm.onnx', None, True, True
    )
    session = onnxruntime.InferenceSession(done.path)
    assert session.get_inputs()[0].shape == ['batch', 3, 'height', 'width']
    assert session.get_outputs()[0].shape == ['batch', 11]


@pytest.mark.parametrize('family', [f for f in SMALL_OF if f not in OPEN_SIZES])
def test_a_graph_for_one_size_is_reported_in_one_sentence(family, tmp_path):
    architecture = SMALL_OF[family][0]
    for action in (
        lambda: export_model(small_of(family), tmp_path / 'model.pt2', dynamic_size=True),
        lambda: model_to_export(architecture, random=True, dynamic_size=True),
    ):
        refused(action, f'The graph of {architecture} is for one image size', kind=ModelError)


def test_a_plain_vit_made_for_one_size_is_not_exported_for_others(tmp_path):
    words = ('for one image size', 'dynamic_img_size=True')
    refused(lambda: export_model(small_of('tinymim'), tmp_path / 'm.pt2', dynamic_size=True), *words, kind=ModelError)


@pytest.mark.slow
@only(in_turn(SMALL_OF))
def test_half_precision_stays_within_its_tolerance(any_small, format, tmp_path):
    model = any_small(img_size=SIZE)
    done = export_model(model, tmp_path / f'model.{format}', dtype='fp16')
    assert 1e-5 < done.difference < TOLERANCE['fp16']  # less would be single precision
    assert_agrees(done.path, model, images_for(model, 1), tolerance=TOLERANCE['fp16'])
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.slow
def test_metadata_holds_labels_and_preprocessing(small, format, tmp_path):
    labels = [f'Größe {i}' for i in range(11)]
    folder = save_folder(small(img_size=SIZE), tmp_path / 'page', labels, data_config=dict(crop_pct=0.8))
    model = model_to_export(f'local-dir:{folder}')
    found = metadata_of(export_model(model, tmp_path / f'model.{format}').path)
    assert json.loads(found['labels']) == labels
    preprocessing = json.loads(found['preprocessing'])
    assert (preprocessing['input_size'], preprocessing['crop_pct']) == ([3, *SIZE], 0.8)
    assert preprocessing['mean'] == list(model.pretrained_cfg['mean'])
    assert found['model'] == 'tinyvit_5m_224.dist_in22k_ft_in1k'
    assert found['license'] == 'mit'
    assert found['producer'].startswith('tinyvit-zoo ')


@pytest.mark.slow
@only(in_turn(SMALL_OF))
def test_an_image_of_one_channel_is_exported(any_small, format, tmp_path):
    model = any_small(img_size=SIZE, in_chans=1, num_classes=2)
    target = tmp_path / f'model.{format}'
    assert export_model(model, target).input_shape == (1, 1, *SIZE)
    preprocessing = json.loads(metadata_of(target)['preprocessing'])
    assert preprocessing['input_size'] == [1, *SIZE]
    for key in ('mean', 'std'):  # one, as the first layer is the sum of three
        assert preprocessing[key] == pytest.approx([sum(any_small().pretrained_cfg[key]) / 3])
    assert_agrees(target, model, torch.randn(1, 1, *SIZE))


def test_random_weights_do_not_claim_to_be_released():
    cfg = model_to_export('tinyvit_5m_224', random=True, img_size=(32, 32)).pretrained_cfg
    assert cfg['tag'] == 'random'
    assert 'license' not in cfg


@pytest.mark.slow
@only(in_turn(SMALL_OF)[:2])
def test_the_snippet_runs_in_a_process_without_this_package(any_small, format, tmp_path):
    model = any_small(img_size=64)
    done = export_model(model, tmp_path / f'model.{format}')
    assert len(done.snippet.splitlines()) == 3
    code = f"import sys; sys.modules['tinyvit_zoo'] = sys.modules['timm'] = None\n{done.snippet}\n"
    code += f'print({done.output}.tolist())'
    ran = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    with torch.no_grad():
        expected = model(torch.zeros(1, 3, 64, 64)).numpy()
    np.testing.assert_allclose(json.loads(ran.stdout), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_multiplexed_model_is_exported_from_its_folder(format, tmp_path):
    from tinyvit_zoo.compress import multiplex

    base = timm.create_model('vit_tiny_patch16_224', img_size=32, depth=4, embed_dim=48, num_heads=3, num_classes=5)
    folder = save_folder(multiplex(base.eval()), tmp_path / 'page')
    model = model_to_export(f'local-dir:{folder}')
    assert_agrees(export_model(model, tmp_path / f'model.{format}').path, model, torch.randn(1, 3, 32, 32))


# --- the file appears whole or not at all


def broken(monkeypatch) -> None:
    """Write the program of another model."""
    from tinyvit_zoo import export

    trace, other = export._trace, torch.nn.Sequential
    monkeypatch.setattr(export, '_trace', lambda model, *args: trace(other(model, torch.nn.Tanh()), *args))


@pytest.mark.slow
def test_a_file_that_differs_from_pytorch_is_not_written(small, tmp_path, monkeypatch):
    broken(monkeypatch)
    target = tmp_path / 'model.pt2'
    target.write_text('an earlier one')
    refused(lambda: export_model(small(img_size=32), target), 'differs from PyTorch by', 'not written', kind=ModelError)
    assert target.read_text() == 'an earlier one'
    assert [p.name for p in tmp_path.iterdir()] == ['model.pt2']


@pytest.mark.slow
def test_the_command_fails_where_the_file_differs(cli, tmp_path, monkeypatch):
    broken(monkeypatch)
    code, out, err = cli('export', 'tinyvit_5m_224', '--random', '--img-size', 32, '-o', tmp_path / 'model.pt2')
    assert (code, out) == (1, '')
    assert 'differs from PyTorch by' in err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def full_disk():
    """No file may grow beyond 200 kB, as if the disk were full."""
    resource = pytest.importorskip('resource')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.slow
def test_a_full_disk_leaves_nothing(small, format, tmp_path, full_disk):
    with pytest.raises(OSError, match='File too large'):
        export_model(small(img_size=32), tmp_path / f'model.{format}')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_export_does_not_change_the_model(small, tmp_path):
    model = small(img_size=32).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    export_model(model, tmp_path / 'model.pt2', dtype='fp16')
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


# --- the command


@pytest.mark.slow
def test_the_command_exports(cli, format, tmp_path):
    target = tmp_path / f'model.{format}'
    code, out, _ = cli(
        'export', 'mini_deit_tiny_patch16_224', '--random', '--img-size', '32x48', '--dynamic-batch',
        '--format', format, '-o', target,
    )  # fmt: skip
    assert code == 0
    assert f'Written to {target}' in out
    assert 'images (batch, 3, 32, 48) -> logits, both float32.' in out
    assert 'differs from PyTorch by at most' in out
    assert len(out.partition('It runs with:\n\n')[2].splitlines()) == 3
    assert runner(target)(torch.zeros(3, 3, 32, 48)).shape == (3, 1000)


@pytest.mark.parametrize(
    ('name', 'said'), [('tinyvit_5m_224', ('own', None)), ('tinyvit_5m_224.in1k', ('in1k', 'mit'))]
)
def test_a_file_of_weights_is_a_release_only_under_its_tag(name, said, tmp_path):
    weights = tmp_path / 'weights.pth'
    torch.save(timm.create_model('tinyvit_5m_224').state_dict(), weights)
    cfg = model_to_export(name, weights).pretrained_cfg
    assert (cfg['tag'], cfg.get('license')) == said


@pytest.mark.slow
def test_the_command_takes_a_file_of_weights(cli, small, format, tmp_path):
    model = timm.create_model('tinyvit_5m_224', num_classes=3)
    weights = tmp_path / 'weights.pth'
    torch.save(fill_by_rule(model).state_dict(), weights)
    target = tmp_path / f'model.{format}'
    assert cli('export', 'tinyvit_5m_224', '--weights', weights, '-o', target)[0] == 0
    assert_agrees(target, model, torch.randn(1, 3, 224, 224))
    metadata = metadata_of(target)
    assert json.loads(metadata['labels']) == class_names(model) == ['class 0', 'class 1', 'class 2']
    assert (metadata['model'], metadata['license']) == ('tinyvit_5m_224.own', 'unknown')


TINYVIT = ('tinyvit_5m_224', '--random')


@pytest.mark.parametrize(
    ('args', 'words', 'code'),
    [
        ((*TINYVIT, '-o', 'model.bin'), 'model.bin must end in .onnx or .pt2.', 1),
        ((*TINYVIT, '-o', 'model.pt2', '--format', 'onnx'), 'model.pt2 must end in .onnx.', 1),
        ((*TINYVIT, '-o', 'model.pt2', '--dtype', 'int8'), "'int8' is not one of", 2),
        ((*TINYVIT, '-o', 'model.pt2', '--format', 'tflite'), "'tflite' is not one of", 2),
        ((*TINYVIT, '-o', 'model.pt2', '--img-size', '0x32'), "Invalid value for '--img-size'", 2),
        ((*TINYVIT, '-o', 'model.pt2', '--img-size', '16x32'), 'tinyvit_5m_224: ', 1),
        ((*TINYVIT, '-o', 'model.pt2', '--weights', 'w.pth'), 'leave one of them out', 1),
        (('tinyvit_5m_224', '-o', 'model.pt2', '--weights', 'w.pth'), 'w.pth', 1),
        (('tinyvit_7m_224', '--random', '-o', 'model.pt2'), "Unknown model 'tinyvit_7m_224'", 1),
        (TINYVIT, "Missing option '--output'", 2),
        (
            ('mini_swin_tiny_patch4_window7_224', '--random', '-o', 'model.pt2', '--dynamic-size'),
            'is for one image size',
            1,
        ),
    ],
)
def test_a_bad_argument_is_one_sentence(cli, args, words, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended, out, err = cli('export', *args)
    assert (ended, out) == (code, '')
    assert words in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_without_the_packages_for_onnx_the_error_says_what_to_install(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name.startswith('onnx') else found(name))
    words = ('ONNX needs onnx and onnxscript and onnxruntime', "pip install 'tinyvit-zoo[export]'")
    refused(lambda: check_output('model.onnx'), *words, kind=ModelError)
    assert check_output('model.pt2') == 'pt2'


def test_a_place_that_takes_no_file_is_refused_before_any_work(tmp_path):
    (tmp_path / 'folder.pt2').mkdir()
    refused(lambda: check_output(tmp_path / 'folder.pt2'), 'it is a folder', 'choose another place', kind=ModelError)
    (tmp_path / 'file').touch()
    refused(lambda: check_output(tmp_path / 'file' / 'model.pt2'), 'Not a directory', kind=ModelError)
    assert check_output(tmp_path / 'new' / 'model.pt2') == 'pt2'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'folder.pt2']


def test_a_model_that_is_not_of_timm_is_refused(tmp_path):
    words = ('Linear cannot be exported', 'not a whole timm model')
    refused(lambda: export_model(torch.nn.Linear(2, 2), tmp_path / 'model.pt2'), *words, kind=ModelError)
    refused(lambda: export_model(small_of('tinyvit'), tmp_path / 'm.pt2', dtype='fp8'), 'fp8', kind=ModelError)
