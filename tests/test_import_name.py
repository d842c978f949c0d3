"""The evaluators have one import name, `tinyvit_zoo.downstream`, whatever else is called `downstream`."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def python(code: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-c', code], cwd=cwd, capture_output=True, text=True)


def test_the_old_import_name_says_the_new_one():
    done = python('import downstream.knn', cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith('ModuleNotFoundError: The evaluators of tinyvit-zoo are imported as')
    assert 'from tinyvit_zoo.downstream import' in done.stderr


def test_a_folder_of_the_users_with_the_old_name_is_left_alone(tmp_path):
    (tmp_path / 'downstream').mkdir()
    (tmp_path / 'downstream' / '__init__.py').write_text("OWNER = 'user'\n")
    code = 'import downstream; from tinyvit_zoo.downstream import knn; print(downstream.OWNER, knn.__name__)'
    done = python(code, cwd=tmp_path)
    assert done.stdout == 'user tinyvit_zoo.downstream.knn\n', done.stderr


def test_every_module_exists_once():
    from tinyvit_zoo.downstream import knn

    assert knn.__name__ == 'tinyvit_zoo.downstream.knn'
    assert Path(knn.__file__) == ROOT / 'downstream' / 'knn.py'
