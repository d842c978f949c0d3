"""Fingerprints of data sets: of millions of images without opening one, and kept in a file while nothing changes."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from fake_datasets import class_folders

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data import ImageDataset, fingerprints, load_dataset
from tinyvit_zoo.data.image_dataset import Arrays, join

CLASSES = ('ant', 'bee')


@pytest.fixture
def root(tmp_path) -> Path:
    return class_folders(tmp_path / 'images', CLASSES, 3)


def load(root: Path) -> ImageDataset:
    return load_dataset(str(root), 'all')


def fingerprint(root: Path) -> str:
    return load(root).fingerprint()


@pytest.fixture(params=[False, True], ids=['few', 'many'])
def many(request, monkeypatch) -> bool:
    """Whether six images are many."""
    monkeypatch.setattr(fingerprints, 'MANY', 5 if request.param else 6)
    return request.param


def longer(path: Path) -> None:
    with path.open('ab') as file:
        file.write(b'x')


def renamed(path: Path) -> None:
    path.rename(path.with_name(f'new{path.suffix}'))


def moved(path: Path) -> None:
    path.rename(path.parents[1] / 'bee' / f'from_ant{path.suffix}')


# --- of many images


@pytest.mark.parametrize('change', [longer, renamed, moved, Path.unlink])
def test_a_change_of_size_name_label_or_number_is_seen(change, root, many):
    before = fingerprint(root)
    change(root / 'ant' / '1.png')
    assert fingerprint(root) != before


def test_order_and_orientation_are_part_of_it(root, many):
    dataset = load(root)
    assert dataset.fingerprint() != dataset.subset([1, 0, 2, 3, 4, 5]).fingerprint()
    turned = load(root)
    turned.source.upright = not turned.source.upright
    assert dataset.fingerprint() != turned.fingerprint()


def test_of_many_images_none_is_opened_and_another_content_of_the_same_size_is_the_same(root, monkeypatch):
    few = fingerprint(root)
    monkeypatch.setattr(fingerprints, 'MANY', 5)
    before = fingerprint(root)
    path = root / 'ant' / '0.png'
    path.write_bytes(bytes(reversed(path.read_bytes())))
    with monkeypatch.context() as patch:
        patch.setattr(Path, 'open', None)
        assert fingerprint(root) == before != few


def test_it_does_not_depend_on_where_the_folder_is(root, many, tmp_path):
    before = fingerprint(root)
    root.rename(tmp_path / 'elsewhere')
    assert fingerprint(tmp_path / 'elsewhere') == before


def test_parts_and_images_in_memory_have_one_too(root, many):
    joined = join([load(root).subset([0, 1]), load(root)], 'all')
    assert joined.fingerprint() != load(root).fingerprint()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    values = [ImageDataset('x', 'all', CLASSES, [0] * 6, Arrays(p, 'x')).fingerprint() for p in (pixels, pixels + 1)]
    assert values[0] != values[1]


def test_a_file_that_is_gone_is_named(root, many):
    dataset = load(root)
    (root / 'bee' / '2.png').unlink()
    with pytest.raises(EvaluationError, match=r'bee/2\.png cannot be read'):
        dataset.fingerprint()


# --- kept in a file


@pytest.fixture
def computed(monkeypatch) -> list:
    """The data sets whose fingerprints were computed."""
    found, compute = [], fingerprints.compute_fingerprint

    def counting(dataset):
        found.append(dataset)
        return compute(dataset)

    monkeypatch.setattr('tinyvit_zoo.data.image_dataset.compute_fingerprint', counting)
    return found


def test_a_kept_fingerprint_is_not_computed_again(root, many, computed, tmp_path):
    kept = tmp_path / 'store' / 'fingerprints.json'
    first = load(root).fingerprint(kept)
    again = load(root)
    assert again.fingerprint(kept) == again.fingerprint() == first == fingerprint(root)
    assert len(computed) == 2  # the first, and the one without the file
    assert list(json.loads(kept.read_text()).values()) == [first]


@pytest.mark.parametrize('change', [longer, renamed, moved, Path.unlink])
def test_what_is_kept_holds_for_the_very_files_only(change, root, many, computed, tmp_path):
    kept = tmp_path / 'kept.json'
    load(root).fingerprint(kept)
    change(root / 'ant' / '1.png')
    assert load(root).fingerprint(kept) == fingerprint(root)
    assert len(computed) == 3


def test_a_file_written_again_in_place_is_read_again(root, computed, tmp_path):
    kept, path = tmp_path / 'kept.json', root / 'ant' / '1.png'
    before, times = load(root).fingerprint(kept), path.stat()
    path.write_bytes(bytes(reversed(path.read_bytes())))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as copying tools do
    assert load(root).fingerprint(kept) == fingerprint(root) != before


def test_splits_and_orders_are_kept_beside_one_another(root, many, computed, tmp_path):
    kept, dataset = tmp_path / 'kept.json', load(root)
    parts = [dataset.subset([0, 1, 2, 3, 4, 5]), dataset.subset([5, 4, 3, 2, 1, 0]), dataset.subset([1])]
    first = [part.fingerprint(kept) for part in parts]
    assert [load(root).subset(p.positions).fingerprint(kept) for p in parts] == first
    assert len(set(first)) == 3 == len(computed)


def test_other_labels_are_another_data_set(root, many, computed, tmp_path):
    kept, dataset = tmp_path / 'kept.json', load(root)
    dataset.fingerprint(kept)
    other = load(root)
    other.labels[0] = 1
    assert other.fingerprint(kept) != dataset.fingerprint(kept)


def test_joined_files_are_kept_in_their_order(root, computed, tmp_path):
    kept = tmp_path / 'kept.json'
    other = class_folders(tmp_path / 'other', CLASSES, 1)
    there = join([load(root), load(other)], 'all').fingerprint(kept)
    back = join([load(other), load(root)], 'all').fingerprint(kept)
    assert there != back
    assert join([load(root), load(other)], 'all').fingerprint(kept) == there
    assert len(computed) == 2


def test_of_many_images_a_sample_is_looked_at_and_every_folder(root, monkeypatch, computed, tmp_path):
    monkeypatch.setattr(fingerprints, 'MANY', 5)
    monkeypatch.setattr(fingerprints, 'SAMPLE', 2)
    looked_at, stamp = [], fingerprints.file_stamp
    for module in ('fingerprints', 'image_dataset'):
        monkeypatch.setattr(
            f'tinyvit_zoo.data.{module}.file_stamp', lambda path: (looked_at.append(os.fsdecode(path)), stamp(path))[1]
        )
    kept = tmp_path / 'kept.json'
    load(root).fingerprint(kept)
    assert looked_at == [str(root / name) for name in ('ant', 'bee', 'ant/0.png', 'bee/2.png')]
    renamed(root / 'bee' / '0.png')  # none of the sample
    load(root).fingerprint(kept)
    assert len(computed) == 2


@pytest.mark.parametrize('content', ['', '{', '[1]', '{"a": 1}', 'null', b'\xff\xfe', '{"a": "short"}'])
def test_a_damaged_file_is_written_again(content, root, computed, tmp_path):
    kept = tmp_path / 'kept.json'
    kept.write_bytes(content if isinstance(content, bytes) else content.encode())
    first = load(root).fingerprint(kept)
    assert load(root).fingerprint(kept) == first
    assert len(computed) == 1


def test_a_value_that_is_no_hash_is_computed_again(root, computed, tmp_path):
    kept = tmp_path / 'kept.json'
    first = load(root).fingerprint(kept)
    kept.write_text(kept.read_text().replace(first, first[:-1]))
    assert load(root).fingerprint(kept) == first
    assert len(computed) == 2


def test_a_file_that_cannot_be_written_is_told_and_no_error(root, computed, tmp_path, caplog):
    (tmp_path / 'file').touch()
    kept = tmp_path / 'file' / 'kept.json'
    assert load(root).fingerprint(kept) == fingerprint(root)
    assert any('cannot be written' in message for message in caplog.messages)


def test_images_that_are_no_files_have_a_fingerprint_and_nothing_is_kept(tmp_path):
    source, kept = Arrays(np.zeros((2, 4, 4, 3), np.uint8), 'x'), tmp_path / 'kept.json'
    dataset = ImageDataset('x', 'all', CLASSES, [0, 1], source)
    assert dataset.fingerprint(kept) == ImageDataset('x', 'all', CLASSES, [0, 1], source).fingerprint()
    files = load(class_folders(tmp_path / 'images', CLASSES, 1))
    join([dataset, files.subset([0])], 'all').fingerprint(kept)
    assert not kept.exists()


def test_a_file_keeps_a_limited_number(root, monkeypatch, computed, tmp_path):
    monkeypatch.setattr(fingerprints, 'KEPT', 2)
    kept, dataset = tmp_path / 'kept.json', load(root)
    values = [dataset.subset([i]).fingerprint(kept) for i in range(4)]
    assert list(json.loads(kept.read_text()).values()) == values[2:]
