"""The linear probe: one pass for a grid, equal to solo runs; choice, resume, processes, bad input, command line."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import SMALL, refused
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.hashes import state_hash
from tinyvit_zoo.data.datasets import load_dataset
from tinyvit_zoo.downstream import linear_probe
from tinyvit_zoo.downstream.classifiers.linear_heads import LinearHeads, grid
from tinyvit_zoo.downstream.classifiers.probe_checkpoint import Checkpoint
from tinyvit_zoo.downstream.features.extraction import extract
from tinyvit_zoo.downstream.features.layers import feature_function
from tinyvit_zoo.downstream.features.one_pass import features_of_layers
from tinyvit_zoo.downstream.features.views import probe_transforms
from tinyvit_zoo.downstream.linear_probe import cached, live
from tinyvit_zoo.downstream.reports.probe import HEAD
from tinyvit_zoo.hub import save_folder

LRS = [0.1, 1.0, 10.0]


@pytest.fixture
def model():
    return timm.create_model('tinyvit_5m_224', img_size=32, **SMALL).eval()


@pytest.fixture(scope='module')
def digits():
    """80 training images, 30 held-out images, 40 test images."""
    train, test = load_dataset('digits', 'train'), load_dataset('digits', 'test')
    return train.subset(range(80)), train.subset(range(80, 110)), test.subset(range(40))


@pytest.fixture
def run(model, digits):
    return partial(live, model, *digits, lrs=LRS, epochs=2, batch_size=32, progress=False)


def solo_run(model, train, lr, epochs, batch_size, order, width):
    """The readable reference: crops, backbone, nn.Linear and torch's SGD in a loop, for one learning rate."""
    transform, _ = probe_transforms(model)
    head = nn.Linear(width, len(train.classes))
    with torch.no_grad():
        head.weight.copy_(torch.empty_like(head.weight).normal_(0, 0.01, generator=torch.Generator().manual_seed(0)))
        head.bias.zero_()
    optimizer = torch.optim.SGD(head.parameters(), lr=lr, momentum=0.9)
    views = extract(model, train, views=epochs, transform=transform, progress=False).values
    for epoch in range(epochs):
        optimizer.param_groups[0]['lr'] = lr * batch_size / 256 * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        for places in np.array_split(order(epoch), range(batch_size, len(train), batch_size)):
            optimizer.zero_grad()
            F.cross_entropy(head(views[epoch, places]), torch.from_numpy(train.labels[places])).backward()
            optimizer.step()
    return head


def same_result(a, b, exactly: bool = True) -> None:
    assert a.chosen == b.chosen
    np.testing.assert_allclose(a.history, b.history, atol=0 if exactly else 1e-9)
    np.testing.assert_allclose(a.weight, b.weight, rtol=0, atol=0 if exactly else 1e-5 * a.weight.std())
    assert np.array_equal(a.predictions, b.predictions)
    assert a.test == b.test


def test_the_chosen_head_of_a_sweep_equals_its_solo_run(model, digits, run):
    done = run()
    setting = done.heads[done.chosen].setting
    order = partial(linear_probe._order, 0, images=80)
    solo = solo_run(model, digits[0], setting.lr, 2, 32, lambda e: order(epoch=e), model.num_features)
    rms = solo.weight.detach().square().mean().sqrt()
    assert (torch.from_numpy(done.weight) - solo.weight).abs().max() / rms <= 1e-5


def test_each_head_of_a_sweep_equals_its_own_run(run):
    together = run(layers=['pooled', 'last:2'])
    assert len(together.heads) > 1
    for i, head in enumerate(together.heads):
        alone = run(lrs=[head.setting.lr], layers=[head.setting.layer])
        assert alone.heads[0] == replace(head, loss=alone.heads[0].loss)
        assert alone.heads[0].loss == pytest.approx(head.loss, rel=1e-5)
        if i == together.chosen:
            same_result(replace(together, chosen=0, history=together.history[:, i : i + 1]), alone, exactly=False)


@pytest.mark.parametrize('grid', [dict(lrs=[1.0]), dict(lrs=LRS, weight_decays=[0, 1e-3], layers=['pooled', 'last:2'])])
def test_each_image_passes_once_per_epoch_for_any_grid(model, run, grid):
    passed = []
    model.patch_embed.register_forward_hook(lambda module, args, out: passed.append(len(args[0])))
    done = run(**grid)
    assert sum(passed) == done.passes == 2 * 80 + 30 + 40


def test_the_backbone_is_unchanged(model, run):
    before = state_hash(model)
    model.train()
    run()
    assert state_hash(model) == before
    assert model.training  # the mode, too, is as it was
    trained = run()
    model.eval()
    same_result(trained, run())  # and it computed in eval mode


def test_a_backbone_that_changes_itself_is_caught(model, run):
    def write(*_):
        next(model.parameters()).data += 1e-3

    model.patch_embed.register_forward_pre_hook(write)
    refused(run, 'changed its own weights', kind=EvaluationError)


def test_live_epochs_equal_cached_views(model, digits, run):
    train, held_out, test = digits
    cropped, plain = probe_transforms(model)
    features = [
        {'pooled': extract(model, part, transform=t, views=v, progress=False).values}
        for part, t, v in ((train, cropped, 2), (held_out, plain, 1), (test, plain, 1))
    ]
    pairs = [x for part, f in zip(digits, features, strict=True) for x in (f, part.labels)]
    done = cached(*pairs, num_classes=10, lrs=LRS, epochs=2, batch_size=32, progress=False)
    same_result(done, run(), exactly=False)


def test_crops_and_order_depend_on_the_seed_alone(run):
    first = run()
    same_result(first, run(workers=2))
    same_result(first, run(chunk=7), exactly=False)
    assert not np.array_equal(first.weight, run(seed=1).weight)


# choice


def made_up(images=60, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % 3
    centres = np.random.default_rng(5).normal(size=(3, 8))
    return {'pooled': torch.from_numpy((centres[labels] + rng.normal(size=(images, 8))).astype('f'))}, labels


def probe_made_up(**kwargs):
    pairs = [x for seed in range(3) for x in made_up(seed=seed)]
    return cached(*pairs, **dict(dict(num_classes=3, lrs=LRS, epochs=5, batch_size=16, progress=False), **kwargs))


def test_last_and_best_epoch_are_distinguished():
    done = probe_made_up(lrs=[0.01, 1, 300])
    for i, head in enumerate(done.heads):
        assert head.last == done.history[-1, i]
        assert head.best == done.history[:, i].max() == done.history[head.best_epoch - 1, i]
    assert done.heads[done.chosen].last == done.history[-1].max()
    features, labels = made_up(seed=2)
    answers = (features['pooled'].numpy() @ done.weight.T + done.bias).argmax(1)
    assert done.test == pytest.approx(100 * (answers == labels).mean())


def test_the_test_images_pass_only_for_the_chosen_head(model, digits, run, monkeypatch):
    asked = []
    original = linear_probe.Backbone.features

    def watched(self, dataset, transform):
        asked.append((len(dataset), self.layers))
        return original(self, dataset, transform)

    monkeypatch.setattr(linear_probe.Backbone, 'features', watched)
    done = run(layers=['pooled', 'last:2'])
    assert asked == [(30, ['pooled', 'last:2']), (40, [done.heads[done.chosen].setting.layer])]


def test_a_diverged_head_is_reported_and_cannot_be_chosen():
    done = probe_made_up(lrs=[1e38, 0.1], weight_decays=[1e-3])
    assert [head.diverged for head in done.heads] == [True, False]
    assert done.chosen == 1
    assert math.isnan(done.heads[0].last)
    np.testing.assert_allclose(done.weight, probe_made_up(lrs=[0.1], weight_decays=[1e-3]).weight, rtol=1e-5)


def test_among_equally_accurate_heads_the_lowest_loss_is_chosen():
    done = probe_made_up(lrs=[1e-9, 1e-8, 1e-7], epochs=1)
    assert len({head.last for head in done.heads}) == 1
    assert done.chosen == 2


# resume


@pytest.mark.parametrize('epoch', [0, 1, 2])
def test_a_killed_run_resumes_to_the_same_result(run, tmp_path, monkeypatch, epoch):
    path, whole = tmp_path / 'probe.pt', run(epochs=3)
    original, seen = linear_probe.LinearHeads.score, []

    def killed(self, *args):
        seen.append(1)
        if len(seen) == epoch + 1:
            raise KeyboardInterrupt
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(linear_probe.LinearHeads, 'score', killed)
        with pytest.raises(KeyboardInterrupt):
            run(epochs=3, checkpoint=path)
    assert path.exists() == (epoch > 0)
    again = run(epochs=3, checkpoint=path)
    same_result(whole, again)
    assert again.passes == (3 - epoch) * 80 + 30 + 40
    same_result(whole, run(epochs=3, checkpoint=path))  # nothing left to train
    assert [p.name for p in tmp_path.iterdir()] == ['probe.pt']


@pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no such limits')
def test_a_full_disk_is_reported_and_the_checkpoint_before_is_kept(tmp_path):
    import resource

    heads = LinearHeads(grid([0.1], [0.0], ['pooled']), {'pooled': 5000}, 2, 0, torch.device('cpu'))
    checkpoint, limit = Checkpoint(tmp_path / 'probe.pt', {}), resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoint.save(heads, [torch.zeros(2, 1)])
    before = checkpoint.path.read_bytes()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
        refused(lambda: checkpoint.save(heads, [torch.ones(2, 1)]), 'File too large', 'make room', kind=EvaluationError)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert checkpoint.path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [checkpoint.path]


def test_the_checkpoint_of_another_run_or_a_damaged_one_is_refused(run, tmp_path):
    path = tmp_path / 'probe.pt'
    run(checkpoint=path)
    refused(lambda: run(checkpoint=path, seed=1), 'another model, data or settings', kind=EvaluationError)
    for content in (path.read_bytes()[:1000], b'', b'nothing of ours'):
        path.write_bytes(content)
        refused(lambda: run(checkpoint=path), 'not a checkpoint', kind=EvaluationError)


def test_the_checkpoint_of_other_features_or_labels_is_refused(tmp_path):
    path = tmp_path / 'probe.pt'
    pairs = [x for seed in range(3) for x in made_up(seed=seed)]
    probe = partial(cached, num_classes=3, lrs=LRS, epochs=2, batch_size=16, progress=False, checkpoint=path)
    probe(*pairs)
    probe(*pairs)
    for i in range(4):
        other = list(pairs)
        other[i] = pairs[i][::-1].copy() if i % 2 else {'pooled': pairs[i]['pooled'].flip(0)}
        refused(lambda o=other: probe(*o), 'another model, data or settings', kind=EvaluationError)


# bad input


def test_bad_input_is_one_clear_error_each(model, digits, run):
    train, held_out, test = digits
    refused(lambda: run(lrs=[1e38], weight_decays=[1.0]), 'diverged', 'smaller learning rates', kind=EvaluationError)
    refused(lambda: run(epochs=0), 'epoch', kind=EvaluationError)
    refused(lambda: run(layers=['last:99']), 'not 99', kind=EvaluationError)
    one = train.subset(np.flatnonzero(train.labels == 3))
    refused(lambda: live(model, one, held_out, test, lrs=LRS, progress=False), 'one class', kind=EvaluationError)
    other = load_dataset('textures', 'test')
    refused(lambda: live(model, train, held_out, other, lrs=LRS, progress=False), 'classes', kind=EvaluationError)
    refused(lambda: live(model, train, held_out, test.subset([]), lrs=LRS), 'no images', kind=EvaluationError)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    refused(run, 'not finite', 'digits[', kind=EvaluationError)


def test_bad_features_are_one_clear_error_each():
    features, labels = made_up()
    good = [features, labels] * 3
    bad = {'pooled': features['pooled'].clone().fill_(torch.inf)}
    for parts, word in (
        ([bad, *good[1:]], 'not finite'),
        ([*good[:2], {}, labels, *good[4:]], 'none'),
        ([*good[:4], {'pooled': features['pooled'][:, :3]}, labels], 'shape'),
        ([*good[:5], labels + 1], 'fit 3 classes'),
    ):
        refused(lambda p=parts: cached(*p, num_classes=3, lrs=LRS, progress=False), word, kind=EvaluationError)


# layers


@pytest.mark.parametrize(
    ('name', 'kwargs'),
    [('tinyvit_5m_224', dict(img_size=32)), ('vit_tiny_patch16_224', dict(img_size=32)), ('resnet10t', {})],
)
def test_layers_of_one_pass_equal_separate_passes(name, kwargs):
    backbone = timm.create_model(name, **kwargs).eval()
    passed = []
    next(backbone.children()).register_forward_hook(lambda *_: passed.append(1))
    layers, images = ['pooled', 'last:3', 'pre_logits', 'last:1'], torch.randn(2, 3, 32, 32)
    function = features_of_layers(backbone, layers)
    passed.clear()
    with torch.inference_mode():
        found = function(images)
        assert len(passed) == 1
        for layer, x in zip(layers, found, strict=True):
            assert torch.equal(x, feature_function(backbone, layer)(images))


# the command


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A small TinyViT for digits as `local-dir:` takes it, its weights random."""
    torch.manual_seed(0)
    small = timm.create_model('tinyvit_5m_224', img_size=32, **SMALL)
    return f'local-dir:{save_folder(small, tmp_path_factory.mktemp("models") / "small", tag="random")}'


@pytest.mark.parametrize(
    ('mode', 'more'),
    [
        pytest.param(
            'live',
            ['--epochs', 2, '--step-batch', 64, '--weight-decays', '0,1e-4', '--layers', 'pooled,last:2'],
            marks=pytest.mark.slow,
        ),
        ('cached', ['--epochs', 3, '--step-batch', 64, '--views', 2, '--cache', 'features']),
        ('ridge', []),
        ('logistic', ['--layers', 'pre_logits']),
    ],
)
def test_the_command_probes_digits_from_end_to_end(cli, folder, tmp_path, monkeypatch, mode, more):
    monkeypatch.chdir(tmp_path)
    command = ['probe', folder, '--data', 'digits', '--mode', mode, '--output', 'out', *more]
    code, out, err = cli(*command)
    assert (code, 'Traceback' in err) == (0, False), err
    results = json.loads((tmp_path / 'out' / 'results.json').read_text())
    assert f'{results["test_accuracy"]:.2f} %' in out
    assert results['test_accuracy'] > 20  # chance is 10
    assert results['mode'] == mode
    assert results['test_images'] == 450
    low, high = results['test_ci95']
    assert low < results['test_accuracy'] < high
    written = {path.name for path in (tmp_path / 'out').iterdir()}
    assert {
        'results.json',
        'grid.csv',
        'per_class.csv',
        'per_class.png',
        'confusion.png',
        'head.safetensors',
    } <= written
    if mode == 'logistic':
        assert results['converged']
    if mode == 'live':
        assert results['chosen']['layer'] in ('pooled', 'last:2')
        assert {'lr_wd_pooled.png', 'lr_wd_last_2.png', 'epochs.png', 'probe.pt'} <= written
        assert len((tmp_path / 'out' / 'grid.csv').read_text().splitlines()) == 1 + 2 * 2 * 13
    if mode in ('live', 'cached'):
        cli(*command)
        assert json.loads((tmp_path / 'out' / 'results.json').read_text())['test_accuracy'] == results['test_accuracy']
    width = load_file(tmp_path / 'out' / HEAD)['weight'].shape
    assert width[0] == 10


def test_the_command_refuses_what_it_cannot_do_in_one_sentence(cli, folder, tmp_path):
    one_class = tmp_path / 'one' / 'train' / 'cat'
    one_class.mkdir(parents=True)
    for i in range(3):
        Image.new('RGB', (32, 32), (i, 0, 0)).save(one_class / f'{i}.png')
    cases = [
        (['--data', tmp_path / 'nothing'], 1, ''),
        (['--data', tmp_path / 'one'], 1, ''),
        (['--data', 'digits', '--lrs', 'fast'], 2, 'numbers separated by commas'),
        (['--data', 'digits', '--lrs', '-1'], 1, 'learning rate is -1'),
        (['--data', 'digits', '--mode', 'ridge', '--layers', 'pooled,last:1'], 2, 'one layer'),
        (['--data', 'digits', '--layers', 'first'], 1, 'first'),
        (['--data', 'digits', '--output', one_class / '0.png'], 1, 'choose another --output'),
        (['--data', 'digits', '--output', one_class / '0.png' / 'out'], 1, 'choose another --output'),
    ]
    for arguments, expected, word in cases:
        code, out, err = cli('probe', folder, *arguments)
        assert (code, out) == (expected, ''), arguments
        assert err.count('\n') == 1, err
        assert word in err


def test_test_images_of_other_classes_are_refused(cli, folder, tmp_path):
    for split, names in (('train', 'ab'), ('test', 'abc')):
        for name in names:
            where = tmp_path / 'data' / split / name
            where.mkdir(parents=True)
            for i in range(3):
                Image.new('RGB', (32, 32), (i, 0, 0)).save(where / f'{i}.png')
    code, _, err = cli('probe', folder, '--data', tmp_path / 'data', '--epochs', 1)
    assert (code, err.count('\n')) == (1, 1)
    assert 'classes' in err


# processes

SCRIPT = """
import sys, pathlib, torch, timm, numpy as np
import tinyvit_zoo
from tinyvit_zoo.data.datasets import load_dataset
from tinyvit_zoo.downstream.linear_probe import live
from tinyvit_zoo.common.processes import Processes
torch.set_num_threads(1)
torch.manual_seed(0)
small = dict(embed_dims=(16, 32, 32, 64), num_heads=(1, 1, 2, 2), depths=(1, 1, 2, 1))
model = timm.create_model('tinyvit_5m_224', img_size=32, **small)
train, test = load_dataset('digits', 'train'), load_dataset('digits', 'test')
done = live(
    model, train.subset(range(97)), train.subset(range(97, 130)), test.subset(range(40)), lrs=[.1, 1, 10],
    layers=['pooled', 'last:2'], epochs=int(sys.argv[3]), batch_size=32, checkpoint=sys.argv[2], progress=False,
)
if Processes().rank == 0:
    np.savez(sys.argv[1], weight=done.weight, history=done.history, test=done.test, passes=done.passes)
"""


def start(tmp_path: Path, name: str, epochs: int, launcher: list[str]) -> subprocess.Popen:
    script = tmp_path / 'script.py'
    script.write_text(SCRIPT)
    command = [sys.executable, *launcher, str(script), str(tmp_path / f'{name}.npz'), str(tmp_path / f'{name}.pt')]
    return subprocess.Popen([*command, str(epochs)], cwd=tmp_path, env=dict(os.environ, OMP_NUM_THREADS='1'))


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(tmp_path):
    torchrun = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    assert start(tmp_path, 'one', 2, []).wait(500) == 0
    assert start(tmp_path, 'two', 2, torchrun).wait(500) == 0
    one, two = (np.load(tmp_path / f'{name}.npz') for name in ('one', 'two'))
    assert abs(one['weight'] - two['weight']).max() <= 1e-5 * np.sqrt(np.square(one['weight']).mean())
    np.testing.assert_array_equal(one['history'], two['history'])
    assert one['test'] == two['test']
    assert one['passes'] == two['passes'] == 2 * 97 + 33 + 40


@pytest.mark.slow
def test_a_run_killed_repeatedly_resumes_to_the_same_weights(tmp_path):
    assert start(tmp_path, 'whole', 3, []).wait(500) == 0
    path, killed = tmp_path / 'torn.pt', 0
    while not (tmp_path / 'torn.npz').exists():
        before = path.stat().st_mtime_ns if path.exists() else 0
        process = start(tmp_path, 'torn', 3, [])
        while process.poll() is None:
            if path.exists() and path.stat().st_mtime_ns != before:  # in the middle of the next epoch, or at its end
                time.sleep(0.03 * killed)
                process.kill()
                killed += process.wait() == -signal.SIGKILL
            time.sleep(0.01)
        assert process.returncode in (0, -signal.SIGKILL)
    assert killed
    whole, torn = (np.load(tmp_path / f'{name}.npz') for name in ('whole', 'torn'))
    np.testing.assert_array_equal(whole['weight'], torn['weight'])
    np.testing.assert_array_equal(whole['history'], torn['history'])
