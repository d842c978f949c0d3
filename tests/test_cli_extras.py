"""A package of an extra that is not installed: one sentence that says how to install it."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tinyvit_zoo.common.extras import EXTRAS, MissingExtraError, needs_extra
from tinyvit_zoo.data.datasets import load_dataset

ROOT = Path(__file__).parent.parent


def test_every_extra_is_one_of_the_package():
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    assert set(EXTRAS) <= set(project['optional-dependencies'])


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
    with pytest.raises(MissingExtraError, match=r"^sklearn is not installed: pip install 'tinyvit-zoo\[eval\]'$"):
        load_dataset('digits', 'test')


def test_the_first_extra_that_has_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    with pytest.raises(MissingExtraError, match=r'\[detection-lite\]'), needs_extra('detection-lite', 'eval'):
        import matplotlib
    with pytest.raises(MissingExtraError, match=r'\[eval\]'), needs_extra('export', 'eval'):
        import matplotlib  # noqa: F401


def test_other_missing_modules_keep_their_error():
    with pytest.raises(ModuleNotFoundError, match='no_such_package') as caught, needs_extra('eval'):
        import no_such_package  # noqa: F401
    assert not isinstance(caught.value, MissingExtraError)


IMPORTS = {
    'from tinyvit_zoo.downstream.reports import few_shot': 'eval',
    'from tinyvit_zoo.downstream import demo': 'eval',
    'from tinyvit_zoo.downstream import finetune': 'eval',
    'from tinyvit_zoo.downstream import detection': 'detection-lite',
}


def test_python_code_that_needs_an_extra_says_which():
    """In one process of its own, in which no package of an extra can be imported."""
    packages = sorted({package for names in EXTRAS.values() for package in names} - {'tqdm'})
    code = (
        f'import json, sys\nfor name in {packages!r}: sys.modules[name] = None\nfound = {{}}\n'
        f'for line in {list(IMPORTS)!r}:\n'
        '    try: exec(line)\n'
        '    except (ModuleNotFoundError, ValueError) as e: found[line] = str(e)\n'  # without mmcv an EvaluationError
        'print(json.dumps(found))\n'
    )
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == IMPORTS.keys()
    for line, extra in IMPORTS.items():
        assert f"pip install 'tinyvit-zoo[{extra}]'" in found[line]


CALLS = {
    "load_dataset('digits', 'test')": 'eval',
    "load_dataset('textures', 'test')": 'eval',
    "load_dataset('flowers102', 'train', 'flowers', check_counts=False)": 'eval',
    "load_dataset('stanford_cars', 'train', 'cars', check_counts=False)": 'eval',
    "few_shot.run(features, labels, few_shot.sample_episodes(labels, 2, 1, 1, 2), 'logreg')": 'eval',
    "compare.difference_of_right('x', labels > 0, labels > 1)": 'eval',
    "export_model(create_model('tinyvit_5m_224', img_size=64).eval(), 'x.onnx')": 'export',
    "check_output('x.onnx')": 'export',
    'ZooBackbone': 'detection-lite',
}


def test_python_calls_that_need_an_extra_say_which_even_if_looking_for_a_package_fails(tmp_path):
    """`find_spec` itself raises here. timm is imported before: torch looks for these packages when it is."""
    packages = sorted({package for names in EXTRAS.values() for package in names} - {'tqdm'})
    code = f"""
import json, sys
import numpy as np
from timm import create_model

class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {packages!r}:
            raise ModuleNotFoundError('No module named ' + repr(name), name=name.partition('.')[0])

sys.meta_path.insert(0, Gone())
from tinyvit_zoo.data.datasets import load_dataset
from tinyvit_zoo.downstream import compare, few_shot
from tinyvit_zoo.export import check_output, export_model
features, labels = np.eye(8, dtype='float32'), np.arange(8) % 4
found = {{}}
for line in {list(CALLS)!r}:
    try:
        if line == 'ZooBackbone':
            from tinyvit_zoo.downstream.detection import ZooBackbone
        eval(line)
    except Exception as e:
        found[line] = str(e)
print(json.dumps(found))
"""
    for name in ('flowers/flowers-102', 'cars/stanford_cars/devkit'):
        (tmp_path / name).mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == CALLS.keys()
    for call, extra in CALLS.items():
        assert found[call].splitlines()[-1].endswith(f"pip install 'tinyvit-zoo[{extra}]'"), call
