"""Layer reserve: which weights stay and which begin anew, in models with and without shared blocks."""

import json

import pytest
import timm
import torch
from conftest import refused, small_of

import tinyvit_zoo  # noqa: F401  registers the models
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.hashes import state_hash
from tinyvit_zoo.hub import save_folder
from tinyvit_zoo.training.layer_reserve import LayerReserve, reserve_layers

MAKERS = {
    'vit': lambda: timm.create_model('test_vit', img_size=32, num_classes=5),
    'swin': lambda: timm.create_model(
        'swin_tiny_patch4_window7_224', img_size=32, window_size=4, embed_dim=8, depths=(1, 2), num_heads=(1, 2)
    ),
    'tinyvit': lambda: small_of('tinyvit', img_size=32),
    'mini_deit': lambda: small_of('mini_deit', img_size=32),
    'mini_swin': lambda: small_of('mini_swin', img_size=32),
    'multiplexed': lambda: timm.create_model(
        'multiplexed', base='vit_tiny_patch16_224', share_every=2, embed_dim=24, depth=4, num_heads=2, img_size=32
    ),
}


def pair(kind):
    """A model with weights, and a fresh one that differs from it in every value."""
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = MAKERS[kind]()
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.normal_()
        made.append(model.eval())
    return made


def anew(kind, reserve):
    """Names in the state dict that `reserve_layers` gives new values; all others keep theirs."""
    model, fresh = pair(kind)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    reserve_layers(model, fresh, reserve)
    assert not model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    names, theirs = set(), fresh.state_dict()
    for key, value in model.state_dict().items():
        if not torch.equal(value, before[key]):
            assert torch.equal(value, theirs[key]), key
            names.add(key)
    return names


def modules_of(names, depth=2):
    return {'.'.join(name.split('.')[:depth]) if name.startswith('blocks') else name.split('.')[0] for name in names}


def test_later_blocks_and_what_is_after_them_begin_anew():
    assert modules_of(anew('vit', LayerReserve(keep=4))) == {'blocks.4', 'blocks.5', 'norm', 'head'} | {'fc_norm'} & {
        ''
    }
    everything = set(MAKERS['vit']().state_dict())
    kept = everything - anew('vit', LayerReserve(keep=0))
    assert (
        kept == {'cls_token', 'pos_embed', 'patch_embed.proj.weight', 'patch_embed.proj.bias', 'reg_token'} & everything
    )


def test_what_lies_between_stages_goes_with_the_later_one():
    names = anew('swin', LayerReserve(keep=1))
    assert {'layers.1', 'norm', 'head'} == {n if n in ('norm', 'head') else n[:8] for n in modules_of_swin(names)}
    assert any('downsample' in name for name in names)
    assert not any('downsample' in name for name in anew('swin', LayerReserve(keep=2)))
    stages = {name[:8] for name in anew('tinyvit', LayerReserve(keep=2)) if name.startswith('stages')}
    assert stages == {'stages.2', 'stages.3'}


def modules_of_swin(names):
    return {'.'.join(name.split('.')[:2]) if name.startswith('layers') else name.split('.')[0] for name in names}


@pytest.mark.parametrize('kind', MAKERS)
def test_keeping_all_blocks_is_plain_loading(kind):
    model, _ = pair(kind)
    before = state_hash(model)
    torch.manual_seed(1)
    depth = reserve_layers(model, MAKERS[kind](), LayerReserve(keep=reserve_layers(*pair(kind), LayerReserve(keep=0))))
    assert depth >= 2
    assert state_hash(model) == before


def test_a_range_of_blocks_begins_anew_and_nothing_else_does():
    assert modules_of(anew('vit', LayerReserve(reset=(2, 3)))) == {'blocks.1', 'blocks.2'}
    assert modules_of(anew('vit', LayerReserve(reset=(6, 6)))) == {'blocks.5'}
    assert modules_of(anew('mini_deit', LayerReserve(reset=(3, 4)))) == {'blocks.1'}


@pytest.mark.parametrize(
    ('kind', 'reserve', 'allowed'),
    [
        ('mini_deit', LayerReserve(keep=3), '0, 2, 4'),
        ('mini_swin', LayerReserve(keep=5), '0, 2, 4, 6, 8, 10'),
        ('multiplexed', LayerReserve(keep=1), '0, 2, 4'),
        ('multiplexed', LayerReserve(reset=(2, 4)), '0, 2, 4'),
        ('mini_deit', LayerReserve(reset=(1, 3)), '0, 2, 4'),
    ],
)
def test_a_bound_between_blocks_that_share_weights_is_refused_with_those_that_are_allowed(kind, reserve, allowed):
    model, fresh = pair(kind)
    before = state_hash(model)
    refused(
        lambda: reserve_layers(model, fresh, reserve), 'share weights', f'after block {allowed}.', kind=EvaluationError
    )
    assert state_hash(model) == before


@pytest.mark.parametrize('reserve', [LayerReserve(keep=7), LayerReserve(reset=(0, 2)), LayerReserve(reset=(5, 7))])
def test_blocks_that_are_not_there_are_refused(reserve):
    refused(lambda: reserve_layers(*pair('vit'), reserve), 'has 6 blocks', kind=EvaluationError)


def test_a_model_without_blocks_is_refused():
    model = timm.create_model('test_resnet', num_classes=5)
    refused(lambda: reserve_layers(model, model, LayerReserve(keep=1)), 'called blocks', kind=EvaluationError)
    refused(lambda: LayerReserve(), '--keep-blocks', kind=EvaluationError)


# The commands


@pytest.fixture
def encoder(tmp_path):
    torch.manual_seed(3)
    save_folder(timm.create_model('test_vit', img_size=32, num_classes=10), tmp_path / 'weights')
    return f'local-dir:{tmp_path / "weights"}'


@pytest.fixture
def trained_from(cli, encoder, tmp_path, monkeypatch):
    """The initial weights of a command's training, which is not run; or its error."""
    from tinyvit_zoo.downstream import finetune as module

    def run(*options):
        started = []

        def stop(model, *args, **kwargs):
            started.append(state_hash(model))
            raise EvaluationError('Enough.')

        monkeypatch.setattr(module, 'finetune', stop)
        code, _, err = cli('finetune', encoder, '-d', 'digits', '-o', tmp_path / 'out', *options)
        assert code
        return started[0] if started else err

    return run


def test_finetune_with_all_blocks_kept_starts_from_the_plain_weights(trained_from):
    plain = trained_from()
    assert trained_from('--keep-blocks', 6) == plain
    anew = trained_from('--keep-blocks', 4)
    assert len({plain, anew, trained_from('--reset-blocks', '5-6')}) == 3
    assert trained_from('--keep-blocks', 4, '--seed', 0) == anew


def test_options_that_make_no_sense_are_refused(trained_from, cli):
    assert 'exclude each other' in trained_from('--keep-blocks', 4, '--reset-blocks', 5)
    assert 'such as 9-11' in trained_from('--reset-blocks', '3-2')
    for command in (
        ('finetune', 'test_vit', '--random'),
        ('pretrain', 'features', '--student', 'test_vit', '--teacher', 'test_vit'),
    ):
        code, _, err = cli(*command, '--keep-blocks', 1, '-d', 'digits', '-o', 'nowhere')
        assert (code, 'starts from random ones' in err) == (2, True), err


@pytest.mark.parametrize('option', ['--keep-blocks', '--reset-blocks'])
def test_pretrainings_from_random_weights_say_why_no_block_can_stay(cli, option):
    for method in ('mae', 'd_mae', 'mocov3', 'tinymim'):
        code, _, err = cli('pretrain', method, option, 3, '-d', 'digits', '-o', 'nowhere')
        assert (code, f'pretrain {method} starts from random weights' in ' '.join(err.split())) == (2, True), err


def test_the_results_say_which_blocks_stayed(cli, encoder, tmp_path):
    code, out, err = cli(
        'finetune', encoder, '-d', 'digits', '--subset', '1%', '--held-out', 0, '--epochs', 1, '--keep-blocks', 3, '-o',
        tmp_path / 'out',
    )  # fmt: skip
    assert code == 0, err
    assert 'Layer reserve: the first 3 of 6 blocks stay' in out
    start = json.loads((tmp_path / 'out' / 'results.json').read_text())['start']
    assert start['layer_reserve'] == dict(keep_blocks=3, blocks=6)
    assert start['classifier'] == 'fresh, as --keep-blocks has it'


def test_the_other_trainers_keep_blocks_of_a_student_with_weights(cli, encoder, tmp_path):
    mini = tmp_path / 'mini'
    save_folder(small_of('mini_deit', img_size=32, num_classes=10), mini)
    common = ('-d', 'digits', '--subset', '1%', '--epochs', 1, '--batch-size', 8)
    for kind, keep, command in (
        ('distill', 4, ('distill', 'train', encoder, '--teacher', encoder, '-k', 5)),
        (
            'features',
            4,
            ('pretrain', 'features', '--student', tmp_path / 'weights', '--student-pretrained', '--teacher', encoder),
        ),
        ('minivit', 2, ('pretrain', 'minivit', '--student', mini, '--teacher', encoder, '--losses', 'mini_deit')),
    ):
        code, _, err = cli(*command, '--keep-blocks', keep, *common, '-o', tmp_path / kind)
        assert code == 0, err
        results = json.loads((tmp_path / kind / 'results.json').read_text())
        assert results['layer_reserve']['keep_blocks'] == keep
        assert results['data']['train']['subset']['images'] == 10
    code, _, err = cli(*command, '--keep-blocks', 3, *common, '-o', tmp_path / 'other')
    assert (code, 'after block 0, 2, 4.' in err) == (1, True)
