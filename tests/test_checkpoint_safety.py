"""Hostile files: nothing is built of them that the file itself cannot fill, and one sentence says why."""

import io
import pickle
import pickletools
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import refused

from tinyvit_zoo.checkpoints import CheckpointError, WeightsNotFoundError, read_checkpoint, unwrap
from tinyvit_zoo.checkpoints.manifest import read_manifest
from tinyvit_zoo.common.bounds import check_sizes
from tinyvit_zoo.common.errors import ModelError
from tinyvit_zoo.common.text import first_few, shown

MB = 1 << 20


def in_torch(content, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def in_legacy(content, **options) -> bytes:
    return in_torch(content, _use_new_zipfile_serialization=False, **options)


def zipped_again(data: bytes, change=lambda name, content: content, how: int = zipfile.ZIP_STORED, more=()) -> bytes:
    new = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(new, 'w', how) as archive, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of an entry that is there twice
        for entry in old.infolist():
            archive.writestr(entry.filename, change(entry.filename, old.read(entry)))
        for name, content in more:
            archive.writestr(name, content)
    return new.getvalue()


def with_pickle(opcodes: bytes) -> bytes:
    """A zip file with right checksums and a pickle of these opcodes."""
    pickled = b'\x80\x02' + opcodes + b'.'
    return zipped_again(in_torch({'w': torch.zeros(1)}), lambda name, old: pickled if name.endswith('.pkl') else old)


def legacy_without_storages() -> bytes:
    """Tensors whose numbers do not follow: torch would give them what is in the memory."""
    whole = io.BytesIO(in_legacy({'w': torch.arange(1000.0)}))
    for _ in range(4):
        list(pickletools.genops(whole))
    return whole.getvalue()[: whole.tell()] + pickle.dumps([], 2)


def marked_as_folder() -> bytes:
    """torch leaves out what is not a file: its numbers would be what is in the memory."""
    data = bytearray(in_torch({'w': torch.arange(1000.0)}))
    data[data.rindex(b'archive/data/0') - 8] = 0x10  # of the attributes in the table of contents
    return bytes(data)


def of_numpy() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, w=np.zeros(3))
    return buffer.getvalue()


def program() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Identity()), buffer)
    return buffer.getvalue()


def call(name: str, arguments: bytes) -> bytes:
    return b'c' + name.replace(' ', '\n').encode() + b'\n' + arguments + b'R'


ONE, HUGE = torch.zeros(1), b'J\xff\xff\xff\x7f\x85'
HOSTILE = {
    'numbers that are not there': (in_torch({'w': ONE.as_strided((10**6, 10**6), (0, 0))}), '1,000,000,000,000'),
    'the same, legacy': (in_legacy({'w': ONE.as_strided((10**6, 10**6), (0, 0))}), '1,000,000,000,000'),
    'overlapping rows': (in_torch({'w': torch.zeros(3000).as_strided((2000, 1000), (1, 1))}), '2,000,000'),
    'one tensor, many names': (
        in_torch(dict.fromkeys((f'w{i}' for i in range(100)), torch.zeros(100_000))),
        '20 times',
    ),
    'a bomb': (zipped_again(in_torch({'w': torch.zeros(MB)}), how=zipfile.ZIP_DEFLATED), '20 times'),
    'a bomb in the pickle': (zipped_again(with_pickle(b'N' * MB + b'0'), how=zipfile.ZIP_DEFLATED), '20 times'),
    'another compression': (zipped_again(in_torch({'w': ONE}), how=zipfile.ZIP_BZIP2), 'compressed'),
    'an entry twice': (zipped_again(in_torch({'w': ONE}), more=[('archive/data/0', b'1234')]), 'archive/data/0 twice'),
    'an entry twice for torch': (zipped_again(in_torch({'w': ONE}), more=[('ARCHIVE/data/0', b'1234')]), 'twice'),
    'bytes of any number': (with_pickle(call('__builtin__ bytearray', HUGE)), 'bytearray'),
    'a tensor of any size': (with_pickle(call('torch FloatTensor', HUGE)), 'torch.FloatTensor'),
    'a storage of any size': (with_pickle(call('torch.storage UntypedStorage', HUGE)), 'UntypedStorage'),
    'a tensor by another function': (
        with_pickle(call('torch._tensor _rebuild_from_type_v2', b'(c__builtin__\nbytearray\nN' + HUGE + b'}t')),
        'bytearray',
    ),
    'a slow codec': (
        with_pickle(call('_codecs encode', b'X\x01\x00\x00\x00aX\x08\x00\x00\x00punycode\x86')),
        'encodes',
    ),
    'nested keys': (with_pickle(b'}K\x01' + b'\x85' * 100_000 + b'K\x01s'), '100 levels'),
    'many sets': (with_pickle(b'(' + b'\x8f' * MB + b't'), 'objects'),
    'many marks': (with_pickle(b'(' * MB), 'objects'),
    'many nothings': (with_pickle(b'(' + b'N' * 2 * MB + b't'), 'objects'),
    'more than the file': (
        in_legacy({'w': torch.arange(1000.0)}).replace(b'M\xe8\x03', HUGE[:5]),
        '8,589,934,588 bytes',
    ),
    'storages that do not follow': (legacy_without_storages(), 'list of storages'),
    'an entry marked as a folder': (marked_as_folder(), 'marked as a folder'),
    'a program': (program(), 'TorchScript'),
    'arrays of numpy': (of_numpy(), 'not one that torch.save wrote'),
    'a plain pickle': (pickle.dumps({'w': 1}), 'not one that torch.save wrote'),
}


@pytest.mark.parametrize(('data', 'words'), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused(data, words, tmp_path):
    (tmp_path / 'x.pth').write_bytes(data)
    refused(lambda: read_checkpoint(tmp_path / 'x.pth'), str(tmp_path), words)


def test_every_bit_of_a_zip_file_counts(tmp_path):
    """torch ignores checksums: a flipped bit was a weight of 3.9e36."""
    weights = {'w': torch.randn(50)}
    whole = in_torch(weights)
    at = whole.index(weights['w'].numpy().tobytes())
    for position in range(at, at + 200, 7):
        damaged = bytearray(whole)
        damaged[position] ^= 0x40
        (tmp_path / 'x.pth').write_bytes(damaged)
        refused(lambda: read_checkpoint(tmp_path / 'x.pth'), 'damaged', 'CRC')


def test_a_pickle_that_torch_did_not_save_is_no_damage(tmp_path):
    (tmp_path / 'x.pth').write_bytes(pickle.dumps({'a': torch.ones(3)}))
    refused(lambda: read_checkpoint(tmp_path / 'x.pth'), 'not one that torch.save wrote')


@pytest.mark.parametrize('tail', [b'\0', b'PK\x05\x06' + bytes(18), bytes(1000)])
def test_nothing_follows_an_archive(tail, tmp_path):
    """Two readers would look for the table of contents in two places."""
    (tmp_path / 'x.pth').write_bytes(in_torch({'w': ONE}) + tail)
    refused(lambda: read_checkpoint(tmp_path / 'x.pth'), 'damaged')


def test_tied_weights_are_no_bomb(tmp_path):
    tied = torch.randn(40, 10)
    content = {f'layers.{i}.weight': tied for i in range(12)} | {'expanded': torch.ones(1).expand(8)}
    torch.save(content, tmp_path / 'x.pth')
    assert torch.equal(read_checkpoint(tmp_path / 'x.pth')['layers.11.weight'], tied)
    assert read_checkpoint(tmp_path / 'x.pth')['expanded'].tolist() == [1] * 8


needs_clear_refs = pytest.mark.skipif(
    not Path('/proc/self/clear_refs').exists(), reason='the peak of the memory is known on Linux only'
)


READER = """
import ctypes, sys
from pathlib import Path
from tinyvit_zoo.checkpoints import read_checkpoint

MB = 1 << 20

def memory(kind):
    lines = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines())
    return int(lines[kind].split()[0]) * 1024

for path in sys.stdin:
    path = Path(path.rstrip('\\n'))
    bytearray(32 * MB - 8192)  # freed, it raises the size from which glibc maps memory instead of using the heap
    blocks = [bytearray(i * MB // 2) for i in range(1, 31) for _ in range(2)]
    del blocks[1::2]
    ctypes.CDLL(None).malloc_trim(0)  # what the read takes from free memory of the heap would not be seen
    before = memory('VmRSS')
    Path('/proc/self/clear_refs').write_text('5')  # forget the peak
    assert read_checkpoint(path)
    print((memory('VmHWM') - before) / path.stat().st_size, flush=True)
"""
"""Prints for each path how many times the size of the file its reading takes at most, in a heap with holes.

A copy that grows would move from hole to hole, and leave the pages of each behind. The heap of the tests' own process
has other holes in every run.
"""


@pytest.fixture(scope='module')
def memory_of_reading(tmp_path_factory) -> Iterator[Callable[[Path], float]]:
    """Asks a process of its own, which has read a small file before."""
    small = tmp_path_factory.mktemp('small') / 'small.pth'
    torch.save({'w': torch.zeros(1)}, small)
    command = [sys.executable, '-W', 'ignore', '-c', READER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:

        def ask(path: Path) -> float:
            print(path, file=reader.stdin, flush=True)
            return float(reader.stdout.readline())

        ask(small)
        yield ask
        reader.stdin.close()


@needs_clear_refs
@pytest.mark.parametrize(
    'save',
    [
        in_torch,
        in_legacy,
        lambda content: in_torch(content, pickle_protocol=5),
        lambda content: in_legacy(content, pickle_protocol=5),
        safetensors.torch.save,
    ],
    ids=['zip', 'legacy', 'zip of protocol 5', 'legacy of protocol 5', 'safetensors'],
)
def test_a_file_takes_at_most_three_times_its_size(save, memory_of_reading, tmp_path):
    path = tmp_path / 'large.pth'
    path.write_bytes(save({f'w{i}': torch.ones(4 * MB) for i in range(6)}))
    assert memory_of_reading(path) < 3


@needs_clear_refs
@pytest.mark.parametrize('save', [in_torch, in_legacy], ids=['zip', 'legacy'])
def test_a_file_of_many_tensors_takes_no_more(save, memory_of_reading, tmp_path):
    path = tmp_path / 'large.pth'
    path.write_bytes(save({f'w{i}': torch.ones(MB // 4) for i in range(48)}, pickle_protocol=5))
    assert memory_of_reading(path) < 3


# --- mappings that lead nowhere


def cyclic(*keys: str, tensor: bool) -> dict:
    first: dict = {'w': torch.zeros(1)} if tensor else {'epoch': 1}
    inner = first
    for key in keys[:-1]:
        inner[key] = {}
        inner = inner[key]
    inner[keys[-1]] = first
    return first


@pytest.mark.parametrize('tensor', [True, False])
@pytest.mark.parametrize(
    'keys', [['model'], ['model', 'state_dict'], ['ema', 'module', 'net'], ['teacher']], ids='.'.join
)
def test_a_checkpoint_that_contains_itself_is_refused(keys, tensor, tmp_path):
    torch.save(cyclic(*keys, tensor=tensor), tmp_path / 'x.pth')
    refused(lambda: read_checkpoint(tmp_path / 'x.pth'), 'contains itself' if tensor else 'not a state dict')
    refused(lambda: read_checkpoint(tmp_path / 'x.pth', part='nothing'))


def test_wrappers_without_end_are_refused():
    deep, wide = {'w': torch.zeros(1)}, {'w': torch.zeros(1)}
    for _ in range(3000):
        deep = {'model': deep}
    for _ in range(60):  # as many paths as 2 to the 60th
        wide = {'student': wide, 'teacher': wide}
    refused(lambda: unwrap(deep), 'not a state dict')
    refused(lambda: unwrap(wide), 'student, teacher')


# --- names of others in messages

NASTY = '\x1b[31mred\r\nline\u202e\ud800' + 'x' * 5000


def test_names_in_messages_are_escaped_and_cut(tmp_path):
    torch.save({NASTY: torch.zeros(1), NASTY + 'y': 3}, tmp_path / 'x.pth')
    message = refused(lambda: read_checkpoint(tmp_path / 'x.pth'), '\\x1b[31mred\\r\\nline\\u202e\\ud800xx')
    assert message.isprintable()
    assert shown(NASTY).isprintable()
    assert len(first_few([NASTY] * 5)) < 800
    assert first_few([('a', 'tuple'), 1, 'b']) == '<tuple>, 1, b'


@pytest.mark.parametrize('error', [CheckpointError, ModelError, WeightsNotFoundError])
def test_errors_act_on_no_terminal(error):
    assert str(error('one\x1b[2J\ntwo')) == 'one\\x1b[2J\\ntwo'


NO_PATHS = ('~no_such_user_here/x.pth', 'x' * 300, f'{"x" * 300}/y.pth')


@pytest.mark.parametrize('path', NO_PATHS, ids=['no user', 'long', 'long folder'])
@pytest.mark.parametrize('command', ['convert', 'import', 'pack', 'push', 'classify'])
def test_a_path_that_cannot_be_one_ends_in_a_sentence(path, command, cli, tmp_path):
    for no_path in (path, 'a\0b'):
        refused(lambda no_path=no_path: read_checkpoint(no_path), 'cannot be a path', kind=WeightsNotFoundError)
    name, out = 'tinyvit_5m_224', str(tmp_path / 'out')
    code, _, err = cli(
        *{
            'convert': ('convert', path, f'{out}.safetensors'),
            'import': ('import', path, '--name', name),
            'pack': ('pack', name, '--weights', path, '-o', out),
            'push': ('push', name, '--weights', path, '--to', 'a/b', '--dry-run'),
            'classify': ('classify', tmp_path, '-m', name, '--weights', path),
        }[command]
    )
    assert code == 1
    assert len(err) < 600
    assert err.strip().isprintable()


@pytest.mark.parametrize('path', ['~no_such_user_here/x', 'x' * 300], ids=lambda p: p[:9])
@pytest.mark.parametrize('command', ['convert', 'pack'])
def test_a_place_that_cannot_be_one_ends_in_a_sentence(path, command, cli, small, tmp_path):
    file = tmp_path / 'x.pth'
    torch.save(small().state_dict(), file)
    arguments = (
        ('convert', file, f'{path}.pth') if command == 'convert' else ('pack', 'test_vit', '--random', '-o', path)
    )
    code, _, err = cli(*arguments)
    assert code == 1
    assert 'cannot be a path' in err


# --- texts of others

DEEP = b'[' * 100_000


def test_json_nested_too_deeply_is_refused(tmp_path):
    for name in ('manifest.json', 'config.json', 'model.safetensors.index.json'):
        (tmp_path / name).write_bytes(DEEP)
    refused(lambda: read_manifest(tmp_path / 'manifest.json'), 'manifest.json')
    refused(lambda: read_checkpoint(tmp_path), 'index', 'nested too deeply')
    from tinyvit_zoo.build import build_model

    refused(lambda: build_model(f'local-dir:{tmp_path}'), 'nested too deeply', kind=ModelError)


ABSURD = {
    'depths': [1_000_000],
    'depth': 10**30,
    'embed_dims': [10**9] * 4,
    'embed_dim': 60_000,
    'num_classes': 10**12,
    'img_size': 10**7,
    'window_sizes': [10**6] * 4,
    'mlp_ratio': 1e9,
    'num_heads': float('inf'),
    'repeats': float('nan'),
}


@pytest.mark.parametrize(('key', 'value'), ABSURD.items(), ids=ABSURD)
def test_absurd_sizes_are_refused_before_a_model_is_made(key, value):
    refused(
        lambda: check_sizes(dict(depths=(2, 2, 6, 2), model=dict(args=[{key: value}])), 'the page'),
        'the page',
        kind=ModelError,
    )


def test_ordinary_sizes_are_not_refused():
    widths = dict(embed_dims=[96, 192, 384, 768], img_size=(512, 2048), num_classes=21841)
    assert check_sizes(dict(widths, depths=(2, 2, 18, 2)), 'x') is None
    assert check_sizes(dict(embed_dim=2048, depth=48, mlp_ratio=4.0, window_size=64, x=None, y=True), 'x') is None
