"""How an installed mmcv is found and handled: mmcv-lite, a compiled one, the fork, a third party's file, or none.

Fast tests look at made-up folders and import nothing. Slow ones run Python in an environment without site-packages
of its own, whose packages are links to the real ones, and so can lack one or have another mmcv.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.downstream.detection import ops

ROOT = Path(__file__).parent.parent
SITE = Path(torch.__file__).parents[1]
OURS = (ROOT / 'downstream' / 'detection' / 'mmcv_ext.py').read_bytes()
SOMEBODY_ELSES = b'def nms(boxes, scores, iou_threshold, offset): ...\n'


@pytest.fixture
def no_mmcv(tmp_path, monkeypatch) -> Path:
    """The only folder that Python imports from."""
    monkeypatch.delitem(sys.modules, 'mmcv', raising=False)
    monkeypatch.delitem(sys.modules, 'mmcv._ext', raising=False)
    monkeypatch.setattr(sys, 'path', [str(tmp_path)])
    return tmp_path


@pytest.fixture
def mmcv(no_mmcv) -> Path:
    """Folder of an mmcv without ops."""
    folder = no_mmcv / 'mmcv'
    folder.mkdir()
    (folder / '__init__.py').write_text('raise ImportError("imported only to find out")\n')
    return folder


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()} - {'__init__.py', '__pycache__'}


def test_an_mmcv_without_ops_is_found_and_served(mmcv):
    assert ops.find_mmcv() == ops.MMCV(mmcv, None)
    assert ops.install()
    assert Path(sys.modules['mmcv._ext'].__file__) == ops.SOURCE
    assert 'mmcv' not in sys.modules
    assert names(mmcv) == set()


@pytest.mark.parametrize('suffix', EXTENSION_SUFFIXES)
def test_a_compiled_one_is_left_alone(suffix, mmcv):
    (mmcv / f'_ext{suffix}').write_bytes(b'compiled')
    assert ops.find_mmcv().extension == 'compiled'
    assert not ops.install()
    assert 'mmcv._ext' not in sys.modules
    with pytest.raises(EvaluationError, match='has compiled ops and needs no stand-in'):
        ops.write_file()
    assert names(mmcv) == {f'_ext{suffix}'}


def test_a_compiled_one_comes_before_our_file_and_the_file_can_go(mmcv):
    """A user installed the ops first and compiled mmcv later."""
    ops.write_file()
    (mmcv / f'_ext{EXTENSION_SUFFIXES[0]}').write_bytes(b'compiled')
    assert ops.find_mmcv().extension == 'compiled'
    assert not ops.install()
    assert ops.remove_file() == (mmcv / '_ext.py', 'removed')
    assert names(mmcv) == {f'_ext{EXTENSION_SUFFIXES[0]}'}


def test_a_third_partys_file_is_left_alone(mmcv):
    (mmcv / '_ext.py').write_bytes(SOMEBODY_ELSES)
    assert ops.find_mmcv().extension == 'other'
    assert not ops.install()
    assert 'mmcv._ext' not in sys.modules
    for change in (ops.write_file, ops.remove_file):
        with pytest.raises(EvaluationError, match='not a file of this package and was not changed'):
            change()
    assert (mmcv / '_ext.py').read_bytes() == SOMEBODY_ELSES


def test_an_extension_that_is_already_imported_stays(mmcv, monkeypatch):
    there = type(sys)('mmcv._ext')
    monkeypatch.setitem(sys.modules, 'mmcv._ext', there)
    assert not ops.install()
    assert sys.modules['mmcv._ext'] is there


def test_the_file_is_written_updated_and_removed(mmcv):
    path = mmcv / '_ext.py'
    assert ops.write_file() == (path, 'written')
    assert path.read_bytes() == OURS
    assert ops.write_file() == (path, 'unchanged')
    path.write_bytes(OURS + b'# of an older version\n')
    assert ops.find_mmcv().extension == 'ours'
    assert ops.install()
    assert Path(sys.modules['mmcv._ext'].__file__) == ops.SOURCE
    assert ops.write_file() == (path, 'updated')
    assert path.read_bytes() == OURS
    assert ops.remove_file() == (path, 'removed')
    assert ops.remove_file() == (path, 'absent')
    assert names(mmcv) == set()


@pytest.mark.parametrize('before', [None, OURS + b'# of an older version\n'], ids=['none', 'older'])
def test_a_full_disk_leaves_the_existing_file(before, mmcv, monkeypatch):
    if before:
        (mmcv / '_ext.py').write_bytes(before)

    def full(self, data):
        with self.open('wb') as f:
            f.write(data[:100])
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patched:
        patched.setattr(Path, 'write_bytes', full)
        with pytest.raises(EvaluationError, match=r'_ext\.py cannot be changed \(No space left on device\)'):
            ops.write_file()
    assert names(mmcv) == ({'_ext.py'} if before else set())
    assert not before or (mmcv / '_ext.py').read_bytes() == before


@pytest.mark.parametrize('change', [ops.write_file, ops.remove_file])
def test_a_folder_without_write_permission(change, mmcv, monkeypatch):
    (mmcv / '_ext.py').write_bytes(OURS + b'#\n')

    def refuse(*args, **kwargs):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(Path, 'unlink', refuse)
    monkeypatch.setattr(Path, 'touch', refuse)
    with pytest.raises(EvaluationError) as e:
        change()
    assert 'cannot be changed (Permission denied): run the command as the owner' in str(e.value)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('left_over', [False, True])
@pytest.mark.parametrize('function', [ops.find_mmcv, ops.install, ops.write_file, ops.remove_file])
def test_no_mmcv(function, left_over, no_mmcv):
    """Also after pip has uninstalled mmcv and left our file."""
    if left_over:
        (no_mmcv / 'mmcv').mkdir()
        (no_mmcv / 'mmcv' / '_ext.py').write_bytes(OURS)
    with pytest.raises(EvaluationError) as e:
        function()
    assert "need mmcv: pip install 'tinyvit-zoo[detection-lite]'" in str(e.value)
    assert '\n' not in str(e.value)
    assert 'mmcv._ext' not in sys.modules


@pytest.mark.parametrize(
    ('package', 'content', 'says'),
    [
        (
            'mmdet',
            'import mmengine_of_tomorrow',
            "without mmengine_of_tomorrow: pip install 'tinyvit-zoo[detection-lite]'",
        ),
        ('mmseg', 'import ftfy_of_tomorrow', "'tinyvit-zoo[detection-lite,segmentation]', or 'tinyvit-zoo[detection,"),
        (
            'mmdet',
            "assert False, 'MMCV==2.2.0 is used but incompatible. Please install mmcv>=2.0.0rc4, <2.2.0.'",
            "Please install mmcv>=2.0.0rc4, <2.2.0. 'tinyvit-zoo[detection-lite]' has versions that fit",
        ),
    ],
)
def test_missing_and_unfit_packages_are_reported(package, content, says, no_mmcv, monkeypatch):
    monkeypatch.delitem(sys.modules, package, raising=False)
    (no_mmcv / f'{package}.py').write_text(content)
    with pytest.raises(EvaluationError) as e:
        ops.require(package)
    assert says in str(e.value)
    assert '\n' not in str(e.value)


@pytest.fixture
def environment(tmp_path):
    """A folder of links to all packages but mmcv, which is a copy."""
    site = tmp_path / 'site'
    site.mkdir()
    for path in SITE.iterdir():
        if path.name != 'mmcv' and path.suffix != '.pth':
            (site / path.name).symlink_to(path)
    shutil.copytree(SITE / 'mmcv', site / 'mmcv', ignore=shutil.ignore_patterns('__pycache__', '_ext*'))
    return site


def run(site: Path, *command: str) -> subprocess.CompletedProcess:
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(site), str(ROOT)]), OMP_NUM_THREADS='1', MPLBACKEND='agg')
    return subprocess.run(
        [sys.executable, '-S', *command], capture_output=True, text=True, cwd=site.parent, env=env, check=False
    )


def last_line(done: subprocess.CompletedProcess) -> str:
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_mmdet_and_mmseg_of_an_mmcv_without_ops(environment):
    done = run(
        environment,
        '-c',
        'import tinyvit_zoo.downstream.detection, mmdet.apis, mmseg.apis, mmcv._ext, torch\n'
        'from mmcv.ops import nms\n'
        'print(mmcv.__file__, nms(torch.eye(4)[:2].cumsum(1), torch.ones(2), .5)[1].tolist())',
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(maxsplit=1) == [str(environment / 'mmcv' / '__init__.py'), '[0, 1]\n']


@pytest.mark.slow
@pytest.mark.parametrize(
    ('without', 'says'), [('mmcv', 'need mmcv: pip install'), ('mmdet', 'mmdet cannot be imported without mmdet')]
)
def test_an_environment_that_lacks_a_package(without, says, environment):
    if without == 'mmcv':
        shutil.rmtree(environment / 'mmcv')
    else:
        (environment / without).unlink()
    done = run(environment, '-c', 'import tinyvit_zoo.downstream.detection')
    assert done.returncode == 1
    assert last_line(done).startswith('tinyvit_zoo.common.errors.EvaluationError: ')
    assert says in last_line(done)


@pytest.mark.slow
def test_an_mmcv_that_is_too_new_for_mmdet(environment):
    version = environment / 'mmcv' / 'version.py'
    version.write_text(version.read_text().replace("'2.1.0'", "'2.2.0'"))
    done = run(environment, '-c', 'import tinyvit_zoo.downstream.detection')
    assert done.returncode == 1
    assert 'MMCV==2.2.0 is used but incompatible' in last_line(done)
    assert "'tinyvit-zoo[detection-lite]' has versions that fit" in last_line(done)


@pytest.mark.slow
def test_mmdet_calls_a_compiled_extension(environment):
    compile_extension(environment / 'mmcv')
    done = run(
        environment,
        '-c',
        'import tinyvit_zoo.downstream.detection, mmdet.apis, mmcv._ext, torch\n'
        'print(mmcv._ext.__file__)\n'
        'try: mmcv.ops.nms(torch.zeros(1, 4), torch.zeros(1), .5)\n'
        'except RuntimeError as e: print(e)\n',
    )
    assert done.returncode == 0, done.stderr
    (compiled,) = (environment / 'mmcv').glob('_ext*')
    assert done.stdout.splitlines() == [str(compiled), 'compiled op']


def compile_extension(folder: Path) -> None:
    """An `_ext` in C, each of whose ops exists and fails with its own message."""
    linker = shlex.split(sysconfig.get_config_var('LDSHARED') or '')
    if not linker or not shutil.which(linker[0]):
        pytest.skip('needs a C compiler')
    source = folder.parent / 'ext.c'
    source.write_text(r"""
        #include <Python.h>
        static PyObject *op(PyObject *self, PyObject *args, PyObject *named) {
            PyErr_SetString(PyExc_RuntimeError, "compiled op");
            return NULL;
        }
        static PyMethodDef OP = {"op", (PyCFunction)(void (*)(void))op, METH_VARARGS | METH_KEYWORDS, NULL};
        static PyObject *find(PyObject *self, PyObject *name) {
            if (PyUnicode_READ_CHAR(name, 0) != '_') return PyCFunction_New(&OP, NULL);
            PyErr_SetObject(PyExc_AttributeError, name);
            return NULL;
        }
        static PyMethodDef METHODS[] = {{"__getattr__", find, METH_O, NULL}, {NULL, NULL, 0, NULL}};
        static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_ext", NULL, -1, METHODS};
        PyMODINIT_FUNC PyInit__ext(void) { return PyModule_Create(&MODULE); }
    """)
    target = folder / f'_ext{sysconfig.get_config_var("EXT_SUFFIX")}'
    command = [*linker, '-fPIC', f'-I{sysconfig.get_paths()["include"]}', str(source), '-o', str(target)]
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.slow
def test_mmdets_stock_tools_start_with_the_file_in_place(environment, monkeypatch):
    """The tool for testing imports `mmcv.ops` before it reads the config."""
    train, test = (str(environment / 'mmdet' / '.mim' / 'tools' / tool) for tool in ('train.py', 'test.py'))
    without = run(environment, test, '--help')
    assert without.returncode == 1
    assert "No module named 'mmcv._ext'" in last_line(without)
    with monkeypatch.context() as patched:
        patched.delitem(sys.modules, 'mmcv')
        patched.syspath_prepend(environment)
        assert ops.write_file() == (environment / 'mmcv' / '_ext.py', 'written')
    for tool in (train, test):
        started = run(environment, tool, '--help')
        assert started.returncode == 0, started.stderr
        assert started.stdout.startswith(f'usage: {Path(tool).name}')
