"""Tables on digits as a user runs them: killed by the system at ten points, and, every night, all of them."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tinyvit_zoo.downstream.reproduce.entries import ENTRIES

TABLE = ('reproduce', 'minivit/table4', '--only', 'mini-deit-ti,autoformer-t', '--scale', 'digits', '-o')
POINTS = (
    'write 1', 'write 2', 'step 2', 'step 3', 'step 6', 'write 1', 'write 4', 'forward 1', 'write 6', 'write 10',
)  # fmt: skip
"""What each process in turn is killed at: before it renames a whole file, in a step of a training of two epochs of four
steps, or in a forward pass of the evaluation. Each counts what it does itself."""

SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
from tinyvit_zoo.cli.app import app
from tinyvit_zoo.downstream import imagenet
from tinyvit_zoo.downstream.reproduce import digits
from tinyvit_zoo.training.loop import TrainingLoop

torch.set_num_threads(1)
digits.EPOCHS, digits.BATCH, digits.PATCH_SIDE = 2, 256, 32

def die_at(kind, count, place, name):
    left, real = [int(count)], getattr(place, name)
    def dying(*args, **kwargs):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    setattr(place, name, dying)

PLACES = dict(write=(Path, 'replace'), step=(TrainingLoop, '_step'), forward=(imagenet, '_ranks'))

def run(folder, point=''):
    process = os.fork()  # before anything is trained: autograd's threads do not survive it
    if not process:
        if point:
            kind, count = point.split()
            die_at(kind, count, *PLACES[kind])
        code = app([*{table!r}, folder], standalone_mode=False)
        os._exit(code or 0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

print('whole', run(sys.argv[1] + '/whole'), flush=True)  # else forks would print it again
for point in {points!r}:
    print('killed', run(sys.argv[1] + '/killed', point), flush=True)
print('rest', run(sys.argv[1] + '/killed'))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no SIGKILL')
def test_a_table_killed_at_ten_points_ends_as_one_that_was_not(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(SCRIPT.format(table=TABLE, points=POINTS))
    paths = [str(Path(__file__).parents[1]), os.environ.get('PYTHONPATH', '')]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, paths)), OMP_NUM_THREADS='1')
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], env=environment, timeout=500, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ends = [int(code) for code in re.findall(r'^(?:whole|killed|rest) (-?\d+)$', done.stdout, re.MULTILINE)]
    assert len(ends) == 12
    assert (ends[0], ends[-1]) == (0, 0), done.stdout[-3000:]
    assert ends[1:-1] == [-9] * 10, done.stdout[-3000:]
    killed, whole = ((tmp_path / name / 'table.csv').read_bytes() for name in ('killed', 'whole'))
    assert killed == whole
    with (tmp_path / 'whole' / 'table.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert {row['state'] for row in rows} == {'measured', 'digits', 'quoted'}
    assert not list((tmp_path / 'killed').rglob('*.part*'))


@pytest.mark.full
@pytest.mark.timeout(7200)
def test_every_entry_runs_on_digits(cli, tmp_path):
    failed = {}
    for name in ENTRIES:
        folder = tmp_path / name.replace('/', '-')
        code, out, err = cli('reproduce', name, '--scale', 'digits', '-o', folder, '--jobs', tmp_path / 'jobs')
        if code:
            failed[name] = [line for line in (out + err).splitlines() if 'failed' in line]
    assert failed == {}
    assert len(list(tmp_path.glob('*/table.csv'))) == len(ENTRIES) == 39
