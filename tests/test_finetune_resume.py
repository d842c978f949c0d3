"""Fine-tuning: it resumes to the bit where it was killed, and trains alike however its batches are divided."""

import contextlib
import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from finetuning import PLAIN, assert_same, fit, losses, plain_vit, read_results, read_state, small_model
from timm.data import create_transform
from torch.utils.data import DataLoader

import tinyvit_zoo  # noqa: F401  registers the models
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data.datasets import load_dataset
from tinyvit_zoo.data.seeded import SeededDataset
from tinyvit_zoo.downstream.reports.finetune import write_finetuned
from tinyvit_zoo.training import run_state
from tinyvit_zoo.training.ingredients import RepeatedAugSampler
from tinyvit_zoo.training.recipes import DEFAULT, find_recipe


@pytest.fixture(scope='module')
def digits():
    train, test = load_dataset('digits', 'train'), load_dataset('digits', 'test')
    return train.subset(range(160)), test.subset(range(50))


# --- resuming


class Killed(BaseException): ...


@pytest.mark.parametrize(('file', 'epoch'), [('best.pt', 2), ('state.pt', 1)])
def test_a_run_that_ends_while_it_writes_resumes_with_the_same_losses(tmp_path, digits, monkeypatch, file, epoch):
    train, test = digits
    recipe = PLAIN.changed(
        ema_decay=0.9, drop_path={'': 0.2}, mixup=0.8, cutmix=1.0, auto_augment='rand-m9-mstd0.5', per_epoch=epoch == 2
    )  # fmt: skip
    whole = fit(small_model(drop_path_rate=0.2), train, recipe, tmp_path / 'whole', test=test)
    writes = []

    def save(value, opened):
        if Path(opened.name).name.startswith(f'.{file}'):
            writes.append(opened)
            if len(writes) == epoch + (file == 'state.pt'):
                opened.write(b'half')
                raise Killed
        original(value, opened)

    original = torch.save
    monkeypatch.setattr(torch, 'save', save)
    with contextlib.suppress(Killed):
        fit(small_model(drop_path_rate=0.2), train, recipe, tmp_path / 'killed', test=test)
    monkeypatch.undo()
    assert writes
    resumed = fit(small_model(drop_path_rate=0.2), train, recipe, tmp_path / 'killed', test=test)
    assert resumed.history == whole.history
    assert resumed.best_epoch == whole.best_epoch
    assert np.array_equal(resumed.test.predictions, whole.test.predictions)
    for name in ('state.pt', 'best.pt'):
        assert_same(*(torch.load(tmp_path / run / name, weights_only=True) for run in ('whole', 'killed')))
    assert not list((tmp_path / 'killed').glob('.*.part*'))


def test_a_run_that_is_over_is_only_measured_again(tmp_path, digits):
    train, test = digits
    first = fit(small_model(), train, PLAIN, tmp_path, test=test)
    before = (tmp_path / 'state.pt').read_bytes()
    said = []
    again = fit(small_model(), train, PLAIN, tmp_path, test=test, say=said.append)
    assert again.history == first.history
    assert np.array_equal(again.test.predictions, first.test.predictions)
    assert (tmp_path / 'state.pt').read_bytes() == before
    assert said[1:] == [f'{tmp_path}: resumed after epoch 3 of 3.']


def test_a_run_of_an_earlier_version_is_resumed(tmp_path, digits):
    """Its state has words of the recipe, no settings that came later, and no mean per class."""
    train, recipe = digits[0], find_recipe(DEFAULT).changed(epochs=3)
    whole = fit(small_model(), train, recipe, tmp_path / 'whole')

    def stop(line):
        if line.startswith('Epoch 1'):
            raise Killed

    with contextlib.suppress(Killed):
        fit(small_model(), train, recipe, tmp_path / 'old', say=stop)
    state = read_state(tmp_path / 'old')
    state['identity'] |= {'recipe: source': "'in other words'", 'recipe: notes': "''"}
    for later in ('crop_mode', 'interpolation'):
        assert state['identity'].pop(f'recipe: {later}') == 'None'
    for record in state['history']:
        del record['validation_mean_per_class']
    torch.save(state, tmp_path / 'old' / 'state.pt')
    resumed = fit(small_model(), train, recipe, tmp_path / 'old')
    assert losses(resumed) == losses(whole)
    assert [epoch.validation_mean_per_class is None for epoch in resumed.history] == [True, False, False]
    about = dict(name='tinyvit_5m_224', weights='pretrained', seed=0, say=lambda text: None)
    write_finetuned(tmp_path / 'old', resumed, small_model(), train, None, **about)
    assert read_results(tmp_path / 'old')['epochs'] == 3


@pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no such limits')
def test_a_full_disk_is_reported_and_the_run_resumes_from_what_is_there(tmp_path, digits):
    import resource

    train, limit = digits[0], resource.getrlimit(resource.RLIMIT_FSIZE)
    whole = fit(small_model(), train, PLAIN, tmp_path / 'whole')

    def fill(line):
        if line.startswith('Epoch 1'):
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))

    try:
        with pytest.raises(EvaluationError, match=r'\.pt cannot be written \(File too large\): make room and give'):
            fit(small_model(), train, PLAIN, tmp_path / 'full', say=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert len(read_state(tmp_path / 'full')['history']) == 1
    assert not list((tmp_path / 'full').glob('.*.part*'))
    assert fit(small_model(), train, PLAIN, tmp_path / 'full').history == whole.history


SCRIPT = """
import os, sys
import timm, torch
sys.path.insert(0, {tests!r})
from finetuning import PLAIN, fit, {model}
from tinyvit_zoo.data.datasets import load_dataset
torch.set_num_threads(1)
recipe = PLAIN.changed(
    epochs=6, drop_path={{'': {drop}}}, auto_augment='rand-m9-mstd0.5-inc1', freeze_batch_norm=True, lr={lr}
)
train, test = load_dataset('digits', 'train').subset(range(320)), load_dataset('digits', 'test').subset(range(50))
result = fit({model}(drop_path_rate={drop}), train, recipe, sys.argv[1], test=test, **eval(sys.argv[2]), say=print)
if os.environ.get('RANK', '0') == '0':  # else the lines of two processes may run into each other
    print('LOSSES', [e.loss for e in result.history], result.processes)
    print('SCORES', [e.validation_accuracy for e in result.history], result.test.accuracy)
"""


def command(folder, *launcher, drop=0.1, model='plain_vit', options='{}'):
    script = folder.parent / f'{folder.name}.py'
    script.write_text(
        SCRIPT.format(
            tests=str(Path(__file__).parent), drop=drop, model=model, lr=4e-3 if model == 'plain_vit' else 4e-4
        )
    )
    return [sys.executable, *launcher, str(script), str(folder), options]


def environment():
    paths = [str(Path(__file__).parents[1]), os.environ.get('PYTHONPATH', '')]
    # Without buffers, since a test waits for a line.
    unbuffered = dict(PYTHONUNBUFFERED='1', OMP_NUM_THREADS='1')
    return dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, paths)), **unbuffered)


def run_script(*args, **kwargs):
    done = subprocess.run(
        command(*args, **kwargs), env=environment(), capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        word: next(line for line in done.stdout.splitlines() if line.startswith(word)) for word in ('LOSSES', 'SCORES')
    }


@pytest.mark.slow
def test_kill_9_at_any_moment_and_resume_gives_the_same_losses(tmp_path):
    whole = run_script(tmp_path / 'whole')
    killed, rng = 0, np.random.default_rng(0)
    for _ in range(4):
        process = subprocess.Popen(
            command(tmp_path / 'killed'),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        next((line for line in process.stdout if line.startswith('Epoch')), None)
        time.sleep(rng.uniform(0, 0.6))
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert killed
    assert run_script(tmp_path / 'killed') == whole
    for name in ('state.pt', 'best.pt'):
        assert_same(*(torch.load(tmp_path / run / name, weights_only=True) for run in ('whole', 'killed')))


# --- processes, workers, accumulated steps


@pytest.mark.slow
@pytest.mark.parametrize('model', ['plain_vit', 'small_model'])
def test_two_processes_train_as_one_does(tmp_path, model):
    """TinyViT, too, where BatchNorm is frozen: else it takes its statistics over each process's part of a batch."""
    one = run_script(tmp_path / 'one', drop=0.0, model=model)
    launcher = ('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2')
    two = run_script(tmp_path / 'two', *launcher, drop=0.0, model=model)
    first, second = (json.loads(result['LOSSES'].removeprefix('LOSSES ').rpartition(' ')[0]) for result in (one, two))
    assert (one['LOSSES'][-1], two['LOSSES'][-1]) == ('1', '2')
    assert second == pytest.approx(first, rel=1e-5)  # sums are taken in another order
    assert two['SCORES'] == one['SCORES']
    weights = [torch.load(tmp_path / run / 'best.pt', weights_only=True) for run in ('one', 'two')]
    for key in weights[0]:
        torch.testing.assert_close(weights[1][key], weights[0][key], rtol=1e-3, atol=1e-4)


def test_accumulated_steps_train_tinyvit_as_one_batch_does_where_batch_norm_is_frozen(tmp_path, digits):
    """BatchNorm that learns takes its statistics over the images at once, of processes as of accumulated steps."""
    train, _ = digits
    frozen, learning = (
        [
            fit(small_model(), train, recipe, tmp_path / f'{recipe.freeze_batch_norm}{micro}', micro_batch=micro)
            for micro in (32, 8)
        ]
        for recipe in (PLAIN.changed(epochs=2, freeze_batch_norm=freeze) for freeze in (True, False))
    )
    assert losses(frozen[1]) == pytest.approx(losses(frozen[0]), rel=1e-5)
    assert losses(learning[1]) != pytest.approx(losses(learning[0]), rel=1e-5)


def test_accumulated_steps_train_as_one_batch_does(tmp_path, digits):
    train, _ = digits
    whole, parts = (
        fit(plain_vit(), train, PLAIN, tmp_path / str(micro), micro_batch=micro, held_out=0) for micro in (32, 8)
    )
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)


def test_bfloat16_learns_as_float32_does(tmp_path, digits):
    train, test = digits
    models = [plain_vit() for _ in range(3)]
    results = [
        fit(model, train, PLAIN, tmp_path / f'{i}', test=test, held_out=0, precision=p)
        for i, (model, p) in enumerate(zip(models, ('no', 'bf16', 'no'), strict=True))
    ]
    assert [r.precision for r in results] == ['no', 'bf16', 'no']
    assert losses(results[0]) == losses(results[2])
    assert losses(results[1]) != losses(results[0])
    assert losses(results[1]) == pytest.approx(losses(results[0]), rel=0.02)
    weights = torch.load(tmp_path / '1' / 'best.pt', weights_only=True)
    assert {v.dtype for v in weights.values()} == {torch.float32}
    # The model that was trained in bfloat16 computes in float32 again.
    again = plain_vit()
    again.load_state_dict(weights)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(models[1](images), again.eval()(images))


def test_workers_change_nothing(tmp_path, digits):
    train, _ = digits
    recipe = PLAIN.changed(epochs=1, auto_augment='rand-m9-mstd0.5-inc1')
    results = [
        fit(small_model(), train, recipe, tmp_path / str(workers), workers=workers, held_out=0) for workers in (0, 2)
    ]
    assert losses(results[0]) == losses(results[1])


def test_random_numbers_of_an_image_are_those_of_its_draw(digits):
    train, _ = digits
    transform = create_transform(32, is_training=True, auto_augment='rand-m9-mstd0.5-inc1', re_prob=0.5)
    seeded = SeededDataset(train.with_transform(transform))
    draws = list(RepeatedAugSampler(len(train), 32, 1, seed=3))
    forwards = {draw: seeded[draw][0] for draw in draws[:40]}
    state = np.random.get_state()[1].copy(), torch.get_rng_state()
    for draw in reversed(draws[:40]):
        assert torch.equal(seeded[draw][0], forwards[draw])
    assert np.array_equal(np.random.get_state()[1], state[0])
    assert torch.equal(torch.get_rng_state(), state[1])
    loader = DataLoader(seeded, batch_size=8, sampler=draws[:40], num_workers=2)
    assert torch.equal(torch.cat([images for images, _ in loader]), torch.stack(list(forwards.values())))


def test_an_epoch_is_a_new_order_of_all_images_and_new_seeds():
    draws = RepeatedAugSampler(images=100, batch_size=10, repeats=1, seed=0)
    first = list(draws)
    assert list(draws) == first
    assert sorted(i for i, _ in first) == list(range(100))
    assert len({seed for _, seed in first}) == 100
    draws.set_epoch(1)
    assert not set(first) & set(draws)
    assert [i for i, _ in first] != [i for i, _ in draws]


def test_repeated_augmentation_draws_an_image_several_times_in_one_batch():
    draws = list(RepeatedAugSampler(images=100, batch_size=30, repeats=3, seed=0))
    assert len(draws) == 90
    images = [i for i, _ in draws]
    assert len(set(images)) == 30
    assert all(len(set(images[at : at + 3])) == 1 for at in range(0, 90, 3))
    assert len({seed for _, seed in draws}) == 90


# --- states that are not resumed


def test_another_run_s_state_is_refused_by_what_differs(tmp_path, digits):
    train, _ = digits
    fit(small_model(), train, PLAIN.changed(epochs=1), tmp_path)
    state = (tmp_path / 'state.pt').read_bytes()
    for change, differs in (
        (dict(recipe=PLAIN.changed(epochs=2)), 'recipe: epochs'),
        (dict(recipe=PLAIN.changed(epochs=1), seed=1), 'seed'),
        (dict(recipe=PLAIN.changed(epochs=1), data=train.subset(range(150))), 'training images'),
        (dict(recipe=PLAIN.changed(epochs=1), model=small_model(drop_path_rate=0.1, depths=(1, 1, 1, 1))), 'weights'),
    ):
        options = {'model': small_model(), 'data': train, **change}
        with pytest.raises(
            EvaluationError, match=f'(?s)another run, which differs in: .*{differs}.*Choose another --output'
        ):
            fit(output=tmp_path, **options)
    assert (tmp_path / 'state.pt').read_bytes() == state


def test_other_images_classes_or_sizes_of_the_same_labels_are_another_run(tmp_path, digits):
    """Their labels and initial weights are the same: a ConvNet takes any size."""
    train, _ = digits

    def model(side):
        torch.manual_seed(0)
        model = timm.create_model('resnet10t', num_classes=10)
        model.pretrained_cfg = {**model.pretrained_cfg, 'input_size': (3, side, side)}
        return model

    recipe = PLAIN.changed(epochs=1)
    fit(model(32), train, recipe, tmp_path)
    with pytest.raises(EvaluationError, match=r'differs in: input\. Choose'):
        fit(model(64), train, recipe, tmp_path)
    swapped = np.arange(len(train))
    twins = np.flatnonzero(train.labels == 3)
    swapped[twins] = twins[::-1]
    renamed = copy.copy(train)
    renamed.classes = train.classes[::-1]
    for other in (train.subset(swapped), renamed):
        with pytest.raises(EvaluationError, match=r'differs in: training images, validation images\. Choose'):
            fit(model(32), other, recipe, tmp_path)


def test_a_second_run_into_a_folder_waits_a_little_and_is_refused(tmp_path, digits, monkeypatch):
    monkeypatch.setattr(run_state, 'PATIENCE', 0.0)
    with run_state.alone_in(tmp_path), pytest.raises(EvaluationError, match=r'Another run is writing to .*choose'):
        fit(small_model(), digits[0], PLAIN, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ['.lock']
    with run_state.alone_in(tmp_path):  # free again
        pass


def test_a_damaged_state_says_what_to_do(tmp_path, digits):
    train, _ = digits
    fit(small_model(), train, PLAIN.changed(epochs=1), tmp_path)
    (tmp_path / 'state.pt').write_bytes((tmp_path / 'state.pt').read_bytes()[:1000])
    with pytest.raises(EvaluationError, match=r'state.pt is missing or damaged: remove .*state.pt to start again'):
        fit(small_model(), train, PLAIN.changed(epochs=1), tmp_path)


def test_a_state_with_code_in_it_is_not_run(tmp_path, digits):
    train, _ = digits

    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / 'hostile',))

    torch.save(dict(identity={}, history=[Hostile()]), tmp_path / 'state.pt')
    with pytest.raises(EvaluationError, match='damaged'):
        fit(small_model(), train, PLAIN, tmp_path)
    assert not (tmp_path / 'hostile').exists()
