"""Reading any file safely, mapping its names, and accounting for every key: loading that cannot lie."""

import argparse
import copy
import hashlib
import importlib
import logging
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
import timm
import torch
from conftest import SMALL, TAGGED, assert_same, load
from golden_rule import manifest, official_state_dict
from timm.models import adapt_input_conv
from timm.models._hub import save_for_hf

from tinyvit_zoo.checkpoints import (
    TINYVIT_KEYS,
    CheckpointError,
    WeightsNotFoundError,
    find_checkpoint,
    head_22k_to_1k,
    in1k_classes_in_22k,
    read_checkpoint,
    unwrap,
)

MANIFESTS = [
    'tiny_vit_5m_224',
    'tiny_vit_11m_224',
    'tiny_vit_21m_224',
    'tiny_vit_21m_384',
    'tiny_vit_21m_512',
    'tiny_vit_5m_224_22khead',
]
TINY = {'a.weight': torch.arange(6.0).view(2, 3), 'a.bias': torch.ones(2), 'n': torch.tensor(3)}


def refused(action, *words: str, kind: type[Exception] = CheckpointError) -> str:
    """The message of the one error that an action ends in: of this very kind, short, and with these words."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  the kind is checked below
        action()
    assert type(caught.value) is kind, repr(caught.value)
    message = str(caught.value)
    assert '\n' not in message
    assert 'Traceback' not in message
    assert len(message) < 1000
    for word in words:
        assert word in message
    return message


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
def test_a_file_is_read_by_what_is_in_it(save, name, tmp_path):
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


# --- what is around a state dict


def prefixed(prefix: str, state_dict=TINY) -> dict:
    return {prefix + k: v for k, v in state_dict.items()}


OTHER = {k: torch.zeros_like(v) for k, v in TINY.items()}
WRAPPED = {
    'bare': TINY,
    'ordered': OrderedDict(TINY),
    'model': {'model': TINY},
    'model beside the rest': {'model': TINY, 'optimizer': {'state': {0: {'step': 1}}}, 'epoch': 7, 'metric': 81.2},
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
    'model_ema.module. beside model.': {**prefixed('model.', OTHER), **prefixed('model_ema.module.')},
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


# --- what training code saves beside the weights


@pytest.fixture
def cfg_node(monkeypatch) -> type:
    """yacs' CfgNode in what matters to pickle: a dict subclass with instance attributes, in a module now missing."""

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


def test_a_yacs_configuration_is_read_over(cfg_node, round_trip):
    config = cfg_node({'MODEL': {'NAME': 'tiny', 'DROP': 0.1, 'DEPTHS': [2, 2, 6, 2]}, 'TAG': 'x', 'EMPTY': {}})
    round_trip({'config': config, 'model': TINY, 'epoch': 299})


def test_an_argparse_namespace_is_read_over(round_trip):
    args = argparse.Namespace(lr=1e-3, nested=argparse.Namespace(a=(1, 2)), output=Path('runs') / 'x', none=None)
    round_trip({'args': args, 'model': TINY})


@pytest.mark.parametrize('kind', [np.float64, np.float32, np.int64, np.bool_])
def test_numpy_numbers_are_read_over(kind, round_trip):
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


# --- what must not be run


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
@pytest.mark.parametrize('place', ['the whole file', 'beside the weights', 'a value'])
def test_a_pickle_that_would_run_code_is_refused_by_name(name, place, save, tmp_path):
    trace = tmp_path / 'trace'
    bad = HOSTILE[name](trace)
    path = tmp_path / 'hostile.pth'
    save({'the whole file': bad, 'beside the weights': {'model': TINY, 'x': bad}, 'a value': {'w': bad}}[place], path)
    refused(lambda: read_checkpoint(path), f'`{name}`', 'refused', str(path))
    assert not trace.exists()


def test_a_plain_pickle_is_held_to_the_same_rule(tmp_path):
    trace, path = tmp_path / 'trace', tmp_path / 'plain.pth'
    path.write_bytes(pickle.dumps(Reduced(os.system, f'touch {trace}'), protocol=2))
    refused(lambda: read_checkpoint(path), str(path))
    assert not trace.exists()


@pytest.mark.parametrize('stand_in', ['argparse.Namespace', 'yacs.config.CfgNode', 'numpy.dtype', 'pathlib.PosixPath'])
def test_stand_ins_build_nothing_of_the_real_class(stand_in, tmp_path):
    """A call of an allowed name with any arguments gives an inert object, never the class itself."""
    module, _, name = stand_in.rpartition('.')
    path = tmp_path / 'x.pth'
    torch.save({'model': TINY}, path)
    calls = pickle.PROTO + b'\x02' + pickle.GLOBAL + f'{module}\n{name}\n'.encode() + b'X\x01\x00\x00\x00a\x85R.'
    (tmp_path / 'call.pkl').write_bytes(calls)
    from tinyvit_zoo.checkpoints.read import _STAND_INS

    with torch.serialization.safe_globals(_STAND_INS):
        from torch import _weights_only_unpickler

        built = _weights_only_unpickler.load((tmp_path / 'call.pkl').open('rb'))
    assert type(built).__module__ in ('collections', 'tinyvit_zoo.checkpoints.read')


# --- what is no checkpoint

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
    'one byte': (b'\x80', ['damaged']),
    'gzip': (b'\x1f\x8b\x08\x00' + bytes(200), []),
}


@pytest.mark.parametrize('name', ['saved.pth', 'saved.safetensors', 'saved.bin', 'saved'])
@pytest.mark.parametrize(('content', 'words'), NOT_CHECKPOINTS.values(), ids=NOT_CHECKPOINTS)
def test_a_file_that_is_no_checkpoint_is_told_by_what_it_is(content, words, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    refused(lambda: read_checkpoint(tmp_path / name), str(tmp_path / name), *words)


def attempt(path: Path) -> tuple[dict[str, torch.Tensor] | None, str]:
    """State dict of a file, or the message of the one error that is allowed."""
    try:
        return read_checkpoint(path), ''
    except CheckpointError as e:
        return None, str(e)


@pytest.mark.parametrize('save', [save_zip, save_legacy, save_safetensors])
def test_a_file_cut_short_anywhere_is_told(save, tmp_path):
    path = tmp_path / 'cut.pth'
    save({**TINY, 'big': torch.arange(300.0)}, path)
    whole = path.read_bytes()
    for length in {*range(1, len(whole), 37), *range(1, 24), len(whole) - 1}:
        path.write_bytes(whole[:length])
        state_dict, message = attempt(path)
        if state_dict is None:
            assert str(path) in message
        else:  # what was cut off held nothing
            assert_same(state_dict, {**TINY, 'big': torch.arange(300.0)})
    path.write_bytes(whole[: len(whole) // 2])
    refused(lambda: read_checkpoint(path), 'damaged or cut short', f'{len(whole) // 2} bytes')


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('save', [save_zip, save_legacy, save_safetensors])
def test_a_file_with_flipped_bits_never_ends_in_another_error(save, tmp_path):
    path = tmp_path / 'flipped.pth'
    save(TINY, path)
    whole = path.read_bytes()
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
def test_a_checkpoint_without_a_state_dict_is_told(content, words, tmp_path):
    torch.save(content, tmp_path / 'x.pth')
    refused(lambda: read_checkpoint(tmp_path / 'x.pth'), str(tmp_path / 'x.pth'), *words)


def test_what_is_not_there_is_told(tmp_path):
    refused(lambda: read_checkpoint(tmp_path / 'gone.pth'), 'gone.pth', kind=WeightsNotFoundError)
    refused(lambda: read_checkpoint(tmp_path), 'no checkpoint', 'model.safetensors', kind=WeightsNotFoundError)
    with pytest.raises(FileNotFoundError):  # callers may catch the usual one
        read_checkpoint(tmp_path / 'gone.pth')


@pytest.mark.parametrize('kwargs', [{}, dict(num_classes=7), dict(features_only=True)], ids=str)
@pytest.mark.parametrize('content', [HTML, b'', POINTER, b'text', b'PK\x03\x04 cut'], ids=lambda c: repr(c[:9]))
def test_create_model_ends_in_the_same_error(content, kwargs, tmp_path):
    path = tmp_path / 'tiny_vit_5m_22kto1k_distill.pth'
    path.write_bytes(content)
    refused(lambda: load('tinyvit_5m_224', path, **kwargs), str(path))


# --- names


@pytest.mark.parametrize('name', MANIFESTS)
def test_names_map_both_ways_one_to_one(name):
    official = {key: torch.empty(shape, dtype=dtype, device='meta') for key, (shape, dtype) in manifest(name).items()}
    assert len(official) == 296
    ours, layout = TINYVIT_KEYS.to_ours(official)
    assert layout == 'official'
    assert len(ours) == 296
    back = TINYVIT_KEYS.to_official(ours)
    assert list(back) == list(official)
    assert all(back[k] is official[k] for k in official)
    again, layout = TINYVIT_KEYS.to_ours(ours)
    assert (layout, list(again)) == ('ours', list(ours))
    assert TINYVIT_KEYS.to_official(official) == official


@pytest.mark.parametrize('name', MANIFESTS)
def test_every_key_of_a_release_is_one_of_the_model(name):
    size = 384 if '384' in name else 512 if '512' in name else 224
    classes = 21841 if '22khead' in name else 1000
    architecture = name.replace('tiny_vit', 'tinyvit').removesuffix('_22khead')
    model = timm.create_model(architecture, num_classes=classes, device='meta')
    official = {key: torch.empty(shape, dtype=dtype, device='meta') for key, (shape, dtype) in manifest(name).items()}
    ours, _ = TINYVIT_KEYS.to_ours(official)
    expected = model.state_dict()
    assert ours.keys() == expected.keys()
    for key, value in ours.items():
        assert (value.shape, value.dtype) == (expected[key].shape, expected[key].dtype), key
    assert model.img_size == (size, size)


@pytest.mark.parametrize('tag', [t for t in TAGGED if '5m' in t])
def test_names_are_those_of_the_hub_copies(tag):
    """The weights on the Hub were saved by timm's own class: the same names and shapes."""
    stock = timm.create_model(tag.replace('tinyvit', 'tiny_vit'), device='meta').state_dict()
    ours = timm.create_model(tag, device='meta').state_dict()
    assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {k: (v.shape, v.dtype) for k, v in stock.items()}


def test_a_name_without_an_official_one_is_told():
    ours, _ = TINYVIT_KEYS.to_ours(official_state_dict('tiny_vit_5m_224'))
    refused(lambda: TINYVIT_KEYS.to_official({**ours, 'extra.weight': torch.zeros(1)}), 'extra.weight')


def test_an_official_name_beside_ours_for_one_thing_is_told():
    official = official_state_dict('tiny_vit_5m_224')
    both = {**official, 'patch_embed.conv1.conv.weight': torch.zeros(1)}
    refused(lambda: TINYVIT_KEYS.to_ours(both), 'patch_embed.seq.0.c.weight', 'at once')


# --- every key is accounted for


@pytest.fixture(params=['official', 'ours'])
def layout(request) -> str:
    return request.param


@pytest.fixture
def checkpoint(small, layout) -> dict[str, torch.Tensor]:
    """A checkpoint of the small model, with 11 classes."""
    state_dict = small().state_dict()
    return TINYVIT_KEYS.to_official(state_dict) if layout == 'official' else dict(state_dict)


def create(state_dict, **kwargs) -> torch.nn.Module:
    return timm.create_model(
        'tinyvit_5m_224', pretrained=True, pretrained_cfg_overlay=dict(state_dict=state_dict), **{**SMALL, **kwargs}
    ).eval()


ROUTES = [{}, dict(num_classes=7), dict(num_classes=0), dict(features_only=True)]
ROUTES += [dict(features_only=True, feature_cls='getter', out_indices=(1, 2)), dict(img_size=96), dict(in_chans=4)]
VICTIMS = {
    # one key of each kind: official name, ours
    'stem': ('patch_embed.seq.0.c.weight', 'patch_embed.conv1.conv.weight'),
    'statistic': ('layers.1.downsample.conv3.bn.running_var', 'stages.2.downsample.conv3.bn.running_var'),
    'first table': ('layers.1.blocks.0.attn.attention_biases', 'stages.1.blocks.0.attn.attention_biases'),
    'second table': ('layers.2.blocks.1.attn.attention_biases', 'stages.2.blocks.1.attn.attention_biases'),
    'last block': ('layers.3.blocks.0.mlp.fc1.weight', 'stages.3.blocks.0.mlp.fc1.weight'),
    'norm of the head': ('norm_head.weight', 'head.norm.weight'),
}


@pytest.mark.parametrize('route', ROUTES, ids=str)
def test_a_whole_checkpoint_loads(route, checkpoint):
    create(checkpoint, **route)


@pytest.mark.parametrize('route', ROUTES[:5], ids=str)
@pytest.mark.parametrize('names', VICTIMS.values(), ids=VICTIMS)
@pytest.mark.parametrize('defect', ['renamed', 'missing', 'extra', 'wrong shape', 'no dimensions'])
def test_a_wrong_key_is_told_by_its_name_in_the_file(defect, names, route, checkpoint, layout):
    key = names[0] if layout == 'official' else names[1]
    value = checkpoint[key]
    words = [key]
    if defect == 'renamed':
        checkpoint[key + '_x'] = checkpoint.pop(key)
        words = [key + '_x', '1 unknown', '1 missing']
    elif defect == 'missing':
        del checkpoint[key]
        words += ['1 missing']
    elif defect == 'extra':
        checkpoint[key + '_x'] = value
        words = [key + '_x', '1 unknown']
    elif defect == 'wrong shape':
        checkpoint[key] = torch.cat([value, value[..., :1]], dim=-1) if value.ndim else value
        words += [str(tuple(checkpoint[key].shape))]
    else:
        checkpoint[key] = torch.tensor(1.0)
        words += ['is ()']
    refused(lambda: create(checkpoint, **route), f'{layout} layout', 'TinyViT', *words)


def test_a_table_of_another_square_in_one_block_is_told(checkpoint, layout):
    """6x6 entries would make a fine grid, but not in one block of a stage of 14x14."""
    key = ('layers' if layout == 'official' else 'stages') + '.2.blocks.1.attn.attention_biases'
    checkpoint[key] = checkpoint[key][:, :36].clone()
    refused(lambda: create(checkpoint), key, '(2, 36)')


@pytest.mark.parametrize('part', ['weight', 'bias'])
@pytest.mark.parametrize('defect', ['renamed', 'missing', 'wrong shape', 'extra'])
def test_a_wrong_classifier_is_told(defect, part, checkpoint, layout):
    key = f'head.{part}' if layout == 'official' else f'head.fc.{part}'
    if defect == 'renamed':
        checkpoint[key + '_x'] = checkpoint.pop(key)
    elif defect == 'missing':
        del checkpoint[key]
    elif defect == 'extra':
        checkpoint[key + '_x'] = checkpoint[key]
    else:
        checkpoint[key] = torch.cat([checkpoint[key]] * 2)
    refused(lambda: create(checkpoint), key)


def test_every_single_key_matters(small):
    official = TINYVIT_KEYS.to_official(small().state_dict())
    assert len(official) > 100
    for key in official:
        rest = {k: v for k, v in official.items() if k != key}
        refused(lambda rest=rest: create(rest), key)


@pytest.mark.parametrize(
    'other', ['deit_tiny_patch16_224', 'resnet18', 'swin_tiny_patch4_window7_224', 'tiny_vit_11m_224']
)
@pytest.mark.parametrize('kwargs', [{}, dict(num_classes=7), dict(features_only=True)], ids=str)
def test_the_weights_of_another_model_are_told(other, kwargs):
    overlay = dict(state_dict=timm.create_model(other, num_classes=1000).state_dict())
    message = refused(
        lambda: timm.create_model('tinyvit_5m_224', pretrained=True, pretrained_cfg_overlay=overlay, **kwargs),
        'TinyViT',
    )
    assert 'layout' in message


def test_stale_index_buffers_are_ignored(checkpoint):
    clean = create(checkpoint).state_dict()
    for key in [k for k in checkpoint if k.endswith('attention_biases')]:
        checkpoint[key.replace('attention_biases', 'attention_bias_idxs')] = torch.zeros(49, 49, dtype=torch.int64)
    assert_same(create(checkpoint).state_dict(), clean)


@pytest.mark.parametrize('channels', [1, 4])
def test_the_stem_is_adapted_to_other_input_channels(channels, checkpoint, small):
    model, source = create(checkpoint, in_chans=channels), small().patch_embed.conv1.conv.weight
    expected = adapt_input_conv(channels, source.detach().clone())
    torch.testing.assert_close(model.patch_embed.conv1.conv.weight.detach(), expected)
    assert model(torch.zeros(1, channels, 64, 64)).shape == (1, 11)


def test_own_weights_of_other_input_channels_load_unchanged(small):
    source = small(in_chans=5)
    assert_same(create(source.state_dict(), in_chans=5).state_dict(), source.state_dict())


def test_input_channels_of_neither_side_are_told(checkpoint, small):
    refused(lambda: create(small(in_chans=5).state_dict()), 'patch_embed.conv1.conv.weight', '(8, 5, 3, 3)')


# --- the classifier


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.WARNING)
    return lambda: [r.getMessage() for r in caplog.records if r.name.startswith('tinyvit_zoo')]


def body(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v for k, v in model.state_dict().items() if not k.startswith('head.fc.')}


def test_the_checkpoints_own_number_of_classes_loads_its_classifier(checkpoint, small, log):
    assert_same(create(checkpoint, num_classes=11).state_dict(), small().state_dict())
    assert log() == []


@pytest.mark.parametrize('classes', [7, 1000, 12])
def test_another_number_of_classes_gets_a_fresh_classifier_and_says_so(classes, checkpoint, small, log):
    model = create(checkpoint, num_classes=classes)
    assert model.head.fc.weight.shape == (classes, 64)
    assert model.head.fc.bias.abs().sum() == 0
    assert 0.015 < model.head.fc.weight.std() < 0.025
    assert_same(body(model), body(small()))
    assert len(log()) == 1
    assert '11 classes' in log()[0]
    assert str(classes) in log()[0]


def test_no_classes_need_no_classifier_and_no_message(checkpoint, small, log):
    model = create(checkpoint, num_classes=0)
    assert isinstance(model.head.fc, torch.nn.Identity)
    assert_same(model.state_dict(), body(small()))
    assert log() == []


def test_a_file_that_does_not_fit_its_tag_is_not_guessed_about(checkpoint):
    arguments = {k: v for k, v in SMALL.items() if k != 'num_classes'}
    overlay = dict(state_dict=checkpoint)
    refused(
        lambda: timm.create_model('tinyvit_5m_224', pretrained=True, pretrained_cfg_overlay=overlay, **arguments),
        '11 classes',
        '1000',
        'num_classes=11',
        'convert --head in1k',
    )


def test_a_checkpoint_without_classifier_is_the_same_question(checkpoint, log):
    headless = {k: v for k, v in checkpoint.items() if k.rpartition('.')[0] not in ('head', 'head.fc')}
    create(headless, num_classes=0)
    create(headless, features_only=True)
    assert log() == []
    assert create(headless, num_classes=5).num_classes == 5
    assert len(log()) == 1
    arguments = {k: v for k, v in SMALL.items() if k != 'num_classes'}
    overlay = dict(state_dict=headless)
    refused(
        lambda: timm.create_model('tinyvit_5m_224', pretrained=True, pretrained_cfg_overlay=overlay, **arguments),
        'no classes',
        'num_classes=0',
    )


@pytest.mark.parametrize('classes', [1000, 10])
def test_a_22k_tag_with_another_number_of_classes_is_not_converted(classes, official_file, log):
    """1000 classes may be the user's own."""
    model = load('tinyvit_5m_224.dist_in22k', official_file('tiny_vit_5m_224_22khead'), num_classes=classes)
    assert model.head.fc.weight.shape == (classes, 320)
    assert model.head.fc.bias.abs().sum() == 0
    assert len(log()) == 1
    assert '21841' in log()[0]


def test_a_22k_file_under_a_1k_name_is_told(official_file):
    path = official_file('tiny_vit_5m_224_22khead')
    refused(lambda: load('tinyvit_5m_224', path), '21841', '1000', 'convert --head in1k')


def test_features_only_takes_any_classifier(official_file, log):
    for name in ('tiny_vit_5m_224', 'tiny_vit_5m_224_22khead'):
        load('tinyvit_5m_224', official_file(name), features_only=True)
    assert log() == []


def test_a_fine_tuned_model_of_ours_loads_with_its_classifier(small, tmp_path, log):
    tuned = small(num_classes=10)
    torch.save({'epoch': 9, 'arch': 'tinyvit_5m_224', 'state_dict': tuned.state_dict()}, tmp_path / 'best.pth.tar')
    loaded = load('tinyvit_5m_224', tmp_path / 'best.pth.tar', **{**SMALL, 'num_classes': 10})
    assert_same(loaded.state_dict(), tuned.state_dict())
    assert loaded.pretrained_cfg['num_classes'] == 10
    assert log() == []


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


# --- after loading


LOADED = [
    {},
    dict(num_classes=7),
    dict(features_only=True),
    dict(features_only=True, feature_cls='dict'),
    dict(features_only=True, feature_cls='hook'),
    dict(features_only=True, feature_cls='fx'),
    dict(features_only=True, feature_cls='getter'),
]


@pytest.mark.parametrize('kwargs', LOADED, ids=str)
def test_weights_do_not_stay_in_the_configuration(kwargs, checkpoint):
    model = create(checkpoint, **kwargs)
    for module in model.modules():
        for name in ('pretrained_cfg', 'default_cfg'):
            assert 'state_dict' not in (getattr(module, name, None) or {})


def test_weights_given_but_not_wanted_do_not_stay_either(checkpoint):
    overlay = dict(state_dict=checkpoint)
    model = timm.create_model('tinyvit_5m_224', pretrained=False, pretrained_cfg_overlay=overlay, **SMALL)
    assert 'state_dict' not in model.pretrained_cfg
    assert 'state_dict' not in model.default_cfg


@pytest.mark.parametrize('kwargs', [k for k in LOADED if k.get('feature_cls') not in ('fx', 'hook')], ids=str)
@torch.no_grad()
def test_a_loaded_model_copies_and_pickles(kwargs, checkpoint):
    model, x = create(checkpoint, **kwargs), torch.randn(1, 3, 64, 64)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other.eval()(x), model(x), rtol=0, atol=0)
    weights = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    assert len(pickle.dumps(model)) < 1.3 * weights + 200_000  # the weights once


def test_a_loaded_model_exports_and_reloads(checkpoint, tmp_path):
    model = create(checkpoint)
    save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True)
    assert_same(again.state_dict(), model.state_dict())
    assert again.pretrained_cfg['source'] == 'local-dir'


def test_a_given_state_dict_is_left_alone(checkpoint):
    before = dict(checkpoint)
    for route in ROUTES:
        model = create(checkpoint, **route)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
    assert list(checkpoint) == list(before)
    assert all(checkpoint[k] is before[k] for k in before)
    assert any(v.abs().sum() > 0 for k, v in checkpoint.items() if k.endswith('weight'))


def test_an_empty_state_dict_is_no_wish_for_other_weights():
    refused(lambda: create({}), 'nothing', 'not a state dict')


def test_a_file_beats_what_else_the_configuration_names(small, tmp_path):
    torch.save(small().state_dict(), tmp_path / 'mine.pth')
    overlay = dict(file=str(tmp_path / 'mine.pth'), hf_hub_id='nobody/nothing', url='http://127.0.0.1:9/none.pth')
    model = timm.create_model('tinyvit_5m_224', pretrained=True, pretrained_cfg_overlay=overlay, **SMALL)
    assert_same(model.state_dict(), small().state_dict())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_take_the_dtype_of_the_model(dtype, checkpoint):
    cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in checkpoint.items()}
    assert {p.dtype for p in create(cast).parameters()} == {torch.float32}
    assert {p.dtype for p in create(checkpoint, dtype=dtype).parameters()} == {dtype}


# --- threads, pickle protocols, and tensors that are no weights


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


@pytest.mark.parametrize('kwargs', [dict(num_classes=7), dict(num_classes=0), dict(features_only=True)])
@pytest.mark.parametrize('damage', ['head.fc.bias', 'shape'])
def test_half_a_classifier_is_told_also_where_it_is_not_used(kwargs, damage):
    state_dict = timm.create_model('tinyvit_5m_224', num_classes=11).state_dict()
    if damage == 'shape':
        state_dict['head.fc.weight'] = torch.zeros(11, 63)
    else:
        del state_dict[damage]
    with pytest.raises(CheckpointError, match=r'classifier.*(head\.fc\.bias|\(11, 63\))'):
        timm.create_model(
            'tinyvit_5m_224', pretrained=True, pretrained_cfg_overlay=dict(state_dict=state_dict), **kwargs
        )


def test_only_index_buffers_that_belong_to_a_table_are_left_out():
    state_dict = timm.create_model('tinyvit_5m_224').state_dict()
    state_dict['foo.attention_bias_idxs'] = torch.zeros(3)
    with pytest.raises(CheckpointError, match=r'foo\.attention_bias_idxs'):
        timm.create_model('tinyvit_5m_224', pretrained=True, pretrained_cfg_overlay=dict(state_dict=state_dict))


@pytest.mark.parametrize(
    'odd',
    [
        lambda t: t.to_sparse(),
        lambda t: t.to('meta'),
        lambda t: t.to(torch.complex64),
        lambda t: t > 0,
        lambda t: t.int(),
        lambda t: t[:1, :0],
    ],
    ids=['sparse', 'meta', 'complex', 'bool', 'int', 'empty'],
)
def test_tensors_that_are_no_weights_are_named(odd):
    state_dict = timm.create_model('tinyvit_5m_224').state_dict()
    key = 'stages.1.blocks.0.attn.attention_biases'
    state_dict[key] = odd(state_dict[key])
    with pytest.raises(CheckpointError, match=r'stages\.1\.blocks\.0\.attn\.attention_biases'):
        timm.create_model('tinyvit_5m_224', pretrained=True, pretrained_cfg_overlay=dict(state_dict=state_dict))
