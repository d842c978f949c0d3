"""Pages of docs/use: each runs as printed, block after block in a fresh process without network (run_page.py)."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from run_page import blocks_of, imported, settings_of

ROOT = Path(__file__).parent.parent
RUNNER = Path(__file__).with_name('run_page.py')
PAGES = {path.stem: path for path in sorted((ROOT / 'docs' / 'use').glob('*.md')) if path.stem != 'index'}
INDEX = ROOT / 'docs' / 'use' / 'index.md'


def run(page: Path, folder: Path) -> subprocess.CompletedProcess:
    """A page in a process of its own, whose working directory is `folder`."""
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    command = [sys.executable, RUNNER, page]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize('name', PAGES)
def test_a_page_runs_as_printed(name, tmp_path):
    page = PAGES[name]
    for module in sorted(set(imported(page.read_text()))):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f'{name}.md needs {module}, which is not installed')
    done = run(page, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    print(report)
    assert report['page'] == name
    assert report['blocks'] == len(blocks_of(page.read_text())) > 0


@pytest.mark.parametrize('name', PAGES)
def test_a_page_ends_with_the_check_that_what_was_loaded_is_what_was_saved(name):
    blocks = blocks_of(PAGES[name].read_text())
    assert re.search(r'^ *assert |assert_close\(', blocks[-1].code, re.MULTILINE)


def test_the_index_has_a_row_for_every_page():
    rows = re.findall(r'^\|.*\[\w[^]]*\]\((\w+)\.md\) \|$', INDEX.read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(PAGES)


# --- the runner itself


def page_of(folder: Path, *blocks: str) -> Path:
    path = folder / 'page.md'
    path.write_text('A page.\n\n' + '\n'.join(f'```python\n{block}\n```\n' for block in blocks))
    return path


def test_blocks_run_in_order_with_the_settings_that_the_page_names(tmp_path):
    page = page_of(tmp_path, 'SIZE = 640, 640  # tests: 64, 96', "open('size', 'w').write(str(SIZE))")
    assert settings_of(page.read_text()) == {'SIZE': '64, 96'}
    done = run(page, tmp_path)
    assert json.loads(done.stdout)['blocks'] == 2
    assert (tmp_path / 'size').read_text() == '(64, 96)'


def test_a_setting_that_would_not_be_seen_is_refused(tmp_path):
    page = page_of(tmp_path, 'SIZE = dict(\n    side=640\n)  # tests: dict(side=64)')
    with pytest.raises(ValueError, match='on one line'):
        blocks_of(page.read_text())


def test_a_failure_names_the_line_of_the_page(tmp_path):
    page = page_of(tmp_path, 'a = 1', 'a = 2\nassert a == 1')
    done = run(page, tmp_path)
    assert done.returncode != 0
    line = page.read_text().splitlines().index('assert a == 1') + 1
    assert f'page.md", line {line}' in done.stderr


@pytest.mark.parametrize(
    'code',
    ["socket.create_connection(('192.0.2.1', 80), timeout=1)", "socket.getaddrinfo('example.org', 443)"],
    ids=['address', 'name'],
)
def test_the_network_is_out_of_reach_even_where_the_page_goes_on_without_it(tmp_path, code):
    page = page_of(tmp_path, f'import contextlib, socket\nwith contextlib.suppress(OSError):\n    {code}')
    done = run(page, tmp_path)
    assert done.returncode != 0
    assert 'tried to reach' in done.stderr


def test_modules_that_a_page_imports_are_found_in_all_blocks(tmp_path):
    page = page_of(tmp_path, 'import timm, torch.nn', 'def f():\n    from peft.tuners import lora')
    assert set(imported(page.read_text())) == {'timm', 'torch', 'peft'}
