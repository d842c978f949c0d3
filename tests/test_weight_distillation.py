"""MiniViT's trainer: the released losses through it, its updates by hand, stores, schedule, refusals, the command."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import refused
from golden_rule import golden
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, Mixup
from torch import nn

import tinyvit_zoo  # noqa: F401  registers the models
from tinyvit_zoo.cli.pretrain_minivit import _objective
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.hashes import state_hash
from tinyvit_zoo.compress import multiplex
from tinyvit_zoo.data import load_dataset
from tinyvit_zoo.data.replay import ViewSpec
from tinyvit_zoo.distill import MINI_DEIT, MINI_SWIN, FeatureTap, WeightDistillation, dense_log_probabilities
from tinyvit_zoo.hub import save_folder
from tinyvit_zoo.soft_labels import Store, Teacher, save
from tinyvit_zoo.training.ingredients import create_optimizer, create_scheduler
from tinyvit_zoo.training.recipes import RECIPES, WEIGHT_DISTILLATION
from tinyvit_zoo.training.tasks.minivit import PredictionDistillation, WeightDistillationTask
from tinyvit_zoo.training.weight_distillation import distil_predictions, distil_weights, with_hard_weight

IMAGES, BATCH, UPDATES = 24, 8, 3
SWIN = dict(img_size=32, window_size=4, depths=(2,), num_classes=10)
"""One stage of two layers on a grid of 8 x 8; the second of them is compared."""


def mini_swin(**kwargs) -> nn.Module:
    torch.manual_seed(0)
    sizes = dict(embed_dim=16, num_heads=(2,), repeats=2)
    return timm.create_model('mini_swin_tiny_patch4_window7_224', **{**SWIN, **sizes, **kwargs})


def swin_teacher(**kwargs) -> nn.Module:
    torch.manual_seed(9)
    return timm.create_model('swin_base_patch4_window7_224', **{**SWIN, 'embed_dim': 24, 'num_heads': (3,), **kwargs})


def mini_deit() -> nn.Module:
    torch.manual_seed(0)
    sizes = dict(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=10)
    return timm.create_model('mini_deit_tiny_patch16_224', **sizes)


def convnet_teacher(**kwargs) -> nn.Module:
    """With the student's mean and standard deviation, as DeiT's RegNet."""
    torch.manual_seed(9)
    imagenet = dict(mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD)
    return timm.create_model('test_resnet', pretrained_cfg_overlay=imagenet, **{'num_classes': 10, **kwargs})


def recipe(name: str, **changes):
    own = dict(epochs=2, warmup_epochs=1, batch_size=BATCH, lr=0.01, lr_batch=BATCH)
    return WEIGHT_DISTILLATION[name].changed(**own | changes)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """Class folders of digits, a teacher, and what `compress` makes of it."""
    root, data = tmp_path_factory.mktemp('folders'), load_dataset('digits', 'train')
    save_folder(swin_teacher(), root / 'teacher')
    save_folder(multiplex(swin_teacher(), 2, init='first'), root / 'student')
    save_folder(mini_deit(), root / 'mini_deit')
    save_folder(convnet_teacher(), root / 'convnet')
    for i in range(IMAGES):
        folder = root / 'data' / 'train' / f'digit{data.labels[i]}'
        folder.mkdir(parents=True, exist_ok=True)
        data.image(i).save(folder / f'{i}.png')
    return root


@pytest.fixture(scope='module')
def digits(folders):
    return load_dataset(str(folders / 'data'), 'train')


@pytest.fixture(scope='module')
def store(digits, tmp_path_factory) -> Store:
    model = convnet_teacher()
    nn.init.normal_(model.get_classifier().weight)
    spec = ViewSpec.from_timm((32, 32), auto_augment='rand-m9-mstd0.5-inc1', re_prob=0.25)
    return save(
        Teacher.of_timm(model, 'a ConvNet'), digits, spec, tmp_path_factory.mktemp('labels') / 's', range(2), k=4
    )


QUIET = dict(device=torch.device('cpu'), say=lambda text: None)


def distil(folder, digits, name='mini_swin', student=None, teacher=None, objective=None, by=None, **settings):
    student = student or (mini_swin() if name == 'mini_swin' else mini_deit())
    teacher = teacher or (swin_teacher() if name == 'mini_swin' else convnet_teacher())
    objective = objective or (MINI_SWIN if name == 'mini_swin' else MINI_DEIT)
    return student, distil_weights(student, digits, teacher, objective, by or recipe(name), folder, **QUIET | settings)


# the released losses, through the trainer's objective


class Says(nn.Module):
    """A layer that returns what it holds, whatever it is given."""

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.value * 1


class Block(nn.Module):
    def __init__(self, qkv: torch.Tensor, hidden: torch.Tensor) -> None:
        super().__init__()
        self.attn, self.mlp = nn.Module(), Says(hidden)
        self.attn.qkv = Says(qkv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.attn.qkv(x))


class Replayed(nn.Module):
    """A model whose features and logits are those that the released code was given."""

    def __init__(self, official: dict[str, torch.Tensor], who: str) -> None:
        super().__init__()
        self.pretrained_cfg = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        features = [
            (
                torch.cat([official[f'in.{who}_{part}.{layer}'] for part in 'qkv'], -1),
                official[f'in.{who}_hidden.{layer}'],
            )
            for layer in range(3)
        ]
        self.blocks = nn.ModuleList(Block(*pair) for pair in features)
        self.head = Says(official[f'in.{who}_logits'])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            block(x)
        return self.head(x)


@pytest.fixture(scope='module')
def official() -> dict[str, torch.Tensor]:
    """Inputs and results of the released code, in float64 (it computed in float32)."""
    return {name: torch.from_numpy(array).double() for name, array in golden('minivit_distill_losses').items()}


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to the float32 in which the released code computed."""
    torch.testing.assert_close(actual, expected, rtol=2e-7, atol=3e-7)


def test_the_trainer_minimizes_the_released_mini_swin_loss(official):
    student = Replayed(official, 'student')
    task = WeightDistillationTask(student, Replayed(official, 'teacher'), MINI_SWIN, (range(3), range(3)))
    losses = task(torch.zeros(1, 3, 2, 2), torch.zeros(1, dtype=torch.int64))
    losses['loss'].backward()
    assert losses.keys() == {'loss', 'prediction', 'relation', 'hidden', 'output'}
    close(losses['loss'], official['recipe_total'])
    close(student.head.value.grad, official['soft_ce_grad'])
    for layer, block in enumerate(student.blocks):
        relation = torch.cat([official[f'relation_grad.Ar1.{part}.{layer}'] for part in 'qkv'], -1)
        close(block.attn.qkv.value.grad, relation)
        close(block.mlp.value.grad, 0.1 * official[f'hidden_relation_grad.{layer}'])
    assert all(parameter.grad is None for parameter in task.teacher.parameters())


@pytest.mark.parametrize(
    ('case', 'objective'),
    [
        ('soft.a1.0.t1.0', MINI_DEIT),
        (
            'soft.a0.5.t3.0',
            with_hard_weight(WeightDistillation(1, 0, 0, prediction='kl_per_logit', temperature=3), 0.5),
        ),
        ('hard.a0.5.t1.0', with_hard_weight(WeightDistillation(1, 0, 0, prediction='hard'), 0.5)),
    ],
)
def test_the_trainer_minimizes_the_released_mini_deit_losses(official, case, objective):
    student = Replayed(official, 'student')
    task = WeightDistillationTask(student, Replayed(official, 'teacher'), objective, mixup=Mixup(num_classes=10))
    losses = task.losses(torch.zeros(4, 3, 2, 2), official['in.soft_targets'])
    losses['loss'].backward()
    close(losses['loss'], official[f'deit_distill.{case}'])
    close(student.head.value.grad, official[f'deit_distill_grad.{case}'])


def test_stored_predictions_give_the_released_mini_deit_loss(official):
    student, probabilities = Replayed(official, 'student'), official['in.teacher_logits'].softmax(1)
    order = probabilities.argsort(dim=1, descending=True)
    task = PredictionDistillation(student, MINI_DEIT)
    losses = task(torch.zeros(4, 3, 2, 2), torch.zeros(4), order.to(torch.int16), probabilities.gather(1, order))
    losses['loss'].backward()
    close(losses['loss'], official['deit_distill.soft.a1.0.t1.0'])
    close(student.head.value.grad, official['deit_distill_grad.soft.a1.0.t1.0'])


def test_what_k_probabilities_leave_is_spread_over_the_other_classes():
    dense = dense_log_probabilities(torch.tensor([[2, 0], [1, 3]]), torch.tensor([[0.5, 0.2], [1.0, 0.25]]).half(), 5)
    assert dense[0].exp().tolist() == pytest.approx([0.2, 0.1, 0.5, 0.1, 0.1], abs=1e-4)
    assert dense[1, [1, 3]].exp().tolist() == [1.0, 0.25]
    assert dense.isfinite().all()
    assert dense[1, [0, 2, 4]].max() < -80


# updates


class Recorded(Mixup):
    """Mixup that keeps what it has made."""

    made: ClassVar[list] = []

    def __call__(self, x, target):
        mixed, soft = super().__call__(x, target)
        self.made.append((mixed.clone(), soft.clone()))
        return mixed, soft


def plain_updates(name: str, student: nn.Module, teacher: nn.Module, batches: list, by) -> nn.Module:
    """The same training without the package's task, loop, optimizer and schedule."""
    sparing = ('bias', 'relative_position_bias_table', 'pos_embed')
    spared = [p.ndim == 1 or n.endswith(sparing) for n, p in student.named_parameters()]
    pairs = list(zip(spared, student.parameters(), strict=True))
    groups = [dict(params=[p for s, p in pairs if s is on], weight_decay=0 if on else 0.05) for on in (True, False)]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
    student.train()
    teacher.eval()
    for step, (images, _) in enumerate(batches):
        at = step // UPDATES if name == 'mini_deit' else step / UPDATES
        low, first = (by.min_lr, by.warmup_lr)
        lr = first + (0.01 - first) * at if at < 1 else low + (0.01 - low) * (1 + math.cos(math.pi * at / 2)) / 2
        if name == 'mini_deit':
            with torch.no_grad():
                answer = teacher(images)
            output = student(images).log_softmax(1)
            loss = F.kl_div(output, answer.log_softmax(1), reduction='sum', log_target=True) / output.numel()
        else:
            with FeatureTap(student) as tap, FeatureTap(teacher, grad=False) as teacher_tap:
                (output, ours), (answer, theirs) = tap(images), teacher_tap(images)
            loss = MINI_SWIN(
                output, answer, student_qkv=ours.qkv[1:], teacher_qkv=theirs.qkv[1:], student_hidden=ours.hidden[1:],
                teacher_hidden=theirs.hidden[1:],
            )['total']  # fmt: skip
        for group in adamw.param_groups:
            group['lr'] = lr
        adamw.zero_grad()
        loss.backward()
        if name == 'mini_swin':
            nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        adamw.step()
    return student


@pytest.mark.parametrize('name', ['mini_swin', 'mini_deit'])
def test_the_updates_are_those_of_a_plain_loop(name, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(Recorded, 'made', [])
    monkeypatch.setattr('tinyvit_zoo.training.ingredients.Mixup', Recorded)
    student, result = distil(tmp_path, digits, name)
    assert len(Recorded.made) == 2 * UPDATES
    plain, teacher = (mini_swin(), swin_teacher()) if name == 'mini_swin' else (mini_deit(), convnet_teacher())
    plain_updates(name, plain, teacher, Recorded.made, recipe(name))
    far = max((a - b).abs().max().item() for a, b in zip(student.parameters(), plain.parameters(), strict=True))
    assert far < 1e-6
    assert result.history[1].keys() >= ({'prediction', 'relation', 'hidden'} if name == 'mini_swin' else {'prediction'})
    assert result.layers == (((1,), (1,)) if name == 'mini_swin' else ((), ()))


def test_each_image_comes_three_times_in_a_batch_of_mini_deit(digits, tmp_path, monkeypatch):
    seen, own = [], Mixup.__call__
    monkeypatch.setattr(Mixup, '__call__', lambda self, x, y: seen.append(y.tolist()) or own(self, x, y))
    distil(tmp_path, digits, 'mini_deit', by=recipe('mini_deit', epochs=1, warmup_epochs=0))
    labels = [label for batch in seen for label in batch]
    assert labels == [label for label in labels[::3] for _ in range(3)]


def forwards(monkeypatch, train) -> int:
    """How often whole models are called during a training."""
    calls = []
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, args, output: calls.append(1) if hasattr(module, 'pretrained_cfg') else None
    )
    try:
        train()
    finally:
        hook.remove()
    return len(calls)


def test_a_store_takes_one_forward_pass_an_update_and_a_teacher_at_work_two(digits, store, tmp_path, monkeypatch):
    stored = forwards(monkeypatch, lambda: distil_predictions(
        mini_deit(), digits, store, MINI_DEIT, recipe('mini_deit'), tmp_path / 'store', **QUIET
    ))  # fmt: skip
    live = forwards(monkeypatch, lambda: distil(tmp_path / 'live', digits, 'mini_deit'))
    assert stored == 2 * UPDATES
    assert live == 2 * 2 * UPDATES + 3  # one to see that the teacher takes the images, two to compare both


def test_the_teacher_stays_as_it_is_and_in_no_state(digits, tmp_path):
    teacher = convnet_teacher().train()
    before = state_hash(teacher)
    student, result = distil(tmp_path, digits, 'mini_deit', teacher=teacher)
    assert state_hash(teacher) == before == result.teacher_sha256  # running statistics of BatchNorm included
    assert not teacher.training
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())
    state = torch.load(tmp_path / 'state.pt', weights_only=True)
    assert state['model'].keys() == student.state_dict().keys()
    assert all(not module._forward_hooks for module in student.modules())


def test_the_teacher_sees_the_mixed_images_with_its_own_mean_and_deviation(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(Recorded, 'made', [])
    monkeypatch.setattr('tinyvit_zoo.training.ingredients.Mixup', Recorded)
    teacher, seen = convnet_teacher(), []
    teacher.pretrained_cfg = {**teacher.pretrained_cfg, 'mean': (0.1, 0.2, 0.3), 'std': (0.5, 0.4, 0.3)}
    teacher.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    distil(tmp_path, digits, 'mini_deit', teacher=teacher, by=recipe('mini_deit', epochs=1, warmup_epochs=0))
    mean, std = (torch.tensor(mini_deit().pretrained_cfg[key]).view(3, 1, 1) for key in ('mean', 'std'))
    assert len(Recorded.made) == UPDATES
    for images, (mixed, _) in zip(seen[-UPDATES:], Recorded.made, strict=True):
        pixels = images * torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1) + torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
        torch.testing.assert_close(pixels, mixed * std + mean, rtol=0, atol=1e-5)


@pytest.mark.parametrize('student', [lambda teacher: multiplex(teacher, 2, init='first'), lambda teacher: mini_deit()])
def test_features_of_a_vit_are_compared_and_a_class_token_that_one_lacks_is_left_out(student, digits, tmp_path):
    torch.manual_seed(9)
    sizes = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=10)
    teacher = timm.create_model('deit_tiny_patch16_224', **sizes)
    by = recipe('mini_deit', epochs=1, warmup_epochs=0)
    _, result = distil(tmp_path, digits, student=student(teacher), teacher=teacher, by=by)
    assert result.layers == ((1,), (1,))
    assert result.history[0]['relation'] > 0
    assert result.history[0]['hidden'] > 0


def test_the_teacher_computes_in_the_precision_of_the_student(digits, tmp_path):
    teacher, types = convnet_teacher(), []
    teacher.register_forward_hook(lambda module, args, output: types.append(output.dtype))
    by = recipe('mini_deit', epochs=1, warmup_epochs=0)
    _, result = distil(tmp_path, digits, 'mini_deit', teacher=teacher, by=by, precision='bf16')
    assert result.precision == 'bf16'
    assert types[-UPDATES:] == [torch.bfloat16] * UPDATES


class Killed(BaseException): ...


def test_a_killed_training_goes_on_with_the_same_losses(digits, tmp_path):
    whole, expected = distil(tmp_path / 'whole', digits)

    def say(text):
        if text.startswith('Epoch 1'):
            raise Killed

    with pytest.raises(Killed):
        distil(tmp_path / 'cut', digits, say=say)
    resumed, result = distil(tmp_path / 'cut', digits)
    assert result.history == expected.history
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))
    with pytest.raises(EvaluationError, match='differs in: teacher'):
        distil(tmp_path / 'cut', digits, teacher=swin_teacher(num_heads=(1,), embed_dim=16))


# recipes


PUBLISHED = {'mini_swin': (1e-3, 1e-5, 1e-6, 20), 'mini_deit': (1e-3, 1e-5, 1e-6, 5)}


@pytest.mark.parametrize('name', PUBLISHED)
def test_learning_rates_are_the_published_ones(name):
    by, (high, low, first, warmup) = WEIGHT_DISTILLATION[name], PUBLISHED[name]
    assert (by.epochs, by.batch_size, by.weight_decay) == (300, 1024, 0.05)
    assert (by.clip_grad, by.repeats) == ((5.0, 1) if name == 'mini_swin' else (None, 3))
    optimizer = create_optimizer(nn.Linear(2, 2), by, 1024)
    scheduler, rates = create_scheduler(optimizer, by, 1024, 1), []
    for epoch in range(300):
        rates.append(optimizer.param_groups[0]['lr'])
        scheduler.step_update(epoch + 1)
        scheduler.step(epoch + 1)

    def cosine(epoch):
        return low + (high - low) * (1 + math.cos(math.pi * epoch / 300)) / 2

    assert rates[0] == pytest.approx(first)
    assert rates[warmup // 2] == pytest.approx(first + (high - first) * (warmup // 2) / warmup)
    assert [rates[e] for e in (warmup, 150, 299)] == pytest.approx([cosine(e) for e in (warmup, 150, 299)])


def test_mixing_and_drop_path_are_the_published_ones():
    for by in WEIGHT_DISTILLATION.values():
        assert (by.mixup, by.cutmix, by.label_smoothing, by.random_erase) == (0.8, 1.0, 0.1, 0.25)
        assert by.auto_augment == 'rand-m9-mstd0.5-inc1'
        assert by.source
        assert by.teacher
    swin, deit = WEIGHT_DISTILLATION['mini_swin'], WEIGHT_DISTILLATION['mini_deit']
    sizes = ('tiny', 'small', 'base')
    assert [swin.drop_path_of(f'mini_swin_{size}_patch4_window7_224') for size in sizes] == [0.0, 0.1, 0.2]
    assert [swin.drop_path_of(f'swin_{size}_patch4_window7_224') for size in sizes] == [0.0, 0.1, 0.2]
    assert [deit.drop_path_of(f'mini_deit_{size}_patch16_224') for size in sizes] == [0.0, 0.0, 0.1]
    assert not WEIGHT_DISTILLATION.keys() & RECIPES.keys()  # `finetune` does not offer them


def decayed(model: nn.Module, name: str) -> set[str]:
    """Kinds of parameters that decay: names without numbers."""
    names = {id(p): n for n, p in model.named_parameters()}
    groups = create_optimizer(model, WEIGHT_DISTILLATION[name], 1024).param_groups
    ids = [id(p) for group in groups if group['weight_decay'] for p in group['params']]
    return {'.'.join(part for part in names[i].split('.') if not part.isdigit()) for i in ids}


def test_weight_transformations_and_relative_tables_of_mini_deit_decay_and_biases_of_windows_do_not():
    """As in the released code: all but vectors, biases, `pos_embed` and `relative_position_bias_table`."""
    shared = {f'blocks.{part}.weight' for part in ('attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2')}
    mixing = {'blocks.attn.proj_l.weight', 'blocks.attn.proj_w.weight'}
    assert decayed(mini_deit(), 'mini_deit') == (
        shared | mixing | {'patch_embed.proj.weight', 'blocks.attn.rpe_k.table', 'head.weight'}
    )
    stages = {f'stages.{kind}' for kind in shared | mixing | {'blocks.local_conv.weight'}}
    assert decayed(mini_swin(), 'mini_swin') == stages | {'patch_embed.proj.weight', 'head.fc.weight'}
    own = multiplex(swin_teacher(), 2, init='first')
    tables = {kind for kind in decayed(own, 'mini_swin') if 'table' in kind}
    assert not tables


# refusals


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (dict(teacher=convnet_teacher), ('no transformer blocks', '--losses mini_deit')),
        (dict(teacher=lambda: swin_teacher(num_classes=7)), ('7 classes', '10', 'fine-tune')),
        (dict(teacher=lambda: swin_teacher(window_size=2)), ('windows', '--losses mini_deit')),
        (dict(teacher=lambda: swin_teacher(depths=(2, 2), num_heads=(3, 3))), ('Stages (2,)', '(2, 2)')),
        (dict(teacher=lambda: swin_teacher(img_size=64)), ('32x32', '--img-size')),
        (dict(student=lambda: mini_swin(num_classes=7)), ('7 classes', '10')),
        (dict(by=lambda: recipe('mini_swin', batch_size=32)), ('24 images', '32', '--batch-size')),
        (dict(objective=lambda: WeightDistillation(0, 1, 0)), ('classifier',)),
        (dict(compile=lambda: True), ('hooks', '--compile')),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_before_the_first_batch(change, words, digits, tmp_path):
    changes = {key: make() for key, make in change.items()}
    refused(lambda: distil(tmp_path, digits, **changes), *words, kind=EvaluationError)
    assert not (tmp_path / 'state.pt').exists()


def test_images_of_one_class_are_refused(digits, store, tmp_path):
    one = digits.subset(np.flatnonzero(digits.labels == digits.labels[0]))
    refused(lambda: distil(tmp_path, one), 'one class', kind=EvaluationError)


def test_a_store_teaches_predictions_only(digits, store, tmp_path):
    def train(objective):
        distil_predictions(mini_swin(), digits, store, objective, recipe('mini_swin'), tmp_path, **QUIET)

    refused(lambda: train(MINI_SWIN), 'predictions only', '--losses mini_deit', kind=EvaluationError)
    refused(lambda: with_hard_weight(MINI_DEIT, 1.5), 'from 0 to 1', kind=EvaluationError)


def test_only_a_student_without_taps_may_be_compiled():
    assert WeightDistillationTask(mini_deit(), convnet_teacher(), MINI_DEIT).compiles
    assert not WeightDistillationTask(mini_swin(), swin_teacher(), MINI_SWIN, ((1,), (1,))).compiles


# the command


def test_the_command_trains_the_folder_that_compress_wrote(folders, cli, tmp_path):
    run = ('-o', str(tmp_path / 'run'), '-d', str(folders / 'data'), '--device', 'cpu')
    code, out, err = cli(
        'pretrain', 'minivit', '--student', str(folders / 'student'), '--teacher', str(folders / 'teacher'), *run,
        '--epochs', '1', '--batch-size', '8',
    )  # fmt: skip
    assert code == 0, err
    assert 'Epoch 1/1' in out
    assert 'from its weights' in out
    assert f'tinyvit-zoo evaluate {tmp_path / "run"}' in out
    results = json.loads((tmp_path / 'run' / 'results.json').read_text())
    assert results['recipe']['name'] == 'mini_swin'
    assert results['losses']['relation_weight'] == 1.0
    assert results['layers'] == dict(student=[1], teacher=[1])
    assert results['teacher']['sha256'] == state_hash(swin_teacher())
    model = timm.create_model(f'local-dir:{tmp_path / "run" / "model"}', pretrained=True)
    assert model.num_classes == 10


def test_the_command_takes_a_name_from_random_weights_and_a_teacher_at_the_student_s_size(folders, cli, tmp_path):
    code, out, err = cli(
        'pretrain', 'minivit', '--student', 'mini_deit_tiny_patch16_224', '--img-size', '32', '--teacher',
        folders / 'convnet', '-d', folders / 'data', '-o', tmp_path, '--epochs', '1', '--batch-size', '8',
        '--repeats', '12', '--device', 'cpu',
    )  # fmt: skip
    assert code == 0, err
    assert 'random weights, as published' in out
    results = json.loads((tmp_path / 'results.json').read_text())
    assert results['recipe']['name'] == 'mini_deit'
    assert len(timm.create_model(f'local-dir:{tmp_path / "model"}').blocks) == 1  # of the paper's Table 2
    assert results['layers'] == dict(student=[], teacher=[])
    assert results['losses']['prediction'] == 'kl_per_logit'


def test_the_command_trains_from_a_store_with_the_losses_of_predictions(folders, store, cli, tmp_path):
    code, out, err = cli(
        'pretrain', 'minivit', '--student', folders / 'mini_deit', '--store', store.place, '-d', folders / 'data',
        '-o', tmp_path / 'run', '--epochs', '2', '--batch-size', '8', '--hard-weight', '0.25', '--device', 'cpu',
    )  # fmt: skip
    assert code == 0, err
    assert 'neither mixed nor repeated' in out
    results = json.loads((tmp_path / 'run' / 'results.json').read_text())
    assert results['teacher']['name'] == 'a ConvNet'
    assert results['soft_labels']['epochs'] == [0, 1]
    losses = results['losses']
    assert (losses['prediction'], losses['prediction_weight'], losses['truth_weight']) == ('kl_per_logit', 0.75, 0.25)
    assert {'prediction', 'truth'} <= set((tmp_path / 'run' / 'history.csv').read_text().splitlines()[0].split(','))


def test_the_weights_of_the_paper_s_ablation_are_options():
    """Table 3: labels, predictions, relations, hidden states; each alone, or with others."""
    assert _objective('mini_swin', 0.0, None, None) == MINI_SWIN
    assert _objective('mini_swin', 0.0, None, 0.0) == WeightDistillation(1, 1, 0)
    assert _objective('mini_swin', 0.0, 0.0, 1.0) == WeightDistillation(1, 0, 1)
    assert _objective('mini_swin', 0.5, 0.0, 0.0) == WeightDistillation(0.5, 0, 0, 0.5)
    assert _objective('mini_swin', 1.0, 0.0, 0.0) == WeightDistillation(0, 0, 0, 1)


def test_a_dry_run_says_steps_hours_and_memory_and_writes_nothing(folders, store, cli, tmp_path):
    common = ('--student', folders / 'mini_deit', '-d', folders / 'data', '-o', tmp_path / 'run')
    brief = ('--epochs', 2, '--batch-size', 8, '--micro-batch', 4, '--device', 'cpu', '--dry-run')
    for source in (('--teacher', folders / 'convnet'), ('--store', store.place)):
        code, out, err = cli('pretrain', 'minivit', *common, *source, *brief)
        assert code == 0, err
        assert f'{2 * UPDATES} updates in {4 * UPDATES} steps; about ' in out
        assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ((), 'either --teacher NAME or --store STORE'),
        (('--teacher', 'resnet18', '--store', 's'), 'either --teacher NAME or --store STORE'),
        (('--teacher', 'resnet18', '--reuse', 'cycle'), '--store'),
        (('--teacher', 'resnet18', '--student', 'deit_tiny_patch16_224', '--repeats', '2'), '--repeats is for a Mini'),
    ],
)
def test_what_contradicts_itself_is_a_usage_error(words, message, cli, tmp_path):
    code, _, err = cli(
        'pretrain', 'minivit', '--student', 'mini_deit_tiny_patch16_224', '-d', 'digits', '-o', tmp_path, *words
    )
    assert code == 2
    assert message in ' '.join(err.split())


@pytest.mark.slow
def test_two_processes_train_with_a_teacher_and_from_a_store_as_one_does(folders, store, tmp_path):
    """Equal weights from a store only: each process mixes its own part of a batch."""

    def start(name: str, *words, processes: int = 2) -> dict[str, torch.Tensor]:
        launcher = ['torch.distributed.run', '--standalone', f'--nproc-per-node={processes}', '-m']
        command = [sys.executable, '-m', *(launcher if processes > 1 else []), 'tinyvit_zoo.cli', 'pretrain', 'minivit']
        common = ['-d', folders / 'data', '-o', tmp_path / name, '--epochs', 2, '--batch-size', 8, '--device', 'cpu']
        environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(Path(__file__).parents[1])}
        subprocess.run(
            list(map(str, [*command, *common, *words])), env=environment, cwd=tmp_path, check=True, timeout=500
        )
        return torch.load(tmp_path / name / 'best.pt', weights_only=True)

    trained = start('live', '--student', folders / 'student', '--teacher', folders / 'teacher')
    before = multiplex(swin_teacher(), 2, init='first').state_dict()
    results = json.loads((tmp_path / 'live' / 'results.json').read_text())
    assert (results['processes'], results['layers']['student']) == (2, [1])
    assert all(value.isfinite().all() for value in trained.values())
    assert not torch.equal(trained['head.fc.weight'], before['head.fc.weight'])
    stored = ('--student', folders / 'mini_deit', '--store', store.place)
    one, two = start('one', *stored, processes=1), start('two', *stored)
    assert max((one[key] - two[key]).abs().max().item() for key in one) < 1e-5
