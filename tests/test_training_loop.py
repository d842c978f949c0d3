"""The loop with a task of several losses and a teacher: records, choice of the epoch, resuming, folders."""

from pathlib import Path

import pytest
import torch
from timm.task import TrainingTask
from torch import nn
from torch.utils.data import Dataset

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.seeding import Seeds, seeded
from tinyvit_zoo.data.seeded import SeededDataset
from tinyvit_zoo.training import run_state
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
    assert said == [f'Epoch {i + 1}/3: loss {record["loss"]:.4f}' for i, record in enumerate(history)]


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
