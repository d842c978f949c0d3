"""The package as a guest in timm: its names, what importing it costs, and that its own style holds."""

import json
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import timm
from conftest import ARCHITECTURES, TAGGED, for_each
from timm.data import create_transform, resolve_model_data_config

import tinyvit_zoo
from tinyvit_zoo.releases import TEACHERS, all_releases, find_family, find_release

ROOT = Path(__file__).parent.parent

TAGS = ['dist_in22k_ft_in1k', 'dist_in22k', 'in1k']
MINIVIT = ['distill_in1k']
EXPECTED = {
    'tinyvit_5m_224': TAGS,
    'tinyvit_11m_224': TAGS,
    'tinyvit_21m_224': TAGS,
    'tinyvit_21m_384': TAGS[:1],
    'tinyvit_21m_512': TAGS[:1],
    'mini_deit_tiny_patch16_224': MINIVIT,
    'mini_deit_small_patch16_224': MINIVIT,
    'mini_deit_base_patch16_224': MINIVIT,
    'mini_deit_base_patch16_384': MINIVIT,
    'mini_swin_tiny_patch4_window7_224': MINIVIT,
    'mini_swin_small_patch4_window7_224': MINIVIT,
    'mini_swin_base_patch4_window7_224': MINIVIT,
    'mini_swin_base_patch4_window12_384': MINIVIT,
    **{f'tinymim_vit_{size}_patch16_224': ['ft_in1k'] for size in ('tiny', 'small', 'base')},
    **{f'tinymim_vit_{size}_student_patch16_224': ['mim_in1k'] for size in ('tiny', 'small', 'base')},
    'tinymim_vit_tiny_star_patch16_224': ['ft_in1k'],
    'mae_lite_vit_tiny_patch16_224': [
        'mae_in1k_ft_in1k',
        'dmae_in1k_ft_in1k',
        'mocov3_in1k_ft_in1k',
        'deit_impr_in1k',
    ],
    'mae_lite_vit_tiny_encoder_patch16_224': ['mae_in1k', 'dmae_in1k', 'mocov3_in1k'],
    'mae_lite_vit_tiny_rpe_patch16_224': ['mae_in1k_ft_in1k_1000e'],
    'mae_lite_vit_small_patch16_224': ['mae_in1k_ft_in1k', 'dmae_in1k_ft_in1k', 'deit_impr_in1k'],
    'mae_lite_vit_small_encoder_patch16_224': ['mae_in1k', 'dmae_in1k'],
    'clip_vit_large_patch14_224': ['openai_ft_in22k'],
}
ENCODERS = [name for name in EXPECTED if '_student_' in name or '_encoder_' in name]
# Without released weights: made by `compress.multiplex` or from a saved folder; of TinyViT's supplement.
UNRELEASED = {'multiplexed', 'tinyvit_21m_talking_heads_224'}


IMPORT = """
import json, sys, timm
found = dict(stock=timm.list_models(), before=list(sys.modules))
import tinyvit_zoo
print(json.dumps(dict(found, after=list(sys.modules))))
"""


@pytest.fixture(scope='module')
def imported() -> dict[str, list[str]]:
    """By another process: timm's own models, and the modules before and after this package is imported."""
    done = subprocess.run([sys.executable, '-c', IMPORT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- names


def test_the_registered_names_are_those_of_the_readme():
    assert set(ARCHITECTURES) == EXPECTED.keys()
    registered = {n for n in timm.list_models() if timm.model_entrypoint(n).__module__.startswith('tinyvit_zoo.')}
    assert registered == EXPECTED.keys() | UNRELEASED
    assert set(TAGGED) == {f'{name}.{tag}' for name, tags in EXPECTED.items() for tag in tags}


def test_no_name_of_timms_own_is_taken(imported):
    stock = set(imported['stock'])
    assert stock
    assert not stock & set(ARCHITECTURES)
    modules = {timm.model_entrypoint(name).__module__.rpartition('.')[2] for name in ARCHITECTURES}
    assert not modules & {timm.model_entrypoint(name).__module__.rpartition('.')[2] for name in stock}


@for_each('name', ARCHITECTURES)
def test_a_bare_name_means_1000_classes_and_of_an_encoder_none(name):
    model = timm.create_model(name, device='meta')
    assert model.num_classes == (0 if name in ENCODERS else 21841 if find_family(name) in TEACHERS else 1000)
    assert model.pretrained_cfg['tag'] == EXPECTED[name][0]
    assert find_release(name).name == f'{name}.{EXPECTED[name][0]}'


@for_each('name', TAGGED)
def test_a_tag_has_the_classes_of_its_release(name):
    classes = 21841 if name.endswith('_in22k') else 0 if name.partition('.')[0] in ENCODERS else 1000
    assert timm.create_model(name, device='meta').num_classes == classes
    if classes == 0:
        assert find_release(name).labels is None
        return
    assert len(timm.data.ImageNetInfo(find_release(name).labels).label_names()) == classes


@for_each('name', [name for name in TAGGED if name.startswith('tinyvit')])
def test_a_hub_id_is_spelled_in_full_and_is_one_of_timms(name):
    cfg, stock = timm.get_pretrained_cfg(name), timm.get_pretrained_cfg(name.replace('tinyvit', 'tiny_vit'))
    assert cfg.hf_hub_id == f'timm/{name.replace("tinyvit", "tiny_vit")}' == stock.hf_hub_id
    assert (cfg.num_classes, cfg.input_size, cfg.first_conv, cfg.classifier, cfg.pool_size) == (
        stock.num_classes,
        stock.input_size,
        stock.first_conv,
        stock.classifier,
        stock.pool_size,
    )
    assert cfg.license == 'mit'


@for_each('name', [name for name in TAGGED if name.startswith('mini_')])
def test_weights_without_a_hub_page_name_none(name):
    cfg = timm.get_pretrained_cfg(name)
    assert cfg.hf_hub_id is None
    assert cfg.url.startswith('https://github.com/DominickZhang/MiniViT-model-zoo/releases/download/v1.0.0/mini')
    assert cfg.license == ('mit' if 'swin' in name else 'apache-2.0')


@for_each('name', TAGGED)
def test_default_preprocessing_is_the_best_measured(name):
    release = find_release(name)
    measured = {p: p.result().top1 for p in release.protocols if p.result()}
    if measured:
        assert measured[release.protocol] == max(measured.values())
    cfg = timm.get_pretrained_cfg(name)
    if not name.startswith('tinyvit_'):
        assert (cfg.crop_pct, cfg.crop_mode) == (0.875, 'center')
    else:
        assert (cfg.crop_pct, cfg.crop_mode) == ((0.95, 'center') if release.img_size == 224 else (1.0, 'squash'))
    assert cfg.interpolation == 'bicubic'


@pytest.mark.parametrize(
    ('name', 'side'), [('mini_deit_base_patch16_384', 438), ('mini_swin_tiny_patch4_window7_224', 256)]
)
def test_images_are_resized_as_the_released_code_resizes_them(name, side):
    """The short side goes to the integer part of 256 / 224 of the model's size."""
    transform = create_transform(**resolve_model_data_config(timm.create_model(name, device='meta')))
    assert transform.transforms[0].size == side == int(256 / 224 * find_release(name).img_size)


def test_every_release_is_a_registered_tag():
    assert sorted(release.name for release in all_releases()) == sorted(TAGGED)


def test_the_version_is_a_version():
    assert re.fullmatch(r'\d+\.\d+\.\d+\S*', tinyvit_zoo.__version__)


def test_the_package_is_typed():
    assert (Path(tinyvit_zoo.__file__).parent / 'py.typed').is_file()


# --- what importing costs


ROOMS = ('checkpoints', 'common', 'layers', 'models', 'releases', 'version')  # what registering the models needs


def test_importing_brings_nothing_that_timm_has_not_brought(imported):
    new = set(imported['after']) - set(imported['before'])
    others = [m for m in new if m.partition('.')[0] != 'tinyvit_zoo']
    assert [m for m in others if m.partition('.')[0] not in sys.stdlib_module_names] == []
    assert len(others) < 10
    rooms = {m.split('.')[1] for m in new if m.startswith('tinyvit_zoo.')}
    assert rooms == set(ROOMS)


def test_importing_brings_no_heavy_package(imported):
    loaded = set(imported['after'])
    assert 'timm' in loaded
    heavy = {'transformers', 'mmdet', 'mmengine', 'sklearn', 'skimage', 'matplotlib', 'scipy', 'pandas'}
    heavy |= {'typer', 'rich', 'onnx', 'onnxruntime'}
    assert not loaded & heavy


# --- style


@pytest.mark.parametrize('command', [['check'], ['format', '--check']], ids=' '.join)
def test_the_code_is_in_its_style(command):
    pytest.importorskip('ruff')
    done = subprocess.run(
        [sys.executable, '-m', 'ruff', *command, '--no-cache', '.'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_what_commands_write_into_a_checkout_is_no_code_of_ours(tmp_path):
    """`detect train --work-dir run` writes configs, `fewshot -o few_shot` a folder with the name of an import."""
    pytest.importorskip('ruff')
    shutil.copy(ROOT / 'pyproject.toml', tmp_path)
    texts = {
        'run/config.py': 'import os\nmodel = dict( )',
        'benchmarks/knn.py': 'import torch\nfrom few_shot import F\n\nimport tinyvit_zoo as z\n\nprint(F, torch, z)\n',
        'few_shot/accuracy.csv': '',
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    ruff = partial(subprocess.run, cwd=tmp_path, capture_output=True, text=True, check=False)
    command = [sys.executable, '-m', 'ruff']
    for words in (['check'], ['format', '--check']):
        done = ruff([*command, *words, '--no-cache', '.'])
        assert done.returncode == 0, done.stdout
    shown = ruff([*command, 'check', '--show-files', '.']).stdout.split()
    assert sorted(Path(name).name for name in shown) == ['knn.py', 'pyproject.toml']


def test_every_file_of_code_is_checked():
    pytest.importorskip('ruff')
    run = partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, check=False)
    listed = run(['git', 'ls-files', '*.py'])
    if listed.returncode:
        pytest.skip('not a git checkout')
    shown = run([sys.executable, '-m', 'ruff', 'check', '--show-files', '.']).stdout.splitlines()
    assert {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()} <= {
        Path(name).relative_to(ROOT).as_posix() for name in shown
    }


def test_no_file_holds_a_path_of_one_machine():
    listed = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip('not a git checkout')
    texts = [
        ROOT / name for name in listed.stdout.splitlines() if name.endswith(('.py', '.toml', '.md', '.txt', '.cfg'))
    ]
    assert texts
    found = [
        str(p) for p in texts if p.is_file() and re.search(r'(?<![\w/.])/(?:home|root|Users|work)/\w', p.read_text())
    ]
    assert found == []
