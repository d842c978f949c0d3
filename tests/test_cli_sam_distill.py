"""`sam distill` and `sam embed`: a SAM teaches a TinyViT, which then stands before the decoder of its teacher."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same, refused
from PIL import Image

pytest.importorskip('transformers')

import transformers

from tinyvit_zoo.common.errors import EvaluationError, ModelError
from tinyvit_zoo.dense import sam_encoder
from tinyvit_zoo.hub.sam import load_sam, new_sam, save_sam
from tinyvit_zoo.segment_anything.teacher import find_maps, load_sam_teacher, sam_around
from tinyvit_zoo.training.run_state import read_weights

IMAGES, SIDE = 4, 64


def processor():
    square = dict(height=SIDE, width=SIDE)
    return transformers.SamProcessor(transformers.SamImageProcessor(size=dict(longest_edge=SIDE), pad_size=square))


@pytest.fixture(scope='module')
def folders(tmp_path_factory) -> Path:
    """Folders: a SAM of two layers ('a teacher'), the same without its decoder ('vision'), and images ('photos')."""
    top = tmp_path_factory.mktemp('sam')
    torch.manual_seed(0)
    config = transformers.SamConfig(
        vision_config=dict(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, window_size=2,
            global_attn_indexes=[1],
        ),
        prompt_encoder_config=dict(image_size=SIDE), mask_decoder_config={},
    )  # fmt: skip
    whole = transformers.SamModel(config)
    vision = transformers.SamVisionModel(config.vision_config)
    vision.vision_encoder.load_state_dict(whole.vision_encoder.state_dict())
    for model, name in ((whole, 'a teacher'), (vision, 'vision')):
        model.save_pretrained(top / name)
        processor().save_pretrained(top / name)
    (top / 'photos').mkdir()
    draws = np.random.default_rng(0)
    for i in range(IMAGES):
        pixels = draws.integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(top / 'photos' / f'{i}.png')
    return top


def command(folders: Path, output: Path, *more: object) -> list[object]:
    data = ('-d', folders / 'photos', '-o', output, '--device', 'cpu')
    return ['sam', 'distill', *data, '--epochs', 1, '--batch-size', 2, *more]


def test_a_sam_teaches_an_encoder_which_becomes_a_whole_model_with_its_decoder(folders, cli, tmp_path):
    distilled = tmp_path / 'run'
    words = command(folders, distilled, '--teacher', folders / 'a teacher')
    code, out, err = cli(*words, '--dry-run')
    assert (code, 'updates in' in out, distilled.exists()) == (0, True, False), err
    code, out, err = cli(*words)
    assert code == 0, err
    assert f'sam segment IMAGE --weights {distilled / "model"}' in out
    model, teacher = load_sam(distilled / 'model'), load_sam_teacher(str(folders / 'a teacher')).whole
    for part in ('prompt_encoder', 'mask_decoder', 'shared_image_embedding'):
        assert_same(getattr(model, part).state_dict(), getattr(teacher, part).state_dict())
    assert_same(model.vision_encoder.state_dict(), read_weights(distilled))
    assert_same(sam_encoder(weights=distilled / 'best.pt').state_dict(), read_weights(distilled))
    assert model.config.prompt_encoder_config.image_size == SIDE
    results = json.loads((distilled / 'results.json').read_text())
    assert (results['evaluator'], results['teacher']['grid']) == ('sam_distill', [4, 4])
    mask = ('--point', '30,20', '-o', tmp_path / 'mask.png')
    code, _, err = cli('sam', 'segment', folders / 'photos' / '0.png', '--weights', distilled / 'model', *mask)
    assert code == 0, err


def test_stored_maps_teach_without_the_teacher_which_then_gives_its_decoder(folders, cli, tmp_path):
    code, out, err = cli(
        'sam', 'embed', folders / 'vision', '-d', folders / 'photos', '--store', tmp_path / 'maps', '--device', 'cpu'
    )
    assert (code, f'{IMAGES} images' in out) == (0, True), err
    run, size = tmp_path / 'run', ('--img-size', 32)
    code, out, err = cli(*command(folders, run, '--store', tmp_path / 'maps', *size))
    assert code == 0, err
    assert f"sam_encoder('tinyvit_5m_224', weights='{run / 'best.pt'}')" in out
    assert not (run / 'model').exists()
    trained = read_weights(run)
    both = ('--store', tmp_path / 'maps', '--teacher', folders / 'a teacher')
    code, out, err = cli(*command(folders, run, *both, *size))
    assert (code, 'resumed after epoch 1' in out) == (0, True), err
    model = load_sam(run / 'model')
    assert_same(model.vision_encoder.state_dict(), trained)
    assert model.config.vision_config.image_size == 32


KILLED = """
import os, signal, sys
from tinyvit_zoo.cli.app import run_app
from tinyvit_zoo.training import sam_embeddings

save, written = sam_embeddings.save, []
def killed(*args, **kwargs):
    written.append(1)
    if len(written) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return save(*args, **kwargs)
sam_embeddings.save = killed
run_app()
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != 'posix', reason='Windows has no SIGKILL')
def test_two_processes_share_the_files_that_a_killed_one_left_and_all_have_the_bytes_of_one(folders, cli, tmp_path):
    (tmp_path / 'photos').mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (130, 4, 6, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(tmp_path / 'photos' / f'{i:03}.png')
    (tmp_path / 'killed.py').write_text(KILLED)
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(Path(__file__).parents[1])}

    def words(store: str) -> list[object]:
        images = ('-d', tmp_path / 'photos', '--store', tmp_path / store)
        return ['sam', 'embed', folders / 'vision', *images, '--device', 'cpu']

    def start(*launcher: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, *launcher, *map(str, words('maps'))]
        return subprocess.run(line, env=environment, cwd=tmp_path, timeout=500, capture_output=True, text=True)

    assert start('killed.py').returncode == -signal.SIGKILL
    assert (tmp_path / 'maps' / '00000.safetensors').exists()
    assert list((tmp_path / 'maps').glob('.00001*.part*'))
    two = start('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', '-m', 'tinyvit_zoo.cli')
    assert two.returncode == 0, two.stderr
    lines = [line.partition(' of ')[0] for line in two.stdout.splitlines() if line.startswith('Images')]
    assert lines == ['Images 65 to 128']  # the second process has embedded the rest
    assert cli(*words('one'))[0] == 0
    one, shared = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ('one', 'maps'))
    assert len(one) == 5  # three files, the facts and the lock
    assert shared == one


def test_a_sam_with_a_tinyvit_teaches_too_by_file_or_folder(folders, tmp_path, monkeypatch):
    monkeypatch.setattr('tinyvit_zoo.hub.sam.folder.SIDE', 32)  # of a file, 1024
    small = save_sam(new_sam(img_size=SIDE), tmp_path / 'small')
    by_folder, by_file = (load_sam_teacher(str(small / name)) for name in ('', 'model.safetensors'))
    assert by_folder.encoder.sha256 == by_file.encoder.sha256
    assert (by_folder.encoder.input.size, by_file.encoder.input.size) == ((SIDE, SIDE), (32, 32))
    image = torch.randn(1, 3, SIDE, SIDE)
    expected = by_folder.whole.get_image_embeddings(image)
    assert torch.equal(by_folder.encoder.features(image).dense, expected)
    assert load_sam_teacher(str(folders / 'vision')).whole is None


def test_what_does_not_fit_is_one_sentence_before_the_training(folders, cli, tmp_path):
    (tmp_path / 'full' / 'model').mkdir(parents=True)
    (tmp_path / 'full' / 'model' / 'thesis.tex').touch()
    teacher = ('--teacher', folders / 'a teacher')
    for words, code, part in (
        ((), 2, '--store'),
        (('--teacher', tmp_path / 'none' / 'x'), 1, 'none'),
        (('--teacher', folders / 'photos'), 1, 'config.json'),
        (('--teacher', folders / 'photos' / '0.png'), 1, '0.png'),
        (('--store', folders / 'photos'), 1, 'no embeddings'),
        ((*teacher, '--img-size', 40), 1, 'multiple of 16'),
        ((*teacher, '--img-size', '32x64'), 1, 'same ratio'),
        ((*teacher, '--student', 'resnet18'), 1, 'not a TinyViT'),
        ((*teacher, '-o', tmp_path / 'full'), 1, 'thesis.tex'),
    ):
        found, out, err = cli(*command(folders, tmp_path / 'run', *words))
        assert (found, out) == (code, '')
        assert part in err
        assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / 'run').exists()
    assert not (tmp_path / 'full' / 'state.pt').exists()


def test_maps_of_another_encoder_and_another_decoder_are_refused(folders, cli, tmp_path):
    store = tmp_path / 'maps'
    cli('sam', 'embed', folders / 'vision', '-d', folders / 'photos', '--store', store, '--device', 'cpu')
    other = save_sam(new_sam(img_size=SIDE), tmp_path / 'other')
    refused(lambda: find_maps(str(other), store), 'another encoder', kind=EvaluationError)
    vision = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    config = transformers.SamConfig(
        vision_config=vision, prompt_encoder_config={}, mask_decoder_config=dict(mlp_dim=64)
    )
    narrow = transformers.SamModel(config)
    encoder = sam_encoder(img_size=SIDE)
    refused(lambda: sam_around(encoder, 'tinyvit_5m_224', narrow), 'not those of the released SAM', kind=ModelError)
