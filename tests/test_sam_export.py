"""A SAM as two ONNX files: names that labeling tools expect, numbers of PyTorch, whole or absent, how they are run."""

import copy
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused
from PIL import Image
from sam_reference import mobile_sam

pytest.importorskip('transformers')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

import onnxruntime

from tinyvit_zoo.common.errors import ModelError
from tinyvit_zoo.data.sam_images import fitted_size
from tinyvit_zoo.hub.sam import load_sam, save_sam
from tinyvit_zoo.segment_anything import ExportedSam, Prompt, PromptedDecoder, Segmenter, export, export_sam
from tinyvit_zoo.segment_anything.decoder import INPUTS, OUTPUTS
from tinyvit_zoo.segment_anything.prompts import prompt_arrays

SIDE = 128
PROMPTS = [Prompt(((70, 30),)), Prompt(((70, 30), (60, 25)), ((5, 5),)), Prompt(((70, 30),), box=(35, 10, 105, 50))]


def photo(height: int, width: int) -> Image.Image:
    """A bright rectangle on noise."""
    pixels = np.random.default_rng(0).integers(0, 90, (height, width, 3), dtype=np.uint8)
    pixels[height // 5 : height // 2, width // 4 : width // 2] += np.uint8([150, 60, 20])
    return Image.fromarray(pixels)


@pytest.fixture(scope='module')
def sam():
    """MobileSAM's architecture with weights by rule, for small images."""
    return load_sam(mobile_sam(), img_size=SIDE)


def session_of(path: Path):
    return onnxruntime.InferenceSession(path)


def assert_close_to_largest(found: np.ndarray, expected: torch.Tensor) -> None:
    assert found.shape == tuple(expected.shape)
    assert np.abs(found - expected.numpy()).max() <= 1e-4 * expected.abs().max().item()


def decoder_inputs(size: tuple[int, int], image: tuple[int, int], prompt: Prompt, mask: bool) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    rows, columns = (-(-side // 16) for side in size)
    return [
        torch.randn(1, 256, rows, columns, generator=generator),
        *prompt_arrays(prompt, image, size),
        torch.randn(1, 1, 4 * rows, 4 * columns, generator=generator),
        torch.tensor([float(mask)]),
        torch.tensor(image, dtype=torch.float32),
    ]


def run(session, tensors: list[torch.Tensor]) -> list[np.ndarray]:
    return session.run(list(OUTPUTS), {name: x.numpy() for name, x in zip(INPUTS, tensors, strict=True)})


# --- against PyTorch


@pytest.mark.slow
@pytest.mark.parametrize('size', [(1024, 1024), (512, 768)], ids=['1024', '512x768'])
def test_the_command_writes_files_that_agree_with_pytorch(size, cli, tmp_path):
    torch.save(mobile_sam(), tmp_path / 'mobile_sam.pt')
    encoder, decoder = (tmp_path / 'two files' / name for name in ('enc.onnx', 'dec.onnx'))
    words = ('--encoder', encoder, '--decoder', decoder, '--img-size', f'{size[0]}x{size[1]}')
    code, out, err = cli('sam', 'export', tmp_path / 'mobile_sam.pt', *words)
    assert code == 0, err
    assert f"sam segment IMAGE --onnx '{tmp_path / 'two files'}' --point" in out  # can be pasted
    sam, images = load_sam(mobile_sam()), torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = sam.vision_encoder.encoder()(images)
        assert_close_to_largest(session_of(encoder).run(None, {'images': images.numpy()})[0], expected)
        for i, prompt in enumerate(PROMPTS):
            tensors = [expected, *decoder_inputs(size, (300, 420), prompt, mask=bool(i))[1:]]
            outputs = PromptedDecoder(sam)(*tensors)
            for result, output in zip(run(session_of(decoder), tensors), outputs, strict=True):
                assert_close_to_largest(result, output)


def test_the_command_says_whether_images_are_padded(cli, sam, tmp_path, monkeypatch):
    save_sam(sam, tmp_path / 'sam')
    monkeypatch.setattr(
        export, 'export_sam', lambda *_, dynamic_size, **__: ExportedSam(None, None, (SIDE, SIDE), dynamic_size, {})
    )
    for more, words in (((), 'the rest padded with 0'), (('--dynamic-size', '--rectangular'), 'without padding')):
        code, out, err = cli('sam', 'export', tmp_path / 'sam', '--encoder', tmp_path / 'enc.onnx', *more)
        assert code == 0, err
        assert words in out


@pytest.fixture(scope='module')
def dynamic(sam, tmp_path_factory) -> Path:
    """A folder with files that take any size."""
    folder = tmp_path_factory.mktemp('onnx')
    export_sam(sam, folder / 'enc.onnx', folder / 'dec.onnx', dynamic_size=True, all_masks=True)
    return folder


@pytest.mark.slow
def test_files_of_any_size_agree_with_pytorch_and_return_all_masks(sam, dynamic):
    encoder, decoder = session_of(dynamic / 'enc.onnx'), session_of(dynamic / 'dec.onnx')
    for size in ((32, 32), (128, 85), (70, 200), (256, 256)):
        images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            expected = sam.vision_encoder.encoder()(images)
            assert_close_to_largest(encoder.run(None, {'images': images.numpy()})[0], expected)
            tensors = decoder_inputs(size, (97, 140), PROMPTS[1], mask=True)
            for result, output in zip(run(decoder, tensors), PromptedDecoder(sam, True)(*tensors), strict=True):
                assert_close_to_largest(result, output)
                assert result.shape[1] == 4


# --- names, metadata, and running them


@pytest.fixture(scope='module')
def files(sam, tmp_path_factory) -> Path:
    """A folder with the model and a folder with its two files for one size, of the model as it is being trained."""
    root = tmp_path_factory.mktemp('files')
    save_sam(sam, root / 'sam')
    in_training = copy.deepcopy(sam).double().train()
    export_sam(in_training, root / 'onnx' / 'enc.onnx', root / 'onnx' / 'dec.onnx')
    assert (in_training.training, in_training.dtype) == (True, torch.float64)
    return root


@pytest.mark.slow
def test_names_shapes_and_metadata_are_those_that_tools_read(files):
    encoder, decoder = (session_of(files / 'onnx' / name) for name in ('enc.onnx', 'dec.onnx'))
    (images,), (embeddings,) = encoder.get_inputs(), encoder.get_outputs()
    assert (images.name, images.shape) == ('images', [1, 3, SIDE, SIDE])
    assert (embeddings.name, embeddings.shape) == ('image_embeddings', [1, 256, 8, 8])
    shapes = {value.name: value.shape for value in decoder.get_inputs()}
    points = shapes['point_labels'][1]
    assert shapes == dict(
        image_embeddings=[1, 256, 8, 8], point_coords=[1, points, 2], point_labels=[1, points],
        mask_input=[1, 1, 32, 32], has_mask_input=[1], orig_im_size=[2],
    )  # fmt: skip
    assert isinstance(points, str)  # any number
    assert {value.type for value in decoder.get_inputs()} == {'tensor(float)'}
    assert [value.name for value in decoder.get_outputs()] == ['masks', 'iou_predictions', 'low_res_masks']
    facts = []
    for part, session in (('encoder', encoder), ('decoder', decoder)):
        metadata = session.get_modelmeta().custom_metadata_map
        preprocessing = json.loads(metadata['preprocessing'])
        assert preprocessing['input_size'] == [3, SIDE, SIDE]
        assert (preprocessing['mean'], preprocessing['std']) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        assert json.loads(metadata['labels']) == []
        assert metadata['producer'].startswith('tinyvit-zoo ')
        facts.append(json.loads(metadata['segment_anything']))
        assert (facts[-1].pop('part'), facts[-1]['img_size']) == (part, [SIDE, SIDE])
    assert facts[0] == facts[1]


@pytest.mark.slow
def test_the_files_give_the_mask_of_the_model(files, cli, tmp_path):
    for i, (size, prompt) in enumerate(zip([(73, 120), (150, 90), (40, 40)], PROMPTS, strict=True)):
        prompt = PROMPTS[2] if size == (73, 120) else Prompt(((size[1] / 3, size[0] / 3),), prompt.others)
        photo(*size).save(tmp_path / f'{i}.png')
        marks = [f'--point={x},{y}' for x, y in prompt.points] + [f'--not={x},{y}' for x, y in prompt.others]
        marks += [f'--box={",".join(map(str, prompt.box))}'] if prompt.box else []
        masks = []
        for name, source in (('torch', ('--weights', files / 'sam')), ('onnx', ('--onnx', files / 'onnx'))):
            out = tmp_path / f'{i}_{name}.png'
            code, _, err = cli('sam', 'segment', tmp_path / f'{i}.png', *source, *marks, '-o', out)
            assert code == 0, err
            masks.append(np.array(Image.open(out)))
        assert np.array_equal(*masks)
        assert masks[0].shape == size


@pytest.mark.slow
def test_files_of_any_size_leave_the_short_side_unpadded_where_the_model_does(dynamic):
    sam = load_sam(mobile_sam(), img_size=SIDE, rectangular=True)
    onnx = Segmenter.of_onnx(dynamic)  # of a model that pads
    assert onnx.size_for((73, 120)) == (SIDE, SIDE)
    image, found = photo(73, 120), Segmenter.of_model(sam)
    rectangular = replace(onnx, rectangular=True)
    assert found.size_for((73, 120)) == rectangular.size_for((73, 120)) == fitted_size(73, 120, (SIDE, SIDE))
    for prompt in PROMPTS:
        assert np.array_equal(found(image, prompt).mask, rectangular(image, prompt).mask)


@pytest.mark.slow
def test_files_that_do_not_belong_together_are_refused(files, dynamic, tmp_path):
    folder = tmp_path / 'mixed'
    folder.mkdir()
    os.link(files / 'onnx' / 'enc.onnx', folder / 'enc.onnx')
    refused(lambda: Segmenter.of_onnx(folder), 'holds no decoder', kind=ModelError)
    os.link(dynamic / 'dec.onnx', folder / 'dec.onnx')
    refused(lambda: Segmenter.of_onnx(folder), 'enc.onnx and dec.onnx', 'export both', kind=ModelError)
    os.link(files / 'onnx' / 'dec.onnx', folder / 'other.onnx')
    refused(lambda: Segmenter.of_onnx(folder), 'several files of a decoder', 'other.onnx', kind=ModelError)
    (folder / 'a.onnx').write_bytes(b'nothing')
    refused(lambda: Segmenter.of_onnx(folder), 'a.onnx cannot be read', kind=ModelError)


# --- whole or absent

KILLED = """
import os, signal, sys
from tinyvit_zoo.segment_anything import export
def write(self, part, path):
    path.write_bytes(b'whole')
    if part == 'decoder':
        os.kill(os.getpid(), signal.SIGKILL)
    return 0.0
export._Traced.write = write
from tinyvit_zoo.hub.sam import load_sam
export.export_sam(load_sam(sys.argv[1]), *sys.argv[2:4])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no SIGKILL')
def test_a_killed_export_leaves_both_files_as_they_were(files, tmp_path):
    encoder, decoder = tmp_path / 'enc.onnx', tmp_path / 'dec.onnx'
    encoder.write_bytes(b'before')
    environment = {**os.environ, 'PYTHONPATH': str(Path(__file__).parents[1]), 'OMP_NUM_THREADS': '1'}
    words = [sys.executable, '-c', KILLED, files / 'sam', encoder, decoder]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert encoder.read_bytes() == b'before'
    assert not decoder.exists()
    left = sorted(path.name for path in tmp_path.iterdir())  # what it was writing, which the next export takes away
    assert [name.split('.')[1] for name in left] == ['dec', 'enc', 'onnx']


def test_what_does_not_fit_is_refused_before_anything_is_computed(sam, tmp_path):
    for words, arguments in (
        (('Nothing to export',), {}),
        (('file of its own',), dict(encoder=tmp_path / 'a.onnx', decoder=tmp_path / 'b' / '..' / 'a.onnx')),
        (('a.pt2 must end in .onnx',), dict(encoder=tmp_path / 'a.pt2')),
        (('multiples of 16', '500x768'), dict(encoder=tmp_path / 'a.onnx', img_size=(500, 768))),
    ):
        refused(lambda arguments=arguments: export_sam(sam, **arguments), *words, kind=ModelError)
    assert list(tmp_path.iterdir()) == []
