"""A wheel installed elsewhere works like the checkout, also beside a foreign `downstream`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tinyvit_zoo.releases import all_releases

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def installed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('wheel')
    build = [sys.executable, '-m', 'build', '--wheel', '--no-isolation', '-o', str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob('*.whl')
    install = [
        sys.executable,
        '-m',
        'pip',
        'install',
        '-q',
        '--no-deps',
        '--no-index',
        '--target',
        str(folder / 'site'),
    ]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    return folder / 'site'


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    """A user's folder that has a `downstream` of its own."""
    (tmp_path / 'downstream').mkdir()
    (tmp_path / 'downstream' / '__init__.py').write_text('raise ImportError("the wrong downstream was imported")\n')
    return tmp_path


def python(code: str, site: Path, cwd: Path) -> str:
    env = os.environ | {'PYTHONPATH': str(site)}
    return subprocess.run(
        [sys.executable, '-c', code], check=True, capture_output=True, text=True, cwd=cwd, env=env
    ).stdout


def test_package_models_and_configs_come_from_the_wheel(installed, elsewhere):
    out = python(
        'import json, timm, tinyvit_zoo; from tinyvit_zoo.hub import configs_folder\n'
        "model = timm.create_model('tinyvit_5m_224', device='meta')\n"
        'print(json.dumps([tinyvit_zoo.__file__, str(configs_folder()), len(model.state_dict())]))',
        installed,
        elsewhere,
    )
    package, configs, keys = json.loads(out)
    assert Path(package).is_relative_to(installed)
    assert Path(configs).is_relative_to(installed)
    assert len(list(Path(configs).glob('*/config.json'))) == len(all_releases())
    assert (installed / 'tinyvit_zoo' / 'py.typed').exists()
    assert keys == 296


def test_the_wheel_has_two_top_level_names(installed):
    (wheel,) = installed.parent.glob('*.whl')
    with ZipFile(wheel) as file:
        names = {name.partition('/')[0] for name in file.namelist()}
    assert {name for name in names if not name.endswith('.dist-info')} == {'_tinyvit_zoo_cli.py', 'tinyvit_zoo'}


def test_commands_work_from_a_folder_with_a_foreign_downstream(installed, elsewhere):
    env = os.environ | {'PYTHONPATH': str(installed)}
    for command in ([sys.executable, '-m', 'tinyvit_zoo.cli'], [str(installed / 'bin' / 'tinyvit-zoo')]):
        listed = subprocess.run([*command, 'list', '--json'], capture_output=True, text=True, cwd=elsewhere, env=env)
        assert listed.returncode == 0, listed.stderr
        assert len(json.loads(listed.stdout)) == len(all_releases())


def test_the_demo_of_the_wheel_is_found_beside_a_foreign_downstream(installed, elsewhere):
    code = 'from tinyvit_zoo.downstream import demo; print(demo.__file__)'
    assert Path(python(code, installed, elsewhere).strip()).is_relative_to(installed)


def test_detectors_are_built_beside_a_foreign_downstream(installed, elsewhere):
    """Configs name `tinyvit_zoo.downstream.detection`, and files of a wheel are all that they find."""
    env = os.environ | {'PYTHONPATH': str(installed)}
    name = 'ci_retinanet_tinyvit_5m'
    command = [sys.executable, '-m', 'tinyvit_zoo.cli', 'detect', 'config']
    for more in ([], [name, '-o', 'mine.py']):
        done = subprocess.run([*command, *more], capture_output=True, text=True, cwd=elsewhere, env=env)
        assert done.returncode == 0, done.stderr
        assert name in done.stdout or (elsewhere / 'mine.py').is_file()
    code = (
        'from tinyvit_zoo.downstream.detection.packaged_configs import read_config\n'
        'from mmengine.registry import MODELS, init_default_scope\n'
        "config = read_config('mine.py'); init_default_scope('mmdet')\n"
        'print(type(MODELS.build(config.model).backbone).__module__)'
    )
    assert python(code, installed, elsewhere).strip() == 'tinyvit_zoo.downstream.detection.backbone'
