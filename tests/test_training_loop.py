"""The loop with a task of several losses and a teacher: records, choice of the epoch, resuming, folders."""

import json
import os
import signal
import subprocess
import sys
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from timm.task import TrainingTask
from torch import nn
from torch.nn.utils import parameters_to_vector
from torch.utils.data import Dataset

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.seeding import Seeds, seeded
from tinyvit_zoo.data.seeded import SeededDataset
from tinyvit_zoo.training import loop as training_loop
from tinyvit_zoo.training import run_state
from tinyvit_zoo.training.estimate import take_update
from tinyvit_zoo.training.ingredients import RepeatedAugSampler
from tinyvit_zoo.training.loop import TrainingLoop, best_epoch
from tinyvit_zoo.training.recipes import find_recipe

RECIPE = find_recipe('tinyvit_scratch').changed(
    epochs=3, batch_size=8, lr=1e-2, lr_batch=8, mixup=0.0, cutmix=0.0, clip_grad=1.0
)


class Vectors(Dataset):
    """40 vectors with noise on them, and the sum of each."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        with seeded(Seeds.hashed('vector', index)):
            clean = torch.randn(6)
        return clean + 0.1 * torch.randn(6), clean.sum()


class Taught(TrainingTask):
    """A student between its targets and a teacher; draws random numbers of its own."""

    def __init__(self):
        super().__init__(verbose=False)
        with seeded(Seeds.same(0)):
            self.trainable_module = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1))
            self.teacher = nn.Sequential(nn.Linear(6, 1), nn.BatchNorm1d(1)).eval()
        self.batches = []

    def forward(self, input, target):
        output = self.trainable_module(input + 0.01 * torch.randn_like(input))[:, 0]
        assert not self.teacher.training
        with torch.no_grad():
            taught = self.teacher(input)[:, 0]
        self.batches.append(len(input))
        label, teacher = (output - target).square().mean(), (output - taught).square().mean()
        return dict(loss=label + 0.5 * teacher, label=label, teacher=teacher, output=output)


def loop_in(folder, recipe=RECIPE, **options):
    options = dict(device=torch.device('cpu'), say=lambda text: None) | options
    return TrainingLoop(Taught(), recipe, folder, **options)


def train(loop, identity=None, **options):
    sampler = RepeatedAugSampler(40, loop.recipe.batch_size, 1, seed=0)
    return loop.run(loop.loader(SeededDataset(Vectors()), sampler), identity or {}, **options)


def test_a_record_has_the_mean_of_each_loss_and_the_last_learning_rate(tmp_path):
    said = []
    loop = loop_in(tmp_path, say=said.append)
    history = train(loop)
    assert [record.keys() for record in history] == [{'loss', 'label', 'teacher', 'lr'}] * 3
    for record in history:
        assert record['loss'] == pytest.approx(record['label'] + 0.5 * record['teacher'], rel=1e-6)
    assert history[-1]['loss'] < history[0]['loss']
    assert said == [f'Epoch {i + 1}/3: loss {record["loss"]:.4g}' for i, record in enumerate(history)]


def test_the_teacher_stays_as_it_is_and_the_result_is_in_the_module(tmp_path):
    loop = loop_in(tmp_path)
    teacher, student = Taught().teacher.state_dict(), Taught().trainable_module.state_dict()
    train(loop)
    assert all(torch.equal(value, teacher[key]) for key, value in loop.task.teacher.state_dict().items())
    best = torch.load(tmp_path / 'best.pt', weights_only=True)
    assert best.keys() == student.keys()
    for key, value in loop.module.state_dict().items():
        assert torch.equal(value, best[key])
        assert not torch.equal(value, student[key]), key


def test_gradients_add_up_to_a_batch(tmp_path):
    loop = loop_in(tmp_path, micro_batch=2)
    train(loop)
    assert loop.task.batches == [2] * 60
    assert loop.accelerator.gradient_accumulation_steps == 4
    assert {int(state['step']) for state in loop.optimizer.state.values()} == {15}


def test_an_update_alone_is_clipped_as_in_a_training(tmp_path):
    loop = loop_in(tmp_path, RECIPE.changed(optimizer='momentum', momentum=0.0, weight_decay=0.0, clip_grad=0.1))
    before = parameters_to_vector(loop.module.parameters()).detach().clone()
    batch = (torch.randn(8, 6, generator=torch.Generator().manual_seed(0)), torch.full((8,), 100.0))
    loss = take_update(loop, batch)
    moved = parameters_to_vector(loop.module.parameters()).detach() - before
    assert loss.item() > 1000  # so is the gradient, and the step is as long as clipping leaves it
    assert moved.norm().item() == pytest.approx(0.1 * loop.optimizer.param_groups[0]['lr'], rel=1e-3)
    assert all(parameter.grad is None for parameter in loop.module.parameters())


class Killed(BaseException): ...


def test_a_run_killed_after_an_epoch_resumes_with_the_same_records_and_weights(tmp_path):
    recipe = RECIPE.changed(ema_decay=0.9)
    whole = train(loop_in(tmp_path / 'whole', recipe, micro_batch=4))

    def say(text):
        if text.startswith('Epoch 2'):
            raise Killed

    with pytest.raises(Killed):
        train(loop_in(tmp_path / 'killed', recipe, micro_batch=4, say=say))
    said = []
    assert train(loop_in(tmp_path / 'killed', recipe, micro_batch=4, say=said.append)) == whole
    assert said[0] == f'{tmp_path / "killed"}: resumed after epoch 2 of 3.'
    for name in ('best.pt', 'state.pt'):
        one, two = (torch.load(tmp_path / run / name, weights_only=True) for run in ('whole', 'killed'))
        one, two = (x if name == 'best.pt' else x['ema'] for x in (one, two))
        assert all(torch.equal(value, two[key]) for key, value in one.items())


class Listed(SeededDataset):
    """Lists the positions that are read."""

    def __init__(self, dataset):
        super().__init__(dataset)
        self.read = []

    def __getitem__(self, draw):
        self.read.append(draw.position)
        return super().__getitem__(draw)


def train_listed(loop, kill_at=None):
    """Train, or be killed in a step. Returns the records and the positions that were read."""
    dataset, forward = Listed(Vectors()), loop.task.forward

    def killed(*batch):
        if len(loop.task.batches) + 1 == kill_at:
            raise Killed
        return forward(*batch)

    loop.task.forward = killed
    sampler = RepeatedAugSampler(40, loop.recipe.batch_size, 1, seed=0)
    try:
        return loop.run(loop.loader(dataset, sampler), {}), dataset.read
    except Killed:
        return None, dataset.read


@pytest.mark.parametrize('kill_at', [4, 8, 9, 12, 27])
def test_a_run_killed_within_an_epoch_goes_on_at_its_last_update_and_reads_no_image_again(tmp_path, kill_at):
    recipe = RECIPE.changed(ema_decay=0.9)
    options = dict(micro_batch=4, save_minutes=0)
    whole, read = train_listed(loop_in(tmp_path / 'whole', recipe, **options))
    assert train_listed(loop_in(tmp_path / 'killed', recipe, **options), kill_at)[0] is None
    resumed, read_again = train_listed(loop_in(tmp_path / 'killed', recipe, **options))
    assert resumed == whole
    updates = (kill_at - 1) // 2
    assert read_again == read[updates * recipe.batch_size :]
    for name in ('best.pt', 'state.pt'):
        one, two = (torch.load(tmp_path / run / name, weights_only=True) for run in ('whole', 'killed'))
        one, two = (x if name == 'best.pt' else x['ema'] for x in (one, two))
        assert all(torch.equal(value, two[key]) for key, value in one.items())


def test_the_log_of_a_killed_run_has_every_line_once(tmp_path, monkeypatch):
    monkeypatch.setattr(training_loop, 'LOOK_EVERY', 2)
    train_listed(loop_in(tmp_path, save_minutes=0))
    whole = lines_of(tmp_path)
    killed = tmp_path / 'killed'
    train_listed(loop_in(killed, save_minutes=0), kill_at=10)
    with (killed / 'log.jsonl').open('a') as log:
        log.write('{"kind": "update", "epoch": 2, "upd')  # what a full disk or a kill may leave
    train_listed(loop_in(killed, save_minutes=0))
    assert lines_of(killed) == whole
    kinds = [(line['kind'], line['epoch'], line['update']) for line in whole]
    assert kinds[:4] == [('update', 1, 2), ('update', 1, 4), ('epoch', 1, 5), ('update', 2, 7)]
    assert {'loss', 'label', 'teacher', 'lr'} <= whole[0].keys()


def lines_of(folder):
    """The lines of a log, without speeds."""
    lines = [json.loads(line) for line in (folder / 'log.jsonl').read_text().splitlines()]
    assert all(line['images_per_second'] > 0 for line in lines if line['kind'] == 'update')
    return [{key: value for key, value in line.items() if key != 'images_per_second'} for line in lines]


def test_a_run_killed_after_the_last_line_of_an_epoch_does_not_lose_or_repeat_it(tmp_path, monkeypatch):
    train_listed(loop_in(tmp_path / 'whole'))
    write = training_loop.write_state

    def killed(folder, identity, state, best):
        if len(state['history']) == 2:
            raise Killed
        write(folder, identity, state, best)

    for at in (killed, write):
        monkeypatch.setattr(training_loop, 'write_state', at)
        train_listed(loop_in(tmp_path / 'killed'))
    assert lines_of(tmp_path / 'killed') == lines_of(tmp_path / 'whole')


def test_another_precision_does_not_continue_a_run(tmp_path):
    train(loop_in(tmp_path, RECIPE.changed(epochs=1, warmup_epochs=0), precision='bf16'))
    with pytest.raises(EvaluationError, match=r'differs in: precision\.'):
        train(loop_in(tmp_path, RECIPE.changed(epochs=1, warmup_epochs=0)))


def test_states_within_an_epoch_are_written_when_it_is_time(tmp_path, monkeypatch):
    now, written = [0.0], []
    monkeypatch.setattr(training_loop.time, 'monotonic', lambda: now[0])
    loop = loop_in(tmp_path, save_minutes=1)
    forward, save = loop.task.forward, training_loop.write_state

    def minute_every_third_step(*batch):
        now[0] += 20.0
        return forward(*batch)

    def listed(folder, identity, state, best):
        written.append(len(state['losses']['loss']) if state['losses'] else 'epoch')
        save(folder, identity, state, best)

    loop.task.forward = minute_every_third_step
    monkeypatch.setattr(training_loop, 'write_state', listed)
    train(loop)
    assert written == [3, 'epoch'] * 3


def test_a_loss_that_is_no_number_is_named_and_never_saved(tmp_path):
    loop = loop_in(tmp_path, save_minutes=0)
    forward = loop.task.forward

    def broken(*batch):
        outputs = forward(*batch)
        return outputs | dict(loss=outputs['loss'] * float('nan')) if len(loop.task.batches) == 7 else outputs

    loop.task.forward = broken
    with pytest.raises(EvaluationError, match=r'no longer a number in update 2 of epoch 2: choose another --output'):
        train(loop)
    assert len(torch.load(tmp_path / 'state.pt', weights_only=True)['losses']['loss']) == 1


def test_a_compiled_module_trains_under_its_own_names_and_is_plain_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr(nn.Module, 'compile', partialmethod(nn.Module.compile, backend='eager'))
    plain_run, compiled = loop_in(tmp_path / 'plain'), loop_in(tmp_path / 'compiled', compile=True)
    assert compiled.module._compiled_call_impl is not None
    history = train(compiled)
    assert history == train(plain_run)
    assert compiled.module._compiled_call_impl is None
    assert read_state(tmp_path / 'compiled')['model'].keys() == plain_run.module.state_dict().keys()


def read_state(folder):
    return torch.load(folder / 'state.pt', weights_only=True)


def test_a_task_that_reads_features_by_hooks_refuses_to_be_compiled(tmp_path, monkeypatch):
    monkeypatch.setattr(Taught, 'compiles', False, raising=False)
    with pytest.raises(EvaluationError, match=r'Taught reads what is inside the model by hooks.* leave --compile out'):
        loop_in(tmp_path, compile=True)


SCRIPT = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import torch
from test_training_loop import RECIPE, loop_in, train
torch.set_num_threads(1)
loop = loop_in(Path(sys.argv[1]), RECIPE.changed(ema_decay=0.9), micro_batch=4, save_minutes=0)
forward = loop.task.forward
def dying(*batch):
    if len(loop.task.batches) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return forward(*batch)
loop.task.forward = dying
train(loop)
"""


@pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no SIGKILL')
def test_kill_9_three_times_and_resume_gives_the_same_log_and_weights(tmp_path):
    script, killed = tmp_path / 'script.py', tmp_path / 'killed'
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    paths = [str(Path(__file__).parents[1]), os.environ.get('PYTHONPATH', '')]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, paths)))
    codes = [
        subprocess.run([sys.executable, str(script), str(killed), str(steps)], env=environment, check=False).returncode
        for steps in (3, 9, 10, 100)
    ]
    assert codes == [-signal.SIGKILL] * 3 + [0]
    train(loop_in(tmp_path / 'whole', RECIPE.changed(ema_decay=0.9), micro_batch=4))
    assert lines_of(killed) == lines_of(tmp_path / 'whole')
    one, two = (torch.load(tmp_path / run / 'best.pt', weights_only=True) for run in ('whole', 'killed'))
    assert all(torch.equal(value, two[key]) for key, value in one.items())


def test_what_the_trainer_adds_to_the_identity_counts(tmp_path):
    train(loop_in(tmp_path), dict(images='some'))
    with pytest.raises(EvaluationError, match=r'differs in: images, seed\. Choose another --output'):
        train(loop_in(tmp_path, seed=1), dict(images='others'))


def test_the_epoch_with_the_highest_measurement_results(tmp_path):
    scores, states = iter([1.0, 3.0, 3.0]), []

    def evaluate(module):
        states.append({key: value.clone() for key, value in module.state_dict().items()})
        return dict(score=next(scores))

    loop = loop_in(tmp_path)
    history = train(loop, evaluate=evaluate, chosen_by='score', describe=lambda record: f'{record["score"]}')
    assert [record['score'] for record in history] == [1.0, 3.0, 3.0]
    assert best_epoch(history, 'score') == 2
    assert all(torch.equal(value, states[1][key]) for key, value in loop.module.state_dict().items())


def test_without_a_measurement_the_last_epoch_results():
    assert best_epoch([dict(loss=1.0), dict(loss=2.0)], None) == 2
    assert best_epoch([dict(score=3.0), dict(score=None)], 'score') == 2
    assert best_epoch([dict(score=3.0), dict(score=1.0)], 'score') == 1


# --- folders


@pytest.mark.parametrize('error', [OSError(37, 'No locks available'), NotImplementedError('no flock')])
def test_a_file_system_without_locks_is_trained_on_without_one(tmp_path, monkeypatch, error):
    def acquire(self, **options):
        raise error

    monkeypatch.setattr(run_state.FileLock, 'acquire', acquire)
    with run_state.alone_in(tmp_path):
        run_state.write_state(tmp_path, {}, dict(history=[]), None)
    assert run_state.read_state(tmp_path, {}) == dict(history=[], identity={})


def test_a_read_only_file_system_is_one_clear_error(tmp_path, monkeypatch):
    def refuse(dir):
        raise OSError(30, 'Read-only file system', str(dir))

    monkeypatch.setattr(run_state.tempfile, 'TemporaryFile', refuse)
    with pytest.raises(EvaluationError, match=r'cannot be written to .*Read-only file system.*choose another --output'):
        train(loop_in(tmp_path))


def test_an_error_within_a_run_frees_its_folder(tmp_path):
    with pytest.raises(OSError, match='of the run'), run_state.alone_in(tmp_path):
        raise OSError('of the run')
    with run_state.alone_in(Path(tmp_path)):
        pass
