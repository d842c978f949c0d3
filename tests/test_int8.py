"""int8 files: which layers they are of, what they are compared on, and what is written when something fails."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from conftest import SMALL_OF, refused, rest_is_full, small_of
from PIL import Image
from sam_reference import mobile_sam
from timm.data import create_transform

from tinyvit_zoo.classify import Classifier, OnnxClassifier, _best
from tinyvit_zoo.common.errors import EvaluationError, ModelError
from tinyvit_zoo.common.preprocessing import model_data_config
from tinyvit_zoo.data.datasets import load_dataset
from tinyvit_zoo.export import export_model
from tinyvit_zoo.int8 import (
    Check,
    calibration_images,
    check_images,
    has_int8_instructions,
    quantize_file,
    quantize_model,
    same_class,
)
from tinyvit_zoo.int8 import quantize as module
from tinyvit_zoo.int8.graph import QUANTIZED, fold_transposes, group_of, groups, kept_nodes, left_in_float
from tinyvit_zoo.int8.model import _classes
from tinyvit_zoo.int8.quantize import open_run

pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')


def to_input(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image.resize((4, 4)), dtype=np.float32)).permute(2, 0, 1)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """20 images, two of which cannot be read."""
    folder = tmp_path_factory.mktemp('photos')
    noise = np.random.default_rng(0)
    for i in range(18):
        Image.fromarray(noise.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f'{i:02}.png')
    for i in (18, 19):
        (folder / f'{i}.png').write_bytes(b'no image')
    return folder


@pytest.fixture(scope='module')
def tiny():
    torch.manual_seed(0)
    return small_of('tinyvit', num_classes=10).eval()


@pytest.fixture(scope='module')
def exported(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp('exported') / 'float32.onnx'
    export_model(tiny, path)
    return path


@pytest.fixture(scope='module')
def inputs(tiny):
    size = model_data_config(tiny)['input_size']
    return [np.random.default_rng(i).standard_normal((1, *size)).astype(np.float32) for i in range(16)]


def float_matrices(path):
    """Names of the weights of layers that are matrices or kernels, and float32."""
    import onnx

    return [
        tensor.name
        for tensor in onnx.load(path).graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1 and 'weight' in tensor.name
    ]


def nodes_of(path):
    import onnx

    return onnx.load(path).graph.node


# --- images


def test_the_check_sees_none_of_the_images_of_the_calibration(photos):
    drawn = calibration_images(str(photos), 128, to_input, held_out=True)
    others = list(check_images(None, drawn, to_input))
    assert len(drawn.inputs) == 16
    assert len(others) == 18 - 16
    assert not {x.tobytes() for _, x in others} & {x.tobytes() for x in drawn.inputs}


def test_a_check_on_the_same_folder_leaves_out_what_calibration_saw(photos):
    drawn = calibration_images(str(photos), 16, to_input, held_out=False)
    assert len(list(check_images(str(photos), drawn, to_input))) == 18 - 16


def test_unreadable_images_take_nothing_from_the_check(tmp_path, caplog):
    for i in range(40):
        path = tmp_path / f'{i:02}.png'
        Image.new('RGB', (8, 8), (i, 0, 0)).save(path) if i % 2 else path.write_bytes(b'')
    drawn = calibration_images(str(tmp_path), 128, to_input, held_out=True)
    assert len(drawn.inputs) == 16  # 30 images are free for it; the fewest may take more, and leave the others
    assert len(list(check_images(None, drawn, to_input))) == 20 - 16
    assert 'cannot be read' in caplog.text


def test_what_the_check_leaves_out_is_said_once(photos, caplog):
    drawn = calibration_images(str(photos), 16, to_input, held_out=False)
    caplog.clear()
    others = check_images(str(photos), drawn, to_input)
    assert len(list(others)) == len(list(others)) == 18 - 16
    (said,) = caplog.messages
    assert '2 images that cannot be read, 16 images that calibration saw' in said


def test_classes_that_the_model_does_not_know_are_said(tiny, tmp_path, caplog):
    for i in range(20):
        folder = tmp_path / 'abc'[i % 3]
        folder.mkdir(exist_ok=True)
        Image.new('RGB', (8, 8), (i, 0, 0)).save(folder / f'{i}.png')
    drawn = calibration_images(str(tmp_path), 16, to_input, held_out=False)
    others = check_images(str(tmp_path), drawn, to_input)
    assert _classes(tiny, others) is None  # 10 outputs
    assert 'no accuracy' in caplog.text
    assert '3 classes (a, b, c)' in caplog.text
    assert _classes(small_of('tinyvit', num_classes=3), others) is not None


def test_inputs_that_are_not_kept_in_memory_are_read_anew(photos, monkeypatch):
    kept = calibration_images(str(photos), 16, to_input, held_out=False).inputs
    monkeypatch.setattr('tinyvit_zoo.int8.images.KEPT', 3 * kept[0].nbytes)
    read = calibration_images(str(photos), 16, to_input, held_out=False).inputs
    assert len(read._kept) == 3
    assert all(np.array_equal(x, y) for x, y in zip(read, kept, strict=True))
    assert np.array_equal(read[-1], kept[15])
    assert len(read[14:]) == 2


def test_a_seed_draws_the_same_images_each_time(photos):
    first, again, other = (
        calibration_images(str(photos), 16, to_input, held_out=False, seed=seed).digests for seed in (1, 1, 2)
    )
    assert first == again != other


def test_too_few_readable_images_are_refused(tmp_path):
    for i in range(17):
        path = tmp_path / f'{i}.png'
        Image.new('RGB', (8, 8), (i, 0, 0)).save(path) if i < 15 else path.write_bytes(b'')
    refused(
        lambda: calibration_images(str(tmp_path), 128, to_input, held_out=False),
        'at least 16 images that can be read', 'has 15, and 2 that cannot',
        kind=EvaluationError,
    )  # fmt: skip


def test_a_check_without_images_of_its_own_is_refused(tmp_path):
    for i in range(16):
        Image.new('RGB', (8, 8), (i, 0, 0)).save(tmp_path / f'{i}.png')
    drawn = calibration_images(str(tmp_path), 128, to_input, held_out=True)
    refused(lambda: Check(check_images(None, drawn, to_input), lambda x: x), '--check', kind=EvaluationError)


# --- comparison


def test_a_comparison_gives_agreement_differences_and_accuracy():
    inputs = [(i, np.full((1, 1), i, dtype=np.float32)) for i in range(4)]
    logits = {0: [2, 0], 1: [0, 2], 2: [3, 0], 3: [0, 4]}
    changed = {0: [2, 1], 1: [1, 0], 2: [3, 0], 3: [0, 4]}  # the second image changes its class

    def run(table):
        return lambda x: np.array([table[int(x[0, 0])]], dtype=np.float32)

    class_map = lambda scores: scores  # noqa: E731
    found = Check(inputs, run(logits), labels=np.array([0, 1, 1, 1]), class_map=class_map).compare(run(changed))
    assert (found.images, found.agreement, found.accuracy) == (4, 0.75, (0.75, 0.5))
    assert (found.largest, found.mean, found.scale) == (2, pytest.approx((1 + 1 + 2) / 8), 4)


def test_a_single_logit_agrees_where_its_sign_is_the_same():
    one, near, other = (np.array([[value]], dtype=np.float32) for value in (2.0, 0.5, -0.5))
    assert (same_class(one, near), same_class(one, other)) == (1, 0)


def test_outputs_that_are_not_kept_in_memory_are_computed_anew(monkeypatch):
    inputs = [(i, np.full((1, 2), i, dtype=np.float32)) for i in range(3)]
    calls = []

    def run(x):
        calls.append(float(x[0, 0]))
        return x

    monkeypatch.setattr('tinyvit_zoo.int8.check.KEPT', 2 * inputs[0][1].nbytes)
    check = Check(inputs, run)
    first, second = check.compare(lambda x: x + 1), check.compare(lambda x: x + 2)
    assert (first.mean, second.mean, second.scale) == (1, 2, 2)
    assert calls == [0, 1, 2, 2]


# --- the graph


@pytest.mark.parametrize(
    ('module', 'group'),
    [
        ('stages.2.blocks.3.attn.qkv', 'stages.2.blocks.3'),
        ('layers.1.blocks.0.mlp', 'layers.1.blocks.0'),
        ('blocks.11.attn', 'blocks.11'),
        ('stages.1.downsample.conv2', 'stages.1.downsample'),
        ('patch_embed.conv1', 'patch_embed'),
        ('trunk.stages.0.blocks.1.conv1', 'trunk.stages.0.blocks.1'),
        ('head.fc', 'head'),
        ('', 'others'),
    ],
)
def test_a_layer_belongs_to_its_block(module, group):
    assert group_of(module) == group


def test_a_pattern_that_matches_no_layer_is_refused(exported):
    refused(lambda: kept_nodes(nodes_of(exported), ['hed']), "'hed'", 'patch_embed', 'head', kind=ModelError)


def test_a_transposed_weight_is_stored_once_for_all_layers_that_share_it():
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    nodes = [helper.make_node('Transpose', ['weight'], [name], perm=[1, 0]) for name in ('a', 'b')]
    products = (['x', 'a'], 'y'), (['y', 'weight'], 'z'), (['z', 'b'], 'w')
    nodes += [helper.make_node('MatMul', inputs, [output]) for inputs, output in products]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, n])] for name, n in (('x', 4), ('w', 3))]
    graph = helper.make_graph(nodes, 'shared', *ends, [numpy_helper.from_array(weight, 'weight')])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=10)
    fold_transposes(model)
    assert [node.op_type for node in model.graph.node] == ['MatMul'] * 3
    assert sorted(tuple(tensor.dims) for tensor in model.graph.initializer) == [(3, 4), (4, 3)]
    onnx.checker.check_model(model)
    x = np.ones((1, 4), dtype=np.float32)
    (result,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {'x': x})
    np.testing.assert_allclose(result, x @ weight.T @ weight @ weight.T, rtol=1e-5)


@pytest.fixture(scope='module')
def quantized(exported, inputs, tmp_path_factory):
    path = tmp_path_factory.mktemp('quantized') / 'int8.onnx'
    check = Check(list(enumerate(inputs)), open_run(exported))
    return quantize_file(exported, path, inputs, check, keep=['head*'])


def test_convolutions_and_products_become_int8_but_those_that_are_kept(quantized):
    kept = {name: n for name, n in quantized.in_float.items() if name in QUANTIZED}
    assert kept == {'Gemm': 1}  # the head
    assert {'Softmax', 'LayerNormalization', 'Gelu'} <= set(quantized.in_float)


def test_every_layer_of_the_source_is_in_float(exported):
    import onnx

    assert {'Conv', 'MatMul', 'Gemm'} <= set(left_in_float(onnx.load(exported)))


def test_integers_of_sizes_and_a_product_with_one_float_factor_are_told_apart():
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node('Shape', ['x'], ['shape']),
        helper.make_node('Mul', ['shape', 'shape'], ['area']),  # integers
        helper.make_node('DequantizeLinear', ['w', 'scale'], ['weight']),
        helper.make_node('MatMul', ['x', 'weight'], ['product']),  # x is float
        helper.make_node('Mul', ['product', 'product'], ['y']),
    ]
    x, w, scale = ('x', TensorProto.FLOAT, [2, 2]), ('w', TensorProto.INT8, [2, 2]), ('scale', TensorProto.FLOAT, [])
    inputs = [helper.make_tensor_value_info(*value) for value in (x, w, scale)]
    outputs = [
        helper.make_tensor_value_info('y', TensorProto.FLOAT, None),
        helper.make_tensor_value_info('area', TensorProto.INT64, None),
    ]
    model = helper.make_model(helper.make_graph(nodes, 'sizes', inputs, outputs))
    assert left_in_float(model) == {'MatMul': 1, 'Mul': 1}


def test_metadata_says_how_a_file_was_quantized(quantized, exported):
    import onnxruntime

    before, after = (
        onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map for path in (exported, quantized.path)
    )
    facts = json.loads(after.pop('quantization'))
    assert after == before
    assert (facts['images'], facts['float32'], facts['bits']) == (16, ['head*'], 8)


def test_a_quantized_file_agrees_with_its_source(quantized):
    assert quantized.comparison.images == 16
    assert 0 < quantized.comparison.mean < 0.1 * quantized.comparison.scale


def test_blocks_are_left_in_float_until_the_agreement_is_reached(exported, inputs, tmp_path, monkeypatch):
    agreements = iter((0.5, 0.9, 0.99))
    check = Check(list(enumerate(inputs[:2])), open_run(exported))
    compare = check.compare

    def scripted(run):  # as if each step had come to this
        return replace(compare(run), agreement=next(agreements))

    monkeypatch.setattr(check, 'compare', scripted)
    done = quantize_file(exported, tmp_path / 'x.onnx', inputs[:2], check, min_agreement=0.95)
    assert [step.agreement for step in done.steps] == [0.5, 0.9, 0.99]
    left = [step.group for step in done.steps[1:]]
    assert len(set(left)) == 2
    sizes = [step.megabytes for step in done.steps]
    assert sizes == sorted(sizes)


def test_an_agreement_that_only_float32_has_is_refused(exported, inputs, tmp_path, monkeypatch):
    check = Check(list(enumerate(inputs[:2])), open_run(exported))
    compare = check.compare
    monkeypatch.setattr(check, 'compare', lambda run: replace(compare(run), agreement=0.5))
    keep = [group for group in groups(nodes_of(exported)) if group not in ('patch_embed', 'head')]
    refused(
        lambda: quantize_file(exported, tmp_path / 'x.onnx', inputs[:2], check, keep=keep, min_agreement=0.9),
        'stays below 0.9', 'best was 0.5', '--min-agreement',
        kind=EvaluationError,
    )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_a_file_without_int8_is_refused(exported, inputs, tmp_path):
    check = Check(list(enumerate(inputs[:2])), open_run(exported))
    words = '--keep *', 'no layer that could become int8'
    refused(lambda: quantize_file(exported, tmp_path / 'x.onnx', inputs, check, keep=['*']), *words, kind=ModelError)


def test_an_onnxruntime_that_is_too_old_is_refused(monkeypatch, photos, tiny, tmp_path):
    monkeypatch.setattr('onnxruntime.quantization.quantize_static', lambda model_input, model_output: None)
    words = 'onnxruntime 1.27', "pip install -U 'tinyvit-zoo[export]'"
    refused(lambda: quantize_model(tiny, tmp_path / 'x.onnx', str(photos)), *words, kind=ModelError)


def test_nothing_is_written_when_the_quantizer_fails(exported, inputs, tmp_path, monkeypatch):
    target = tmp_path / 'x.onnx'
    target.write_bytes(b'before')
    monkeypatch.setattr('tinyvit_zoo.int8.quantize._milliseconds', lambda *args: 1 / 0)
    check = Check(list(enumerate(inputs[:2])), open_run(exported))
    with pytest.raises(ZeroDivisionError):
        quantize_file(exported, target, inputs[:2], check)
    assert target.read_bytes() == b'before'
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_said(exported, inputs, tmp_path, monkeypatch):
    """onnx writes a part of a file without an error, and cannot read it afterwards."""

    def read(*args):
        raise ValueError('Wire format was corrupt')

    monkeypatch.setattr(module, '_step', read)
    monkeypatch.setattr(module.shutil, 'disk_usage', lambda folder: SimpleNamespace(free=1000))
    check = Check(list(enumerate(inputs[:2])), open_run(exported))
    words = 'disk seems to be full', '0 MB in', 'TMPDIR'
    refused(lambda: quantize_file(exported, tmp_path / 'x.onnx', inputs[:2], check), *words, kind=EvaluationError)
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal
import numpy as np
import tinyvit_zoo.int8.quantize as module
from pathlib import Path
source, target = map(Path, {places!r})
x = [np.random.default_rng(i).standard_normal({shape!r}).astype(np.float32) for i in range(2)]
check = module.Check(list(enumerate(x)), module.open_run(source))
setattr(module, {moment!r}, lambda *args: os.kill(os.getpid(), signal.SIGKILL))
module.quantize_file(source, target, x, check)
"""


@pytest.mark.slow
@pytest.mark.parametrize('moment', ['_step', '_note', '_milliseconds'])
def test_a_kill_leaves_the_file_of_before(moment, exported, inputs, tmp_path):
    target = tmp_path / 'x.onnx'
    target.write_bytes(b'before')
    code = KILLED.format(places=[str(exported), str(target)], shape=inputs[0].shape, moment=moment)
    (tmp_path / 'temporary').mkdir()  # nobody is left to clear it
    environment = os.environ | {'TMPDIR': str(tmp_path / 'temporary')}
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, env=environment, check=False)
    assert done.returncode == -9
    assert target.read_bytes() == b'before'


# --- models


@pytest.mark.slow
@pytest.mark.parametrize('family', rest_is_full(SMALL_OF, ('mini_swin', 'mini_deit', 'mae_lite_rpe')))
def test_every_family_becomes_int8(family, photos, tmp_path):
    model = small_of(family, num_classes=10).eval()
    done = quantize_model(model, tmp_path / 'x.onnx', str(photos), images=16)
    assert done.comparison.images == 2
    assert done.comparison.mean < 0.2 * done.comparison.scale
    assert not set(QUANTIZED) & set(done.in_float)
    assert not float_matrices(done.path)


@pytest.fixture(scope='module')
def trained():
    """TinyViT-5M after 150 updates on digits."""
    torch.manual_seed(0)
    model = timm.create_model('tinyvit_5m_224', img_size=32, num_classes=10, drop_path_rate=0.0)
    transform = create_transform(**model_data_config(model), is_training=False)
    dataset = load_dataset('digits', 'train').with_transform(transform)
    images = torch.stack([dataset[i][0] for i in range(len(dataset))])
    labels = torch.from_numpy(dataset.labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(150):
        batch = torch.randint(len(images), (32,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.slow
def test_a_model_trained_on_digits_loses_at_most_a_point(trained, tmp_path):
    done = quantize_model(trained, tmp_path / 'x.onnx', 'digits', 'digits')
    before, after = done.comparison.accuracy
    assert before > 0.85  # 0.92 to 0.93 as processors round
    assert before - after <= 0.01
    assert done.comparison.agreement > 0.96  # 0.99 to 1
    assert done.megabytes[1] <= 0.33 * done.megabytes[0]


def test_a_model_without_classifier_is_refused(photos, tmp_path):
    model = small_of('tinyvit', num_classes=0)
    refused(lambda: quantize_model(model, tmp_path / 'x.onnx', str(photos)), 'no classifier', kind=ModelError)


# --- commands


@pytest.mark.slow
def test_the_command_prints_what_int8_costs(cli, tmp_path):
    target = tmp_path / 'x.onnx'
    code, out, err = cli(
        'export', 'tinyvit_5m_224', '--random', '--img-size', 32, '--int8', '--calibrate', 'digits',
        '--calibration-images', 16, '--keep', 'stages.0', '-o', target,
    )  # fmt: skip
    assert code == 0, err
    assert re.search(r'MB, 0\.\d\d of \d+\.\d MB in float32', out)
    assert 'Calibrated on 16 images, compared with float32 on 16 others' in out
    assert 'same class' in out
    assert 'ms of CPU' in out
    assert 'left in float: Add' in out
    assert target.is_file()


@pytest.mark.parametrize(
    ('args', 'words'),
    [
        (('--calibrate', 'digits'), '--int8'),
        (('--int8',), '--calibrate'),
        (('--int8', '--calibrate', 'digits', '--dtype', 'fp16'), '--dtype'),
        (('--int8', '--calibrate', 'digits', '--format', 'pt2'), '--format'),
        (('--int8', '--calibrate', 'no-such-folder'), 'no-such-folder'),
        (('--int8', '--calibrate', 'digits', '--calibration-images', '8'), '16'),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(args, words, cli, tmp_path):
    code, _, err = cli('export', 'tinyvit_5m_224', '--random', '--img-size', 32, *args, '-o', tmp_path / 'x.onnx')
    assert code
    assert words in err
    assert not list(tmp_path.iterdir())


def test_an_exported_file_classifies_as_its_model(tiny, exported, photos):
    image = Image.open(photos / '00.png').convert('RGB')
    ours, theirs = Classifier(tiny)(image), OnnxClassifier(exported)(image)
    assert [answer.label for answer in ours] == [answer.label for answer in theirs]
    assert [answer.probability for answer in theirs] == pytest.approx([answer.probability for answer in ours], abs=1e-4)


def test_a_single_logit_is_a_probability_of_its_own():
    (answer,) = _best(torch.tensor([-1.0]), ['cat'], 5)
    assert answer.probability == pytest.approx(1 / (1 + np.e))


def test_classify_takes_an_exported_file(cli, exported, photos):
    code, out, _ = cli('classify', photos / '00.png', '--onnx', exported, '--topk', 2, '--json')
    assert code == 0
    (found,) = json.loads(out)
    assert len(found['predictions']) == 2


@pytest.mark.parametrize(
    ('labels', 'preprocessing', 'words'),
    [
        (None, dict(input_size=[1, 224, 224]), '1 channel,'),
        (None, dict(input_size=[3, 96, 96]), '(1, 3, 96, 96)'),
        (None, dict(std=[0, 0, 0]), 'says nothing of'),
        (['a', 'b'], {}, 'to 2 classes'),
        (3, {}, 'says nothing of'),
        ([], {}, 'no classifier'),
    ],
)
def test_a_file_whose_metadata_does_not_fit_does_not_classify(labels, preprocessing, words, exported, tmp_path):
    import onnx

    model = onnx.load(exported)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    metadata['preprocessing'] = json.dumps(json.loads(metadata['preprocessing']) | preprocessing)
    metadata['labels'] = metadata['labels'] if labels is None else json.dumps(labels)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, tmp_path / 'other.onnx')
    refused(lambda: OnnxClassifier(tmp_path / 'other.onnx'), words, kind=ModelError)


def test_classify_takes_either_a_model_or_a_file(cli, exported, photos, tmp_path):
    (tmp_path / 'x.onnx').write_bytes(b'no model')
    for args, words in (
        ((), '--onnx'),
        (('--onnx', exported, '--model', 'tinyvit_5m_224'), '--onnx'),
        (('--onnx', exported, '--img-size', 64), 'size'),
        (('--onnx', tmp_path / 'x.onnx'), 'cannot be opened'),
        (('--onnx', tmp_path / 'none.onnx'), 'not a file'),
    ):
        code, _, err = cli('classify', photos / '00.png', *args)
        assert code
        assert words in err


# --- processors


@pytest.mark.parametrize(
    ('text', 'found'),
    [
        ('flags\t\t: fpu avx2 avx512_vnni\n', True),
        ('flags\t\t: fpu avx2 avx512f\n', False),
        ('Features\t: fp asimd asimddp\n', True),
        ('hart: 0\n', None),
    ],
)
def test_int8_instructions_are_read_from_the_system(text, found, tmp_path):
    (tmp_path / 'cpuinfo').write_text(text)
    assert has_int8_instructions(tmp_path / 'cpuinfo') is found
    assert has_int8_instructions(tmp_path / 'none') is None


# --- Segment Anything


def test_a_decoder_that_cannot_be_written_leaves_the_encoder_of_before(photos, tmp_path, monkeypatch):
    pytest.importorskip('transformers')
    from tinyvit_zoo.int8 import sam

    encoder, decoder = tmp_path / 'encoder.onnx', tmp_path / 'decoder.onnx'

    def write(source, output, *args, **kwargs):
        output.write_bytes(b'after')
        decoder.mkdir()  # in the meantime

    for name in ('export_sam', 'mask_agreement', 'open_run', 'Check', 'replace'):
        monkeypatch.setattr(sam, name, lambda *args, **kwargs: None)
    monkeypatch.setattr(sam, 'quantize_file', write)
    encoder.write_bytes(b'before')
    with pytest.raises(OSError, match='directory'):
        sam.quantize_sam(torch.nn.Identity(), encoder, decoder, str(photos), images=16, img_size=(32, 32))
    assert encoder.read_bytes() == b'before'
    assert sorted(tmp_path.iterdir()) == [decoder, encoder]


@pytest.mark.slow
def test_the_encoder_of_a_sam_becomes_int8_and_is_checked_by_its_masks(photos, tmp_path):
    pytest.importorskip('transformers')
    from tinyvit_zoo.hub.sam import load_sam
    from tinyvit_zoo.int8.sam import mask_agreement, quantize_sam
    from tinyvit_zoo.segment_anything import Prompt, Segmenter

    torch.manual_seed(0)
    model = load_sam(mobile_sam(), img_size=64)
    files = tmp_path / 'encoder.onnx', tmp_path / 'decoder.onnx'
    done = quantize_sam(model, *files, str(photos), images=16)
    assert done.path == files[0]
    assert done.comparison.accuracy is None
    assert 0.5 < done.comparison.agreement <= 1
    assert done.megabytes[1] < 0.33 * done.megabytes[0]
    image = Image.open(photos / '00.png').convert('RGB')
    ours = Segmenter.of_onnx(tmp_path)(image, Prompt(((20, 20),)))
    theirs = Segmenter.of_model(model)(image, Prompt(((20, 20),)))
    assert (ours.mask == theirs.mask).mean() > 0.8

    agree = mask_agreement(model, (64, 64))
    maps = np.random.default_rng(0).standard_normal((2, 1, 256, 4, 4)).astype(np.float32)
    assert agree(maps[0], maps[0]) == 1 > agree(maps[0], maps[1])
