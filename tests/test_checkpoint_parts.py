"""Which weights in a file are meant, what is left out of them, and weights that are none (NaN): for every family."""

import copy
import io
import json
import logging
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from conftest import SMALL_OF, assert_same, refused, rest_is_full, small_of
from golden_rule import fill_by_rule

from tinyvit_zoo.build import load_model
from tinyvit_zoo.checkpoints import CheckpointError, WeightsNotFoundError, nonfinite, read_checkpoint, unwrap
from tinyvit_zoo.common.errors import ModelError
from tinyvit_zoo.dense import load_dense, mae_lite_vitdet_tiny
from tinyvit_zoo.hub.convert import convert, import_weights
from tinyvit_zoo.hub.pack import pack
from tinyvit_zoo.hub.remote import check_repo
from tinyvit_zoo.pretrain import load_pretraining, mae_lite_tiny


@pytest.fixture
def make(family, tmp_path):
    """Builds the family's small model from the content of a file."""
    architecture, arguments = SMALL_OF[family]

    def build(content, **kwargs) -> torch.nn.Module:
        torch.save(content, tmp_path / 'x.pth')
        overlay = dict(file=str(tmp_path / 'x.pth'))
        return timm.create_model(architecture, pretrained=True, pretrained_cfg_overlay=overlay, **arguments, **kwargs)

    return build


@pytest.fixture
def weights(any_small) -> dict[str, torch.Tensor]:
    return any_small().state_dict()


@pytest.fixture
def others(weights) -> dict[str, torch.Tensor]:
    return {k: torch.zeros_like(v) for k, v in weights.items()}


def prefixed(prefix: str, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + k: v for k, v in state_dict.items()}


# --- harmless differences, one after the other


def differences(weights: dict[str, torch.Tensor]) -> dict[str, dict]:
    """Files that hold the weights all the same."""
    counts = {
        f'{k.rpartition(".")[0]}.{kind}': torch.zeros(1) for k in weights for kind in ('total_ops', 'total_params')
    }
    wrapped = {k.replace('.weight', '._fsdp_wrapped_module.weight'): v for k, v in weights.items()}
    floats = {k: v.float() if k.endswith('num_batches_tracked') else v for k, v in weights.items()}
    return {
        'thop': weights | counts,
        'extra states': weights | {'_extra_state': None, 'head._extra_state': torch.zeros(1)},
        'no counters': {k: v for k, v in weights.items() if not k.endswith('num_batches_tracked')},
        'counters as floats': floats,
        'counters as numbers': {k: v.item() if k.endswith('num_batches_tracked') else v for k, v in weights.items()},
        'fsdp': wrapped,
        'checkpointed': {k.replace('.', '._checkpoint_wrapped_module.', 1): v for k, v in weights.items()},
        'compiled': {k.replace('.', '._orig_mod.', 1): v for k, v in weights.items()},
        **{prefix: prefixed(f'{prefix}.', weights) for prefix in ('student', 'encoder', 'base_model', 'timm_model')},
        'image_encoder': {'state_dict': prefixed('module.image_encoder.', weights), 'metric': np.float64(3)},
        **{key: {key: weights, 'epoch': 1} for key in ('model_state_dict', 'params_ema', 'net', 'teacher')},
        'an unlisted wrapper': {'weights_of_run': weights, 'epoch': 1, 'optimizer': {'state': {0: torch.zeros(1)}}},
        'an unlisted prefix': {'state_dict': prefixed('net.vit.', weights)},
        'defaultdicts': {'model': weights, 'history': defaultdict(list, loss=[1.0]), 'counts': defaultdict(int)},
    }


def test_a_harmless_difference_loads(weights, make):
    contents = differences(weights)
    assert len(contents) > 10
    for name, content in contents.items():
        made = make(content).state_dict()
        for key, value in weights.items():
            if not (name == 'no counters' and key.endswith('num_batches_tracked')):
                assert torch.equal(made[key], value), (name, key)


def test_what_was_left_out_is_reported(weights, make, caplog):
    caplog.set_level(logging.INFO)
    made = make(weights | {'norm.total_ops': torch.zeros(1), 'norm._extra_state': None})
    assert [r.getMessage() for r in caplog.records if 'left out 2 entries that are not weights' in r.getMessage()]
    counters = [k for k in made.state_dict() if k.endswith('num_batches_tracked')]
    caplog.clear()
    make({k: v for k, v in weights.items() if k not in counters})
    said = [r.getMessage() for r in caplog.records if 'start at 0' in r.getMessage()]
    assert len(said) == bool(counters)
    assert all(str(len(counters)) in text for text in said)


def test_a_weight_that_does_not_fit_stays_refused(weights, make):
    key = next(k for k in weights if k.endswith('.weight'))
    running = next((k for k in weights if k.endswith('running_var')), key)
    for gone in {key, running}:
        refused(lambda gone=gone: make({k: v for k, v in weights.items() if k != gone}), gone)
    refused(lambda: make(weights | {'extra.weight': torch.zeros(1)}), 'extra.weight')
    refused(lambda: make(weights | {'_orig_mod.' + key: torch.zeros(1)}), key, 'wrapping modules')


# --- several models in a file


def several(weights: dict, others: dict) -> dict[str, tuple[dict, str, str]]:
    """Content, the part that has the weights, and another one."""
    flat = prefixed('student.', weights) | prefixed('teacher.', others)
    return {
        'keys': ({'student': weights, 'teacher': others, 'epoch': 1}, 'student', 'teacher'),
        'a teacher beside': ({'model': others, 'teacher': weights}, 'teacher', 'model'),
        'averaged by another name': ({'model': others, 'params_ema': weights}, 'params_ema', 'model'),
        'two plain ones': ({'state_dict': others, 'model': weights}, 'model', 'state_dict'),
        'two averaged ones': ({'ema': others, 'model_ema': weights}, 'model_ema', 'ema'),
        'an unknown key': ({'model': others, 'best': weights}, 'best', 'model'),
        'prefixes': (flat, 'student', 'teacher'),
        'prefixes inside': ({'state_dict': prefixed('module.', flat)}, 'student', 'teacher'),
        'a part of a part': ({'teacher': {'model': others, 'net': weights}}, 'teacher.net', 'teacher.model'),
        'another module beside': (
            prefixed('image_encoder.', weights) | {'prompt_encoder.weight': torch.zeros(1)},
            'image_encoder',
            'prompt_encoder',
        ),
        'a loss beside': (prefixed('model.', weights) | {'criterion.weight': torch.zeros(1)}, 'model', 'criterion'),
        'two by unlisted keys': ({'first': others, 'second': weights}, 'second', 'first'),
    }


def test_of_several_models_none_is_guessed(weights, others, make):
    contents = several(weights, others).values()
    assert contents
    for content, part, other in contents:
        refused(lambda content=content: make(content), 'several parts', part, other, '--part')
        assert_same(make(content, part=part).state_dict(), weights)
        assert_same(unwrap(content, part=part), weights)


def test_a_part_may_lie_under_a_key_and_a_prefix(weights, others, make):
    flat = prefixed('module.student.', weights) | prefixed('module.teacher.', others)
    for part in ('student', 'model.student', 'module.student', 'model.module.student'):
        assert_same(make({'model': flat}, part=part).state_dict(), weights)


def test_the_rules_that_stand_ask_nothing(weights, others, family):
    for content in ({'model': others, 'model_ema': weights}, {'state_dict': others, 'state_dict_ema': weights}):
        if family != 'mini_deit':  # its averaged weights are never those that were published
            assert_same(unwrap(content), weights)
        assert_same(unwrap(content, part=next(iter(content))), others)


def test_a_teacher_of_another_kind_is_not_meant(weights, make):
    teacher = timm.create_model('test_resnet').state_dict()
    assert_same(make({'teacher': teacher, 'student': weights}).state_dict(), weights)


def test_a_part_that_is_not_there_is_named(weights, make):
    refused(lambda: make({'model': weights}, part='teacher'), "no part 'teacher'", 'model')
    refused(lambda: make(weights, part='\x1b[31m' + 'x' * 500), '\\x1b[31m')


COMMANDS = ('convert', 'import', 'pack', 'classify', 'embed', 'compress')


@pytest.mark.parametrize('command', COMMANDS)
def test_commands_take_a_part(command, cli, tmp_path):
    model = fill_by_rule(timm.create_model('test_vit'))
    name, state_dict = 'test_vit', model.state_dict()
    if command in ('convert', 'import', 'pack'):
        name, state_dict = 'tinyvit_5m_224', small_of('tinyvit').state_dict()
    torch.save({'student': state_dict, 'teacher': state_dict}, tmp_path / 'x.pth')
    arguments = {
        'convert': ('convert', tmp_path / 'x.pth', tmp_path / 'y.safetensors'),
        'import': ('import', tmp_path / 'x.pth', '--name', name),
        'pack': ('pack', name, '--weights', tmp_path / 'x.pth', '-o', tmp_path / 'page'),
        'classify': ('classify', tmp_path, '-m', name, '--weights', tmp_path / 'x.pth'),
        'embed': ('embed', name, '-d', tmp_path, '-o', tmp_path / 'x.npz', '--weights', tmp_path / 'x.pth'),
        'compress': ('compress', name, '--weights', tmp_path / 'x.pth', '-o', tmp_path / 'small'),
    }[command]
    from PIL import Image

    Image.new('RGB', (32, 32)).save(tmp_path / 'x.png')
    code, _, err = cli(*arguments)
    assert code == 1
    assert '--part' in err
    code, _, err = cli(*arguments, '--part', 'teacher')
    assert '--part' not in err
    assert (code == 0) is (command not in ('import', 'pack'))  # the small model is none of a release


def test_a_part_needs_a_file(cli):
    refused(lambda: load_model('test_vit', part='x'), '--weights', kind=ModelError)
    refused(lambda: pack('test_vit', 'x', random_seed=0, part='x'), '--weights', kind=ModelError)


@pytest.mark.parametrize('load', [load_dense, load_pretraining])
def test_other_forms_take_a_part(load, tmp_path):
    form = mae_lite_vitdet_tiny(224) if load is load_dense else mae_lite_tiny()
    weights = fill_by_rule(copy.deepcopy(form)).state_dict()
    torch.save({'student': weights, 'args': None, 'teacher': weights}, tmp_path / 'x.pth')
    refused(lambda: load(form, tmp_path / 'x.pth'), 'student, teacher')
    load(form, tmp_path / 'x.pth', part='teacher')
    assert_same(form.state_dict(), weights)


# --- several files


def write_shards(folder: Path, weights: dict[str, torch.Tensor], count: int = 3, suffix: str = 'safetensors') -> Path:
    """An index and its files."""
    names, file_of = list(weights), {}
    for i in range(count):
        shard = {k: weights[k] for k in names[i::count]}
        file = f'model-{i + 1:05}-of-{count:05}.{suffix}'
        file_of |= dict.fromkeys(shard, file)
        if suffix == 'safetensors':
            safetensors.torch.save_file(shard, folder / file)
        else:
            torch.save(shard, folder / file)
    index = folder / {'safetensors': 'model.safetensors', 'bin': 'pytorch_model.bin'}[suffix]
    index = index.with_name(index.name + '.index.json')
    index.write_text(json.dumps(dict(metadata=dict(total_size=0), weight_map=file_of)))
    return index


@pytest.mark.parametrize('suffix', ['safetensors', 'bin'])
def test_a_checkpoint_in_several_files_loads_by_index_or_folder(suffix, small, tmp_path):
    weights = small().state_dict()
    index = write_shards(tmp_path, weights, suffix=suffix)
    assert_same(read_checkpoint(index), weights)
    assert_same(read_checkpoint(tmp_path), weights)
    read, written = convert(tmp_path, tmp_path / 'whole.safetensors')
    assert read.num_keys == len(weights)
    assert_same(read_checkpoint(written), weights)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda m: m.update(next='../elsewhere.safetensors'), 'not the name of a file beside it'),
        (lambda m: m.update(next='/etc/passwd'), 'not the name of a file beside it'),
        (lambda m: m.update(next='..\\x.safetensors'), 'not the name of a file beside it'),
        (lambda m: m.update(next='\x1b[2J'), '\\x1b[2J'),
        (lambda m: m.update(next='model-00001-of-00003.safetensors'), 'does not hold the tensors'),
        (lambda m: m.pop('head.fc.bias'), 'does not hold the tensors'),
        (lambda m: m.update(next='gone.safetensors'), 'gone.safetensors'),
        (lambda m: m.clear(), 'weight_map'),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(change, words, small, tmp_path):
    index = write_shards(tmp_path, small().state_dict())
    content = json.loads(index.read_text())
    change(content['weight_map'])
    index.write_text(json.dumps(content))
    kind = WeightsNotFoundError if 'gone' in words or '1b' in words else CheckpointError
    refused(lambda: read_checkpoint(index), words, kind=kind)


def test_a_missing_or_damaged_file_of_several_is_named(small, tmp_path):
    index = write_shards(tmp_path, small().state_dict())
    second = tmp_path / 'model-00002-of-00003.safetensors'
    second.write_bytes(second.read_bytes()[:-9])
    refused(lambda: read_checkpoint(index), second.name, 'damaged')
    second.unlink()
    refused(lambda: read_checkpoint(index), second.name, '1 of 3', kind=WeightsNotFoundError)


# --- numbers that are none


@pytest.mark.parametrize('number', [float('nan'), float('inf'), float('-inf')])
def test_a_model_with_nan_is_made_with_one_warning(number, weights, make, caplog):
    key = [k for k in weights if weights[k].is_floating_point()][3]
    weights[key].view(-1)[0] = number
    made = make({'model': weights})
    said = [r.getMessage() for r in caplog.records if 'NaN or infinity' in r.getMessage()]
    assert len(said) == 1
    assert key in said[0]
    assert nonfinite(made.state_dict()) == [key]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_nan_is_found_in_every_type(dtype):
    assert nonfinite({'a': torch.tensor([1, float('nan')]).to(dtype), 'b': torch.ones(2).to(dtype)}) == ['a']
    assert not nonfinite({'a': torch.full((9,), 3e38), 'b': torch.zeros(0), 'c': torch.tensor(1)})  # a sum overflows


@pytest.mark.parametrize('family', rest_is_full(SMALL_OF, usual=['tinyvit', 'mini_swin']))
def test_nan_is_not_converted_imported_or_packed(family, tmp_path, cli):
    state_dict = small_of(family).state_dict()
    key = [k for k in state_dict if state_dict[k].is_floating_point()][2]
    state_dict[key].view(-1)[-1] = float('nan')
    torch.save(state_dict, tmp_path / 'x.pth')
    arguments = ('convert', tmp_path / 'x.pth', tmp_path / 'y.pth')
    code, _, err = cli(*arguments)
    assert (code, (tmp_path / 'y.pth').exists()) == (1, False)
    assert key in err
    assert '--allow-nonfinite' in err
    assert cli(*arguments, '--allow-nonfinite')[0] == 0
    assert len(nonfinite(read_checkpoint(tmp_path / 'y.pth'))) == 1


def test_nan_in_a_folder_is_not_packed_or_imported(small, tmp_path, cli):
    from tinyvit_zoo.hub import save_folder

    model = small()
    model.head.fc.bias.data[0] = float('inf')
    save_folder(model, tmp_path / 'model', tag='mine')
    code, _, err = cli('pack', tmp_path / 'model', '-o', tmp_path / 'page')
    assert code == 1
    assert 'head.fc.bias' in err
    torch.save(model.state_dict(), tmp_path / 'x.pth')
    refused(
        lambda: import_weights(tmp_path / 'x.pth', 'tinyvit_5m_224.dist_in22k'), 'head.fc.bias', '--allow-nonfinite'
    )
    refused(lambda: import_weights(tmp_path / 'x.pth', 'tinyvit_5m_224.dist_in22k', allow_nonfinite=True), 'classes')


# --- what is written


@pytest.mark.parametrize('name', ['y.pth', 'y.safetensors'])
def test_converting_twice_gives_the_same_bytes(name, family, any_small, tmp_path):
    torch.save(any_small().state_dict(), tmp_path / 'x.pth')
    written = [convert(tmp_path / 'x.pth', tmp_path / str(i) / name)[1].read_bytes() for i in range(2)]
    assert written[0] == written[1]


class FullDisk(io.RawIOBase):
    """Takes so many bytes and no more."""

    def __init__(self, room: int) -> None:
        self.room = room

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(28, 'No space left on device')
        return len(data)


@pytest.mark.parametrize('room', [0, 1000, 50_000])
def test_a_full_disk_reads_as_one(room, small, tmp_path, cli, monkeypatch):
    torch.save(small().state_dict(), tmp_path / 'x.pth')
    real = Path.open

    def full(path, mode='r', *args, **kwargs):
        return FullDisk(room) if mode == 'wb' and path.suffix == '.pth' else real(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, 'open', full)
    code, _, err = cli('convert', tmp_path / 'x.pth', tmp_path / 'y.pth')
    assert code == 1
    assert 'the disk is full' in err
    assert 'damaged' not in err
    assert [path.name for path in tmp_path.iterdir()] == ['x.pth']


# --- names of pages


@pytest.mark.parametrize(
    'name',
    [
        'a/b--c',
        'a/b..c',
        'a/b.git',
        'a/-b',
        'a/b-',
        'a/.b',
        'a/b.',
        'a-/b',
        'a/é',
        'a/b c',
        f'a/{"b" * 97}',
        'a/b/c',
        'a',
    ],
)
def test_the_rules_of_the_hub_are_ours(name):
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    refused(lambda: check_repo(name), 'name of a page', kind=ModelError)
    if '/' in name:
        with pytest.raises(HFValidationError):
            validate_repo_id(name)


@pytest.mark.parametrize('name', ['a/b', 'A_b.c/_x-1.2', f'a/{"b" * 96}', '1/2'])
def test_names_that_the_hub_takes_are_taken(name):
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(name)
    assert check_repo(name) is None


def test_a_backbone_of_a_detector_says_how_many_classes_it_has(family, any_small, tmp_path):
    architecture, arguments = SMALL_OF[family]
    sizes = {k: v for k, v in arguments.items() if k != 'num_classes'}
    weights, path = any_small().state_dict(), tmp_path / 'x.pth'
    torch.save(prefixed('backbone.', weights) | {'neck.weight': torch.zeros(1)}, path)
    assert_same(load_model(architecture, path, **sizes).state_dict(), weights)


# --- models that are timm's own

TIMMS = {
    'test_vit': {},
    'test_resnet': {},
    'test_efficientnet': {},
    'test_convnext': {},
    'vit_tiny_patch16_224': dict(depth=2, embed_dim=48, num_heads=2),
    'swin_tiny_patch4_window7_224': dict(depths=(1, 1, 1, 1), embed_dim=16, num_heads=(1, 1, 1, 1)),
}


@pytest.mark.parametrize('name', TIMMS)
def test_a_model_of_timm_loads_whole_with_the_classes_of_the_file(name, tmp_path, caplog):
    model = fill_by_rule(timm.create_model(name, num_classes=5, **TIMMS[name]))
    weights = model.state_dict()
    torch.save({'state_dict': weights, 'metric': np.float64(1)}, tmp_path / 'x.pth.tar')
    loaded = load_model(name, tmp_path / 'x.pth.tar', **TIMMS[name])
    assert_same(loaded.state_dict(), weights)
    assert 'state_dict' not in loaded.pretrained_cfg
    caplog.clear()
    other = load_model(name, tmp_path / 'x.pth.tar', num_classes=3, **TIMMS[name])
    assert [r.getMessage() for r in caplog.records if '5 classes, the model 3: fresh classifier' in r.getMessage()]
    shared = {k: v for k, v in weights.items() if v.shape == other.state_dict()[k].shape}
    assert len(shared) >= len(weights) - 2
    assert_same({k: other.state_dict()[k] for k in shared}, shared)
    assert load_model(name, tmp_path / 'x.pth.tar', num_classes=0, **TIMMS[name]).num_classes == 0


@pytest.mark.parametrize('name', TIMMS)
def test_a_model_of_timm_takes_no_other_weights(name, tmp_path):
    weights = timm.create_model(name, num_classes=5, **TIMMS[name]).state_dict()
    key = [k for k in weights if k.endswith('.weight')][1]
    for changed in (
        {k: v for k, v in weights.items() if k != key},
        weights | {'more.weight': torch.zeros(1)},
        weights | {key: torch.zeros(1, 2, 3)},
    ):
        torch.save(changed, tmp_path / 'x.pth')
        for classes in ({}, dict(num_classes=2)):
            refused(lambda c=classes: load_model(name, tmp_path / 'x.pth', **TIMMS[name], **c), name, str(tmp_path))


def test_a_file_without_a_classifier_serves_features_and_gets_a_fresh_one(tmp_path):
    model = fill_by_rule(timm.create_model('test_vit', num_classes=0))
    torch.save({'teacher': prefixed('backbone.', model.state_dict()) | {'head.w': torch.zeros(1)}}, tmp_path / 'x.pth')
    features = load_model('test_vit', tmp_path / 'x.pth')
    assert features.num_classes == 0
    assert_same(features.state_dict(), model.state_dict())
    classifier = load_model('test_vit', tmp_path / 'x.pth', num_classes=7)
    assert classifier.num_classes == 7
    assert_same({k: classifier.state_dict()[k] for k in model.state_dict()}, model.state_dict())
