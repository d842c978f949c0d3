"""Training with a live teacher: what a store of its soft labels would teach, from one decoded image a view."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import refused

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data import load_dataset
from tinyvit_zoo.data.image_dataset import ImageDataset
from tinyvit_zoo.data.replay import ModelInput, Place, ReplayedPairs, ReplayedViews, ViewSpec
from tinyvit_zoo.soft_labels import Teacher, save
from tinyvit_zoo.soft_labels.record import _halves
from tinyvit_zoo.soft_labels.teacher import rounded
from tinyvit_zoo.training.distillation import distil_from_store, distil_live
from tinyvit_zoo.training.recipes import DISTILLATION
from tinyvit_zoo.training.tasks.tinyvit import LiveDistillation

IMAGES, BATCH, SEED, K = 32, 16, 3, 4
RECIPE = DISTILLATION['tinyvit_22k_distill'].changed(
    epochs=2, warmup_epochs=1, batch_size=BATCH, lr=0.02, lr_batch=BATCH
)
SPEC = ViewSpec.from_timm((32, 32), auto_augment='rand-m9-mstd0.5-inc1', re_prob=0.25)
STUDENT, TEACHER = ModelInput((32, 32), (0.5,) * 3, (0.5,) * 3), ModelInput((48, 40), (0.4,) * 3, (0.2,) * 3)


def small(seed: int = 0, size: int = 32) -> torch.nn.Module:
    torch.manual_seed(seed)
    return timm.create_model('test_vit', num_classes=10, img_size=size)


def teacher_of(size: int = 32, **settings) -> Teacher:
    model = small(9, size)
    torch.nn.init.normal_(model.head.weight)
    return Teacher.of_timm(model, 'a small ViT', **settings)


@pytest.fixture(scope='module')
def digits():
    return load_dataset('digits', 'train').subset(range(IMAGES))


@pytest.fixture
def decodes(monkeypatch) -> list[int]:
    """The positions of the images that are decoded."""
    seen, image = [], ImageDataset.image
    monkeypatch.setattr(ImageDataset, 'image', lambda self, i: seen.append(i) or image(self, i))
    return seen


def trained(digits, folder, source, spec=SPEC, **settings):
    student = small()
    common = dict(device=torch.device('cpu'), say=lambda text: None, seed=SEED, **settings)
    if isinstance(source, Teacher):
        return student, distil_live(student, digits, source, spec, RECIPE, folder, k=K, **common)
    return student, distil_from_store(student, digits, source, RECIPE, folder, **common)


# views


def test_two_models_take_one_view_each_in_its_own_way(digits):
    pairs = ReplayedPairs(digits, SPEC, SEED, STUDENT, TEACHER)
    places = [Place(1, 5), Place(0, 5), Place(1, 0)]
    for model, images in ((STUDENT, [p.first for p in map(pairs.__getitem__, places)]),
                          (TEACHER, [p.second for p in map(pairs.__getitem__, places)])):  # fmt: skip
        alone = ReplayedViews(digits, SPEC, SEED, size=model.size, mean=model.mean, std=model.std)
        assert all(torch.equal(image, alone[place].image) for image, place in zip(images, places, strict=True))
    assert [pair.label for pair in pairs.__getitems__(places)] == digits.labels[[5, 5, 0]].tolist()


@pytest.mark.parametrize('second', [TEACHER, STUDENT._replace(mean=(0.1,) * 3)], ids=['other size', 'same size'])
def test_each_image_is_decoded_once_for_both(second, digits, decodes):
    ReplayedPairs(digits, SPEC, SEED, STUDENT, second).__getitems__([Place(0, i) for i in (4, 2, 7)])
    assert decodes == [4, 2, 7]


# labels


def test_probabilities_are_rounded_as_in_a_record():
    rng = np.random.default_rng(0)
    rows = [rng.dirichlet(np.full(8, a), 500) for a in (0.02, 0.1, 1, 50)]
    rows += [[[1, 6e-8, 0, 0, 0, 0, 0, 0], [0.99999994, 8e-8, 0, 0, 0, 0, 0, 0], [0.125] * 8]]
    p = -np.sort(-np.concatenate(rows).astype(np.float32), axis=1)
    expected = _halves(p)
    assert (expected != p.astype(np.float16)).any()  # some rows are rounded down
    assert np.array_equal(rounded(torch.from_numpy(p)).numpy(), expected)


def test_live_labels_are_those_of_a_store(digits, tmp_path):
    teacher = teacher_of()
    store = save(teacher, digits, SPEC, tmp_path / 's', [1], k=K, seed=SEED, batch_size=8)
    views = ReplayedViews(digits, SPEC, SEED, 1, size=teacher.size, mean=teacher.mean, std=teacher.std)
    positions = [17, 0, 30]
    with teacher.ready():
        ids, probabilities = teacher.live_labels(torch.stack([views[i].image for i in positions]), K)
    stored = store.epoch(1).read(positions)
    assert np.array_equal(ids.numpy(), stored.ids)
    assert probabilities.dtype == torch.float16
    np.testing.assert_allclose(probabilities.float(), stored.probabilities.astype('f4'), rtol=2**-10, atol=1e-7)


# training


@pytest.mark.parametrize(('size', 'hard_weight'), [(32, 0.3), (48, 0.0)], ids=['same size', 'larger teacher'])
def test_the_losses_are_those_of_a_store(size, hard_weight, digits, tmp_path):
    teacher = teacher_of(size)
    spec = ViewSpec.from_timm(teacher.size, auto_augment='rand-m9-mstd0.5-inc1', re_prob=0.25)
    store = save(teacher, digits, spec, tmp_path / 's', range(2), k=K, seed=SEED)
    one, stored = trained(digits, tmp_path / 'stored', store, hard_weight=hard_weight)
    two, live = trained(digits, tmp_path / 'live', teacher, spec, hard_weight=hard_weight)
    assert [set(epoch) for epoch in live.history] == [set(epoch) for epoch in stored.history]
    for ours, theirs in zip(live.history, stored.history, strict=True):
        assert ours == pytest.approx(theirs, abs=2e-5)
    assert max((a - b).abs().max().item() for a, b in zip(one.parameters(), two.parameters(), strict=True)) < 1e-4
    assert live.labels.identity == store.info.identity
    assert (live.store, live.stored_epochs, stored.store) == (None, (), str(store.place))


def test_the_teacher_sees_each_batch_once_and_is_left_as_it_was(digits, decodes, tmp_path):
    teacher = teacher_of()
    teacher.model.train()
    before, calls = teacher.sha256, []
    teacher.model.register_forward_hook(
        lambda model, args, output: calls.append((len(args[0]), model.training, output.requires_grad))
    )
    trained(digits, tmp_path, teacher, micro_batch=8)
    assert calls[0] == (1, False, False)  # whether its classes are those of the data
    assert calls[1:] == [(8, False, False)] * (RECIPE.epochs * IMAGES // 8)
    assert len(decodes) == 1 + RECIPE.epochs * IMAGES
    assert teacher.model.training
    assert teacher.sha256 == before
    assert all(p.requires_grad and p.grad is None for p in teacher.model.parameters())


def test_the_teacher_follows_the_task_and_is_no_part_of_it():
    student, teacher = small(), teacher_of()
    task = LiveDistillation(student, teacher, K)
    assert set(task.state_dict()) == {f'trainable_module.{key}' for key in student.state_dict()}
    assert {id(p) for p in task.parameters()} == {id(p) for p in student.parameters()}
    task.to('meta')
    assert {p.device.type for p in teacher.model.parameters()} == {'meta'}
    assert torch.device(task.teacher.device).type == 'meta'
    assert teacher.device == 'cpu'  # where the next `ready` puts it


def test_the_teacher_computes_in_its_own_precision(digits):
    seen = []
    for precision in ('float32', 'bfloat16'):
        teacher = teacher_of(precision=precision)
        teacher.model.head.register_forward_hook(lambda m, args, output: seen.append(output.dtype))
        task = LiveDistillation(small(), teacher, K)
        pair = ReplayedPairs(digits, SPEC, SEED, STUDENT, STUDENT)[Place(0, 1)]
        with teacher.ready(), torch.autocast('cpu', torch.bfloat16):
            losses = task(pair.first[None], torch.tensor([pair.label]), pair.second[None])
        assert losses['loss'].isfinite()
    assert seen == [torch.float32, torch.bfloat16]


def test_a_killed_training_resumes_with_the_same_losses_and_with_its_own_teacher_only(digits, tmp_path, monkeypatch):
    _, expected = trained(digits, tmp_path / 'whole', teacher_of())
    forward, calls = LiveDistillation.forward, []

    def killed(self, *args):
        calls.append(1)
        if len(calls) > IMAGES // BATCH:
            raise KeyboardInterrupt
        return forward(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(LiveDistillation, 'forward', killed)
        with pytest.raises(KeyboardInterrupt):
            trained(digits, tmp_path / 'cut', teacher_of())
    other = teacher_of()
    other.model.head.bias.data.add_(1)
    refused(lambda: trained(digits, tmp_path / 'cut', other), 'soft labels', kind=EvaluationError)
    _, resumed = trained(digits, tmp_path / 'cut', teacher_of())
    assert resumed.history == expected.history


def test_a_run_from_a_store_is_not_continued_by_a_live_teacher(digits, tmp_path):
    teacher = teacher_of()
    store = save(teacher, digits, SPEC, tmp_path / 's', range(2), k=K, seed=SEED)
    trained(digits, tmp_path / 'run', store)
    refused(lambda: trained(digits, tmp_path / 'run', teacher), 'stored epochs', kind=EvaluationError)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda t: t.model.reset_classifier(7), ('7 classes', '10')),
        (lambda t: t.model.head.bias.data.fill_(float('nan')), ('no finite', 'check its weights')),
    ],
)
def test_a_teacher_that_cannot_teach_is_named_before_the_first_epoch(change, words, digits, tmp_path):
    other = copy.deepcopy(teacher_of())
    change(other)
    refused(lambda: trained(digits, tmp_path, other), *words, kind=EvaluationError)
    assert not list(tmp_path.iterdir())


# commands


@pytest.fixture(scope='module')
def folders(tmp_path_factory) -> Path:
    """A data set of class folders and a teacher's weights for it."""
    root = tmp_path_factory.mktemp('chain')
    data = load_dataset('digits', 'train')
    for i in range(60):
        folder = root / 'data' / ('train' if i < 48 else 'val') / f'digit{data.labels[i]}'
        folder.mkdir(parents=True, exist_ok=True)
        data.image(i).save(folder / f'{i}.png')
    torch.save(teacher_of().model.state_dict(), root / 'teacher.pth')
    return root


TRAIN = ('train', 'test_vit', '--random', '--epochs', '1', '--batch-size', '16', '--device', 'cpu')


def test_a_student_is_trained_by_a_live_teacher(folders, cli, tmp_path):
    data, weights = ('-d', str(folders / 'data')), str(folders / 'teacher.pth')
    teacher = ('--teacher', 'test_vit', '--teacher-weights', weights, '-k', '4', '--hard-weight', '0.5')
    code, out, err = cli('distill', *TRAIN, *data, *teacher, '--view-size', '40', '-o', str(tmp_path / 'run'))
    assert code == 0, err
    assert 'Taught by test_vit (float32), live; K = 4.' in out
    results = json.loads((tmp_path / 'run' / 'results.json').read_text())
    labels = results['soft_labels']
    assert (labels['teacher'], labels['store'], labels['k'], labels['epochs']) == ('test_vit', None, 4, [])
    assert (labels['teacher_precision'], len(labels['teacher_sha256'])) == ('float32', 64)
    assert timm.create_model(f'local-dir:{tmp_path / "run" / "model"}', pretrained=True).num_classes == 10


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ((), 'either --store STORE or --teacher NAME'),
        (('--store', 's', '--teacher', 'test_vit'), 'either --store STORE or --teacher NAME'),
        (('--store', 's', '-k', '4', '--teacher-weights', 'f'), '--teacher-weights, --top-k: only with --teacher'),
        (('--teacher', 'test_vit', '--reuse', 'cycle'), '--reuse takes the epochs of a --store'),
    ],
)
def test_a_student_has_one_source_of_soft_labels(words, message, cli, tmp_path):
    code, _, err = cli('distill', *TRAIN, '-d', 'digits', '-o', str(tmp_path / 'run'), *words)
    assert code == 2
    assert message in ' '.join(err.replace('│', ' ').split())
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_two_processes_train_as_one_does_with_a_live_teacher(folders, tmp_path):
    """A plain ViT: BatchNorm would take its statistics over each process's part of the batch."""
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(Path(__file__).parents[1])}
    teacher = ['--teacher', 'test_vit', '--teacher-weights', str(folders / 'teacher.pth'), '-k', '4']

    def start(output: str, *launcher: str) -> str:
        command = [sys.executable, '-m', *launcher, 'tinyvit_zoo.cli', 'distill', *TRAIN, '-d', str(folders / 'data')]
        return subprocess.run(
            [*command, *teacher, '-o', output], env=environment, cwd=tmp_path, check=True, timeout=500,
            capture_output=True, text=True,
        ).stdout  # fmt: skip

    start('one')
    out = start('two', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', '-m')
    assert out.count('Taught by') == 1
    assert json.loads((tmp_path / 'two' / 'results.json').read_text())['processes'] == 2
    one, two = (torch.load(tmp_path / name / 'best.pt', weights_only=True) for name in ('one', 'two'))
    assert max((one[k] - two[k]).abs().max().item() for k in one) < 1e-4
