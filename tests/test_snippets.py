"""The programs that the zoo browser offers for each tag: they are those of the cards, and they run."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import for_each, small_of
from PIL import Image

from tinyvit_zoo.hub import configs_folder, save_folder
from tinyvit_zoo.hub.snippets import render_uses
from tinyvit_zoo.releases import all_releases, family_of, find_release

NAMES = [release.name for release in all_releases()]
CLASSIFIER, ENCODER = 'tinyvit_5m_224.dist_in22k_ft_in1k', 'tinymim_vit_tiny_student_patch16_224.mim_in1k'
ALL = ['timm', 'transformers', 'onnx', 'rt_detr', 'smp', 'sam', 'finetune', 'distil']
FEWER = {
    '1024': '64', '(1, 256, 64, 64)': '(1, 256, 4, 4)', '--epochs 0:10': '--epochs 0:1', '--epochs 10': '--epochs 1',
    '-k 100': '-k 2',
    '-o taught': '--batch-size 4 -o taught', 'my_photos': 'photos', '-d imagenet-1k --root data': '-d photos',
    '--student tinyvit_5m_224': '--student local-dir:small', 'train tinyvit_5m_224': 'train local-dir:small',
    "encoder_weights='imagenet'": 'encoder_weights=None', 'pretrained=True': 'pretrained=False',
}  # fmt: skip
"""What is other than on the page: sizes, and weights that cannot be fetched."""


def uses(name: str) -> dict[str, str]:
    return {use.id: use.code for use in render_uses(find_release(name))}


@for_each('name', NAMES)
def test_a_tag_has_the_programs_that_its_family_can_run(name):
    found = list(uses(name))
    tinyvit = family_of(find_release(name)) == 'tinyvit'
    assert found == [use for use in ALL if tinyvit or use not in ('rt_detr', 'smp', 'sam')]


@for_each('name', NAMES)
def test_the_program_of_timm_is_one_of_the_card_and_every_program_names_the_tag(name):
    found = uses(name)
    assert f'```python\n{found["timm"]}\n```' in (configs_folder() / name / 'README.md').read_text()
    assert [use for use, code in found.items() if name not in code] == []


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """A folder with photographs: one, and two of each of two classes."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for file in (
        'photo.jpg',
        *(f'photos/{split}/{label}/{i}.png' for split in ('train', 'val') for label in 'ab' for i in '12'),
    ):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(file)
    return tmp_path


def keep_small(family: str, **arguments: object) -> None:
    """A small model of the family, as a folder."""
    save_folder(small_of(family, img_size=32, **arguments), Path('small'), tag='small')


def prepared(code: str, name: str) -> str:
    """A program for the small model in place of the release."""
    for old, new in FEWER.items():
        code = code.replace(old, new)
    return code.replace(f"'{name}'", "'local-dir:small'").replace(f' {name} ', ' local-dir:small ')


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'family', 'printed'),
    [
        (CLASSIFIER, 'tinyvit', r'\w'),
        (ENCODER, 'tinymim_student', r'^\(1, 48\)$'),
    ],
)
def test_the_programs_of_transformers_and_onnx_run(name, family, printed, workplace, capsys):
    pytest.importorskip('transformers')
    pytest.importorskip('onnxscript')
    keep_small(family, **({} if find_release(name).num_classes else dict(num_classes=0)))
    for use in ('transformers', 'onnx'):
        capsys.readouterr()
        exec(compile(prepared(uses(name)[use], name), use, 'exec'), {})
        assert re.search(printed, capsys.readouterr().out.strip())


@pytest.mark.slow
@pytest.mark.parametrize(
    ('use', 'package', 'shape'),
    [
        ('rt_detr', 'transformers', (1, 300, 4)),
        ('smp', 'segmentation_models_pytorch', (1, 3, 224, 224)),
        ('sam', 'timm', (1, 256, 4, 4)),
    ],
)
def test_the_programs_of_heads_run(use, package, shape, workplace, capsys):
    pytest.importorskip(package)
    keep_small('tinyvit')
    code = uses(CLASSIFIER)[use]
    short = prepared(code, CLASSIFIER) if use == 'rt_detr' else code
    for old, new in FEWER.items():
        short = short.replace(old, new)
    exec(compile(short, use, 'exec'), {})
    assert str(shape) in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'classes'), [(CLASSIFIER, 2), (ENCODER, 0)])
def test_the_commands_of_training_run(name, classes, workplace, cli):
    torch.manual_seed(0)
    keep_small('tinyvit' if classes else 'tinymim_student', num_classes=classes)
    lines = [
        line
        for use in ('finetune', 'distil')
        for line in prepared(uses(name)[use], name).splitlines()
        if line and not line.startswith('#')
    ]
    assert len(lines) == (5 if classes else 3)
    for line in lines:
        code, out, err = cli(*shlex.split(line)[1:])
        assert code == 0, f'{line}: {err or out}'
