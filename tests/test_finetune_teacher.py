"""Fine-tuning with a teacher, as in DeiT: timm's losses on mixed images, distillation tokens, refusals, the command."""

import json
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import refused
from golden_rule import golden
from timm.data import Mixup
from timm.task import LogitDistillationTask, TokenDistillationTask
from torch import nn

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.hashes import state_hash
from tinyvit_zoo.data import load_dataset
from tinyvit_zoo.downstream.finetune import finetune
from tinyvit_zoo.downstream.starts import Start, departures
from tinyvit_zoo.hub import save_folder
from tinyvit_zoo.training.recipes import find_recipe
from tinyvit_zoo.training.tasks.classification import Teaching, classification_task

BY = find_recipe('tinymim').changed(
    epochs=2, warmup_epochs=1, batch_size=8, lr=1e-3, lr_batch=8, drop_path={'': 0.0}, held_out=0.0
)
NOT_MIXED = BY.changed(mixup=0.0, cutmix=0.0, label_smoothing=0.0)


def plain_vit(**kwargs) -> nn.Module:
    torch.manual_seed(0)
    sizes = dict(img_size=32, embed_dim=48, depth=2, num_heads=3, num_classes=10)
    return timm.create_model('tinymim_vit_tiny_patch16_224', **{**sizes, **kwargs})


def star() -> nn.Module:
    """TinyMIM*-T with two blocks."""
    torch.manual_seed(0)
    sizes = dict(img_size=32, embed_dim=48, depth=2, num_heads=3, expand_dim=64, num_classes=10)
    return timm.create_model('tinymim_vit_tiny_star_patch16_224', **sizes)


def convnet(**kwargs) -> nn.Module:
    torch.manual_seed(9)
    model = timm.create_model('test_resnet', **{'num_classes': 10, **kwargs})
    nn.init.normal_(model.get_classifier().weight)
    return model


@pytest.fixture(scope='module')
def digits():
    train, test = load_dataset('digits', 'train'), load_dataset('digits', 'test')
    return train.subset(range(24)), test.subset(range(16))


def fit(model, digits, folder, teaching, by=BY, **options):
    options = dict(test=digits[1], device=torch.device('cpu'), say=lambda text: None) | options
    return finetune(model, digits[0], by, folder, teaching=teaching, **options)


# losses


class Says(nn.Module):
    """A classifier that always says the same."""

    def __init__(self, *logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.ParameterList(logits)
        self.num_classes, self.in_chans = logits[0].shape[1], 3
        self.pretrained_cfg = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

    def forward(self, x: torch.Tensor):
        return self.logits[0] if len(self.logits) == 1 else tuple(self.logits)


class SaysTwice(Says):
    def set_distilled_training(self, enable: bool = True) -> None:
        self.distilled_training = enable


@pytest.mark.parametrize(('kind', 'alpha', 'tau'), [('hard', 0.5, 1.0), ('soft', 0.5, 1.0), ('soft', 0.1, 3.0)])
def test_losses_are_those_of_the_released_code_but_for_its_division_by_the_number_of_classes(kind, alpha, tau):
    official = {name: torch.from_numpy(array) for name, array in golden('maelite_ft_distill_unit').items()}
    student = SaysTwice(official['outputs'].double(), official['outputs_dist'].double())
    teaching = Teaching(Says(official['teacher'].double()), kind, alpha, tau)
    task = classification_task(student, NOT_MIXED, 7, teaching)
    losses = task(torch.zeros(3, 3, 2, 2), official['target'])
    classes = 7 if kind == 'soft' else 1
    released = (1 - alpha) * losses['task_loss'] + alpha * losses['distill_loss'] / classes
    assert released.item() == pytest.approx(official[f'loss_{kind}_a{alpha}_t{tau}'].item(), abs=1e-6)
    assert losses['loss'].item() == pytest.approx(
        ((1 - alpha) * losses['task_loss'] + alpha * losses['distill_loss']).item(), abs=1e-12
    )


def test_a_model_without_a_token_learns_the_teacher_s_predictions_by_timm_s_task():
    logits, answer = torch.randn(4, 10).double(), torch.randn(4, 10).double()
    student, labels = Says(logits), torch.tensor([1, 2, 3, 4])
    task = classification_task(student, NOT_MIXED, 10, Teaching(Says(answer), None, 0.3, 2.0))
    assert isinstance(task, LogitDistillationTask)
    loss = task(torch.zeros(4, 3, 2, 2), labels)['loss']
    apart = F.kl_div((logits / 2).log_softmax(1), (answer / 2).softmax(1), reduction='batchmean') * 4
    assert loss.item() == pytest.approx((0.7 * F.cross_entropy(logits, labels) + 0.3 * apart).item(), abs=1e-12)


@pytest.mark.parametrize(('model', 'task', 'kind'), [
    (star, TokenDistillationTask, 'hard'), (plain_vit, LogitDistillationTask, 'soft')
])  # fmt: skip
def test_the_task_follows_from_the_model(model, task, kind):
    student, teaching = model(), Teaching(convnet())
    assert isinstance(classification_task(student, BY, 10, teaching), task)
    assert teaching.kind_for(student) == kind


def test_the_teacher_sees_the_mixed_images_with_its_own_mean_and_deviation(digits, tmp_path, monkeypatch):
    made, mix = [], Mixup.__call__

    def recorded(self, x, target):
        mixed, soft = mix(self, x, target)
        made.append(mixed.clone())
        return mixed, soft

    monkeypatch.setattr(Mixup, '__call__', recorded)
    model, teacher, seen = plain_vit(), convnet(), []
    teacher.pretrained_cfg = {**teacher.pretrained_cfg, 'mean': (0.1, 0.2, 0.3), 'std': (0.5, 0.4, 0.3)}
    before = state_hash(teacher)
    teacher.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    fit(model, digits, tmp_path, Teaching(teacher))
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ('mean', 'std'))
    assert len(seen) == 1 + 6  # one trial
    for images, mixed in zip(seen[1:], made, strict=True):
        pixels = images * torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1) + torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
        torch.testing.assert_close(pixels, mixed * std + mean, rtol=0, atol=1e-5)
    assert state_hash(teacher) == before
    assert not teacher.training


# runs


def test_tinymim_star_learns_from_both_and_answers_by_their_mean(digits, tmp_path):
    model, before = star(), star().state_dict()
    fit(model, digits, tmp_path, Teaching(convnet()), BY.changed(ema_decay=0.5))
    assert not model.distilled_training
    trained = model.state_dict()
    for key in ('head.weight', 'head_dist.weight', 'dist_token'):
        assert not torch.equal(trained[key], before[key])
    image = torch.randn(1, 3, 32, 32)
    mean = model(image)
    model.set_distilled_training(True)
    torch.testing.assert_close(sum(model.train()(image)) / 2, mean, rtol=0, atol=1e-5)


def test_a_run_resumes_with_the_same_teacher_and_part_in_the_loss_only(digits, tmp_path):
    def stop(text):
        if text.startswith('Epoch 1'):
            raise KeyboardInterrupt

    whole = fit(plain_vit(), digits, tmp_path / 'whole', Teaching(convnet()))
    with pytest.raises(KeyboardInterrupt):
        fit(plain_vit(), digits, tmp_path / 'cut', Teaching(convnet()), say=stop)
    for other in (Teaching(convnet(), alpha=0.25), Teaching(timm.create_model('test_resnet', num_classes=10)), None):
        with pytest.raises(EvaluationError, match=r'differs in: (distillation|teacher)'):
            fit(plain_vit(), digits, tmp_path / 'cut', other)
    resumed = fit(plain_vit(), digits, tmp_path / 'cut', Teaching(convnet()))
    assert resumed.history == whole.history


@pytest.mark.parametrize(
    ('teaching', 'words'),
    [
        (lambda: Teaching(convnet(), 'hard'), ('distillation token', '--distillation soft')),
        (lambda: Teaching(convnet(num_classes=7)), ('7 classes', '10', 'fine-tune')),
        (lambda: Teaching(plain_vit(num_classes=0)), ('0 classes',)),
        (lambda: Teaching(plain_vit(img_size=48)), ('32x32', '--img-size')),
        (lambda: Teaching(convnet(), alpha=2.0), ('--distillation-alpha',)),
        (lambda: Teaching(convnet(), tau=0.0), ('--distillation-tau',)),
    ],
)
def test_a_teacher_that_cannot_teach_is_named_before_the_first_epoch(teaching, words, digits, tmp_path):
    refused(lambda: fit(plain_vit(), digits, tmp_path, teaching()), *words, kind=EvaluationError)
    assert not (tmp_path / 'state.pt').exists()


def test_a_recipe_that_is_published_with_a_teacher_says_so_without_one():
    by, start = find_recipe('tinymim_star'), Start('encoder', 0)
    assert (by.epochs, by.layer_decay) == (1000, 0.65)
    assert 'published with a teacher' in departures(by, start, plain_vit())[0]
    assert departures(by, start, plain_vit(), taught=True) == []
    assert departures(find_recipe('tinymim'), start, plain_vit()) == []
    assert 'without a teacher' in departures(find_recipe('tinymim'), start, plain_vit(), taught=True)[0]


# the command


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """A student, and a teacher for images of 64 pixels."""
    root, data = tmp_path_factory.mktemp('folders'), load_dataset('digits', 'train')
    save_folder(star(), root / 'student')
    save_folder(plain_vit(img_size=64), root / 'teacher')
    for i in range(24):
        folder = root / 'data' / 'train' / f'digit{data.labels[i]}'
        folder.mkdir(parents=True, exist_ok=True)
        data.image(i).save(folder / f'{i}.png')
    return root


def test_the_command_makes_the_teacher_for_the_student_s_images_and_keeps_who_it_was(folders, cli, tmp_path):
    code, out, err = cli(
        'finetune', folders / 'student', '--teacher', folders / 'teacher', '-d', folders / 'data', '-o', tmp_path,
        '--recipe', 'tinymim_star', '--distillation', 'soft', '--distillation-alpha', '0.25', '--distillation-tau', '2',
        '--epochs', '1', '--batch-size', '8', '--drop-path', '0', '--device', 'cpu',
    )  # fmt: skip
    assert code == 0, err
    assert 'published with a teacher' not in out
    found = SimpleNamespace(**json.loads((tmp_path / 'results.json').read_text())['teacher'])
    assert (found.name, found.distillation, found.alpha, found.tau) == (str(folders / 'teacher'), 'soft', 0.25, 2.0)
    assert timm.create_model(f'local-dir:{tmp_path / "model"}', pretrained=True).num_classes == 10


@pytest.mark.parametrize(
    'words', [('--distillation', 'soft'), ('--distillation-alpha', '0.3'), ('--teacher-weights', 'f')]
)
def test_what_says_how_a_teacher_teaches_needs_a_teacher(words, folders, cli, tmp_path):
    code, _, err = cli('finetune', folders / 'student', '-d', folders / 'data', '-o', tmp_path, *words)
    assert code == 2
    assert '--teacher NAME' in err
