"""Reading any file safely, and the official conversion of a classifier. Loading: see `test_loading.py`."""

import argparse
import hashlib
import importlib
import os
import pathlib
import pickle
import shutil
import sys
import threading
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import assert_same, load, refused

from tinyvit_zoo.checkpoints import (
    CheckpointError,
    WeightsNotFoundError,
    find_checkpoint,
    head_22k_to_1k,
    in1k_classes_in_22k,
    read_checkpoint,
    unwrap,
)

TINY = {'a.weight': torch.arange(6.0).view(2, 3), 'a.bias': torch.ones(2), 'n': torch.tensor(3)}


# --- kinds of files


def save_safetensors(state_dict, path):
    safetensors.torch.save_file(state_dict, path)


def save_zip(state_dict, path):
    torch.save(state_dict, path)


def save_legacy(state_dict, path):
    torch.save(state_dict, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ('save', 'name'),
    [
        (save_safetensors, 'model.safetensors'),
        (save_safetensors, 'named_otherwise.bin'),
        (save_zip, 'pytorch_model.bin'),
        (save_zip, 'released.pth'),
        (save_zip, 'named_otherwise.safetensors'),
        (save_legacy, 'old.pth'),
        (save_legacy, 'no_ending'),
    ],
)
def test_a_file_is_read_by_its_content(save, name, tmp_path):
    save(TINY, tmp_path / name)
    assert_same(read_checkpoint(tmp_path / name), TINY)
    assert_same(read_checkpoint(str(tmp_path / name)), TINY)


@pytest.mark.parametrize(
    'names',
    [
        ['model.safetensors', 'pytorch_model.bin'],
        ['pytorch_model.bin', 'other.pth'],
        ['model.pth', 'other.safetensors'],
        ['my_own_name.pth'],
        ['my_own_name.pt'],
        ['weights.safetensors', 'old.pth'],
        ['mae_tiny_400e.pth.tar'],
    ],
    ids='+'.join,
)
def test_a_folder_holds_one_checkpoint_the_first_of_known_names(names, tmp_path):
    for i, name in enumerate(names):
        save = save_safetensors if name.endswith('.safetensors') else save_zip
        save({'x': torch.tensor([i])}, tmp_path / name)
    assert find_checkpoint(tmp_path) == tmp_path / names[0]
    assert read_checkpoint(tmp_path)['x'].item() == 0


def test_a_folder_with_several_unknown_names_asks_for_one(tmp_path):
    for name in ('a.pth', 'b.pth'):
        save_zip(TINY, tmp_path / name)
    refused(lambda: read_checkpoint(tmp_path), 'several', 'a.pth', 'b.pth', kind=WeightsNotFoundError)


def test_a_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    save_zip(TINY, tmp_path / 'mine.pth')
    assert_same(read_checkpoint('~/mine.pth'), TINY)


# --- wrappers around a state dict


def prefixed(prefix: str, state_dict=TINY) -> dict:
    return {prefix + k: v for k, v in state_dict.items()}


OTHER = {k: torch.zeros_like(v) for k, v in TINY.items()}
WRAPPED = {
    'bare': TINY,
    'ordered': OrderedDict(TINY),
    'model': {'model': TINY},
    'model among other entries': {'model': TINY, 'optimizer': {'state': {0: {'step': 1}}}, 'epoch': 7, 'metric': 81.2},
    'state_dict': {'epoch': 3, 'arch': 'tinyvit_5m_224', 'state_dict': TINY, 'version': 2},
    'averaged wins over state_dict': {'state_dict': OTHER, 'state_dict_ema': TINY},
    'averaged wins over model': {'model': OTHER, 'model_ema': TINY},
    'no averaged one after all': {'model': TINY, 'model_ema': None},
    'nested': {'model_ema': {'module': TINY}},
    'twice nested': {'model': {'state_dict': prefixed('module.')}},
    'module.': prefixed('module.'),
    '_orig_mod.': prefixed('_orig_mod.'),
    '_orig_mod.module.': prefixed('_orig_mod.module.'),
    'module._orig_mod.': prefixed('module._orig_mod.'),
    'model_ema.': prefixed('model_ema.'),
    'model_ema. wins over plain keys': {**OTHER, **prefixed('model_ema.')},
    'model_ema.module. and model.': {**prefixed('model.', OTHER), **prefixed('model_ema.module.')},
    'torch AveragedModel': {'n_averaged': torch.tensor(5), **prefixed('module.')},
}


@pytest.mark.parametrize('checkpoint', WRAPPED.values(), ids=WRAPPED)
def test_the_state_dict_is_found_inside(checkpoint, tmp_path):
    torch.save(checkpoint, tmp_path / 'wrapped.pth')
    assert_same(read_checkpoint(tmp_path / 'wrapped.pth'), TINY)
    assert_same(unwrap(checkpoint), TINY)


def test_a_prefix_that_only_some_keys_have_is_part_of_the_names():
    mixed = {'module.a': torch.zeros(1), 'b': torch.zeros(1)}
    assert unwrap(mixed).keys() == mixed.keys()


def test_unwrapping_leaves_the_input_alone():
    checkpoint = {'model': prefixed('module.'), 'epoch': 1}
    before = {'model': dict(checkpoint['model']), 'epoch': 1}
    unwrap(checkpoint)
    assert checkpoint.keys() == before.keys()
    assert checkpoint['model'].keys() == before['model'].keys()


# --- other objects that training code saves with the weights


@pytest.fixture
def cfg_node(monkeypatch) -> type:
    """yacs' CfgNode as pickle sees it: a dict subclass with instance attributes, from a module that is now missing."""

    class CfgNode(dict):
        def __init__(self, values: dict) -> None:
            super().__init__({k: CfgNode(v) if isinstance(v, dict) else v for k, v in values.items()})
            self.__dict__.update(__immutable__=True, __deprecated_keys__=set(), __renamed_keys__={'OLD': 'NEW'})

        def __setitem__(self, key, value) -> None:
            raise AttributeError('immutable')

    CfgNode.__module__, CfgNode.__qualname__ = 'yacs.config', 'CfgNode'
    config = types.ModuleType('yacs.config')
    config.CfgNode = CfgNode
    monkeypatch.setitem(sys.modules, 'yacs', types.ModuleType('yacs'))
    monkeypatch.setitem(sys.modules, 'yacs.config', config)
    return CfgNode


@pytest.fixture(params=[save_zip, save_legacy], ids=['zip', 'legacy'])
def round_trip(request, tmp_path, monkeypatch):
    """Saves an object and reads its state dict back on a machine without the modules that made it."""

    def check(checkpoint) -> None:
        request.param(checkpoint, tmp_path / 'training.pth')
        for name in ('yacs', 'yacs.config'):
            monkeypatch.delitem(sys.modules, name, raising=False)
        assert_same(read_checkpoint(tmp_path / 'training.pth'), TINY)

    return check


def test_a_yacs_configuration_is_skipped(cfg_node, round_trip):
    config = cfg_node({'MODEL': {'NAME': 'tiny', 'DROP': 0.1, 'DEPTHS': [2, 2, 6, 2]}, 'TAG': 'x', 'EMPTY': {}})
    round_trip({'config': config, 'model': TINY, 'epoch': 299})


def test_an_argparse_namespace_is_skipped(round_trip):
    args = argparse.Namespace(lr=1e-3, nested=argparse.Namespace(a=(1, 2)), output=Path('runs') / 'x', none=None)
    round_trip({'args': args, 'model': TINY})


@pytest.mark.parametrize('kind', [np.float64, np.float32, np.int64, np.uint8])
def test_numpy_arrays_are_skipped(kind, round_trip):
    round_trip({'palette': np.zeros((2, 3), kind), 'model': TINY})


def test_the_history_of_mmengine_is_skipped(tmp_path):
    """A class with arrays and with methods by name; the same names without it are refused, see below."""
    buffer = pytest.importorskip('mmengine.logging').HistoryBuffer([1.0, 0.5], [1, 1])
    torch.save({'message_hub': {'train/loss': buffer}, 'state_dict': TINY}, tmp_path / 'training.pth')
    assert_same(read_checkpoint(tmp_path / 'training.pth'), TINY)


@pytest.mark.parametrize('kind', [np.float64, np.float32, np.int64, np.bool_])
def test_numpy_numbers_are_skipped(kind, round_trip):
    round_trip({'max_accuracy': kind(1), 'model': TINY, 'history': [kind(0), kind(1)]})


def test_all_of_it_at_once(cfg_node, round_trip):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])
    round_trip(
        {
            'model': OTHER,
            'model_ema': prefixed('module.'),
            'optimizer': optimizer.state_dict(),
            'config': cfg_node({'A': {'B': {'C': np.float64(1.5)}}}),
            'args': argparse.Namespace(data=pathlib.Path('/data')),
            'max_accuracy': np.float64(81.2),
            'scaler': {'scale': 65536.0, '_growth_tracker': 3},
            'device': torch.device('cpu'),
            'dtype': torch.bfloat16,
        }
    )


def test_nothing_stays_allowed_after_reading(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    torch.save({'args': argparse.Namespace(), 'model': TINY}, tmp_path / 'training.pth')
    read_checkpoint(tmp_path / 'training.pth')
    assert set(torch.serialization.get_safe_globals()) == before


# --- code that must not run


class Reduced:
    """Pickles as a call."""

    def __init__(self, function, *args) -> None:
        self.call = function, args

    def __reduce__(self):
        return self.call


class Built:
    """An object of a class, with state."""

    def __init__(self) -> None:
        self.value = 1


HOSTILE = {
    'posix.system': lambda trace: Reduced(os.system, f'touch {trace}'),
    'builtins.eval': lambda trace: Reduced(eval, f'open({str(trace)!r}, "w")'),
    'builtins.exec': lambda trace: Reduced(exec, f'open({str(trace)!r}, "w")'),
    'io.open': lambda trace: Reduced(open, str(trace), 'w'),
    'builtins.getattr': lambda trace: Reduced(getattr, torch.Tensor, 'numpy'),
    'shutil.copy': lambda trace: Reduced(shutil.copy, __file__, str(trace)),
    'importlib.import_module': lambda trace: Reduced(importlib.import_module, 'this'),
    'test_checkpoints.Built': lambda trace: Built(),
    'torch.nn.modules.linear.Linear': lambda trace: torch.nn.Linear(1, 1),
    'torch.hub.load': lambda trace: Reduced(torch.hub.load, 'x', 'y'),
}


@pytest.mark.parametrize('save', [save_zip, save_legacy])
@pytest.mark.parametrize('name', HOSTILE)
@pytest.mark.parametrize('place', ['the whole file', 'with the weights', 'a value'])
def test_a_pickle_that_would_run_code_is_refused_by_name(name, place, save, tmp_path):
    trace = tmp_path / 'trace'
    bad = HOSTILE[name](trace)
    path = tmp_path / 'hostile.pth'
    save({'the whole file': bad, 'with the weights': {'model': TINY, 'x': bad}, 'a value': {'w': bad}}[place], path)
    refused(lambda: read_checkpoint(path), f'`{name}`', 'refused', str(path))
    assert not trace.exists()


def test_a_plain_pickle_follows_the_same_rule(tmp_path):
    trace, path = tmp_path / 'trace', tmp_path / 'plain.pth'
    path.write_bytes(pickle.dumps(Reduced(os.system, f'touch {trace}'), protocol=2))
    refused(lambda: read_checkpoint(path), str(path))
    assert not trace.exists()


INERT = [
    *('argparse.Namespace', 'yacs.config.CfgNode', 'pathlib.PosixPath', 'numpy.dtype', 'numpy.ndarray'),
    *('numpy._core.multiarray._reconstruct', 'builtins.getattr'),
    'mmengine.logging.history_buffer.HistoryBuffer',
]


@pytest.mark.parametrize('stand_in', INERT)
def test_stand_ins_build_nothing_of_the_real_class(stand_in, tmp_path):
    """A call of an allowed name with any arguments gives an inert object, never the class itself."""
    module, _, name = stand_in.rpartition('.')
    path = tmp_path / 'x.pth'
    torch.save({'model': TINY}, path)
    calls = pickle.PROTO + b'\x02' + pickle.GLOBAL + f'{module}\n{name}\n'.encode() + b'X\x01\x00\x00\x00a\x85R.'
    (tmp_path / 'call.pkl').write_bytes(calls)
    from tinyvit_zoo.checkpoints.torch_file import _HISTORY_STAND_INS, _STAND_INS

    with torch.serialization.safe_globals(_STAND_INS + _HISTORY_STAND_INS):
        from torch import _weights_only_unpickler

        built = _weights_only_unpickler.load((tmp_path / 'call.pkl').open('rb'))
    assert type(built).__module__ in ('collections', 'tinyvit_zoo.checkpoints.torch_file')


# --- files that are not checkpoints

HTML = b'<!DOCTYPE html>\n<html><head><title>Quota exceeded</title></head><body>Sign in</body></html>'
POINTER = b'version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 21500000\n'
NOT_CHECKPOINTS = {
    'html': (HTML, ['web page']),
    'html with spaces': (b'\n\n  ' + HTML.lower(), ['web page']),
    'xml error': (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', ['web page']),
    'text': (b'Not Found: the file has moved.\n', ['text file']),
    'json': (b'{"error": "Repository not found"}', ['text file']),
    'empty': (b'', ['empty', '0 bytes']),
    'git lfs': (POINTER, ['Git LFS pointer', 'git lfs pull']),
    'random bytes': (bytes(range(7, 256, 3)) * 20, []),
    'zeros': (bytes(1000), []),
    'an image': (b'\x89PNG\r\n\x1a\n' + bytes(500), []),
    'a zip of something else': (b'PK\x03\x04' + bytes(500), ['damaged']),
    'one byte': (b'\x80', ['not one that torch.save wrote']),
    'gzip': (b'\x1f\x8b\x08\x00' + bytes(200), []),
}


@pytest.mark.parametrize('name', ['saved.pth', 'saved.safetensors', 'saved.bin', 'saved'])
@pytest.mark.parametrize(('content', 'words'), NOT_CHECKPOINTS.values(), ids=NOT_CHECKPOINTS)
def test_the_error_for_another_kind_of_file_names_the_kind(content, words, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    refused(lambda: read_checkpoint(tmp_path / name), str(tmp_path / name), *words)


def attempt(path: Path) -> tuple[dict[str, torch.Tensor] | None, str]:
    """State dict of a file, or the message of the only error that is allowed."""
    try:
        return read_checkpoint(path), ''
    except CheckpointError as e:
        return None, str(e)


@pytest.mark.parametrize('save', [save_zip, save_legacy, save_safetensors])
def test_a_file_cut_short_anywhere_is_reported(save, tmp_path):
    path = tmp_path / 'cut.pth'
    save({**TINY, 'big': torch.arange(300.0)}, path)
    whole = path.read_bytes()
    for length in {*range(1, len(whole), 37), *range(1, 24), len(whole) - 1}:
        path.write_bytes(whole[:length])
        state_dict, message = attempt(path)
        if state_dict is None:
            assert str(path) in message
        else:  # the part cut off was empty
            assert_same(state_dict, {**TINY, 'big': torch.arange(300.0)})
    path.write_bytes(whole[: len(whole) // 2])
    refused(lambda: read_checkpoint(path), 'damaged or cut short', f'{len(whole) // 2} bytes')


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('save', [save_zip, save_legacy, save_safetensors])
def test_a_file_with_flipped_bits_never_raises_another_error(save, tmp_path):
    path = tmp_path / 'flipped.pth'
    save(TINY, path)
    whole = path.read_bytes()
    assert len(whole) > 100
    generator = np.random.default_rng(0)
    for position in generator.integers(0, min(len(whole), 1500), 300):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        state_dict, message = attempt(path)
        if state_dict is None:
            assert '\n' not in message
        else:
            assert all(isinstance(v, torch.Tensor) for v in state_dict.values())


NO_STATE_DICTS = {
    'a list': ([torch.zeros(1)], ['type list', 'not a state dict']),
    'a tensor': (torch.zeros(1), ['type Tensor', 'not a state dict']),
    'a number': (3, ['type int', 'not a state dict']),
    'nothing': ({}, ['nothing', 'not a state dict']),
    'an empty model': ({'model': {}}, ['model']),
    'settings only': ({'epoch': 1, 'lr': 0.1}, ['epoch', 'lr', 'not named tensors', 'state_dict_ema']),
    'a tensor and a number': ({'w': torch.zeros(1), 'epoch': 1}, ['epoch', 'not named tensors']),
    'numbers as names': ({0: torch.zeros(1)}, ['0', 'not named tensors']),
}


@pytest.mark.parametrize(('content', 'words'), NO_STATE_DICTS.values(), ids=NO_STATE_DICTS)
def test_a_checkpoint_without_a_state_dict_is_reported(content, words, tmp_path):
    torch.save(content, tmp_path / 'x.pth')
    refused(lambda: read_checkpoint(tmp_path / 'x.pth'), str(tmp_path / 'x.pth'), *words)


def test_a_missing_checkpoint_is_reported(tmp_path):
    refused(lambda: read_checkpoint(tmp_path / 'gone.pth'), 'gone.pth', kind=WeightsNotFoundError)
    refused(lambda: read_checkpoint(tmp_path), 'no checkpoint', 'model.safetensors', kind=WeightsNotFoundError)
    with pytest.raises(FileNotFoundError):  # callers may catch the usual exception
        read_checkpoint(tmp_path / 'gone.pth')


@pytest.mark.parametrize('kwargs', [{}, dict(num_classes=7), dict(features_only=True)], ids=str)
@pytest.mark.parametrize('content', [HTML, b'', POINTER, b'text', b'PK\x03\x04 cut'], ids=lambda c: repr(c[:9]))
def test_create_model_raises_the_same_error(content, kwargs, tmp_path):
    path = tmp_path / 'tiny_vit_5m_22kto1k_distill.pth'
    path.write_bytes(content)
    refused(lambda: load('tinyvit_5m_224', path, **kwargs), str(path))


# --- the official 22k -> 1k conversion


def test_the_class_mapping_is_the_released_one():
    mapping = in1k_classes_in_22k()
    lines = ''.join(f'{index}\n' for index in mapping)
    assert hashlib.sha256(lines.encode()).hexdigest() == MAPPING_SHA256
    assert len(mapping) == 1000
    assert [i for i, index in enumerate(mapping) if index < 0] == [850]
    present = [index for index in mapping if index >= 0]
    assert present == sorted(set(present))
    assert present[-1] < 21841


MAPPING_SHA256 = 'f17c9e35506a30d027145ca26b10397d7328890989acda1cc74cb4f7596ba4a1'


@pytest.mark.parametrize('head', ['head', 'head.fc'])
def test_converted_rows_are_picked_by_class_and_the_absent_one_is_their_mean(head):
    weight = torch.arange(21841.0)[:, None].repeat(1, 2)
    converted = head_22k_to_1k({f'{head}.weight': weight, f'{head}.bias': weight[:, 0], 'x': torch.zeros(1)})
    present = [(i, index) for i, index in enumerate(in1k_classes_in_22k()) if index >= 0]
    for i, index in present:
        assert converted[f'{head}.weight'][i, 0] == converted[f'{head}.bias'][i] == index
    mean = sum(index for _, index in present) / 999
    assert converted[f'{head}.bias'][850].item() == pytest.approx(mean, rel=1e-6)
    assert converted['x'].item() == 0


@pytest.mark.parametrize('rows', [0, 1000, 21842])
def test_another_head_is_not_converted(rows):
    state_dict = (
        {'head.weight': torch.zeros(rows, 2), 'head.bias': torch.zeros(rows)} if rows else {'x': torch.zeros(1)}
    )
    refused(lambda: head_22k_to_1k(state_dict), '21841')


# --- threads, pickle protocols


def test_files_with_settings_can_be_read_from_several_threads(tmp_path):
    torch.save({'model': TINY, 'args': argparse.Namespace(lr=0.1)}, tmp_path / 'training.pth')
    errors = []

    def read():
        for _ in range(30):
            try:
                read_checkpoint(tmp_path / 'training.pth')
            except CheckpointError as e:
                errors.append(e)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


class Hostile:
    def __reduce__(self):
        return os.system, ('true',)


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_a_hostile_pickle_of_any_protocol_is_named(tmp_path, protocol):
    with (tmp_path / 'bad.pth').open('wb') as f:
        pickle.dump(Hostile(), f, protocol=protocol)
    with pytest.raises(CheckpointError, match=r'asks to run or build `(posix|nt)\.system`.*nothing was run'):
        read_checkpoint(tmp_path / 'bad.pth')
