"""Training from soft labels: by hand, resumed, with true labels, on two processes; the commands of `distill`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import refused

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data import load_dataset
from tinyvit_zoo.data.replay import ModelInput, ReplayedViews, ViewSpec
from tinyvit_zoo.distill import sparse_cross_entropy
from tinyvit_zoo.soft_labels import Store, Teacher, save
from tinyvit_zoo.training.distillation import distil_from_store
from tinyvit_zoo.training.loop import TrainingLoop
from tinyvit_zoo.training.recipes import DISTILLATION, RECIPES
from tinyvit_zoo.training.soft_label_views import SoftLabelViews, ViewSampler

IMAGES, BATCH = 48, 16
RECIPE = DISTILLATION['tinyvit_22k_distill'].changed(
    epochs=2, warmup_epochs=1, batch_size=BATCH, lr=0.02, lr_batch=BATCH
)
SPEC = ViewSpec.from_timm((32, 32), auto_augment='rand-m9-mstd0.5-inc1', re_prob=0.25)


def small(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return timm.create_model('test_vit', num_classes=10, img_size=32)


@pytest.fixture(scope='module')
def digits():
    return load_dataset('digits', 'train').subset(range(IMAGES))


@pytest.fixture(scope='module')
def teacher() -> Teacher:
    model = small(seed=9)
    torch.nn.init.normal_(model.head.weight)
    return Teacher.of_timm(model, 'a small ViT')


@pytest.fixture(scope='module')
def store(teacher, digits, tmp_path_factory) -> Store:
    return save(teacher, digits, SPEC, tmp_path_factory.mktemp('labels') / 's', range(2), k=4, shard_size=20)


def trained(digits, store, folder, recipe=RECIPE, student=None, **settings):
    student = student or small()
    result = distil_from_store(
        student, digits, store, recipe, folder, device=torch.device('cpu'), say=lambda text: None, **settings
    )
    return student, result


@pytest.mark.parametrize('hard_weight', [0.0, 0.3])
def test_the_updates_are_those_of_a_plain_loop(hard_weight, digits, store, teacher, tmp_path):
    student, result = trained(digits, store, tmp_path, hard_weight=hard_weight)
    plain, losses = small(), []
    decayed = [p for p in plain.parameters() if p.ndim > 1]
    others = [p for p in plain.parameters() if p.ndim <= 1]
    keys = set(plain.no_weight_decay())
    named = dict(plain.named_parameters())
    others += [named[k] for k in keys if k in named and named[k].ndim > 1]
    decayed = [p for p in decayed if not any(p is o for o in others)]
    adamw = torch.optim.AdamW([dict(params=decayed, weight_decay=0.01), dict(params=others, weight_decay=0.0)])
    rates = RECIPE.rates()
    updates = IMAGES // BATCH
    step = 0
    for epoch in range(2):
        sampler = ViewSampler(IMAGES, BATCH, 0, (0, 1))
        sampler.set_epoch(epoch)
        places = list(sampler)
        for start in range(0, IMAGES, BATCH):
            views = ReplayedViews(digits, SPEC, 0, mean=teacher.mean, std=teacher.std)  # also the student's
            batch = [views[place] for place in places[start : start + BATCH]]
            images, labels = torch.stack([v.image for v in batch]), torch.tensor([v.label for v in batch])
            stored = store.epoch(epoch).read([place.position for place in places[start : start + BATCH]])
            ids, p = torch.from_numpy(stored.ids.astype(np.int64)), torch.from_numpy(stored.probabilities.astype('f4'))
            plain.train()
            logits = plain(images)
            loss = (1 - hard_weight) * sparse_cross_entropy(logits, ids, p) + hard_weight * F.cross_entropy(
                logits, labels
            )
            for group in adamw.param_groups:
                group['lr'] = _rate(step, updates, rates)
            adamw.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), RECIPE.clip_grad)
            adamw.step()
            step += 1
            losses.append(loss.item())
    means = [np.mean(losses[:updates]), np.mean(losses[updates:])]
    assert [epoch['loss'] for epoch in result.history] == pytest.approx(means, abs=1e-6)
    assert ('hard' in result.history[0]) == bool(hard_weight)
    far = max((a - b).abs().max().item() for a, b in zip(student.parameters(), plain.parameters(), strict=True))
    assert far < 1e-6


def _rate(step: int, updates: int, rates) -> float:
    warmup, total = updates, 2 * updates
    if step < warmup:
        return rates.warmup_lr + step * (rates.lr - rates.warmup_lr) / warmup
    return rates.min_lr + 0.5 * (rates.lr - rates.min_lr) * (1 + np.cos(np.pi * step / total))


def test_a_killed_training_goes_on_with_the_same_losses(digits, store, tmp_path, monkeypatch):
    whole, expected = trained(digits, store, tmp_path / 'whole')
    save_state, done = TrainingLoop._save, []

    def killed(self, *args):
        save_state(self, *args)
        done.append(1)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, '_save', killed)
        with pytest.raises(KeyboardInterrupt):
            trained(digits, store, tmp_path / 'cut')
    assert len(done) == 1
    resumed, result = trained(digits, store, tmp_path / 'cut')
    assert result.history == expected.history
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


def test_a_training_killed_within_an_epoch_goes_on_with_other_images_at_once(digits, store, tmp_path, monkeypatch):
    """To rounding: this student draws no random numbers and has no BatchNorm."""
    whole, expected = trained(digits, store, tmp_path / 'whole')
    step, steps = TrainingLoop._step, []

    def killed(self, *args):
        if len(steps) == 4:
            raise KeyboardInterrupt
        steps.append(1)
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, '_step', killed)
        with pytest.raises(KeyboardInterrupt):
            trained(digits, store, tmp_path / 'cut', save_minutes=0)
    said = []
    resumed = small()
    result = distil_from_store(
        resumed, digits, store, RECIPE, tmp_path / 'cut', device=torch.device('cpu'), say=said.append, micro_batch=4
    )
    assert 'epoch 1 of 2, update 1 of the next' in said[0]
    assert [r['loss'] for r in result.history] == pytest.approx([r['loss'] for r in expected.history], abs=1e-5)
    far = max((a - b).abs().max().item() for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))
    assert far < 1e-4


def test_workers_change_nothing(digits, store, tmp_path):
    _, one = trained(digits, store, tmp_path / 'one')
    _, two = trained(digits, store, tmp_path / 'two', workers=2)
    assert one.history == two.history


def test_stored_epochs_are_taken_in_turn_only_where_that_is_wanted(digits, store, tmp_path):
    longer = RECIPE.changed(epochs=5)
    refused(
        lambda: trained(digits, store, tmp_path, longer), '2 whole epochs', '5', '--reuse cycle', kind=EvaluationError
    )
    sampler = ViewSampler(IMAGES, BATCH, 0, (0, 1))
    seen, orders = [], []
    for epoch in range(5):
        sampler.set_epoch(epoch)
        places = list(sampler)
        seen.append({place.epoch for place in places})
        orders.append([place.position for place in places])
    assert seen == [{0}, {1}, {0}, {1}, {0}]
    assert len({tuple(order) for order in orders}) == 5
    assert all(sorted(order) == list(range(IMAGES)) for order in orders)
    _, result = trained(digits, store, tmp_path, longer, reuse=True)
    assert len(result.history) == 5


def test_a_student_of_another_size_takes_the_same_views(digits, store):
    views = SoftLabelViews(digits, store, ModelInput((48, 48), (0.5,) * 3, (0.5,) * 3))
    image, label, ids, p = views[ViewSampler(IMAGES, BATCH, 0, (1,)).__iter__().__next__()]
    assert image.shape == (3, 48, 48)
    assert (ids.dtype, ids.shape, p.dtype) == (np.int16, (4,), np.float16)
    assert 0 <= label < 10


def test_classes_beyond_those_of_signed_numbers_arrive_as_they_are():
    from tinyvit_zoo.training.tasks.tinyvit import widened

    for dtype, signed in ((np.uint16, np.int16), (np.uint32, np.int32)):
        ids = np.array([[0, 40_000, np.iinfo(dtype).max]], dtype)
        assert widened(torch.from_numpy(ids.view(signed))).tolist() == ids.tolist()


def test_a_view_that_the_teacher_did_not_see_stops_the_training(digits, store, tmp_path, monkeypatch):
    make = ReplayedViews.__getitems__
    monkeypatch.setattr(
        ReplayedViews, '__getitems__',
        lambda self, places: [v._replace(crc32=v.crc32 ^ 1 if v.crc32 >= 0 else -1) for v in make(self, places)],
    )  # fmt: skip
    with pytest.raises(EvaluationError, match=r'digits\[0\].*not the one that the teacher saw'):
        trained(digits, store, tmp_path)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda d, s: dict(student=timm.create_model('test_vit', num_classes=7, img_size=32)), ('7 classes', '10')),
        (lambda d, s: dict(digits=d.subset(range(32))), ('images 48', '32')),
        (lambda d, s: dict(recipe=RECIPE.changed(batch_size=64)), ('48 images', '64', '--batch-size')),
        (lambda d, s: dict(hard_weight=2.0), ('from 0 to 1', '2')),
    ],
)
def test_what_does_not_fit_is_named_before_the_first_epoch(change, words, digits, store, tmp_path):
    arguments = dict(digits=digits, store=store, folder=tmp_path) | change(digits, store)
    refused(lambda: trained(**arguments), *words, kind=EvaluationError)
    assert not (tmp_path / 'state.pt').exists()


def test_another_store_does_not_continue_a_training(digits, store, teacher, tmp_path):
    trained(digits, store, tmp_path / 'run')
    other = save(teacher, digits, SPEC, tmp_path / 's', range(2), k=3)
    with pytest.raises(EvaluationError, match='soft labels'):
        trained(digits, other, tmp_path / 'run')


def test_another_image_size_does_not_continue_a_training(digits, store, tmp_path):
    """The weights of a ConvNet are the same for any."""

    def student(size: int) -> torch.nn.Module:
        torch.manual_seed(0)
        model = timm.create_model('test_resnet', num_classes=10)
        model.pretrained_cfg = model.pretrained_cfg | dict(input_size=(3, size, size))
        return model

    one = RECIPE.changed(epochs=1, warmup_epochs=0)
    trained(digits, store, tmp_path, one, student(32))
    refused(lambda: trained(digits, store, tmp_path, one, student(64)), 'differs in: input.', kind=EvaluationError)


def test_a_damaged_file_of_a_later_epoch_is_named_before_the_first(digits, store, tmp_path):
    shutil.copytree(store.place.folder, tmp_path / 's')
    file = tmp_path / 's/epoch-0001/00001.safetensors'
    file.write_bytes(file.read_bytes()[:-1])
    refused(lambda: trained(digits, Store.open(tmp_path / 's'), tmp_path / 'run'), str(file), kind=EvaluationError)
    assert not (tmp_path / 'run').exists()


def test_the_papers_recipe_has_the_papers_numbers():
    recipe = DISTILLATION['tinyvit_22k_distill']
    assert (recipe.epochs, recipe.warmup_epochs, recipe.batch_size, recipe.weight_decay) == (90, 5, 4096, 0.01)
    assert (recipe.rates().lr, recipe.rates().min_lr) == pytest.approx((2e-3, 4e-5))
    assert [recipe.drop_path_of(f'tinyvit_{m}m_224') for m in (5, 11, 21)] == [0.0, 0.0, 0.1]
    assert (recipe.mixup, recipe.cutmix, recipe.label_smoothing, recipe.clip_grad) == (0, 0, 0, 5)
    assert not DISTILLATION.keys() & RECIPES.keys()  # `finetune` does not offer it


# commands


def ran(result: tuple[int, str, str]) -> str:
    """What a command printed, which must have ended well."""
    code, out, err = result
    assert code == 0, err
    return out


@pytest.fixture(scope='module')
def folders(tmp_path_factory) -> Path:
    """A data set of class folders and a teacher's weights for it."""
    root = tmp_path_factory.mktemp('chain')
    data = load_dataset('digits', 'train')
    for i in range(60):
        folder = root / 'data' / ('train' if i < 48 else 'val') / f'digit{data.labels[i]}'
        folder.mkdir(parents=True, exist_ok=True)
        data.image(i).save(folder / f'{i}.png')
    torch.save(small(seed=9).state_dict(), root / 'teacher.pth')
    return root


def test_the_commands_save_check_show_and_train(folders, cli, tmp_path):
    data, teacher = ('-d', str(folders / 'data')), ('test_vit', '--weights', str(folders / 'teacher.pth'))
    labels = ('--store', str(tmp_path / 's'), '--epochs', '0:2', '-k', '4')
    tried = ran(cli('distill', 'save', *teacher, *data, *labels, '--dry-run', '--device', 'cpu'))
    assert '48 images x 2 epochs = 96 views' in tried
    assert not (tmp_path / 's').exists()
    assert 'epochs 0 to 1 of 48 views' in ran(cli('distill', 'save', *teacher, *data, *labels, '--device', 'cpu'))
    checked = ran(
        cli('distill', 'check', str(tmp_path / 's'), *data, '--against', *teacher, '--share', '0.5', '--device', 'cpu')
    )
    assert 'all 96 of epochs 0 to 1 are whole' in checked
    assert 'Teacher: 48 views' in checked
    assert 'all 48 of epoch 1 are whole' in ran(cli('distill', 'check', str(tmp_path / 's'), *data, '--epochs', '1'))
    facts = json.loads(ran(cli('distill', 'info', str(tmp_path / 's'), '--json')))
    assert (facts['epochs'], facts['bytes_a_record'], facts['teacher']) == ([0, 1], 20, 'test_vit')
    shown = ran(cli('distill', 'info', str(tmp_path / 's'), '--view', '1:7', *data, '--image', str(tmp_path / 'v.png')))
    assert 'crop:' in shown
    assert (tmp_path / 'v.png').is_file()
    run = ('-d', str(folders / 'data'), '--store', str(tmp_path / 's'), '-o', str(tmp_path / 'run'), '--device', 'cpu')
    out = ran(cli('distill', 'train', 'test_vit', '--random', *run, '--epochs', '2', '--batch-size', '16'))
    assert 'Epoch 2/2' in out
    assert {p.name for p in (tmp_path / 'run').iterdir()} >= {'results.json', 'history.csv', 'loss.png', 'model'}
    results = json.loads((tmp_path / 'run' / 'results.json').read_text())
    assert results['soft_labels']['teacher'] == 'test_vit'
    assert results['soft_labels']['epochs'] == [0, 1]
    model = timm.create_model(f'local-dir:{tmp_path / "run" / "model"}', pretrained=True)
    assert model.num_classes == 10


def test_what_cannot_be_shown_or_checked_is_one_sentence(folders, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, teacher = ('-d', str(folders / 'data')), ('test_vit', '--weights', str(folders / 'teacher.pth'))
    ran(cli('distill', 'save', *teacher, *data, '--store', 's', '--epochs', '0', '-k', '4', '--device', 'cpu'))
    view = ('distill', 'info', 's', *data, '--view')
    for code, words, message in (
        (1, (*view, '1:0'), 'no whole epoch 1, it has epoch 0'),
        (1, (*view, '0:0', '--image', 'view.xyz'), 'view.xyz cannot be written'),
        (1, (*view, '0:0', '--image', 's/store.json/view.png'), 'view.png cannot be written'),
        (2, ('distill', 'info', 's', '--image', 'view.png'), '--view'),
        (1, ('distill', 'save', *teacher, *data, '--store', 'memory://s', '--epochs', '0'), 'name a folder'),
    ):
        found, out, err = cli(*words)
        assert (found, out, message in err) == (code, '', True), err
    (tmp_path / 's/epoch-0000/epoch.json').unlink()
    code, out, err = cli('distill', 'check', 's', *data)
    assert (code, out, 'no whole epoch yet' in err) == (1, '', True)
    assert {p.name for p in tmp_path.iterdir()} == {'s'}


def test_a_teacher_that_says_something_else_ends_check_with_an_error(folders, cli, tmp_path):
    data, weights = ('-d', str(folders / 'data')), str(folders / 'teacher.pth')
    store = str(tmp_path / 's')
    cli('distill', 'save', 'test_vit', '--weights', weights, *data, '--store', store, '--epochs', '0', '-k', '4')
    torch.save(small(seed=5).state_dict(), tmp_path / 'other.pth')
    other = ('--weights', tmp_path / 'other.pth')
    code, _, err = cli('distill', 'check', store, *data, '--against', 'test_vit', *other)
    assert (code, 'teacher sha256' in err) == (1, True)
    code, _, err = cli('distill', 'check', store, *data, '--share', '0')
    assert (code, 'above 0' in err) == (1, True)


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (('info', 'nowhere'), 'holds no soft labels'),
        (('train', 'test_vit', '--random', '-d', 'digits', '--store', 'nowhere', '-o', 'run'), 'holds no soft labels'),
        (('convert', 'nowhere', 'out'), 'logits_top100_epoch0'),
    ],
)
def test_places_without_soft_labels_are_one_sentence(words, message, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = cli('distill', *words)
    assert code == 1
    assert message in err
    assert err.count('\n') == 1


@pytest.mark.parametrize('text', ['x', '3:3', '5:2', '-1', '1,2'])
def test_epochs_that_are_none_are_a_usage_error(text, cli):
    code, _, err = cli('distill', 'save', 'test_vit', '-d', 'digits', '--store', 's', f'--epochs={text}')
    assert code == 2
    assert '0:10' in err


def test_dumps_of_the_released_code_are_converted_by_a_command(cli, tmp_path):
    golden = Path(__file__).parent / 'golden' / 'tinyvit_logits_sample'
    out = ran(cli('distill', 'convert', str(golden), str(tmp_path / 's'), '--num-classes', '32768'))
    assert 'epoch 3 of 3 records' in out
    assert Store.open(tmp_path / 's').epoch(3).seeds([0]).tolist() == [123456789]


@pytest.mark.slow
def test_two_processes_train_as_one_does_without_drop_path(folders, tmp_path):
    """A plain ViT: BatchNorm would take its statistics over each process's part of the batch."""
    program = [sys.executable, '-m']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(Path(__file__).parents[1])}
    data = ['-d', str(folders / 'data')]

    def start(*words: str, processes: int = 1) -> None:
        launcher = (
            ['torch.distributed.run', '--standalone', f'--nproc-per-node={processes}', '-m'] if processes > 1 else []
        )
        command = [*program, *launcher, 'tinyvit_zoo.cli', 'distill', *words]
        subprocess.run(command, env=environment, cwd=tmp_path, check=True, timeout=500)

    weights = ['--weights', str(folders / 'teacher.pth')]
    start('save', 'test_vit', *weights, *data, '--store', 's', '--epochs', '0:2', '-k', '4', '--device', 'cpu')
    common = [
        'train',
        'test_vit',
        '--random',
        *data,
        '--store',
        's',
        '--epochs',
        '2',
        '--batch-size',
        '16',
        '--device',
        'cpu',
    ]
    start(*common, '-o', 'one')
    start(*common, '-o', 'two', processes=2)
    one, two = (torch.load(tmp_path / name / 'best.pt', weights_only=True) for name in ('one', 'two'))
    assert max((one[k] - two[k]).abs().max().item() for k in one) < 1e-5
    shutil.rmtree(tmp_path / 'one')
