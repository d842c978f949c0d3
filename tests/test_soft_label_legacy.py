"""Dumps of TinyViT's released code: the files that its own writer made, and the faults that users' dumps have."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import refused

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.soft_labels import Store
from tinyvit_zoo.soft_labels.legacy import convert, names_fingerprint, read_epoch

GOLDEN = Path(__file__).parent / 'golden' / 'tinyvit_logits_sample' / 'logits_top4_epoch3'
K = 3


def write_epoch(folder: Path, keys: list[list[str]], epoch: int = 0) -> Path:
    """A dump as the released code writes it, by rank; record i has the seed i and starts at class i."""
    place = folder / f'logits_top{K}_epoch{epoch}'
    place.mkdir(parents=True, exist_ok=True)
    count = 0
    for rank, of_rank in enumerate(keys):
        values = b''
        for _ in of_rank:
            ids = (np.arange(K) + count).astype('<i2')
            values += np.array(count, '<i4').tobytes() + ids.tobytes() + np.array([0.5, 0.25, 0.125], '<f2').tobytes()
            count += 1
        (place / f'rank{rank}-values.bin').write_bytes(values)
        (place / f'rank{rank}-keys.txt').write_text(''.join(f'{key}\n' for key in of_rank))
    return place


def converted(folder: Path, output: Path, **kwargs) -> Store:
    return convert(folder, output, **{'classes': 100, 'views': {'kind': 'released code'}, 'teacher': 'CLIP', **kwargs})


def test_the_files_of_the_released_writer_give_its_seeds_classes_and_probabilities(tmp_path):
    """Its second rank has one more record under a key of its own; a later record of a key it has is not written."""
    epoch = read_epoch(GOLDEN)
    assert (epoch.number, epoch.k) == (3, 4)
    assert epoch.keys.tolist() == [b'n00007846_10001', b'n00007846_10002', b'n00007846_10003']
    seeds, labels = epoch.read(range(3))
    assert seeds.tolist() == [123456789, 0, 2147483647]
    assert labels.ids.tolist() == [[21840, 0, 850, 7], [32767, 300, 256, 255], [1, 2, 3, 4]]
    assert labels.probabilities[0].tolist() == [0.5, 0.25, 0.125, 0.0625]
    store = convert(GOLDEN.parent, tmp_path / 's', classes=32768, views={}, teacher='CLIP')
    read = store.epoch(3).read([2, 0])
    assert np.array_equal(read.ids, labels.ids[[2, 0]])
    assert np.array_equal(read.probabilities, labels.probabilities[[2, 0]])
    assert store.epoch(3).seeds([2, 0]).tolist() == [2147483647, 123456789]


def test_positions_follow_the_names_of_images_or_the_numbers_that_are_keys(tmp_path):
    names = read_epoch(write_epoch(tmp_path / 'names', [['n2_1', 'n1_10'], ['n1_9']]))
    assert names.keys.tolist() == [b'n1_10', b'n1_9', b'n2_1']
    assert names.read(range(3))[0].tolist() == [1, 2, 0]
    numbers = read_epoch(write_epoch(tmp_path / 'numbers', [[str(i) for i in range(11, -1, -1)]]))
    assert numbers.read(range(12))[0].tolist() == list(range(11, -1, -1))


def test_an_interrupted_conversion_goes_on_and_gives_the_same_bytes(tmp_path):
    for epoch in (0, 1):
        write_epoch(
            tmp_path / 'dump', [[f'a{i:02d}' for i in range(0, 20, 2)], [f'a{i:02d}' for i in range(1, 20, 2)]], epoch
        )
    converted(tmp_path / 'dump', tmp_path / 'whole')
    shutil.copytree(tmp_path / 'whole', tmp_path / 'cut')
    (tmp_path / 'cut' / 'epoch-0001' / 'epoch.json').unlink()
    (tmp_path / 'cut' / 'epoch-0001' / '00000.safetensors').write_bytes(b'')
    converted(tmp_path / 'dump', tmp_path / 'cut')
    files = [{p.relative_to(root): p.read_bytes() for p in root.rglob('*') if p.is_file()}
             for root in (tmp_path / 'whole', tmp_path / 'cut')]  # fmt: skip
    assert files[0] == files[1]
    assert Store.open(tmp_path / 'cut').epochs() == [0, 1]
    assert Store.open(tmp_path / 'cut').info.fingerprint == names_fingerprint(
        np.array([f'a{i:02d}' for i in range(20)], dtype=np.bytes_)
    )


def test_seeds_are_protected_like_records(tmp_path):
    write_epoch(tmp_path / 'dump', [['0', '1']])
    converted(tmp_path / 'dump', tmp_path / 's')
    path = tmp_path / 's' / 'epoch-0000' / '00000.safetensors'
    whole = path.read_bytes()
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        with pytest.raises(EvaluationError):
            Store.open(tmp_path / 's').epoch(0).read([0, 1])


def test_a_store_of_our_own_has_no_seeds(tmp_path):
    write_epoch(tmp_path / 'dump', [['0', '1']])
    store = converted(tmp_path / 'dump', tmp_path / 's')
    _, labels = read_epoch(tmp_path / 'dump' / 'logits_top3_epoch0').read(range(2))
    store.write_shard(1, 0, labels, {})
    store.finish(1)
    refused(lambda: store.epoch(1).seeds([0]), 'no seeds', kind=EvaluationError)


FAULTS = {
    'a key in two files': (
        lambda d: write_epoch(d, [['a', 'b'], ['b']]),
        ('b', 'rank0-values.bin', 'rank1-values.bin'),
    ),
    'a number missing': (lambda d: write_epoch(d, [['0', '1', '3']]), ('lacks 1 keys', '2')),
    'a number far beyond the others': (lambda d: write_epoch(d, [['0', '1', '9' * 18]]), ('lacks 9', 'such as 2')),
    'a record cut': (
        lambda d: (write_epoch(d, [['0', '1']]) / 'rank0-values.bin').write_bytes(b'\0' * 25),
        ('rank0-values.bin', 'is cut', '16 bytes and 9 more'),
    ),
    'keys cut': (
        lambda d: (write_epoch(d, [['0', '1']]) / 'rank0-keys.txt').write_text('0\n'),
        ('rank0-keys.txt', '1 keys', '2 records'),
    ),
    'no keys': (lambda d: (write_epoch(d, [['0']]) / 'rank0-keys.txt').unlink(), ('rank0-keys.txt', 'missing')),
    'no values': (lambda d: (write_epoch(d, [['0']]) / 'rank0-values.bin').unlink(), ('rank0-values.bin',)),
    'no records': (lambda d: write_epoch(d, [[]]), ('no records',)),
    'fewer keys in a later epoch': (
        lambda d: [write_epoch(d, [['a', 'b']], 0), write_epoch(d, [['a']], 1)],
        ('epoch1', '1 keys', '2'),
    ),
    'other keys in a later epoch': (
        lambda d: [write_epoch(d, [['a', 'b']], 0), write_epoch(d, [['a', 'c']], 1)],
        ('epoch1', 'other keys'),
    ),
    'classes beyond those of the data': (lambda d: write_epoch(d, [[str(i) for i in range(99)]]), ('0 to 99',)),
    'no dump at all': (lambda d: d.mkdir(), ('logits_top100_epoch0',)),
    'several K': (
        lambda d: [write_epoch(d, [['0']]), (d / 'logits_top9_epoch1').mkdir()],
        ('several K', 'logits_top9_epoch1'),
    ),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_a_faulty_dump_is_named_and_writes_no_epoch(fault, tmp_path):
    make, words = FAULTS[fault]
    make(tmp_path / 'dump')
    refused(lambda: converted(tmp_path / 'dump', tmp_path / 's'), *words, kind=EvaluationError)
    assert len(list((tmp_path / 's').rglob('epoch.json'))) == fault.endswith('later epoch')


def test_more_classes_than_the_released_code_can_write_are_refused(tmp_path):
    write_epoch(tmp_path / 'dump', [['0']])
    refused(
        lambda: converted(tmp_path / 'dump', tmp_path / 's', classes=40_000), '32768', '40000', kind=EvaluationError
    )
