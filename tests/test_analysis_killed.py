"""An analysis that is killed while it writes: each file is the new one or the old one, whole, and results.json last."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import small_of

from tinyvit_zoo.hub import save_folder

# One process imports everything and forks each run, which dies in the middle of the file that its number names.
SCRIPT = """
import json, os, signal, sys
from tinyvit_zoo.common import files
from tinyvit_zoo.cli.app import run_app
from tinyvit_zoo.downstream.analysis import attention
from tinyvit_zoo.downstream.reports import analysis

rename, renamed = files._rename_whole, []

def dying(new, path):
    renamed.append(path.name)
    if len(renamed) == deadly:
        data = new.read_bytes()
        new.write_bytes(data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    rename(new, path)

files._rename_whole = dying
sys.argv = ['tinyvit-zoo', *sys.argv[1:]]
for deadly in (1, 2, 3, 0):
    child = os.fork()
    if child == 0:
        run_app()
    _, status = os.waitpid(child, 0)
    out = sys.argv[sys.argv.index('-o') + 1]
    names = sorted(os.listdir(out))
    sizes = {name: os.path.getsize(os.path.join(out, name)) for name in names}
    print('RUN', deadly, os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, json.dumps(sizes), flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no SIGKILL')
def test_an_analysis_killed_while_it_writes_leaves_whole_files_and_no_results(tmp_path):
    model, out = save_folder(small_of('tinyvit', img_size=64), tmp_path / 'model'), tmp_path / 'out'
    out.mkdir()
    old = dict.fromkeys(('attention.csv', 'attention.png'), b'of an earlier run')
    old['results.json'] = b'{"command": "tinyvit-zoo analyze attention"}'
    for name, content in old.items():
        (out / name).write_bytes(content)
    line = ['analyze', 'attention', str(model), '-d', 'digits', '--images', '4', '--device', 'cpu', '-o', str(out)]
    environment = dict(os.environ, PYTHONPATH=str(Path(__file__).parents[1]), OMP_NUM_THREADS='1')
    done = subprocess.run(
        [sys.executable, '-c', SCRIPT, *line], env=environment, capture_output=True, text=True, check=True
    )
    runs = [text.split(maxsplit=3) for text in done.stdout.splitlines() if text.startswith('RUN ')]
    assert [int(run[2]) for run in runs] == [signal.SIGKILL] * 3 + [0]
    final = {path.name: path.stat().st_size for path in out.iterdir() if not path.name.startswith('.')}
    assert final.keys() == old.keys()
    for killed, run in enumerate(runs[:3]):  # files in the order in which they are written
        whole = {name: size for name, size in json.loads(run[3]).items() if not name.startswith('.')}
        stale = list(old)[killed:]
        assert {name for name, size in whole.items() if size == len(old[name])} == set(stale)
    assert json.loads((out / 'results.json').read_text())['evaluator'] == 'analyze attention'
    assert [path.name for path in out.iterdir() if '.part' in path.name] == []
