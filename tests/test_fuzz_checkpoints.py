"""Damaged checkpoints, 2,000 of each format: `benchmarks/fuzz_checkpoints.py` makes and tries any number of them."""

import importlib.util
import random
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import assert_same

from tinyvit_zoo.checkpoints import CheckpointError, read_checkpoint

PATH = Path(__file__).parent.parent / 'benchmarks' / 'fuzz_checkpoints.py'
SPEC = importlib.util.spec_from_file_location('fuzz_checkpoints', PATH)
fuzz = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = fuzz  # dataclasses look their module up
SPEC.loader.exec_module(fuzz)

FORMATS = {format.name: format for format in fuzz.formats()}
HARMLESS = fuzz.harmless()


@pytest.mark.parametrize('format', FORMATS.values(), ids=FORMATS)
def test_a_damaged_file_loads_equal_or_ends_in_one_error(format, tmp_path):
    report = fuzz.try_format(format, 2000, seed=0, folder=tmp_path)
    assert not report.bad, [kind for kind, _ in report.bad][:10]
    assert sum(report.counts.values()) == 2000
    assert report.counts['refused'] > 200


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('name', HARMLESS)
def test_a_harmless_difference_loads(name, tmp_path):
    (tmp_path / 'model.pth').write_bytes(HARMLESS[name])
    assert_same(read_checkpoint(tmp_path / 'model.pth'), fuzz.small_weights())


# --- the tool sees what it is there for


def test_a_hang_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, 'SECONDS', 0.05)
    (tmp_path / 'x').write_bytes(b'x')
    assert fuzz.outcome(tmp_path / 'x', lambda path: time.sleep(5), None) == 'hang'


@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='the peak of the memory is known on Linux only')
def test_memory_is_seen(tmp_path):
    (tmp_path / 'x').write_bytes(b'x')
    fuzz.give_back_memory()
    assert fuzz.outcome(tmp_path / 'x', lambda path: torch.ones(20 << 20) is None, False) == 'memory'


@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='the peak of the memory is known on Linux only')
def test_memory_from_a_hole_in_the_heap_is_seen(tmp_path):
    (tmp_path / 'x').write_bytes(b'x')
    torch.ones(31 << 18)  # 31 MiB, freed at once: glibc takes what is smaller from the heap now
    blocks = [torch.ones(25 << 18) for _ in range(7)]
    del blocks[:6]  # below the last, so that the heap keeps them
    fuzz.give_back_memory()
    assert fuzz.outcome(tmp_path / 'x', lambda path: torch.ones(20 << 20) is None, False) == 'memory'


@pytest.mark.parametrize(('error', 'kind'), [(ValueError('x'), 'ValueError'), (CheckpointError('x'), 'refused')])
def test_an_error_is_seen(error, kind, tmp_path):
    def read(path):
        raise error

    (tmp_path / 'x').write_bytes(b'x')
    assert fuzz.outcome(tmp_path / 'x', read, None) == kind


def test_other_numbers_are_seen(tmp_path):
    (tmp_path / 'x').write_bytes(b'x')
    assert fuzz.outcome(tmp_path / 'x', lambda path: {'a': torch.zeros(1)}, {'a': torch.ones(1)}) == 'other numbers'


def test_every_damage_changes_a_file():
    original = bytes(range(256)) * 8
    for damage in fuzz.DAMAGES:
        changed = bytearray(original)
        for seed in range(3):  # a number may be written over itself
            damage(changed, random.Random(seed))
        assert changed != original, damage


def test_the_table_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['fuzz_checkpoints.py', '--files', '3'])
    fuzz.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line[:20].strip() for line in lines[2:]] == list(FORMATS)
