"""The teacher's pass: what is stored is what it says of each view, in the same bytes however the work is cut."""

import copy
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import refused

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data import load_dataset
from tinyvit_zoo.data.replay import ReplayedViews, ViewSpec
from tinyvit_zoo.soft_labels import (
    Store,
    Teacher,
    check_data,
    check_records,
    check_teacher,
    check_views,
    estimate,
    save,
)
from tinyvit_zoo.soft_labels.save import library_versions

SPEC = ViewSpec.from_timm((32, 32), auto_augment='rand-m9-mstd0.5-inc1', re_prob=0.25)
IMAGES = 64
MODULE = sys.modules['tinyvit_zoo.soft_labels.save']  # the package has a function of that name


@pytest.fixture(scope='module')
def digits():
    return load_dataset('digits', 'train').subset(range(IMAGES))


@pytest.fixture(scope='module')
def teacher() -> Teacher:
    torch.manual_seed(0)
    model = timm.create_model('test_vit', num_classes=10, img_size=32)
    torch.nn.init.normal_(model.head.weight)
    return Teacher.of_timm(model, 'a small ViT')


def saved(teacher, data, folder: Path, epochs=(0, 2), **settings) -> Store:
    return save(teacher, data, SPEC, folder, epochs, **{'k': 4, 'batch_size': 8, 'shard_size': 20, **settings})


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def test_a_record_is_what_the_teacher_says_of_the_view(teacher, digits, tmp_path):
    store = saved(teacher, digits, tmp_path / 's')
    assert store.epochs() == [0, 2]
    views = ReplayedViews(digits, SPEC, 0, 2, size=teacher.size, mean=teacher.mean, std=teacher.std)
    positions = [63, 0, 21]
    with torch.no_grad():
        p, ids = teacher.model.eval()(torch.stack([views[i].image for i in positions])).softmax(1).topk(4)
    read = store.epoch(2).read(positions)
    assert np.array_equal(read.ids, ids.numpy())
    assert np.abs(read.probabilities - p.numpy()).max() < 5e-4
    crcs = [store.epoch(2).image_crc32(i) for i in range(IMAGES)]
    assert [c for c in crcs if c is not None] == [views[i].crc32 for i in range(IMAGES) if views[i].crc32 >= 0]


@pytest.mark.parametrize('form', ['exact', 'compact'])
def test_workers_and_processes_save_the_same_bytes(form, teacher, digits, tmp_path, monkeypatch):
    saved(teacher, digits, tmp_path / 'alone', form=form)
    saved(teacher, digits, tmp_path / 'workers', form=form, workers=2)
    assert files_of(tmp_path / 'workers') == files_of(tmp_path / 'alone')

    class Of2:
        """Each of two processes that share a list of work."""

        number, work = 2, {}

        def __init__(self) -> None:
            self.rank = rank

        def from_first(self, make):
            key = len(seen)
            seen.append(None)
            return self.work.setdefault(key, make())

        def wait(self) -> None: ...

    monkeypatch.setattr(MODULE, 'Processes', Of2)
    for rank in (1, 0):  # the first one notes that the epochs are whole
        seen: list[None] = []
        saved(teacher, digits, tmp_path / 'two', form=form)
        shards = list((tmp_path / 'two').rglob('*.safetensors'))
        assert len(shards) == (4 if rank else 8)
    assert files_of(tmp_path / 'two') == files_of(tmp_path / 'alone')


def test_a_saving_by_two_processes_that_is_killed_anywhere_goes_on_to_the_same_bytes(teacher, digits, tmp_path):
    """`python benchmarks/soft_labels.py --kill 20` does it at 20 random moments."""
    saved(teacher, digits, tmp_path / 'whole')
    context = multiprocessing.get_context('fork')
    for point in range(3):
        folder, meeting = tmp_path / f'killed {point}', f'file://{tmp_path}/meeting-{point}'
        waiting = _Waiting(teacher, folder, 2 * point + 1)
        processes = [
            context.Process(target=_saved_by_one_of_two, args=(rank, meeting, waiting, digits, folder))
            for rank in range(2)
        ]
        for process in processes:
            process.start()
        while len(waiting.shards()) < waiting.enough and all(process.is_alive() for process in processes):
            time.sleep(0.005)
        for process in processes:
            process.kill()
            process.join()
        assert [process.exitcode for process in processes] == [-signal.SIGKILL] * 2
        assert len(list(folder.rglob('epoch.json'))) < 2
        whole = set(folder.rglob('0*.safetensors'))
        times = {p: p.stat().st_mtime_ns for p in whole}
        saved(teacher, digits, folder)
        assert {p: p.stat().st_mtime_ns for p in whole} == times  # nothing is computed twice
        assert files_of(folder) == files_of(tmp_path / 'whole')


def _saved_by_one_of_two(rank: int, meeting: str, *args) -> None:
    torch.distributed.init_process_group('gloo', meeting, timedelta(minutes=10), world_size=2, rank=rank)
    saved(*args, progress=False)


def test_a_shard_has_no_temporary_name_but_the_one_that_is_removed_after_a_kill(teacher, digits, tmp_path, monkeypatch):
    """safetensors' own `save_file` writes elsewhere in the folder and renames."""
    module, files = sys.modules['tinyvit_zoo.soft_labels.shard'], []

    @contextmanager
    def watched(path, new_file=module.new_file):
        with new_file(path) as new:
            before = new.stat().st_ino
            yield new
            files.append((before, new.stat().st_ino))

    monkeypatch.setattr(module, 'new_file', watched)
    saved(teacher, digits, tmp_path / 's', epochs=[0])
    assert len(files) == 4
    assert all(before == after for before, after in files)


class _Waiting(Teacher):
    """A teacher that waits to be killed when enough shards are in a folder."""

    def __init__(self, teacher: Teacher, folder: Path, enough: int) -> None:
        super().__init__(teacher.model, teacher.name, teacher.size, teacher.mean, teacher.std)
        self.folder, self.enough = folder, enough

    def shards(self) -> list[Path]:
        return list(self.folder.rglob('0*.safetensors'))

    def labels(self, images, k):
        if len(self.shards()) >= self.enough:
            time.sleep(600)
        return super().labels(images, k)


def test_a_whole_store_is_not_computed_again(teacher, digits, tmp_path, monkeypatch):
    saved(teacher, digits, tmp_path / 's')
    before = files_of(tmp_path / 's')
    monkeypatch.setattr(Teacher, 'labels', lambda *_: pytest.fail('a view was computed again'))
    saved(teacher, digits, tmp_path / 's')
    assert files_of(tmp_path / 's') == before


def test_the_teacher_is_left_as_it_was(teacher, digits, tmp_path):
    before = teacher.sha256
    teacher.model.train()
    saved(teacher, digits, tmp_path / 's', epochs=[0])
    assert teacher.model.training
    assert teacher.sha256 == before


def test_an_estimate_has_the_bytes_of_the_records_and_writes_nothing(teacher, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = estimate(teacher, digits, SPEC, [0, 2], k=4, batch_size=8)
    assert list(tmp_path.iterdir()) == []
    store = saved(teacher, digits, tmp_path / 's')
    records = sum(len(store.info.positions(i)) for i in range(store.info.shards)) * store.info.record.size * 2
    assert (found.views, found.bytes) == (2 * IMAGES, records)
    assert found.seconds > 0


def test_a_transformers_classifier_teaches_through_its_logits(digits, tmp_path):
    transformers = pytest.importorskip('transformers')
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8,
        num_labels=10,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config)
    teacher = Teacher(model, 'a ViT of transformers', (32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    read = saved(teacher, digits.subset(range(4)), tmp_path / 's', epochs=[0]).epoch(0).read(range(4))
    assert read.ids.shape == (4, 4)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda t: t.model.reset_classifier(7), ('7 classes', '10')),
        (lambda t: t.model.reset_classifier(0), ('64 classes', '10')),
        (lambda t: t.model.head.bias.data.fill_(float('nan')), ('no finite probabilities', 'digits[')),
    ],
)
def test_a_teacher_that_cannot_teach_is_named_before_anything_is_written(change, words, teacher, digits, tmp_path):
    other = copy.deepcopy(teacher)
    change(other)
    refused(lambda: saved(other, digits, tmp_path / 's'), *words, kind=EvaluationError)
    assert not list(tmp_path.rglob('*.safetensors'))


def test_a_folder_of_another_teacher_is_not_mixed(teacher, digits, tmp_path):
    saved(teacher, digits, tmp_path / 's', epochs=[0])
    before = files_of(tmp_path / 's')
    other = copy.deepcopy(teacher)
    other.model.head.bias.data.add_(1)
    refused(lambda: saved(other, digits, tmp_path / 's', epochs=[1]), 'teacher sha256', kind=EvaluationError)
    assert files_of(tmp_path / 's') == before


# checks


def test_a_store_agrees_with_its_data_views_and_teacher(teacher, digits, tmp_path):
    store = saved(teacher, digits, tmp_path / 's')
    check_data(store, digits)
    assert check_records(store, [0, 2]) == 2 * IMAGES
    marked = [i for i in range(IMAGES) if store.epoch(0).image_crc32(i) is not None]
    assert check_views(store, digits, [0, 2]) == 2 * len(marked) > 0
    found = check_teacher(store, digits, teacher, [0, 2], share=0.5, batch_size=8)
    assert found.views == IMAGES
    assert found.other_ids == 0
    assert found.largest < 5e-4


def test_other_data_and_other_teachers_are_named(teacher, digits, tmp_path):
    store = saved(teacher, digits, tmp_path / 's', epochs=[0])
    refused(lambda: check_data(store, digits.subset(range(32))), 'images 64', '32', kind=EvaluationError)
    reordered = digits.subset(range(IMAGES)[::-1])
    refused(lambda: check_data(store, reordered), 'fingerprint', kind=EvaluationError)
    other = copy.deepcopy(teacher)
    other.model.head.bias.data.add_(1)
    refused(lambda: check_teacher(store, digits, other, [0]), 'teacher sha256', kind=EvaluationError)


def test_images_that_became_others_are_named_with_the_versions_that_made_them(teacher, digits, tmp_path, monkeypatch):
    store = saved(teacher, digits, tmp_path / 's', epochs=[0])
    rotated = ReplayedViews.view
    monkeypatch.setattr(ReplayedViews, 'view', lambda self, i: (rotated(self, i)[0], rotated(self, i)[1].rotate(90)))
    refused(
        lambda: check_views(store, digits, [0]), 'digits[0]', 'not the one that the teacher saw', 'versions are those',
        'pillow', kind=EvaluationError,
    )  # fmt: skip
    now = library_versions()
    monkeypatch.setattr('tinyvit_zoo.soft_labels.check.library_versions', lambda: now | dict(pillow='99'))
    refused(
        lambda: check_views(store, digits, [0]), f'pillow {now["pillow"]}', 'here are', 'pillow 99',
        kind=EvaluationError,
    )  # fmt: skip


def test_a_teacher_without_numbers_does_not_agree_with_a_store(teacher, digits, tmp_path, monkeypatch):
    store = saved(teacher, digits, tmp_path / 's', epochs=[0])
    silent = copy.deepcopy(teacher)
    silent.model.head.bias.data.fill_(float('nan'))
    # As where nothing is known of the teacher's weights.
    monkeypatch.setattr(Teacher, 'sha256', property(lambda self: store.info.teacher_sha256))
    refused(lambda: check_teacher(store, digits, silent, [0]), 'no finite probabilities', kind=EvaluationError)
    refused(lambda: check_teacher(store, digits, silent, []), 'an epoch at least', kind=EvaluationError)


@pytest.mark.parametrize('epochs', [[-1], [0, 10**6], [10**20]])
def test_epochs_that_no_store_has_are_named(epochs, teacher, digits, tmp_path):
    refused(
        lambda: saved(teacher, digits, tmp_path / 's', epochs), f'not {min(epochs)} to {max(epochs)}',
        kind=EvaluationError,
    )  # fmt: skip
    assert not (tmp_path / 's').exists()


def test_nothing_is_saved_to_an_address(teacher, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(lambda: saved(teacher, digits, 'memory://labels'), 'name a folder', kind=EvaluationError)
    assert not list(tmp_path.iterdir())


PROGRAM = """
import timm, torch
from tinyvit_zoo.data import load_dataset
from tinyvit_zoo.data.replay import ViewSpec
from tinyvit_zoo.soft_labels import Teacher, save

torch.manual_seed(0)
model = timm.create_model('test_vit', num_classes=10, img_size=32)
torch.nn.init.normal_(model.head.weight)
spec = ViewSpec.from_timm((32, 32), auto_augment='rand-m9-mstd0.5-inc1', re_prob=0.25)
data = load_dataset('digits', 'train').subset(range(64))
save(Teacher.of_timm(model, 'a small ViT'), data, spec, FOLDER, (0, 2), k=4, batch_size=8, shard_size=20)
"""


@pytest.mark.slow
def test_two_processes_of_torchrun_save_the_bytes_of_one(teacher, digits, tmp_path):
    (tmp_path / 'program.py').write_text(PROGRAM.replace('FOLDER', repr(str(tmp_path / 'two'))))
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(Path(__file__).parents[1])}
    subprocess.run([*launcher, str(tmp_path / 'program.py')], env=environment, cwd=tmp_path, check=True, timeout=500)
    saved(teacher, digits, tmp_path / 'one')
    assert files_of(tmp_path / 'two') == files_of(tmp_path / 'one')


def test_the_fingerprint_of_files_is_kept_beside_the_store(teacher, digits, tmp_path):
    for i in range(6):
        folder = tmp_path / 'data' / 'train' / f'digit{i % 2}'
        folder.mkdir(parents=True, exist_ok=True)
        digits.image(i).save(folder / f'{i}.png')
    data = load_dataset(str(tmp_path / 'data'), 'train')
    other = copy.deepcopy(teacher)
    other.model.reset_classifier(2)
    store = saved(other, data, tmp_path / 's', epochs=[0])
    kept = tmp_path / 's' / 'fingerprints.json'
    assert store.info.fingerprint in kept.read_text()
    check_data(store, load_dataset(str(tmp_path / 'data'), 'train'))
    digits.image(9).save(tmp_path / 'data' / 'train' / 'digit0' / '0.png')
    changed = load_dataset(str(tmp_path / 'data'), 'train')
    refused(lambda: check_data(store, changed), 'fingerprint', kind=EvaluationError)
