"""Every trainer of `pretrain`, killed by the system within an epoch, resumes with the same losses and weights.

`benchmarks/kill_training.py` does it at 20 random moments of any command.
"""

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import test_feature_distillation as features
import test_weight_distillation as minivit
from test_pretraining import METHODS, plan_of
from torch import nn

from tinyvit_zoo.data import load_dataset
from tinyvit_zoo.training.loop import Record, TrainingLoop

TRAINERS = (*METHODS, 'minivit', 'features')
IMAGES, BATCH, KILLED_AT = 24, 8, 10  # in the second half of the second update of the second epoch
SCRIPT = """
import os, sys
sys.path.insert(0, {tests!r})
import torch
from test_killed_pretraining import TRAINERS, train_until_killed
torch.set_num_threads(1)
for name in TRAINERS:
    process = os.fork()  # before anything is trained: autograd's threads do not survive it
    if not process:
        train_until_killed(name, os.path.join(sys.argv[1], name))
        os._exit(0)
    print(name, os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)  # else forks would print it again
"""


def train(name: str, folder: str | Path, **run) -> tuple[tuple[Record, ...], nn.Module]:
    """Two epochs of three updates of two steps. Returns the losses, and what was trained."""
    digits, run = load_dataset('digits', 'train').subset(range(IMAGES)), dict(run, micro_batch=BATCH // 2)
    if name == 'minivit':
        student, result = minivit.distil(folder, digits, **run)
        return result.history, student
    if name == 'features':
        result = features.trained(digits, folder, recipe=features.RECIPE.changed(batch_size=BATCH), **run)
        return result.history, result.student
    plan = plan_of(name, digits, **run)
    return plan.train(folder).history, plan.form


def train_until_killed(name: str, folder: str) -> None:
    steps, step = itertools.count(1), TrainingLoop._step

    def dying(self, *args):
        if next(steps) == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *args)

    TrainingLoop._step = dying
    train(name, folder, save_minutes=0)


@pytest.fixture(scope='module')
def killed(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """Folders of trainings that were killed, and the exit codes."""
    folder = tmp_path_factory.mktemp('killed')
    script = folder / 'script.py'
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    paths = [str(Path(__file__).parents[1]), os.environ.get('PYTHONPATH', '')]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, paths)), OMP_NUM_THREADS='1')
    done = subprocess.run(
        [sys.executable, str(script), str(folder)], env=environment, check=True, timeout=500, capture_output=True,
        text=True,
    )  # fmt: skip
    return folder, dict(line.split() for line in done.stdout.splitlines())


@pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no SIGKILL')
@pytest.mark.parametrize('name', TRAINERS)
def test_what_is_killed_within_an_epoch_resumes_with_the_same_losses_and_weights(name, killed, tmp_path):
    folder, codes = killed
    assert codes[name] == str(-signal.SIGKILL)
    said: list[str] = []
    history, resumed = train(name, folder / name, save_minutes=0, say=said.append)
    assert any('resumed after epoch 1 of 2, update 1 of the next' in line for line in said)
    expected, whole = train(name, tmp_path)
    assert history == expected
    weights = whole.state_dict()
    assert all(value.equal(weights[key]) for key, value in resumed.state_dict().items())
