"""A wheel installed elsewhere works like the checkout, also next to other packages and folders called `downstream`."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tinyvit_zoo.releases import all_releases

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow

EVALUATORS = """
import numpy, torch
from tinyvit_zoo.downstream import compare, few_shot, finetune, imagenet, imagenet_c, knn, linear_probe
features = torch.eye(4)
result = knn.run(features, numpy.arange(4), features, numpy.arange(4), ks=(1,))
assert result.accuracy == {1: 100.0}, result
"""


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('wheel')
    build = [sys.executable, '-m', 'build', '--wheel', '--no-isolation', '-o', str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    return next(folder.glob('*.whl'))


def pip(*arguments: object) -> None:
    done = subprocess.run([sys.executable, '-m', 'pip', *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope='module')
def installed(wheel) -> Path:
    site = wheel.parent / 'site'
    pip('install', '-q', '--no-deps', '--no-index', '--target', site, wheel)
    return site


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


def test_commands_work_from_a_folder_with_a_foreign_downstream(installed, elsewhere):
    env = os.environ | {'PYTHONPATH': str(installed)}
    for command in ([sys.executable, '-m', 'tinyvit_zoo.cli'], [str(installed / 'bin' / 'tinyvit-zoo')]):
        listed = subprocess.run([*command, 'list', '--json'], capture_output=True, text=True, cwd=elsewhere, env=env)
        assert listed.returncode == 0, listed.stderr
        assert len(json.loads(listed.stdout)) == len(all_releases())


def test_evaluators_of_the_wheel_run_beside_a_foreign_downstream(installed, elsewhere):
    code = f'{EVALUATORS}\nfrom tinyvit_zoo.downstream import demo; print(demo.__file__)'
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


# ---- a stranger's distribution


def test_the_wheel_takes_no_top_level_name_of_others(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.partition('/')[0].removesuffix('.py') for name in names}
    assert {name for name in top if not name.endswith('.dist-info')} == {'tinyvit_zoo', '_tinyvit_zoo_cli'}
    assert 'downstream' not in top
    assert 'tinyvit_zoo/downstream/__init__.py' in names
    assert 'tinyvit_zoo/downstream/reproduce/paper_numbers.csv' in names
    assert 'tinyvit_zoo/downstream.py' not in names  # stands for the folder in a checkout


@pytest.mark.parametrize('folder', ['benchmarks/results', 'downstream', 'hub_configs', 'space'])
def test_folders_beside_the_package_are_in_the_wheel_as_they_are(wheel, folder):
    inside = f'tinyvit_zoo/{folder}/'
    packed = {name.removeprefix(inside) for name in zipfile.ZipFile(wheel).namelist() if name.startswith(inside)}
    files = {path for path in (ROOT / folder).rglob('*') if path.is_file() and path.suffix != '.pyc'}
    assert packed == {path.relative_to(ROOT / folder).as_posix() for path in files}
    assert packed


@pytest.fixture
def stranger(tmp_path) -> Path:
    """A wheel of somebody else's distribution, whose package is called `downstream`."""
    path = tmp_path / 'downstream-1.0-py3-none-any.whl'
    info = 'downstream-1.0.dist-info'
    files = {
        'downstream/__init__.py': "AUTHOR = 'stranger'\n",
        'downstream/knn.py': "raise ImportError('the wrong evaluator was imported')\n",
        f'{info}/METADATA': 'Metadata-Version: 2.1\nName: downstream\nVersion: 1.0\n',
        f'{info}/WHEEL': 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n',
    }
    record = ''.join(f'{name},,\n' for name in [*files, f'{info}/RECORD'])
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in {**files, f'{info}/RECORD': record}.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def environment(tmp_path) -> Path:
    """The Python of an environment with nothing in it."""
    folder = tmp_path / 'environment'
    venv.create(folder, with_pip=False)
    return next(folder.glob('[bS][ic][nr]*/python*'))  # bin/python, or Scripts/python.exe


def test_a_distribution_called_downstream_may_come_and_go(wheel, stranger, environment, tmp_path):
    """Each import keeps its own package, whichever was installed first, and neither removes files of the other."""

    def install(path: Path) -> None:
        pip('--python', environment, 'install', '-q', '--no-deps', '--no-index', path)

    def uninstall(name: str) -> None:
        pip('--python', environment, 'uninstall', '-q', '-y', name)

    def run(code: str) -> str:
        # Dependencies come last on the path, so that only the two distributions are the environment's own.
        code = f'import sys; sys.path.append({sysconfig.get_paths()["purelib"]!r})\n{code}'
        command = [environment, '-P', '-c', code]
        env = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    ours = f'{EVALUATORS}\nassert sys.modules["tinyvit_zoo"].__file__.startswith(sys.prefix)\n'
    theirs = 'import downstream; print(downstream.AUTHOR)'
    absent = 'import importlib.util; print(importlib.util.find_spec("downstream"))'
    install(stranger)
    install(wheel)
    assert run(ours + theirs) == 'stranger'
    uninstall('downstream')
    assert run(ours + absent) == 'None'
    install(stranger)
    assert run(ours + theirs) == 'stranger'
    uninstall('tinyvit-zoo')
    assert run(theirs) == 'stranger'
