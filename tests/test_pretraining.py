"""Training of TinyMIM, MAE, D-MAE and MoCo v3: objectives, recipes, updates, processes."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from golden_rule import GOLDEN, fill_by_rule, golden, noise, rule_value
from PIL import Image, ImageOps
from timm.models.vision_transformer import Block
from torch import nn

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data import load_dataset
from tinyvit_zoo.data.replay import Place, ReplayedViews
from tinyvit_zoo.distill import relation_distillation_loss
from tinyvit_zoo.downstream.finetune import finetune
from tinyvit_zoo.models import PlainVit
from tinyvit_zoo.pretrain import (
    DMae,
    TinyMim,
    cosine_momentum,
    mae_lite_small,
    mae_lite_tiny,
    mocov3_tiny,
    tinymim_student,
    tinymim_teacher,
)
from tinyvit_zoo.training.ingredients import create_optimizer, create_scheduler
from tinyvit_zoo.training.pretraining import Pretraining, d_mae, mae, mocov3, tinymim
from tinyvit_zoo.training.pretraining_views import Moment, mask_noise
from tinyvit_zoo.training.recipes import PRETRAINING, RECIPES
from tinyvit_zoo.training.tasks.mae_lite import DMaeTask, MaeTask, MocoV3Task
from tinyvit_zoo.training.tasks.tinymim import TinyMimTask

SINGLE = 5e-6  # the reference is single precision
SMALL = dict(img_size=32, patch_size=8, depth=2)
IMAGES, BATCH, SEED = 24, 8, 3
METHODS = ('tinymim', 'mae', 'd_mae', 'mocov3')
MASKED = METHODS[:3]
UNMASKED = torch.empty(2, 0)


@pytest.fixture(scope='module')
def digits():
    return load_dataset('digits', 'train').subset(range(IMAGES))


def form_of(method: str) -> nn.Module:
    """A form of two blocks; the same at every call."""
    torch.manual_seed(1)
    if method == 'tinymim':
        teacher = tinymim_teacher('small', block=1, last_heads=12, **SMALL)
        return TinyMim(tinymim_student('tiny', drop_path_rate=0.0, **SMALL), teacher)
    if method == 'd_mae':
        return DMae(mae_lite_tiny(**SMALL), mae_lite_small(**SMALL), attention_blocks=(2,), hidden_layers=(1, 2))
    return mae_lite_tiny(**SMALL) if method == 'mae' else mocov3_tiny(mlp_dim=32, dim=16, **SMALL)


def recipe_of(method: str):
    recipe = PRETRAINING[method].changed(epochs=2, warmup_epochs=1, batch_size=BATCH, lr=2e-3, lr_batch=BATCH)
    return recipe.changed(drop_path={'': 0.0}, clip_grad=1.0)


def plan_of(method: str, dataset, form: nn.Module | None = None, **run) -> Pretraining:
    plan = dict(tinymim=tinymim, mae=mae, d_mae=d_mae, mocov3=mocov3)[method]
    common = dict(seed=SEED, device=torch.device('cpu'), say=lambda text: None)
    return plan(form or form_of(method), dataset, recipe_of(method), **{**common, **run})


def largest_difference(one: nn.Module, two: nn.Module) -> float:
    theirs = two.state_dict()
    return max((value - theirs[key]).abs().max().item() for key, value in one.state_dict().items())


# objectives: the released losses and gradients


@pytest.mark.slow
def test_the_objective_of_tinymim_is_the_released_one():
    official = json.loads((GOLDEN / 'tinymim_relation_loss_e2e.json').read_text())['tiny<-base']
    form = TinyMim(tinymim_student('tiny'), tinymim_teacher('base')).eval()
    fill_by_rule(form.student.encoder.vit)
    fill_by_rule(form.teacher.encoder.vit)
    losses = TinyMimTask(form)(noise(224, 224), noise(224, 224), UNMASKED)
    losses['loss'].backward()
    assert losses['qk'].item() == pytest.approx(official['qk_loss'], abs=SINGLE)
    assert losses['vv'].item() == pytest.approx(official['vv_loss'], abs=SINGLE)
    assert losses['loss'].item() == pytest.approx(official['qk_loss'] + official['vv_loss'], abs=2 * SINGLE)
    assert_gradients(form.student.encoder.vit, official['grad_norm'])


def test_the_objective_of_mae_is_the_released_one():
    official, form = golden('maelite_mae_tiny'), fill_by_rule(mae_lite_tiny()).double()
    loss = MaeTask(form, 0.75)(noise(224, 224).double(), torch.from_numpy(official['noise']))['loss']
    loss.backward()
    assert loss.item() == pytest.approx(official['loss'].item(), abs=SINGLE)
    assert_gradients(form, norms_of(official))


@pytest.mark.slow
def test_the_objective_of_d_mae_is_the_released_one():
    official = golden('maelite_distill_tiny_attn_hidden')
    teacher = PlainVit(embed_dim=768, depth=12, num_heads=12, num_classes=0, norm_layer='layernorm')
    form = DMae(fill_by_rule(mae_lite_tiny()), fill_by_rule(teacher), hidden_layers=(0, 12))
    with torch.no_grad():
        for key, parameter in form.named_parameters():
            if '_adapter.' in key:  # by their released names
                parameter.copy_(torch.from_numpy(rule_value(key, tuple(parameter.shape))))
    losses = DMaeTask(form, 0.75)(noise(224, 224), torch.from_numpy(official['noise']))
    losses['loss'].backward()
    for ours, theirs in (('loss', 'total'), ('attention', 'attn'), ('hidden', 'hidden')):
        assert losses[ours].item() == pytest.approx(official[theirs].item(), abs=SINGLE), ours
    assert_gradients(form.model, norms_of(official))


def test_the_objective_of_mocov3_is_the_released_one_in_both_directions():
    official = {name: torch.from_numpy(array).double() for name, array in golden('maelite_mocov3_loss_unit').items()}
    form = mocov3_tiny(mlp_dim=8, dim=official['q'].shape[1], **SMALL).double()
    form.base_encoder, form.momentum_encoder = Given(official['q']), Given(official['k'])
    form.predictor, form.temperature = nn.Identity(), official['T'].item()
    loss = MocoV3Task(form, 10, 0.99)(torch.zeros(1), torch.zeros(1), torch.tensor([3]))['loss']
    assert loss.item() == pytest.approx(2 * official['loss'].item(), abs=2 * SINGLE)


def test_the_gradients_of_mocov3_are_those_of_plain_lines():
    """In float64, through encoders, projectors, predictor and the momentum encoder that has moved first."""
    form, views = form_of('mocov3').double(), torch.randn(2, 4, 3, 32, 32, dtype=torch.float64)
    slow = form_of('mocov3').double()
    with torch.no_grad():  # off the encoder that it starts as
        for net in (form, slow):
            for parameter in net.momentum_encoder.parameters():
                parameter += 0.01 * parameter.abs().mean()
    MocoV3Task(form, 10, 0.99)(*views, torch.full((4,), 3))['loss'].backward()

    momentum = 1 - 0.01 * (1 + math.cos(math.pi * 3 / 10)) / 2
    queries = [slow.predictor(slow.base_encoder(view)) for view in views]
    for theirs, own in zip(slow.momentum_encoder.parameters(), slow.base_encoder.parameters(), strict=True):
        theirs.data = momentum * theirs.data + (1 - momentum) * own.data
    with torch.no_grad():
        keys = [slow.momentum_encoder(view) for view in views]
    loss = torch.zeros((), dtype=torch.float64)
    for query, key in ((queries[0], keys[1]), (queries[1], keys[0])):
        logits = (query / query.norm(dim=1, keepdim=True)) @ (key / key.norm(dim=1, keepdim=True)).T / 0.2
        loss = loss - 0.4 * logits.log_softmax(1).diagonal().mean()
    loss.backward()
    expected = {name: p.grad for name, p in slow.named_parameters() if p.grad is not None}
    found = {name: p.grad for name, p in form.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    assert not any(name.startswith('momentum_encoder') for name in found)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-8, atol=1e-10, msg=name)
    assert largest_difference(form.momentum_encoder, slow.momentum_encoder) < 1e-12


class Given(nn.Module):
    """An encoder that returns the same whatever it sees."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, view):
        return self.output


def norms_of(official) -> dict[str, float]:
    return {key.removeprefix('gradnorm/'): norm for key, norm in official.items() if key.startswith('gradnorm/')}


def assert_gradients(module: nn.Module, norms) -> None:
    parameters = dict(module.named_parameters())
    assert norms
    for name, norm in norms.items():
        assert parameters[name].grad.norm().item() == pytest.approx(norm, rel=1e-5), name


def test_the_momentum_rises_with_the_updates_and_moves_once_in_each():
    form, seen = form_of('mocov3'), []
    form.update_momentum_encoder = seen.append
    task = MocoV3Task(form, 10, 0.99)
    for update in (0, 0, 4, 4, 9):  # two forward passes add up to an update
        task(torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32), torch.tensor([update, update]))
    assert seen == [0.99, 1.0, cosine_momentum(4, 10), 1.0, cosine_momentum(9, 10)]


# recipes


# Epochs, warm-up, batch; first and highest learning rate; betas; weight decay.
OF_MAE = (0.0, 2.4e-3, (0.9, 0.95), 0.05)
PUBLISHED = {
    'tinymim': (300, 15, 4096, *OF_MAE),
    'mae': (400, 40, 4096, *OF_MAE),
    'd_mae': (400, 40, 4096, *OF_MAE),
    'mocov3': (400, 40, 1024, 1e-6, 6e-4, (0.9, 0.999), 0.1),
}
CHOSEN = {f'{name}_small': (200, 10, 64, row[3], 5e-4, *row[5:]) for name, row in PUBLISHED.items()}


def test_every_recipe_is_in_the_table():
    assert PRETRAINING.keys() == PUBLISHED.keys() | CHOSEN.keys()


@pytest.mark.parametrize('name', [*PUBLISHED, *CHOSEN])
def test_schedule_and_groups_are_those_of_the_table(name):
    epochs, warmup, batch, first, highest, betas, decay = (PUBLISHED | CHOSEN)[name]
    recipe, updates, method = PRETRAINING[name], 2, name.removesuffix('_small')  # updates of an epoch
    assert (recipe.epochs, recipe.warmup_epochs, recipe.batch_size) == (epochs, warmup, batch)
    module = plan_task(method).trainable_module
    optimizer = create_optimizer(module, recipe, recipe.batch_size)
    scheduler = create_scheduler(optimizer, recipe, recipe.batch_size, updates)

    def lr_at(update: int) -> float:
        scheduler.step_update(update)
        assert len({group['lr'] for group in optimizer.param_groups}) == 1
        return optimizer.param_groups[0]['lr']

    last, total = updates * epochs - 1, updates * (epochs - warmup)
    expected = {
        0: first,
        warmup: (first + highest) / 2,  # halfway through the warm-up
        updates * warmup: highest,
        epochs + warmup: highest / 2,  # halfway through the cosine
        last: highest * (1 + math.cos(math.pi * (total - 1) / total)) / 2,
    }
    assert {update: lr_at(update) for update in expected} == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert {group['betas'] for group in optimizer.param_groups} == {betas}
    names = {id(p): name for name, p in module.named_parameters()}
    groups = {names[id(p)]: group['weight_decay'] for group in optimizer.param_groups for p in group['params']}
    spared = {name for name, value in groups.items() if not value}
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert groups.keys() == trained
    assert set(groups.values()) <= {0.0, decay}
    vectors = {name for name, p in module.named_parameters() if p.requires_grad and p.ndim <= 1}
    assert spared == (set() if method == 'mocov3' else vectors)
    assert not any(name.endswith(('cls_token', 'mask_token')) for name in spared)
    assert not any('pos_embed' in name for name in groups)


def plan_task(method: str):
    return {
        'tinymim': TinyMimTask, 'mae': partial(MaeTask, mask_ratio=0.75), 'd_mae': partial(DMaeTask, mask_ratio=0.75),
        'mocov3': partial(MocoV3Task, updates=10, momentum=0.99),
    }[method](form_of(method))  # fmt: skip


def test_small_recipes_keep_the_method_and_suit_few_images():
    for method in METHODS:
        paper, small = PRETRAINING[method], PRETRAINING[f'{method}_small']
        assert small.fitted(100).batch_size == 8
        assert small.fitted(100).rates().lr == pytest.approx(5e-4)
        assert (small.betas, small.weight_decay, small.crop_area) == (paper.betas, paper.weight_decay, paper.crop_area)


# views


@pytest.mark.parametrize('method', ['tinymim', 'mae', 'mocov3'])
def test_views_depend_on_seed_epoch_and_position_alone(method, digits):
    views = plan_of(method, digits).views
    at = partial(Moment, update=0) if method == 'mocov3' else Place
    batch = views.__getitems__([at(1, 5), at(0, 5), at(1, 7)])
    assert_same(batch[0], views.__getitems__([at(0, 3), at(1, 5)])[1])
    others = [batch[1], batch[2], plan_of(method, digits, seed=SEED + 1).views[at(1, 5)]]
    for other in others:
        assert not any(torch.equal(a, b) for a, b in zip(batch[0][:2], other[:2], strict=True))


def assert_same(one, two) -> None:
    for a, b in zip(one, two, strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


def test_student_and_teacher_see_one_crop_and_the_student_other_colors(digits):
    views = plan_of('tinymim', digits).views
    student, teacher, noise = views[Place(0, 5)]
    plain = ReplayedViews(digits, dataclasses.replace(views.spec, color_jitter=None), SEED)[Place(0, 5)].image
    assert torch.equal(teacher, plain)
    assert not torch.allclose(student, teacher, atol=0.05)
    assert torch.corrcoef(torch.stack([student.flatten(), teacher.flatten()]))[0, 1] > 0.9
    assert noise.shape == (0,)


def test_a_mask_is_a_random_order_of_all_patches():
    noises = torch.stack([mask_noise(0, Place(0, i), 16) for i in range(400)])
    assert torch.equal(noises.sort(dim=1).values, torch.arange(16.0).expand(400, 16))
    hidden = (noises.argsort(dim=1).argsort(dim=1) >= 4).double().mean(dim=0)
    assert (hidden - 0.75).abs().max() < 0.09  # four standard deviations


def test_the_views_of_mocov3_are_gray_blurred_and_solarized_as_often_as_in_the_paper(digits, monkeypatch):
    done = []
    monkeypatch.setattr(ImageOps, 'solarize', lambda image: done.append('solarize') or image)
    monkeypatch.setattr(Image.Image, 'filter', lambda image, kernel: done.append('blur') or image)
    views = plan_of('mocov3', digits).views
    pairs = views.__getitems__([Moment(epoch, i, 0) for epoch in range(10) for i in range(IMAGES)])
    assert done.count('blur') == pytest.approx(len(pairs) * 1.1, abs=20)  # all first views, a tenth of the second
    assert done.count('solarize') == pytest.approx(len(pairs) * 0.2, abs=25)


# updates


def plain_loop(method: str, dataset) -> nn.Module:
    """The same updates without the trainer: bare form, torch's AdamW, the formulas of the recipe."""
    form, plan, recipe = form_of(method), plan_of(method, dataset), recipe_of(method)
    trained = form.student if method == 'tinymim' else form
    named = [(name, p) for name, p in trained.named_parameters() if p.requires_grad]
    decayed = [p for _, p in named if p.ndim > 1 or method == 'mocov3']
    others = [p for _, p in named if p.ndim <= 1 and method != 'mocov3']
    groups = [dict(params=decayed, weight_decay=recipe.weight_decay), dict(params=others, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, betas=recipe.betas or (0.9, 0.999))
    form.train()
    updates, warmup, update = 6, 3, 0
    for epoch in range(2):
        plan.sampler.set_epoch(epoch)
        indices = list(plan.sampler)
        for start in range(0, IMAGES, BATCH):
            items = plan.views.__getitems__(indices[start : start + BATCH])
            first, second = (torch.stack([item[k] for item in items]) for k in range(2))
            if method == 'tinymim':
                loss = relation_distillation_loss(form.student.encoder(first), form.teacher.encoder(second)).total
            elif method == 'mocov3':
                loss = form(first, second, cosine_momentum(update, updates))
            else:
                loss = form(first, noise=second).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
            low, share = recipe.warmup_lr, (update - warmup) / (updates - warmup)
            lr = low + (2e-3 - low) * update / warmup if update < warmup else 1e-3 * (1 + math.cos(math.pi * share))
            for group in optimizer.param_groups:
                group['lr'] = lr
            optimizer.step()
            update += 1
    return form


@pytest.mark.parametrize('method', METHODS)
def test_six_updates_are_those_of_a_plain_loop(method, digits, tmp_path):
    plan = plan_of(method, digits)
    before = {key: value.clone() for key, value in plan.form.state_dict().items()}
    history = plan.train(tmp_path).history
    assert [set(epoch) >= {'loss', 'lr'} for epoch in history] == [True, True]
    assert max((value - before[key]).abs().max().item() for key, value in plan.form.state_dict().items()) > 1e-3
    assert largest_difference(plan.form, plain_loop(method, digits)) < 1e-6


@pytest.mark.parametrize('method', METHODS)
def test_bfloat16_gives_nearly_the_same_losses(method, digits, tmp_path):
    exact = plan_of(method, digits).train(tmp_path / 'no').history
    half = plan_of(method, digits, precision='bf16').train(tmp_path / 'bf16').history
    assert half != exact
    # Contrasts within a few images and BatchNorm magnify what a processor rounds.
    rel = 0.2 if method == 'mocov3' else 0.03
    for one, two in zip(exact, half, strict=True):
        assert one == pytest.approx(two, rel=rel)


def test_what_no_loss_reaches_stays_as_it_is_and_can_be_trained_afterwards(digits, tmp_path):
    plan = plan_of('tinymim', digits)
    before = {key: value.clone() for key, value in plan.form.student.state_dict().items()}
    unreached = plan.form.student.unreached_parameters()
    plan.train(tmp_path)
    after = plan.form.student.state_dict()
    assert 'encoder.vit.blocks.1.mlp.fc1.weight' in unreached
    assert all(torch.equal(before[name], after[name]) for name in unreached)
    assert all(p.requires_grad for name, p in plan.form.student.named_parameters() if name in unreached[1:])
    state = torch.load(tmp_path / 'state.pt', weights_only=True)
    assert not any('teacher' in key for key in state['model'])


@pytest.mark.parametrize('target', ['relation', 'attention', 'output'])
def test_the_teacher_of_tinymim_stops_at_its_block(target, digits, monkeypatch):
    teacher = tinymim_teacher('small', block=3, last_heads=12, **SMALL | dict(depth=4))
    form = TinyMim(tinymim_student('tiny', **SMALL), teacher, target=target)
    runs, forward = [], Block.forward
    monkeypatch.setattr(Block, 'forward', lambda self, x, *args: runs.append(self) or forward(self, x, *args))
    plan = plan_of('tinymim', digits, form)
    plan.task(*(torch.stack(column) for column in zip(*plan.views.__getitems__(list(plan.sampler)[:2]), strict=True)))
    blocks = list(teacher.vit.blocks)
    assert [blocks.index(block) for block in runs if block in blocks] == [0, 1]


# other runs, processes


@pytest.mark.parametrize('change', ['data', 'teacher', 'views'])
def test_another_training_is_refused_by_name(change, digits, tmp_path):
    plan_of('tinymim', digits).train(tmp_path)
    form, dataset = form_of('tinymim'), digits
    if change == 'data':
        dataset = load_dataset('digits', 'train').subset(range(1, IMAGES + 1))
    elif change == 'teacher':
        nn.init.normal_(form.teacher.encoder.vit.cls_token)
    other = recipe_of('tinymim').changed(crop_area=(0.5, 1.0)) if change == 'views' else recipe_of('tinymim')
    plan = tinymim(form, dataset, other, seed=SEED, device=torch.device('cpu'), say=lambda text: None)
    with pytest.raises(EvaluationError, match=rf'another run, which differs in: .*{change}'):
        plan.train(tmp_path)


SCRIPT = """
import os, sys
sys.path.insert(0, {tests!r})
import torch
from test_pretraining import IMAGES, MASKED, chain, plan_of, tuned
from tinyvit_zoo.cli.evaluator_options import processes
from tinyvit_zoo.data import load_dataset
torch.set_num_threads(1)
digits = load_dataset('digits', 'train').subset(range(IMAGES))
with processes():
    for method in MASKED:
        plan_of(method, digits, save_minutes=0).train(os.path.join(sys.argv[1], method))
    tuned(digits, os.path.join(sys.argv[1], 'tuned'))
    chain(sys.argv[1])
"""


def run_script(tmp_path: Path, *launcher: str) -> int:
    script = tmp_path / 'script.py'
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    paths = [str(Path(__file__).parents[1]), os.environ.get('PYTHONPATH', '')]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, paths)), OMP_NUM_THREADS='1')
    command = [sys.executable, *launcher, str(script), str(tmp_path / 'out')]
    return subprocess.run(command, env=environment, check=False, timeout=600, capture_output=True).returncode


def difference(one: Path, two: Path) -> float:
    """The largest one of two runs' weights.

    Attention is the same whatever is added to all keys: gradients of their biases are nothing but rounding, which AdamW
    makes as large as any other.
    """
    weights = [torch.load(run / 'best.pt', weights_only=True) for run in (one, two)]
    for run in weights:
        for key, bias in run.items():
            if key.endswith('qkv.bias'):
                bias.unflatten(0, (3, -1))[1] = 0
    assert weights[0]
    return max((value - weights[1][key]).abs().max().item() for key, value in weights[0].items())


@pytest.fixture(scope='module')
def in_two(digits, tmp_path_factory) -> Path:
    """What two processes have trained: each method, a student's form, and a chain."""
    folder = tmp_path_factory.mktemp('two')
    (folder / 'images').mkdir()
    for i in range(IMAGES):
        digits.image(i).save(folder / 'images' / f'{i:02}.png')
    torch.manual_seed(1)
    torch.save(tinymim_teacher('base', 2, **SMALL).vit.state_dict(), folder / 'base.pth')
    launcher = ('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2')
    assert run_script(folder, *launcher) == 0
    return folder / 'out'


@pytest.mark.slow
def test_two_processes_train_as_one(digits, in_two, tmp_path):
    """Drop path draws for each process, and BatchNorm of MoCo v3 takes several processes on CUDA only."""
    for method in MASKED:
        plan_of(method, digits).train(tmp_path / method)
        assert difference(tmp_path / method, in_two / method) < 1e-5, method


def tuned(digits, folder: str | Path) -> nn.Module:
    """The form of a TinyMIM student, fine-tuned; its forward stops before its last block, which was not trained."""
    torch.manual_seed(1)
    model = timm.create_model(
        'tinymim_vit_tiny_student_patch16_224', img_size=32, patch_size=8, depth=3, num_classes=10
    )
    recipe = RECIPES['small'].changed(epochs=2, warmup_epochs=0, batch_size=BATCH)
    finetune(model, digits, recipe, folder, held_out=0, device=torch.device('cpu'), say=lambda text: None)
    return model


@pytest.mark.slow
def test_two_processes_fine_tune_the_form_of_a_student_whose_tail_no_loss_reaches(digits, in_two, tmp_path):
    """DistributedDataParallel would wait for the gradients of the tail; it stays as it was."""
    model = tuned(digits, tmp_path)
    assert difference(tmp_path, in_two / 'tuned') < 1e-5
    torch.manual_seed(1)
    fresh = timm.create_model(
        'tinymim_vit_tiny_student_patch16_224', img_size=32, patch_size=8, depth=3, num_classes=10
    )
    tail = model.unreached_parameters()
    assert {name.split('.')[1] for name in tail if name.startswith('blocks.')} == {'2'}
    assert all(torch.equal(fresh.get_parameter(name), model.get_parameter(name)) for name in tail)
    assert all(parameter.requires_grad for parameter in model.parameters())


def chain(folder: str | Path, near: Path | None = None) -> None:
    """`pretrain tinymim --chain base,small,tiny` with models of two blocks, on the images beside the folder."""
    from tinyvit_zoo.cli.app import run_app

    def teacher(size, block=None, last_heads=None, drop_path_rate=0.0, **shape):
        return tinymim_teacher(size, 2, last_heads, drop_path_rate, depth=2, **shape)

    arguments = ('--small', '--epochs', 2, '--batch-size', BATCH, '--drop-path', 0, '--device', 'cpu')
    near = near or Path(folder).parent
    places = ('--teacher-weights', near / 'base.pth', '-d', near / 'images', '-o', Path(folder) / 'chain')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('tinyvit_zoo.training.pretraining_forms.tinymim_teacher', teacher)
        patch.setattr('tinyvit_zoo.training.pretraining_forms.tinymim_student', partial(tinymim_student, depth=2))
        words = ('tinyvit-zoo', 'pretrain', 'tinymim', '--chain', 'base,small,tiny', *places, *arguments)
        patch.setattr(sys, 'argv', list(map(str, words)))
        with pytest.raises(SystemExit) as end:
            run_app()
    assert not end.value.code


@pytest.mark.slow
def test_two_processes_run_a_chain_as_one_does(in_two, tmp_path):
    chain(tmp_path, in_two.parent)
    for stage in ('small', 'tiny'):
        one, two = tmp_path / 'chain' / stage, in_two / 'chain' / stage
        assert difference(one, two) < 1e-5, stage
        assert [json.loads((run / 'results.json').read_text())['processes'] for run in (one, two)] == [1, 2]


def test_several_processes_on_the_cpu_are_refused_for_mocov3(digits, monkeypatch):
    monkeypatch.setattr('tinyvit_zoo.training.pretraining.Processes', lambda: type('Two', (), dict(number=2)))
    with pytest.raises(EvaluationError, match=r'on CUDA only: train in one process instead of 2\.$'):
        plan_of('mocov3', digits)


# what cannot be trained


def test_a_mask_that_leaves_nothing_is_refused(digits):
    with pytest.raises(EvaluationError, match=r'Of 16 patches, a mask ratio of 0\.99 leaves none visible'):
        mae(form_of('mae'), digits, recipe_of('mae'), mask_ratio=0.99)


def test_a_drop_path_that_an_autoencoder_does_not_have_is_refused(digits):
    with pytest.raises(EvaluationError, match=r'has no drop path: leave --drop-path out\.'):
        mae(form_of('mae'), digits, recipe_of('mae').changed(drop_path={'': 0.1}))


def test_a_teacher_of_d_mae_with_another_normalization_is_refused(digits):
    form = form_of('d_mae')
    form.tch_model.pretrained_cfg = dict(mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(EvaluationError, match='another mean and standard deviation'):
        d_mae(form, digits, recipe_of('d_mae'))


def test_a_batch_that_cannot_be_divided_among_passes_is_refused(digits, tmp_path):
    with pytest.raises(EvaluationError, match=r'A batch of 8 is not a multiple of 1 x 3 images at once: choose'):
        plan_of('mocov3', digits, micro_batch=3).train(tmp_path)


def test_fewer_images_than_a_batch_are_refused(digits):
    with pytest.raises(EvaluationError, match=r'24 images cannot fill a batch of 4096'):
        mae(form_of('mae'), digits, PRETRAINING['mae'])


def test_one_class_is_fine(digits, tmp_path):
    ones = digits.subset([i for i, label in enumerate(digits.labels) if label == digits.labels[0]] * 8)
    recipe = recipe_of('mae').changed(batch_size=2, epochs=2)
    result = mae(form_of('mae'), ones, recipe, device=torch.device('cpu'), say=lambda text: None).train(tmp_path)
    assert len(result.history) == 2


def test_an_estimate_counts_steps_and_writes_nothing(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    estimate = plan_of('mae', digits, micro_batch=4).estimate()
    assert (estimate.updates, estimate.steps) == (6, 12)
    assert estimate.seconds > 0
    assert estimate.words.startswith('6 updates in 12 steps; about ')
    assert not list(tmp_path.iterdir())
