"""A student learns a teacher's features: loss, maps and views by hand, updates as in a plain loop, and the command."""

import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import refused, small_of
from torch import nn

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data import load_dataset
from tinyvit_zoo.data.replay import ModelInput, Place, ReplayedViews, ViewSpec
from tinyvit_zoo.distill.feature_targets import feature_loss
from tinyvit_zoo.training import distil_features
from tinyvit_zoo.training.feature_readers import Features
from tinyvit_zoo.training.feature_teacher import FeatureTeacher
from tinyvit_zoo.training.feature_views import FeatureViews
from tinyvit_zoo.training.features import plan_features
from tinyvit_zoo.training.ingredients import create_optimizer, create_scheduler
from tinyvit_zoo.training.recipes.features import FEATURES
from tinyvit_zoo.training.run_state import read_weights
from tinyvit_zoo.training.soft_label_views import ViewSampler
from tinyvit_zoo.training.tasks.features import FeatureDistillation, MappedStudent

IMAGES, BATCH = 48, 16
UPDATES = IMAGES // BATCH
RECIPE = FEATURES.changed(epochs=2, warmup_epochs=1, batch_size=BATCH, lr=1e-3, lr_batch=BATCH)
INPUT = ModelInput((32, 32), (0.5,) * 3, (0.5,) * 3)


def vit(seed: int = 0, size: int = 32, classes: int = 0, **arguments) -> nn.Module:
    """A ViT of two blocks."""
    torch.manual_seed(seed)
    arguments = dict(depth=2, embed_dim=32, num_heads=2, patch_size=8) | arguments
    return timm.create_model('vit_tiny_patch16_224', img_size=size, num_classes=classes, **arguments)


def taught_by(size: int = 32, **arguments) -> FeatureTeacher:
    return FeatureTeacher.of_timm(vit(9, size, embed_dim=48, **arguments), 'a small ViT')


@pytest.fixture(scope='module')
def digits():
    return load_dataset('digits', 'train').subset(range(IMAGES))


def trained(digits, folder, student=None, teacher=None, recipe=RECIPE, **settings):
    common = dict(device=torch.device('cpu'), say=lambda text: None)
    return distil_features(student or vit(), teacher or taught_by(), digits, folder, recipe=recipe, **common | settings)


# loss and maps


@pytest.mark.parametrize('kind', ['smooth_l1', 'cosine'])
def test_the_loss_and_its_gradient_are_those_of_plain_lines(kind):
    torch.manual_seed(0)
    student = (4 * torch.randn(5, 3, 7, dtype=torch.float64)).requires_grad_()
    teacher = (3 + torch.randn(5, 3, 7, dtype=torch.float64)).requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for s, t in zip(student.flatten(0, 1), teacher.detach().flatten(0, 1), strict=True):
        if kind == 'cosine':
            total = total + (1 - s @ t / (s @ s).sqrt() / (t @ t).sqrt()) / 15
            continue
        far = (s - (t - t.mean()) / (t.var(correction=0) + 1e-5).sqrt()).abs()
        total = total + torch.where(far < 2, far**2 / 4, far - 1).sum() / 105
    loss = feature_loss(student, teacher, kind)
    torch.testing.assert_close(loss, total, atol=1e-12, rtol=0)
    (expected,) = torch.autograd.grad(total, student)
    loss.backward()
    torch.testing.assert_close(student.grad, expected, atol=1e-12, rtol=0)
    assert teacher.grad is None


def test_half_precision_is_compared_in_single_precision():
    student, teacher = torch.randn(4, 8).bfloat16(), torch.randn(4, 8).bfloat16()
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(feature_loss(student, teacher), feature_loss(student.float(), teacher.float()))


def test_features_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match='of the teacher'):
        feature_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match='smooth_l1 or cosine'):
        feature_loss(torch.zeros(2, 3), torch.zeros(2, 3), 'l2')


@pytest.mark.parametrize('grid', [(5, 7), (2, 3), (4, 4)], ids=['more places', 'fewer places', 'as many'])
def test_maps_are_linear_and_the_students_grid_becomes_the_teachers(grid):
    torch.manual_seed(0)
    found = Features(torch.randn(2, 6), torch.randn(2, 6, 4, 4))
    module = MappedStudent(
        nn.Identity(), lambda model, images: found, found, Features(torch.ones(1, 9), torch.ones(1, 3, 1, 1))
    )
    pooled, dense = module(found.pooled, grid)
    assert torch.equal(pooled, found.pooled @ module.pooled_map.weight.T + module.pooled_map.bias)
    resized = found.dense
    if grid != (4, 4):
        resized = F.interpolate(found.dense, grid, mode='bilinear', antialias=grid < (4, 4))
    expected = torch.einsum('bchw,dc->bdhw', resized, module.dense_map.weight) + module.dense_map.bias[:, None, None]
    torch.testing.assert_close(dense, expected)


@pytest.mark.parametrize('second', [INPUT, INPUT._replace(std=(0.2,) * 3), INPUT._replace(size=(48, 40))], ids=str)
def test_student_and_teacher_see_one_view_each_in_its_own_way(second, digits):
    spec, places = ViewSpec((48, 40), color_jitter=None), [Place(1, 5), Place(0, 5)]
    items = FeatureViews(digits, spec, 3, INPUT, second).__getitems__(places)
    models = (INPUT,) if second == INPUT else (INPUT, second)  # one tensor for both where they take images alike
    alone = [ReplayedViews(digits, spec, 3, size=model.size, mean=model.mean, std=model.std) for model in models]
    assert [len(item) for item in items] == [len(models)] * 2
    expected = [views[place].image for place in places for views in alone]
    assert all(map(torch.equal, [image for item in items for image in item], expected))


# training


@pytest.mark.parametrize(('size', 'loss', 'weight'), [(48, 'smooth_l1', 0.3), (32, 'cosine', 0.5)])
def test_the_updates_are_those_of_a_plain_loop(size, loss, weight, digits, tmp_path):
    teacher, student = taught_by(size), vit()
    result = trained(digits, tmp_path, student, teacher, loss=loss, dense_weight=weight)
    plain = vit()
    torch.manual_seed(0)
    maps = nn.ModuleList([nn.Linear(32, 48), nn.Linear(32, 48)])
    named = [*plain.named_parameters(), *maps.named_parameters()]
    decays = [name not in plain.no_weight_decay() and p.ndim > 1 for name, p in named]
    groups = [dict(params=[p for (_, p), d in zip(named, decays, strict=True) if d == k], weight_decay=0.05 * k)
              for k in (False, True)]  # fmt: skip
    adamw, losses, rates, step = torch.optim.AdamW(groups), [], RECIPE.rates(), 0
    spec = ViewSpec((size, size), scale=RECIPE.crop_area, color_jitter=None)
    for epoch in range(2):
        sampler = ViewSampler(IMAGES, BATCH, 0, range(2))
        sampler.set_epoch(epoch)
        places = list(sampler)
        for start in range(0, IMAGES, BATCH):
            ours, theirs = (batch_of(digits, side, spec, places[start : start + BATCH]) for side in (32, size))
            with torch.no_grad():
                targets = teacher.model.forward_features(theirs)
            tokens = plain.forward_features(ours)
            dense = maps[1](tokens[:, 1:]).transpose(1, 2).unflatten(2, (4, 4))
            dense = F.interpolate(dense, (size // 8, size // 8), mode='bilinear') if size > 32 else dense
            pairs = [(maps[0](tokens[:, 0]), targets[:, 0]), (dense.flatten(2).transpose(1, 2), targets[:, 1:])]
            each = [feature_loss(*pair, loss) for pair in pairs]
            total = (1 - weight) * each[0] + weight * each[1]
            for group in adamw.param_groups:
                group['lr'] = rate_of(step, rates)
            adamw.zero_grad()
            total.backward()
            nn.utils.clip_grad_norm_([p for _, p in named], RECIPE.clip_grad)
            adamw.step()
            step += 1
            losses.append([total.item(), *[value.item() for value in each]])
    means = np.mean(np.reshape(losses, (2, UPDATES, 3)), axis=1)
    for record, mean in zip(result.history, means, strict=True):
        assert [record[name] for name in ('loss', 'pooled', 'dense')] == pytest.approx(mean, abs=1e-6)
    assert farthest(student, plain) < 1e-6


def batch_of(digits, side: int, spec: ViewSpec, places: list[Place]) -> torch.Tensor:
    views = ReplayedViews(digits, spec, 0, size=(side, side), mean=INPUT.mean, std=INPUT.std)
    return torch.stack([views[place].image for place in places])


def rate_of(step: int, rates) -> float:
    """Of an update: linear over the first epoch, then half a cosine over the second."""
    if step < UPDATES:
        return rates.warmup_lr + step * (rates.lr - rates.warmup_lr) / UPDATES
    return rates.min_lr + 0.5 * (rates.lr - rates.min_lr) * (1 + np.cos(np.pi * (step - UPDATES) / UPDATES))


def farthest(one: nn.Module, two: nn.Module) -> float:
    return max((a - b).abs().max().item() for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_the_teacher_sees_each_batch_once_and_stays_as_it_was(digits, tmp_path):
    teacher, calls = taught_by(), []
    before = teacher.sha256
    teacher.model.norm.register_forward_hook(
        lambda module, args, output: calls.append((len(output), module.training, output.requires_grad))
    )
    result = trained(digits, tmp_path, teacher=teacher, micro_batch=8)
    blank = [call for call in calls if call[0] == 1]
    assert [call for call in calls if call[0] > 1] == [(8, False, False)] * (2 * IMAGES // 8)
    assert len(blank) == len(calls) - 2 * IMAGES // 8
    assert teacher.sha256 == before == result.teacher['sha256']
    assert {key.partition('.')[0] for key in read_weights(tmp_path)} == {'student', 'pooled_map', 'dense_map'}


def test_the_teacher_follows_the_task_and_is_no_part_of_it():
    teacher, student = taught_by(), vit()
    features = teacher.features(torch.zeros(1, 3, 32, 32))
    task = FeatureDistillation(MappedStudent(student, teacher.read, features, features), teacher)
    assert {id(p) for p in task.parameters()} == {id(p) for p in task.trainable_module.parameters()}
    task.to('meta')
    assert {p.device.type for p in teacher.model.parameters()} == {'meta'}


@pytest.mark.parametrize('weight', [0.0, 0.5, 1.0])
def test_what_the_loss_does_not_reach_stays_as_it_was(weight, digits, tmp_path):
    student = small_of('tinyvit', img_size=64)  # at 32 pixels some biases have no effect
    before = copy.deepcopy(student)
    result = trained(digits, tmp_path, student, dense_weight=weight)
    changed = {
        name for (name, one), two in zip(student.named_parameters(), before.parameters(), strict=True)
        if not torch.equal(one, two)
    }  # fmt: skip
    rest = {name for name, _ in student.named_parameters()} - changed
    assert rest == {name for name in rest if name.startswith('head.' if weight == 1 else 'head.fc.')}
    assert len(rest) == (4 if weight == 1 else 2)
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert set(result.history[0]) == {'loss', 'lr'} | ({'pooled'} if weight < 1 else set()) | (
        {'dense'} if weight else set()
    )


def test_a_killed_training_resumes_with_the_same_losses_and_with_its_own_teacher_only(digits, tmp_path, monkeypatch):
    expected = trained(digits, tmp_path / 'whole')
    forward, calls = FeatureDistillation.forward, []

    def killed(self, *args):
        calls.append(1)
        if len(calls) > UPDATES + 1:  # the first call looks for what the loss reaches
            raise KeyboardInterrupt
        return forward(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureDistillation, 'forward', killed)
        with pytest.raises(KeyboardInterrupt):
            trained(digits, tmp_path / 'cut')
    assert (tmp_path / 'cut' / 'state.pt').exists()
    refused(lambda: trained(digits, tmp_path / 'cut', teacher=taught_by(depth=1)), 'teacher', kind=EvaluationError)
    refused(lambda: trained(digits, tmp_path / 'cut', loss='cosine'), 'loss', kind=EvaluationError)
    refused(lambda: trained(digits.subset(range(40)), tmp_path / 'cut'), 'data', kind=EvaluationError)
    resumed = trained(digits, tmp_path / 'cut')
    assert resumed.history == expected.history
    assert farthest(resumed.student, expected.student) == 0


def test_names_and_a_folder_are_enough(digits, tmp_path):
    for i in range(8):
        digits.image(i).save(tmp_path / f'{i}.png')
    run = dict(recipe=RECIPE.changed(batch_size=8), device=torch.device('cpu'), say=lambda text: None)
    result = distil_features('test_vit', vit(9, 48), tmp_path, tmp_path / 'run', img_size=(32, 32), **run)
    assert result.student.num_classes == 0
    assert result.teacher['name'] == 'VisionTransformer'
    assert result.teacher['img_size'] == [48, 48]
    assert len(result.dataset) == 8


def test_schedule_and_groups_are_those_of_the_recipe(digits):
    module = plan_features(vit(), taught_by(), digits, RECIPE).task.trainable_module
    optimizer = create_optimizer(module, FEATURES, FEATURES.batch_size)
    scheduler = create_scheduler(optimizer, FEATURES, FEATURES.batch_size, 2)

    def lr_at(update: int) -> float:
        scheduler.step_update(update)
        return optimizer.param_groups[0]['lr']

    last = 1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * 189 / 190)) / 2
    expected = {0: 1e-6, 5: (1e-6 + 1e-3) / 2, 10: 1e-3, 105: (1e-3 + 1e-5) / 2, 199: last}
    assert {update: lr_at(update) for update in expected} == pytest.approx(expected, rel=1e-9)
    names = {id(p): name for name, p in module.named_parameters()}
    groups = {names[id(p)]: group['weight_decay'] for group in optimizer.param_groups for p in group['params']}
    spared = {name for name, p in module.named_parameters() if p.ndim <= 1} | {'student.cls_token', 'student.pos_embed'}
    assert {name for name, decay in groups.items() if not decay} == spared  # timm's ViT names the last two
    assert set(groups.values()) == {0.0, 0.05}


def test_few_images_are_taken_in_smaller_batches(digits, tmp_path):
    result = trained(digits, tmp_path, recipe=FEATURES.changed(epochs=1, warmup_epochs=0))
    assert result.recipe.batch_size == 8


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        (dict(loss='l2'), ("no feature loss 'l2'", 'cosine')),
        (dict(dense_weight=1.5), ('from 0 to 1', '1.5')),
        (dict(recipe=RECIPE.changed(batch_size=64)), ('48 images', '--batch-size')),
        (dict(student=nn.Conv2d(3, 8, 3)), ('Conv2d lacks features',)),
    ],
)
def test_what_does_not_fit_is_named_before_the_first_epoch(settings, words, digits, tmp_path):
    refused(lambda: trained(digits, tmp_path / 'run', **settings), *words, kind=EvaluationError)
    assert not (tmp_path / 'run').exists()


def test_a_model_does_not_teach_itself(digits, tmp_path):
    model = vit()
    refused(lambda: trained(digits, tmp_path, model, model), 'the same model', kind=EvaluationError)


# the command


@pytest.fixture(scope='module')
def folders(tmp_path_factory) -> Path:
    """Images directly in a folder, and a teacher's weights."""
    root = tmp_path_factory.mktemp('features')
    data = load_dataset('digits', 'train')
    (root / 'photos').mkdir()
    for i in range(IMAGES):
        data.image(i).save(root / 'photos' / f'{i}.png')
    torch.manual_seed(9)
    torch.save(timm.create_model('test_vit', img_size=48).state_dict(), root / 'teacher.pth')
    return root


def command(folders: Path, output, *more: str) -> list[str]:
    teacher = ['--teacher', 'test_vit', '--teacher-weights', str(folders / 'teacher.pth'), '--teacher-img-size', '48']
    sizes = ['--student', 'test_vit', '--img-size', '32', '--epochs', '1', '--batch-size', str(BATCH)]
    data = ['-d', str(folders / 'photos'), '-o', str(output), '--device', 'cpu']
    return ['pretrain', 'features', *sizes, *teacher, *data, *more]


def test_a_flat_folder_of_images_is_enough_and_the_result_is_an_encoder(folders, cli, tmp_path):
    run = tmp_path / 'run'
    code, out, err = cli(*command(folders, run))
    assert code == 0, err
    assert 'Taught by test_vit (48x48)' in out
    assert f'tinyvit-zoo finetune test_vit --weights {run}' in out
    results = json.loads((run / 'results.json').read_text())
    assert results['data']['train']['classes'] == 0
    assert results['data']['train']['images'] == IMAGES
    assert (results['feature_loss'], results['dense_weight'], results['teacher']['grid']) == ('smooth_l1', 0.5, [3, 3])
    model = timm.create_model(f'local-dir:{run / "model"}', pretrained=True)
    assert model.num_classes == 0
    assert torch.equal(model.norm.weight, read_weights(run)['student.norm.weight'])
    for ending in ('history.csv', 'loss.png'):
        assert (run / ending).stat().st_size
    code, out, err = cli('embed', run, '-d', folders / 'photos', '-o', tmp_path / 'e.npz', '--device', 'cpu')
    assert code == 0, err
    assert np.load(tmp_path / 'e.npz')['features'].shape == (IMAGES, 64)


def test_a_dry_run_says_what_it_takes_and_writes_nothing(folders, cli, tmp_path):
    code, out, err = cli(*command(folders, tmp_path / 'run', '--dry-run'))
    assert code == 0, err
    assert f'{IMAGES // BATCH} updates in {IMAGES // BATCH} steps' in out
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_the_result_is_evaluated_and_fine_tuned_like_any_other(folders, cli, tmp_path):
    run, device = tmp_path / 'run', ('--device', 'cpu', '-d', 'digits')
    student = ('--student', 'mae_lite_vit_tiny_patch16_224')
    code, _, err = cli(*command(folders, run, *student, '--loss', 'cosine'))
    assert code == 0, err
    for words in (
        ('knn', run, *device),
        ('probe', run, *device, '--mode', 'ridge'),
        ('finetune', run, '--as-init', *device, '--epochs', '1', '--batch-size', '64', '-o', tmp_path / 'tuned'),
    ):
        code, out, err = cli(*words)
        assert code == 0, err
        assert '%' in out


@pytest.mark.slow
def test_two_processes_train_as_one_does(folders, tmp_path):
    """A plain ViT: BatchNorm would take its statistics over each process's part of the batch."""
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(Path(__file__).parents[1])}

    def start(output: str, *launcher: str) -> dict[str, torch.Tensor]:
        words = [sys.executable, '-m', *launcher, 'tinyvit_zoo.cli', *command(folders, output)]
        subprocess.run(words, env=environment, cwd=tmp_path, check=True, timeout=500, capture_output=True)
        return read_weights(tmp_path / output)

    one = start('one')
    two = start('two', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', '-m')
    assert max((one[key] - two[key]).abs().max().item() for key in one) < 1e-5
